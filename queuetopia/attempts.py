"""One attempt as it travels: a Claim goes to a worker, an Outcome comes back.

Both are flat tuples, sent as JSON lists.
"""

import json
import traceback
from enum import StrEnum
from typing import NamedTuple

from .params import ParamsDecoder, ParamsEncoder, Unreadable, check, loads

ERRORS_KEPT = 20  # entries of job.errors; the oldest go first
MESSAGE_LIMIT = 2_000  # characters of an error's message
TRACEBACK_LIMIT = 8_000  # characters of its traceback; the end is kept
MASK = "********"  # shown, and stored in errors, instead of a sensitive value
RESULT_LIMIT = 262_144  # characters of a result's JSON; a longer one is not kept


class Claim(NamedTuple):
    """A job that may run now, under ``fence``, by the node that claimed its queue."""

    job_id: int
    queue_id: int
    scope: str
    queue: str
    action: str
    params: str  # as stored: reading it is the worker's business, so a corrupt row hurts its own queue only
    attempt: int  # this attempt's number
    fence: int
    rev: int
    scheduled_at: str
    timeout: float | None
    max_backoff: float | None
    max_attempts: int | None
    on_exhausted: str | None
    attempted: bool  # it was attempted before: it is the head until it ends
    failed_at: str | None  # when an attempt of it failed first: since then its queue is blocked


class Verdict(StrEnum):
    """How an attempt ended, and what that makes of the job."""

    DONE = "done"
    RETRY = "retry"  # failed; the next attempt after ``delay``
    HALT = "halt"  # failed; holds its queue until a person decides
    SKIP = "skip"  # failed; given up, the queue goes on
    CANCEL = "cancel"  # stopped because a person asked for it
    SNOOZE = "snooze"  # not now: again after ``delay``; not counted
    INTERRUPT = "interrupt"  # cut short by our own stop; again at once, not counted
    RETURN = "return"  # never started; again after ``delay``; nothing is written to the job


FAILURES = {Verdict.RETRY, Verdict.HALT, Verdict.SKIP}
ENDINGS = {Verdict.DONE, Verdict.SKIP, Verdict.CANCEL}


class Outcome(NamedTuple):
    """How the attempt of a Claim ended, to be stored if ``fence`` is still the queue's."""

    job_id: int
    fence: int
    verdict: str
    delay: float = 0.0
    error: dict | None = None  # type, message, traceback
    result: str | None = None  # JSON text
    duration: float = 0.0
    exhausted: bool = False
    wants_news: bool = False  # the worker has hooks or receivers that wait for the commit


def backoff(attempt: int, max_backoff: float) -> float:
    """Return the seconds to wait after failed attempt ``attempt``: 2, 3, 5, 9, 17 … up to ``max_backoff``.

    The formula is that of the Elixir library Queuetopia: 2 ** (n - 1) + 1.
    """
    # 2**60 s is far over any cap; the power is bounded before it could overflow a float.
    return float(min(2 ** min(attempt - 1, 60) + 1, max_backoff))


def describe(exc: BaseException, secrets=()) -> dict:
    """Return an exception as storable text; never raises, whatever ``exc.__str__`` does."""
    try:
        message = str(exc)
    except BaseException as broken:
        message = f"<{type(broken).__name__} while the message was asked for>"
    try:
        lines = "".join(traceback.format_exception(exc))
    except BaseException:
        lines = ""
    return {
        "type": storable(type(exc).__name__, 200),
        "message": storable(_mask(message, secrets), MESSAGE_LIMIT),
        "traceback": storable(_mask(lines[-TRACEBACK_LIMIT:], secrets), TRACEBACK_LIMIT),
    }


def loggable(traceback_text: str) -> str:
    """Return a traceback fit for a log: what user code wrote in it can neither steer a terminal nor pass for a record.

    Line by line, each indented: a message of several lines would else begin some of its own.
    """
    return "\n".join(f"  {repr(line)[1:-1]}" for line in traceback_text.splitlines())


def raised(exc: BaseException, secrets=()) -> str:
    """Return an exception of user code with its traceback, fit for a log."""
    return loggable(describe(exc, secrets)["traceback"])


def storable(text: str, limit: int) -> str:
    """Return ``text`` as every database can store it: no NUL, no lone surrogates, at most ``limit`` characters."""
    text = text[: limit + 1].replace("\x00", "␀").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _mask(text, secrets):
    for secret in secrets:
        text = text.replace(secret, MASK)
    return text


def secrets_of(params, sensitive) -> list[str]:
    """Return the texts of the sensitive params' values, longest first, to be masked in errors."""
    if not sensitive or not isinstance(params, dict):
        return []
    found: set[str] = set()
    for name in sensitive:
        _collect(params.get(name), found)
    return sorted((text for text in found if len(text) > 2), key=len, reverse=True)


def _collect(value, found):
    if isinstance(value, dict):
        for item in value.values():
            _collect(item, found)
    elif isinstance(value, list):
        for item in value:
            _collect(item, found)
    elif value is not None and not isinstance(value, bool):
        found.add(str(value))


def masked(params, sensitive) -> dict:
    """Return the params with sensitive values masked, for people's eyes."""
    if not isinstance(params, dict):
        return {"unreadable": str(params)} if not sensitive else {"unreadable": MASK}
    return {name: MASK if name in sensitive else value for name, value in params.items()}


def readable(text: str):
    """Return stored params text as a dict, or Unreadable with the raw text."""
    try:
        return loads(text)
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return Unreadable(text)


def result_text(result) -> str | None:
    """Return the result as JSON text, or None when it is no JSON every database can store."""
    if result is None:
        return None
    try:
        text = json.dumps(result, cls=ParamsEncoder)
        check(json.loads(text, cls=ParamsDecoder), "result")  # as it comes back
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError):
        return None
    return text if len(text) <= RESULT_LIMIT else None
