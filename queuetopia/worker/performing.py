"""One attempt: the performer, its job, what comes of it, and what it leaves open. Also used by queuetopia.testing."""

import asyncio
import contextlib
import inspect
import logging
import random
import threading
import time
from datetime import datetime
from itertools import takewhile
from operator import attrgetter

from asgiref.sync import sync_to_async
from django.db import connections
from django.db.models.base import ModelState
from django.utils import timezone, translation

from .. import conf, exceptions, signals
from ..attempts import Claim, Outcome, Verdict, current_job, describe, raised, readable, result_texts
from ..completion import acompleted, completed
from ..jobs import failed, jobs_with, was_cut_short
from ..lines import given_name
from ..models import Job
from ..outside import Deferred, aended, ended
from ..params import Unreadable
from ..performer import Performer, action_methods, chunk_of, has_own_perform, name_now
from ..registry import by_scope
from ..repeats import Repeats
from ..text import covered
from . import surroundings
from .guard import secrets, send_signal
from .middleware import takes_async, wrapped

logger = logging.getLogger(__name__)

SCARCITY = (MemoryError, OSError, RuntimeError)  # a thread that cannot be started is a RuntimeError

# Django takes longer to make the object of a row than all the rest of a short job takes: this is what one holds.
_BLANK = {field.attname: field.get_default() for field in Job._meta.concrete_fields}

_options = attrgetter(*conf.JOB_OPTIONS)

_performers: dict[type, Performer] = {}
_setup_lock = threading.Lock()
_repeats = Repeats()  # a setup() that fails is tried for each queue again and again


class SetupFailed(exceptions.QueuetopiaError):
    """A performer's setup() raised; the job was not started."""


def job_of(claim: Claim) -> Job:
    """Return the job a performer is handed: built from the claim, read-only, this attempt counted."""
    job = Job.__new__(Job)
    state = ModelState()
    state.adding = False
    job.__dict__ = {
        **_BLANK,
        "_state": state,
        "id": claim.job_id,
        "scope": claim.scope,
        "queue": given_name(claim.queue),
        "action": name_now(by_scope()[claim.scope].performer, claim.action),
        "params": readable(claim.params),
        **dict(zip(conf.JOB_OPTIONS, _options(claim), strict=True)),
        "scheduled_at": datetime.fromisoformat(claim.scheduled_at),
        "attempts": claim.attempt,
        "errors": [],
        "fence": claim.fence,
        "_claim": claim,
    }
    return job


def performer_of(queuetopia) -> Performer:
    """Return this process's one instance of the class's performer, set up. Raises SetupFailed."""
    performer = _performers.get(queuetopia)
    if performer is None:
        with _setup_lock:
            performer = _performers.get(queuetopia)
            if performer is None:
                performer = queuetopia.performer()
                try:
                    with surroundings.lasting():
                        completed(performer.setup(), f"setup() of {queuetopia.performer.__name__}")
                except BaseException as exc:
                    raise SetupFailed(f"setup() of {queuetopia.performer.__name__} failed: {exc!r}") from exc
                _performers[queuetopia] = performer
    return performer


def start(performer, job) -> None:
    """Call the hook that stands before each attempt."""
    if type(performer).handle_start is not Performer.handle_start:
        completed(performer.handle_start(job), f"handle_start() of {type(performer).__name__}")


def forget_performer(queuetopia) -> None:
    """Discard the performer; the next attempt creates and sets up a new one."""
    _performers.pop(queuetopia, None)


def is_async(claim: Claim) -> bool:
    performer = by_scope()[claim.scope].performer
    name = (
        "perform"
        if has_own_perform(performer)
        else action_methods(performer).get(name_now(performer, claim.action), "perform")
    )
    return inspect.iscoroutinefunction(getattr(performer, name)) and takes_async()


