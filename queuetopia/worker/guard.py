"""User code that must not change anything by raising: receivers and alerts."""

import logging
from functools import partial

from .. import signals
from ..attempts import raised, readable
from ..jobs import keep_hook_error, send
from ..logs import fields
from ..registry import by_scope
from ..text import secrets_of

logger = logging.getLogger(__name__)


def secrets(queuetopia, job):
    sensitive = queuetopia.option("sensitive_params")
    found = secrets_of(job.params, sensitive)
    for other in (job.chunk or ())[1:] if sensitive else ():
        for name in sensitive:
            found.add(other.params.get(name))
    for memory in _memories(job) if sensitive else ():
        for name in sensitive:
            found.add(memory.get(name))
    return found


def _memories(job):
    """Return the memory of the job's queue as it was stored, and as the attempt has it now."""
    stored = job._claim and job._claim.memory
    return [memory for memory in (stored and readable(stored), job._memory) if isinstance(memory, dict)]


def send_signal(name, queuetopia, **arguments):
    whatever_happens(arguments["job"], name, partial(send, getattr(signals, name), queuetopia, **arguments))


def whatever_happens(job, name, send):
    try:
        send()
    except BaseException as exc:  # a receiver that calls sys.exit
        queuetopia = by_scope()[job.scope]
        text = raised(exc, secrets(queuetopia, job))
        logger.error("receiver failed job=%d\n%s", job.pk, text, extra=fields(job._claim, "receiver failed"))
        if name != "job_started":
            keep_hook_error(queuetopia, job, name, exc)
