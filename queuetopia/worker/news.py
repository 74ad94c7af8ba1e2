"""What follows the commit of an end: hooks, signals and alerts. Nothing they raise changes anything."""

import json
import logging
from datetime import datetime
from functools import partial

from .. import exceptions, signals
from ..attempts import MEANING, Claim, Outcome, Verdict, raised
from ..backends.breakers import OPENED
from ..completion import completed
from ..jobs import keep_hook_error, send_unblocked
from ..logs import fields
from ..models import Job
from ..params import ParamsDecoder
from ..performer import Performer
from ..registry import by_scope
from . import alerts
from .guard import secrets, send_signal, whatever_happens
from .performing import job_of, performer_of

logger = logging.getLogger(__name__)


def _signals_after(meaning):
    names = [*meaning.signals]
    names += ["queue_blocked"] if meaning.blocks_queue else ["queue_unblocked"] if meaning.frees_queue else []
    return [getattr(signals, name) for name in names]


_SENT = {verdict: _signals_after(meaning) for verdict, meaning in MEANING.items()}


def wants_news(queuetopia, verdict) -> bool:
    """True when some hook or receiver waits for the commit of such an end."""
    if any(getattr(queuetopia.performer, name) is not getattr(Performer, name) for name in MEANING[verdict].hooks):
        return True
    return any(signal.has_listeners(queuetopia) for signal in _SENT[verdict])


def notify(claim: Claim, outcome: Outcome, exc: BaseException | None) -> None:
    """Call the hooks and send the signals of an end that is committed. Nothing they raise changes anything."""
    queuetopia = by_scope()[claim.scope]
    job = _job_as_stored(queuetopia, claim, outcome)
    meaning = MEANING[Verdict(outcome.verdict)]
    if exc is None and outcome.error:
        exc = getattr(exceptions, outcome.error["type"], exceptions.AttemptEnded)(outcome.error["message"])
    given = {"exc": exc} if meaning.is_failure else {}
    for hook in meaning.hooks:
        if outcome.exhausted or hook != "handle_exhausted_job":
            _call(queuetopia, hook, job, *given.values())
    for name in meaning.signals:
        send_signal(name, queuetopia, job=job, **given)
    if meaning.blocks_queue and not claim.failed_at:
        whatever_happens(job, "queue_blocked", partial(alerts.notify_blocked, queuetopia, job, exc))
    if meaning.frees_queue and claim.failed_at:
        since = datetime.fromisoformat(claim.failed_at)
        whatever_happens(job, "queue_unblocked", partial(send_unblocked, queuetopia, job, since, claim.queue))
    if outcome.outage:
        _send_outage(queuetopia, job, outcome.outage, exc)


def _job_as_stored(queuetopia, claim, outcome) -> Job:
    """Return the job as this end has left it, read-only.

    If its row is gone, or is of a later attempt by now, or cannot or need not be read: what is known of this end.
    """
    stored = _stored(queuetopia, claim) if queuetopia.performer.reads_stored_job else None
    if stored is not None and stored.attempts <= claim.attempt:
        stored.fence, stored._claim = claim.fence, _as_left(claim, outcome)
        return stored
    job = job_of(_as_left(claim, outcome))
    job.state = MEANING[Verdict(outcome.verdict)].state
    job.result = None if outcome.result is None else json.loads(outcome.result, cls=ParamsDecoder)
    if outcome.error:
        job.error = f"{outcome.error['type']}: {outcome.error['message']}"
    return job


def _as_left(claim, outcome):
    """Return the claim with the queue's memory as the attempt has left it."""
    return claim if outcome.memory is None else claim._replace(memory=outcome.memory)


def _stored(queuetopia, claim):
    try:
        return queuetopia.jobs().filter(pk=claim.job_id).first()
    except Exception as exc:  # the hooks are called all the same
        logger.warning("job not read for its hooks job=%d error=%r", claim.job_id, exc)
        return None


def _send_outage(queuetopia, job, outage, exc):
    change, since = outage
    if change == OPENED:
        send_signal("breaker_opened", queuetopia, job=job, exc=exc)
    else:
        send_signal("breaker_closed", queuetopia, job=job, since=datetime.fromisoformat(since) if since else None)


def send_alert(claim, duration, threshold):
    alerts.send_still_blocked(by_scope()[claim.scope], job_of(claim), duration, threshold)


def _call(queuetopia, hook, *arguments):
    if getattr(queuetopia.performer, hook) is getattr(Performer, hook):
        return
    try:
        returned = getattr(performer_of(queuetopia), hook)(*arguments)
        completed(returned, f"{hook}() of {queuetopia.performer.__name__}")
    except BaseException as exc:
        job = arguments[0]
        text, extra = raised(exc, secrets(queuetopia, job)), fields(job._claim, "hook failed")
        logger.error("hook failed hook=%s job=%d\n%s", hook, job.pk, text, extra=extra)
        keep_hook_error(queuetopia, job, hook, exc)