class Attempt:
    """One run of a performer: begin, perform (sync or async), then ``outcome`` and ``exc`` say how it ended."""

    def __init__(self, claim: Claim):
        self.claim = claim
        self.queuetopia = by_scope()[claim.scope]
        self.job = job_of(claim)
        self.exc: BaseException | None = None
        self.outcome: Outcome
        self._has_begun = False  # code of the project may have run
        self._began = time.perf_counter()

    def perform(self):
        current_job.set(self.job)
        try:
            performer = self._begin()
            if performer is None:
                self._succeeded(None)
                return
            perform = wrapped(performer, self._who(), is_async=False)
            self._succeeded(ended(completed(perform(self.job), self._who())))
        except BaseException as exc:
            self.end_by(exc)

    async def aperform(self):
        current_job.set(self.job)
        try:
            performer = self._begin() if self._begins_at_once() else await sync_to_async(self._begin)()
            if performer is None:
                self._succeeded(None)
                return
            perform = wrapped(performer, self._who(), is_async=True)
            self._succeeded(await aended(await acompleted(perform(self.job), self._who())))
        except BaseException as exc:
            await self._aended_by(exc)

    def _begins_at_once(self):
        """True when nothing of the user's is to run before: it might use the database, for which it needs a thread."""
        return (
            self.queuetopia in _performers
            and not signals.job_started.has_listeners(self.queuetopia)
            and self.queuetopia.performer.handle_start is Performer.handle_start
            and self.queuetopia.performer.was_done is Performer.was_done
            and self._most is None
        )

    def _begin(self):
        """Return the performer, made ready for this attempt; None if an earlier attempt did the work."""
        self._has_begun = True
        performer = performer_of(self.queuetopia)
        if isinstance(self.job.params, Unreadable):
            stored = covered(self.job.params, self.queuetopia.option("sensitive_params"))["unreadable"]
            raise ValueError(f"the stored params cannot be read: {stored[:200]!r}")
        send_signal("job_started", self.queuetopia, job=self.job)
        self._began = time.perf_counter()
        start(performer, self.job)
        if self._was_done(performer):
            return None
        if self._most is not None:
            self._gather(self._most)
        return performer

    @property
    def _most(self):
        """How many jobs of the action are done together at most; None if each is done alone."""
        return chunk_of(self.queuetopia.performer, self.claim.action)

    def _gather(self, most):
        """Take the jobs behind this one that are done with it into the attempt."""
        found = map(job_of, jobs_with(self.claim, most))
        behind = list(takewhile(lambda job: not isinstance(job.params, Unreadable), found))
        for job in behind:
            send_signal("job_started", self.queuetopia, job=job)
        self.job.lead(behind)
        self._began = time.perf_counter()

    def _was_done(self, performer):
        if type(performer).was_done is Performer.was_done or not self.claim.attempted:
            return False
        stored = self.queuetopia.jobs().filter(pk=self.claim.job_id).values_list("errors", flat=True)
        if not was_cut_short(stored.first()):
            return False
        was_done = completed(performer.was_done(self.job), f"was_done() of {type(performer).__name__}")
        if was_done:
            logger.info("done by an earlier attempt, as was_done() says job=%d", self.claim.job_id)
        return bool(was_done)

    def _who(self):
        return f"Action {self.claim.action!r} of {self.queuetopia.performer.__name__}"

    def _succeeded(self, result):
        done = self.job._completed
        if isinstance(result, Deferred) and self.job.chunk is not None:
            raise exceptions.Unfinished(f"{self._who()} has a chunk: its jobs cannot be deferred. Wait for their end.")
        if isinstance(result, Deferred) and done is None:
            self._end(Verdict.DEFER, delay=result.timeout, memory=self.job.changed_memory())
        elif done is None:
            text, chunk = result_texts(self.job, result)
            self._end(Verdict.DONE, result=text, memory=self.job.changed_memory(), chunk=chunk)
        else:
            text, chunk = result_texts(self.job, done.result)
            self._end(Verdict.DONE, result=text, chunk=chunk)

    def _end(self, verdict, **values):
        duration = time.perf_counter() - self._began
        self.outcome = Outcome(self.claim.job_id, self.claim.fence, verdict, duration=duration, **values)

    async def _aended_by(self, exc):
        # The user's backoff() and on_exhausted may use the database, or be async: both need a thread.
        own_backoff = self.queuetopia.performer.backoff is not Performer.backoff
        if own_backoff or self._decider() is not None:
            with contextlib.suppress(*SCARCITY):  # then without a thread
                await sync_to_async(self.end_by)(exc)
                return
        self.end_by(exc)

    def end_by(self, exc):
        if isinstance(exc, asyncio.CancelledError) and exc.args and isinstance(exc.args[0], BaseException):
            exc = exc.args[0]  # why it was stopped
        if self.is_completed:
            logger.warning("raised after its job was completed job=%d error=%r", self.claim.job_id, self._told(exc))
            self._succeeded(None)
            return
        self.exc = exc
        if isinstance(exc, SCARCITY) and not self._has_begun:  # it is not the job's fault
            self._end(Verdict.RETURN)
            return
        match exc:
            case SetupFailed():
                name = self.queuetopia.performer.__name__
                _repeats.log(logger, logging.ERROR, "setup failed performer=%s\n%s", name, raised(exc), cause=str(exc))
                self._end(Verdict.RETURN, delay=self.queuetopia.option("setup_retry"), error={"message": str(exc)})
            case exceptions.Snooze():
                self._end(Verdict.SNOOZE, delay=float(exc.delay), of_scope=exc.scope)
            case exceptions.JobCancelled(job=None):  # not one that it waited for
                self._end(Verdict.CANCEL)
            case exceptions.Halt():
                self.fail(exc, verdict=Verdict.HALT)
            case exceptions.Skip():
                self.fail(exc, verdict=Verdict.SKIP)
            case _:
                self.fail(exc, delay=self._delay(exc))

    @property
    def is_completed(self) -> bool:
        """True once ``job.completing()`` has committed: nothing that follows makes this a failed attempt."""
        return self.job._completed is not None

    def fail(self, exc, *, delay=None, verdict=None):
        """Make this a failed attempt; the class's on_exhausted is asked if it was the last one."""
        self.exc = exc
        hidden = secrets(self.queuetopia, self.job)
        duration = time.perf_counter() - self._began
        outcome = failed(self.queuetopia, self.claim, exc, duration=duration, secrets=hidden, delay=delay)
        if verdict is not None:
            outcome = outcome._replace(verdict=verdict, delay=0.0, exhausted=False)
        elif outcome.exhausted and self._is_last(outcome) and (next_step := self._next_step(exc)):
            outcome = failed(
                self.queuetopia, self.claim, exc, duration=duration, secrets=hidden, delay=delay, next_step=next_step
            )
        self.outcome = outcome

    def _is_last(self, outcome):
        """False for a failure that gives no job up, so that nothing is decided.

        One of the kind of an outage that lasts will not be counted; one of a chunk may be another job's.
        """
        return not (self.claim.trial and outcome.breaker is not None) and not self.job.is_of_several

    def tidy(self):
        """Undo what the attempt left open. An open transaction is a failure: its work is not stored."""
        left_open = tidy_after()
        if left_open and self.outcome.verdict == Verdict.DONE and not self.is_completed:
            self.fail(exceptions.OpenTransaction(f"a transaction was left open on {', '.join(left_open)}"))

    def _delay(self, exc):
        """Return the seconds until the next attempt as Retry or the performer's backoff() want it, or None."""
        if isinstance(exc, exceptions.Retry) and exc.delay is not None:
            return float(exc.delay)
        performer = _performers.get(self.queuetopia)
        if performer is None or type(performer).backoff is Performer.backoff:
            return None
        try:
            delay = completed(performer.backoff(self.job, exc), f"backoff() of {type(performer).__name__}")
            if delay is None:
                return None
            cap = (
                self.claim.max_backoff if self.claim.max_backoff is not None else self.queuetopia.option("max_backoff")
            )
            delay = min(conf.clean_seconds(delay, at_least=0, at_most=float("inf")), cap)
            return delay * (1 + random.random() * self.queuetopia.option("jitter"))  # noqa: S311 - no secret
        except Exception as broken:
            logger.warning(
                "backoff() failed job=%d error=%r; the built-in one serves", self.claim.job_id, self._told(broken)
            )
            return None

    def _told(self, exc):
        """Return what an exception of user code says, as a log may have it."""
        error = describe(exc, secrets(self.queuetopia, self.job))
        return f"{error['type']}: {error['message']}"

    def _decider(self):
        """Return the callable, or the name of the performer's method, that decides after the last attempt, or None."""
        configured = self.queuetopia.option("on_exhausted")
        return None if self.claim.on_exhausted or conf.is_step(configured) else configured

    def _next_step(self, exc):
        decide = self._decider()
        if decide is None:
            return None
        try:
            if isinstance(decide, str):
                decide = getattr(performer_of(self.queuetopia), decide)
            return conf.clean_on_exhausted_name(completed(decide(self.job, exc), "on_exhausted"))
        except Exception as broken:
            logger.warning("on_exhausted failed job=%d error=%r; the job halts", self.claim.job_id, self._told(broken))
            return None


