"""Everything Queuetopia raises.

QueuetopiaError
├── InvalidJob              create_job was given something that could not run or be stored
│   └── QueueFull           the queue has as many unfinished jobs as its class's ``max_depth`` lets it have
├── Refused                 a verb (retry, skip, cancel, …) does not apply to the job as it is
├── ReadOnlyJob             save() or delete() on the job a performer was handed
├── StaleAttempt            what is written together with the job was rolled back: its queue has gone on without it
├── SessionLost             the scheduler's database session, and with it its locks, is gone
├── SessionRefused          this database connection cannot carry a scheduler; the text says why
├── TimesRefused            Django's settings would store times wrong; the text names the setting and the remedy
├── NoResult                a job that was waited for has no result; ``job`` is the job as stored
│   ├── JobHalted           it waits for an operator
│   ├── JobSkipped          it was given up
│   └── JobCancelled        an operator asked to stop it; an AttemptEnded, too
├── AttemptEnded            how an attempt ended when the performer did not say so itself
│   ├── JobTimeout          it outlived its timeout and was killed
│   ├── WorkerDied          its worker process ended without a result
│   ├── NodeDied            its whole node vanished
│   ├── JobCancelled        an operator asked to stop it
│   ├── JobInterrupted      our own stop cut it short; it is not counted
│   ├── FailedOutside       a deferred attempt was reported as failed, by ``fail(token)``
│   ├── ExternalFailed      the program of ``External`` did not exit with 0
│   ├── OpenTransaction     the performer returned with a transaction still open
│   ├── InvalidMemory       what the performer left in ``job.memory`` cannot be stored
│   └── Unfinished          the performer returned work that was not done: a generator, an open future, …
└── Verdict                 raised *by* a performer to say what comes next
    ├── Retry(delay=None)   a failed attempt; the next one after ``delay`` instead of the backoff
    ├── Snooze(delay)       not now: uses no attempt; with ``scope=True`` nothing of the scope starts for so long
    ├── Halt(reason)        stop here and hold the queue until an operator decides
    └── Skip(reason)        give this job up; the queue goes on
"""

import math
import re
from datetime import timedelta
from typing import Any

from django.core.exceptions import ImproperlyConfigured, ValidationError


class QueuetopiaError(Exception):
    """Base of everything raised by Queuetopia."""


class InvalidJob(ValidationError, QueuetopiaError):
    """A job that could not run or be stored; nothing was written.

    ``message_dict`` is keyed by the argument's name (``params``, ``timeout``, in bulk ``jobs[3].params``).
    ``sentences()`` are its messages as text, each naming its argument once.
    """

    def sentences(self) -> list[str]:
        return [_sentence(name, text) for name, texts in self.message_dict.items() for text in texts]


_NAMED_BY_ITSELF = {"params": r"\bparams?\b", "action": r"\baction\b"}


def _sentence(argument, text):
    job, _, name = argument.rpartition(".")
    is_named = name in _NAMED_BY_ITSELF and re.search(_NAMED_BY_ITSELF[name], text)
    return f"{job and f'{job}: '}{text if is_named else f'{name} {text}'}"


class QueueFull(InvalidJob):
    """The queue has as many unfinished jobs as its class's ``max_depth`` lets it have; nothing was written.

    ``message_dict`` is keyed by ``queue``, in bulk by ``jobs[3].queue``, the first job that was too many.
    """


class Refused(QueuetopiaError):
    """A verb that does not apply to the job or queue as it is now; the text says why."""


class ReadOnlyJob(QueuetopiaError):
    """The job handed to a performer is a copy made from the claim; only the scheduler writes the row."""


class StaleAttempt(QueuetopiaError):
    """This attempt has lost its queue, to another attempt or to an operator: the block was rolled back.

    Raised by ``job.completing()`` and ``job.once()``. Leave it alone: whatever the attempt does now is refused.
    """


class SessionLost(QueuetopiaError):
    """The scheduler's database session ended: other sessions may hold its locks by now."""


class SessionRefused(QueuetopiaError):
    """The connection cannot hold a scheduler's locks; the text names the remedy."""


class TimesRefused(ImproperlyConfigured, QueuetopiaError):
    """Django's settings would store the times of jobs wrong; nothing was written.

    Raised by ``create_job``, every verb and every node, because system checks can be skipped. The text names the
    setting, the cause and the remedy.
    """


class NoResult(QueuetopiaError):
    """A job that was waited for has no result. ``job`` is the job as stored, with its ``error``."""

    def __init__(self, message: str = "", job: Any = None):
        super().__init__(message)
        self.job = job


class JobHalted(NoResult):
    """The job is halted: it holds its queue until an operator decides."""


class JobSkipped(NoResult):
    """The job was given up: by its performer, by its options or by an operator."""


class AttemptEnded(QueuetopiaError):
    """An attempt that ended otherwise than by the performer's own return or exception."""


class JobTimeout(AttemptEnded):
    """The attempt lasted longer than the job's timeout and was killed."""


class WorkerDied(AttemptEnded):
    """The worker process ended before it reported a result."""


class NodeDied(AttemptEnded):
    """The node that ran the attempt vanished; its successor counted the attempt."""


class JobCancelled(AttemptEnded, NoResult):
    """An operator asked to stop the running job. Raised by a wait, ``job`` is the job that was cancelled."""


class JobInterrupted(AttemptEnded):
    """The node was stopped; the attempt goes back to the head of its queue, not counted."""


class FailedOutside(AttemptEnded):
    """A deferred attempt was reported as failed."""


class ExternalFailed(AttemptEnded):
    """The program of an ``External`` did not exit with 0."""


class OpenTransaction(AttemptEnded):
    """The performer returned with a transaction open; it was rolled back, so its work is not stored."""


class InvalidMemory(AttemptEnded):
    """What an attempt left in ``job.memory`` cannot be stored: no dict of JSON, or too much of it."""


class Unfinished(AttemptEnded):
    """The performer returned work that is not done, or a verdict instead of raising it; the text says what to do."""


class Verdict(QueuetopiaError):
    """What a performer raises to say what comes next; not an error by itself."""


def _seconds(delay):
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"delay must be seconds or a timedelta, not {type(delay).__name__}")
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"delay must be finite and not negative, not {delay!r}")
    return float(seconds)


class Retry(Verdict):
    """Fail this attempt; make the next one after ``delay`` (seconds or timedelta; None: the backoff)."""

    def __init__(self, reason="", *, delay=None):
        super().__init__(reason or "retry asked for")
        self.delay = None if delay is None else _seconds(delay)


class Snooze(Verdict):
    """Come back after ``delay`` (seconds or timedelta); uses no attempt, and the queue waits.

    scope: nothing of the whole scope starts for so long, on any node; what runs goes on. For a provider that says "too
    many requests, come back in 30 seconds" to all.
    """

    def __init__(self, delay, *, scope=False):
        super().__init__(f"snoozed for {delay}")
        self.delay = _seconds(delay)
        self.scope = bool(scope)


class Halt(Verdict):
    """Halt the job: its queue stays blocked until an operator decides.

    An operator can retry it, skip it, edit it, mark it as done or move it to the end. Only a job that was never
    attempted can be cancelled.
    """

    def __init__(self, reason="halted by the performer"):
        super().__init__(reason)


class Skip(Verdict):
    """Give the job up as ``skipped``; its queue goes on with the next one."""

    def __init__(self, reason="skipped by the performer"):
        super().__init__(reason)
