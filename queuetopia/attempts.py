"""One attempt as it travels: a Claim goes to a worker, an Outcome comes back.

Both are flat tuples, sent as JSON lists.
"""

import json
import traceback
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, NamedTuple

from django.db import DatabaseError

from .exceptions import InvalidMemory, Unfinished
from .params import InvalidParams, ParamsDecoder, ParamsEncoder, Unreadable, as_text, check, loads
from .text import loggable, masked_end, masked_start, without_rows

ERRORS_KEPT = 20  # entries of job.errors; the oldest go first
HOOK = "hook"  # the kind of an entry of job.errors that is no attempt's: a hook or receiver raised
MESSAGE_LIMIT = 2_000  # characters of an error's message
TRACEBACK_LIMIT = 8_000  # characters of its traceback; the end is kept
ERRORS_LIMIT = 262_144  # bytes of job.errors; the oldest tracebacks go first
# Stored instead of what a database refuses, in ASCII and short: it must not be refused too.
REFUSED = (
    "The database refused to store how this attempt ended; the node's log has its error. Look for a constraint or "
    "trigger on the jobs table, a character set that lacks the text, or a limit of packet size. Then retry the job, "
    "mark it as done, or skip it."
)
RESULT_LIMIT = 262_144  # characters of a result's JSON; a longer one is not kept
MEMORY_LIMIT = 16_384  # bytes of a queue's memory as JSON: it travels with each claim


# The job of the attempt that runs in this context, as its performer is handed it. Threads begun by hand do not have it.
current_job: ContextVar[Any] = ContextVar("queuetopia_current_job", default=None)


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
    outside: str | None = None  # JSON: its last attempt was deferred, and what was reported of it: ``jobs.deferring``
    memory: str | None = None  # of its queue, as stored
    coalesces: bool = False  # creators may have given it other params since these were read: ``Backend.claim``
    trial: bool = False  # one of the few that are tried at once in, or right after, an outage: ``backends.breakers``


class Verdict(StrEnum):
    """How an attempt ended, and what that makes of the job."""

    DONE = "done"
    RETRY = "retry"  # failed; the next attempt after ``delay``
    HALT = "halt"  # failed; holds its queue until an operator decides
    SKIP = "skip"  # failed; given up, the queue goes on
    MOVE = "move"  # failed; halted at the end of another queue, ``to``; its own goes on
    CANCEL = "cancel"  # stopped because an operator asked for it
    SNOOZE = "snooze"  # not now: again after ``delay``; not counted
    OUTAGE = "outage"  # failed while the breaker of its scope is open: again when it is tried; not counted
    DEFER = "defer"  # goes on outside, until that is reported, or for ``delay`` at most; counted when it has ended
    INTERRUPT = "interrupt"  # cut short by our own stop; again at once, not counted
    RETURN = "return"  # never started; again after ``delay``; nothing is written to the job


class Meaning(NamedTuple):
    """What a verdict makes of its job and queue; the one place that says so."""

    state: str = "pending"  # of the job afterwards; one that is neither pending nor halted ends the job
    counted: bool = True  # as one of the job's attempts
    again: bool = False  # the next attempt follows after ``delay``, by itself
    is_failure: bool = False  # it has an error, and the queue is blocked if the job has not ended
    leaves_queue: bool = False  # it has not ended, and holds its queue no more
    is_own_end: bool = False  # the performer came to an end by itself: its duration is worth knowing
    counters: tuple[str, ...] = ()  # of the statistics
    hooks: tuple[str, ...] = ()  # of the performer, called after the commit in this order
    signals: tuple[str, ...] = ()  # sent after the hooks

    @property
    def ends_job(self) -> bool:
        return self.state not in ("pending", "halted")

    @property
    def frees_queue(self) -> bool:
        return self.ends_job or self.leaves_queue

    @property
    def blocks_queue(self) -> bool:
        return self.is_failure and not self.frees_queue


MEANING = {
    Verdict.DONE: Meaning(
        "done", is_own_end=True, counters=("done",), hooks=("handle_done_job",), signals=("job_done",)
    ),
    Verdict.RETRY: Meaning(
        again=True, is_failure=True, is_own_end=True, counters=("failed",),
        hooks=("handle_failed_job",), signals=("job_failed",),
    ),
    Verdict.HALT: Meaning(
        "halted", is_failure=True, is_own_end=True, counters=("failed", "halted"),
        hooks=("handle_failed_job", "handle_exhausted_job"), signals=("job_failed", "job_halted"),
    ),
    Verdict.SKIP: Meaning(
        "skipped", is_failure=True, is_own_end=True, counters=("failed", "skipped"),
        hooks=("handle_failed_job", "handle_exhausted_job"), signals=("job_failed", "job_skipped"),
    ),
    Verdict.MOVE: Meaning(
        "halted", is_failure=True, leaves_queue=True, is_own_end=True, counters=("failed", "halted"),
        hooks=("handle_failed_job", "handle_exhausted_job"), signals=("job_failed", "job_halted"),
    ),
    Verdict.CANCEL: Meaning("cancelled", counters=("cancelled",), signals=("job_cancelled",)),
    Verdict.SNOOZE: Meaning(counted=False, again=True),
    Verdict.OUTAGE: Meaning(counted=False, again=True),
    Verdict.DEFER: Meaning(counted=False, again=True),
    Verdict.INTERRUPT: Meaning(counted=False, again=True),
    Verdict.RETURN: Meaning(counted=False, again=True),
}  # fmt: skip

