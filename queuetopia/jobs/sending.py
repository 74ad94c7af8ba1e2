"""Signals about jobs, and what a receiver or hook raises: kept with the job, it changes nothing."""

import logging
import os
import socket
from datetime import datetime

from django.db import transaction
from django.dispatch import Signal

from .. import signals
from ..attempts import ERRORS_KEPT, ERRORS_LIMIT, HOOK, describe, raised
from ..backends import backend_for
from ..backends.values import bounded, history
from ..completion import completed
from ..models import Job
from ..text import brief, secrets_of, visible

logger = logging.getLogger("queuetopia.jobs")

MOST_COUNTED = 1_000  # waiting jobs counted for a signal
_AFTER_AN_END = {
    signal: name
    for name, signal in vars(signals).items()
    if isinstance(signal, Signal) and name not in ("job_created", "job_started")
}


def send(signal, queuetopia, **arguments):
    """Send a signal; a receiver that raises is logged and changes nothing."""
    for receiver, answer in signal.send_robust(sender=queuetopia, **arguments):
        if not isinstance(answer, Exception):
            answer = _failure_of(answer)
        if answer is not None:
            secrets = secrets_of(arguments["job"].params, queuetopia.option("sensitive_params"))
            logger.error("receiver failed receiver=%r\n%s", receiver, raised(answer, secrets))
            if name := _AFTER_AN_END.get(signal):
                keep_hook_error(queuetopia, arguments["job"], f"{name} to {_name_of(receiver)}", answer)


def _name_of(receiver):
    name = getattr(receiver, "__qualname__", None)
    return f"{receiver.__module__}.{name}" if name else type(receiver).__qualname__


def keep_hook_error(queuetopia, job, hook: str, exc: BaseException) -> None:
    """Add what a hook or receiver raised after an attempt's end to the job's ``errors``, whatever its state is by now.

    On the caller's own connection. If that cannot be done, as when the database is away, only the log has it.
    """
    alias = queuetopia.database()
    try:
        entry = {
            "kind": HOOK,
            "hook": hook[:200],
            "attempt": job.attempts,
            "at": backend_for(alias).now().isoformat(),
            "by": visible(f"{socket.gethostname()}:{os.getpid()}"),
            "counted": False,
            **describe(exc, secrets_of(job.params, queuetopia.option("sensitive_params"))),
        }
        with transaction.atomic(using=alias):
            rows = Job.objects.using(alias).filter(pk=job.pk)
            for errors in rows.select_for_update().values_list("errors", flat=True):
                rows.update(errors=bounded([*history(errors), entry][-ERRORS_KEPT:], ERRORS_LIMIT))
    except Exception as broken:
        logger.warning("a hook's error is not kept with its job job=%d error=%r", job.pk, brief(broken))


def _failure_of(answer) -> Exception | None:
    """Wait for the awaitable that a sync receiver returned; return why it failed, or why it is no answer."""
    try:
        completed(answer, "It")
    except Exception as exc:
        return exc
    return None


def send_unblocked(queuetopia, job, since: datetime, queue: str | None = None) -> None:
    """Send queue_unblocked for a job that has just ended and had failed first at ``since``.

    queue: the one that it held, if it has moved to another one since.
    """
    if signals.queue_unblocked.has_listeners(queuetopia):
        now = backend_for(queuetopia.database()).now()
        duration = max(0.0, ((job.done_at or now) - since).total_seconds())
        queue = job.queue if queue is None else queue
        waiting = number_waiting(queuetopia, queue, now)
        send(signals.queue_unblocked, queuetopia, job=job, queue=queue, duration=duration, waiting=waiting)


def number_waiting(queuetopia, queue: str, now: datetime) -> int:
    """Return how many due jobs wait in the queue, up to ``MOST_COUNTED`` and one more."""
    return (
        Job.objects.using(queuetopia.database()).in_queue(queuetopia.scope, queue).waiting(now).count_to(MOST_COUNTED)
    )
