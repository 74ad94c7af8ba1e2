"""What a failed attempt means for its job: the next attempt, a halt, or a skip."""

import logging
import random

from ..attempts import Claim, Outcome, Verdict, backoff, describe
from ..registry import by_scope

logger = logging.getLogger("queuetopia.jobs")


def failed(
    queuetopia, claim: Claim, exc: BaseException, *, duration=0.0, secrets=None, delay=None, next_step=None
) -> Outcome:
    """Return the Outcome of a failed attempt.

    delay: seconds asked for by Retry or the performer's backoff(); None means the built-in formula.
    next_step: what a callable ``on_exhausted`` said; None means the option's name, "halt" for a callable.
    """
    exhausted = claim.attempt >= (claim.max_attempts or queuetopia.option("max_attempts"))
    if exhausted and next_step is None:
        configured = claim.on_exhausted or queuetopia.option("on_exhausted")
        next_step = "halt" if callable(configured) else configured
    verdict = {"halt": Verdict.HALT, "skip": Verdict.SKIP}.get(next_step, Verdict.RETRY) if exhausted else Verdict.RETRY
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
    )


def _backoff(queuetopia, claim):
    cap = queuetopia.option("max_backoff") if claim.max_backoff is None else claim.max_backoff
    seconds = backoff(claim.attempt, cap, queuetopia.option("backoff_base"), queuetopia.option("backoff_factor"))
    return seconds * (1 + random.random() * queuetopia.option("jitter"))  # noqa: S311 - no secret


def timeout_text(claim: Claim) -> str:
    timeout = claim.timeout or by_scope()[claim.scope].option("timeout")
    return f"the attempt lasted longer than its timeout of {timeout:g} s and was killed"