FAILURES = {verdict for verdict, meaning in MEANING.items() if meaning.is_failure}
ENDINGS = {verdict for verdict, meaning in MEANING.items() if meaning.ends_job}
FREEING = {verdict for verdict, meaning in MEANING.items() if meaning.frees_queue}


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
    of_scope: bool = False  # a snooze of the whole scope
    breaker: tuple | None = None  # a failure of the kind that its class's breaker names: ``breaker.Terms``
    outage: tuple | None = None  # as recorded: it has "opened" or "closed" the scope, which was open since then
    wants_news: bool = False  # the worker has hooks or receivers that wait for the commit
    memory: str | None = None  # JSON text of the queue's memory, to be stored with a success; None: as it was
    to: str = ""  # the queue that a job moves to
    chunk: list | None = None  # [[id, scheduled at, result], …] of the jobs behind it that were done with it


def checked(outcome: Outcome) -> Outcome:
    """Return a reported outcome with times that can be worked with: a job may have patched its process's clock.

    Raises ValueError if it is no outcome.
    """
    Verdict(outcome.verdict)
    return outcome._replace(delay=_seconds(outcome.delay), duration=_seconds(outcome.duration))


def _seconds(value):
    if not isinstance(value, int | float):
        raise ValueError(f"{value!r} is no number of seconds")
    return value if 0 <= value < float("inf") else 0.0  # NaN is neither


def backoff(attempt: int, max_backoff: float, base: float = 2.0, factor: float = 2.0) -> float:
    """Return the seconds to wait after failed attempt ``attempt``: 2, 3, 5, 9, 17 … up to ``max_backoff``.

    base: the wait after the first failed attempt. factor: the growth; 1 keeps the wait at ``base``.

    With 2 and 2 the formula is that of the Elixir library Queuetopia: 2 ** (n - 1) + 1.
    """
    try:
        seconds = base * (factor ** (attempt - 1) + 1) / 2
    except OverflowError:  # far over any cap
        return float(max_backoff)
    return float(min(seconds, max_backoff))


def describe(exc: BaseException, secrets=None) -> dict:
    """Return an exception as storable text; never raises, whatever ``exc.__str__`` does."""
    try:
        message = str(exc)
    except BaseException as broken:
        message = f"<{type(broken).__name__} while the message was asked for>"
    try:
        lines = "".join(traceback.format_exception(exc))
    except BaseException:
        lines = ""
    cls = type(exc)
    return {
        "type": masked_start(cls.__name__, 200, secrets),
        "class": masked_start(f"{cls.__module__}.{cls.__qualname__}", 400, secrets),
        "message": masked_start(message, MESSAGE_LIMIT, secrets),
        "traceback": masked_end(lines, TRACEBACK_LIMIT, secrets),
    }


def raised(exc: BaseException, secrets=None) -> str:
    """Return an exception of user code with its traceback, fit for a log."""
    text = describe(exc, secrets)["traceback"]
    return loggable(without_rows(text) if isinstance(exc, DatabaseError) else text)


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


def result_texts(job, returned) -> tuple[str | None, list | None]:
    """Return the job's result as text, and what is stored of the jobs that were done with it; None if it is no chunk.

    Raises Unfinished for a list of results that has not one for each job.
    """
    if job.chunk is None:
        return result_text(returned), None
    results = returned if isinstance(returned, list) else [returned] * len(job.chunk)
    if len(results) != len(job.chunk):
        raise Unfinished(
            f"a chunk of {len(job.chunk)} jobs returned a list of {len(results)}: return a result for each job, in "
            "their order, or one that is no list for all of them"
        )
    first, *others = map(result_text, results)
    behind = zip(job.chunk[1:], others, strict=True)
    return first, [[one.pk, one.scheduled_at.isoformat(), text] for one, text in behind] or None


# The memory of a queue


def memory_of(text: str | None) -> dict:
    """Return a queue's memory from its stored text; raise InvalidMemory if that was not written by Queuetopia."""
    memory = {} if text is None else readable(text)
    if isinstance(memory, Unreadable):
        raise InvalidMemory("the stored memory of this queue cannot be read; write it anew by edit_memory")
    return memory


def memory_text(memory: Any) -> str:
    """Return a queue's memory as text; raise InvalidMemory if it cannot be stored."""
    if not isinstance(memory, dict):
        raise InvalidMemory(f"a queue's memory must be a dict, not {type(memory).__name__}")
    try:
        check(memory, "memory")
    except InvalidParams as exc:
        raise InvalidMemory(str(exc)) from None
    text = as_text(memory)
    if len(text) > MEMORY_LIMIT:
        raise InvalidMemory(
            f"a queue's memory takes {len(text)} bytes as JSON, over the limit of {MEMORY_LIMIT}: keep a cursor, a "
            "version or a sum in it, and the data in a model of your own"
        )
    return text


def changed_memory(memory: Any, was: str | None) -> str | None:
    """Return the memory as text if it is another one than it ``was``; None if not. Raise as ``memory_text`` does."""
    text = memory_text(memory)
    return None if text == memory_text(memory_of(was)) else text