def tidy_before() -> None:
    """Give each attempt what a request gets: usable connections, no old queries, the default language and zone."""
    for connection in connections.all(initialized_only=True):
        connection.queries_log.clear()
        connection.close_if_unusable_or_obsolete()
    timezone.deactivate()
    translation.deactivate()


def tidy_after() -> list[str]:
    """Undo what an attempt left open; return the aliases whose transaction was rolled back."""
    left_open = []
    for connection in connections.all(initialized_only=True):
        if connection.connection is not None:
            if connection.in_atomic_block or not connection.autocommit:
                left_open.append(connection.alias)
                discard(connection)
                continue
            connection.close_if_unusable_or_obsolete()
        if connection.connection is None:
            del connections[connection.alias]  # with what was set on it, as django-tenants' schema
        elif hasattr(connection, "set_schema_to_public"):  # django-tenants and its kin, CONN_MAX_AGE above 0
            connection.set_schema_to_public()
    return left_open


def discard(connection) -> None:
    """Throw a connection away whatever state it is in; the next use of its alias makes a new one."""
    try:
        connection.connection.close()
        # With OPTIONS["pool"] it is lent: only when it is given back, closed, does the pool make another.
        if pool := getattr(connection.connection, "_pool", None):
            pool.putconn(connection.connection)
    except Exception as exc:
        logger.info("closing connection failed alias=%s error=%r", connection.alias, exc)
    del connections[connection.alias]
