"""What a failed attempt means for its job: the next attempt, a halt, or a skip."""

import logging
import random

from .. import conf, exceptions
from ..attempts import Claim, Outcome, Verdict, backoff, describe
from ..backends.values import attempts_of
from ..moving import as_move
from ..registry import by_scope

logger = logging.getLogger("queuetopia.jobs")

GIVEN_UP = {"halt": Verdict.HALT, "skip": Verdict.SKIP}  # any other step is another attempt
_CUT_SHORT = {
    cls.__name__ for cls in (exceptions.JobTimeout, exceptions.WorkerDied, exceptions.NodeDied, exceptions.AttemptEnded)
}


def failed(
    queuetopia, claim: Claim, exc: BaseException, *, duration=0.0, secrets=None, delay=None, next_step=None
) -> Outcome:
    """Return the Outcome of a failed attempt.

    delay: seconds asked for by Retry or the performer's backoff(); None means the built-in formula.
    next_step: what an ``on_exhausted`` that decides said; None means the option's name, "halt" if it is none.
    """
    step = _step_on_error(queuetopia, exc)
    goes_on = step not in GIVEN_UP and not as_move(step)
    breaker = _breaker_for(queuetopia, exc) if goes_on else None
    exhausted = goes_on and claim.attempt >= (claim.max_attempts or queuetopia.option("max_attempts"))
    if exhausted:
        step = next_step or _step_on_exhausted(queuetopia, claim)
    move = as_move(step)
    if move and not queuetopia.option("ordered"):
        step, move = "halt", None  # an independent job is a line of its own: it holds nothing up where it is
    verdict = Verdict.MOVE if move else GIVEN_UP.get(step, Verdict.RETRY)
    if delay is None:
        delay = _backoff(queuetopia, claim)
    return Outcome(
        claim.job_id,
        claim.fence,
        verdict,
        delay=delay if verdict is Verdict.RETRY else 0.0,
        error=describe(exc, secrets),
        duration=duration,
        exhausted=exhausted,
        to=move.queue if move else "",
        breaker=breaker,
    )


def _step_on_error(queuetopia, exc):
    """Return what the class's ``on_error`` says of this exception, by its most specific class; None if nothing."""
    steps = queuetopia.option("on_error")
    if not steps or isinstance(exc, exceptions.Verdict):  # raised on purpose, it says itself what comes next
        return None
    return next((steps[cls] for cls in type(exc).__mro__ if cls in steps), None)


def _breaker_for(queuetopia, exc):
    """Return the terms of the class's breaker if it is for such an exception; None if not."""
    breaker = queuetopia.option("breaker")
    if breaker is None or isinstance(exc, exceptions.Verdict) or not isinstance(exc, breaker.types):
        return None
    return breaker.terms


def _step_on_exhausted(queuetopia, claim):
    configured = claim.on_exhausted or queuetopia.option("on_exhausted")
    return configured if conf.is_step(configured) else "halt"


def _backoff(queuetopia, claim):
    cap = queuetopia.option("max_backoff") if claim.max_backoff is None else claim.max_backoff
    seconds = backoff(claim.attempt, cap, queuetopia.option("backoff_base"), queuetopia.option("backoff_factor"))
    return seconds * (1 + random.random() * queuetopia.option("jitter"))  # noqa: S311 - no secret


def was_cut_short(errors) -> bool:
    """True if one of the attempts in ``job.errors`` did not come to an end of its own."""
    return any(entry.get("type") in _CUT_SHORT or not entry.get("counted", True) for entry in attempts_of(errors))


def timeout_text(claim: Claim) -> str:
    timeout = claim.timeout or by_scope()[claim.scope].option("timeout")
    return f"the attempt lasted longer than its timeout of {timeout:g} s and was killed"
