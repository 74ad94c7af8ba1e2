"""One worker process: gets claims, runs attempts, answers with outcomes. All user code runs here.

The main thread only reads the channel. Each slot runs one attempt at a time: synchronous performers in the slot's
own thread, ``async def`` ones as a task of one event loop. What runs stands on the board, so that the scheduler
knows it also when this process cannot answer.
"""

import asyncio
import contextlib
import ctypes
import inspect
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
from collections import deque
from datetime import datetime
from functools import partial
from queue import SimpleQueue

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections
from django.db.models.base import ModelState
from django.utils import timezone, translation

from . import alerts, conf, exceptions, signals
from .attempts import (
    ENDINGS,
    FAILURES,
    Claim,
    Outcome,
    Verdict,
    describe,
    raised,
    readable,
    result_text,
    secrets_of,
)
from .channel import Board, Frames, encode, receive, uptime
from .declaration import by_scope
from .jobs import failed, send, send_unblocked
from .models import Job
from .params import Unreadable
from .performer import Performer, action_methods, has_own_perform
from .repeats import Repeats

logger = logging.getLogger(__name__)

SETUP_RETRY = 5.0  # seconds until a job whose performer's setup() failed is tried again; uses no attempt

# Django takes longer to make the object of a row than all the rest of a short job takes: this is what one holds.
_BLANK = {field.attname: field.get_default() for field in Job._meta.concrete_fields}

_performers: dict[type, Performer] = {}
_setup_lock = threading.Lock()
_repeats = Repeats()  # a setup() that fails is tried for each queue again and again


class SetupFailed(exceptions.QueuetopiaError):
    """A performer's setup() raised; the job was not started."""


# One attempt, also used by queuetopia.testing


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
        "queue": claim.queue,
        "action": claim.action,
        "params": readable(claim.params),
        "timeout": claim.timeout,
        "max_backoff": claim.max_backoff,
        "max_attempts": claim.max_attempts,
        "on_exhausted": claim.on_exhausted,
        "scheduled_at": datetime.fromisoformat(claim.scheduled_at),
        "attempts": claim.attempt,
        "errors": [],
        "fence": claim.fence,
        "_is_claim": True,
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
                    performer.setup()
                except BaseException as exc:
                    raise SetupFailed(f"setup() of {queuetopia.performer.__name__} failed: {exc!r}") from exc
                _performers[queuetopia] = performer
    return performer


def forget_performer(queuetopia) -> None:
    """Have the next attempt make and set up a new performer."""
    _performers.pop(queuetopia, None)


def is_async(claim: Claim) -> bool:
    performer = by_scope()[claim.scope].performer
    name = "perform" if has_own_perform(performer) else action_methods(performer).get(claim.action, "perform")
    return inspect.iscoroutinefunction(getattr(performer, name))


class Attempt:
    """One run of a performer: begin, perform (sync or async), then ``outcome`` and ``exc`` say how it ended."""

    def __init__(self, claim: Claim):
        self.claim = claim
        self.queuetopia = by_scope()[claim.scope]
        self.job = job_of(claim)
        self.exc: BaseException | None = None
        self.outcome: Outcome
        self._began = time.perf_counter()

    def perform(self):
        try:
            self._succeeded(self._begin().perform(self.job))
        except BaseException as exc:
            self._ended_by(exc)

    async def aperform(self):
        try:
            performer = self._begin() if self._begins_at_once() else await sync_to_async(self._begin)()
            self._succeeded(await performer.perform(self.job))
        except asyncio.CancelledError as exc:
            self._ended_by(exc.args[0] if exc.args and isinstance(exc.args[0], BaseException) else exc)
        except BaseException as exc:
            self._ended_by(exc)

    def _begins_at_once(self):
        """True when nothing of the user's is to run before: it might use the database, for which it needs a thread."""
        return self.queuetopia in _performers and not signals.job_started.has_listeners(self.queuetopia)

    def _begin(self):
        performer = performer_of(self.queuetopia)
        if isinstance(self.job.params, Unreadable):
            raise ValueError(f"the stored params cannot be read: {self.job.params[:200]!r}")
        _send(signals.job_started, self.queuetopia, job=self.job)
        self._began = time.perf_counter()
        return performer

    def _succeeded(self, result):
        self._end(Verdict.DONE, result=result_text(result))

    def _end(self, verdict, **values):
        duration = time.perf_counter() - self._began
        self.outcome = Outcome(self.claim.job_id, self.claim.fence, verdict, duration=duration, **values)

    def _ended_by(self, exc):
        self.exc = exc
        match exc:
            case SetupFailed():
                name = self.queuetopia.performer.__name__
                _repeats.log(logger, logging.ERROR, "setup failed performer=%s\n%s", name, raised(exc), cause=str(exc))
                self._end(Verdict.RETURN, delay=SETUP_RETRY, error={"message": str(exc)})
            case exceptions.Snooze():
                self._end(Verdict.SNOOZE, delay=float(exc.delay))
            case exceptions.JobCancelled():
                self._end(Verdict.CANCEL)
            case exceptions.Halt():
                self.fail(exc, verdict=Verdict.HALT)
            case exceptions.Skip():
                self.fail(exc, verdict=Verdict.SKIP)
            case _:
                self.fail(exc, delay=self._delay(exc))

    def fail(self, exc, *, delay=None, verdict=None):
        """Make this a failed attempt; the class's on_exhausted is asked if it was the last one."""
        self.exc = exc
        secrets = _secrets(self.queuetopia, self.job)
        duration = time.perf_counter() - self._began
        outcome = failed(self.queuetopia, self.claim, exc, duration=duration, secrets=secrets, delay=delay)
        if verdict is not None:
            outcome = outcome._replace(verdict=verdict, delay=0.0, exhausted=False)
        elif outcome.exhausted and (next_step := self._next_step(exc)):
            outcome = failed(
                self.queuetopia, self.claim, exc, duration=duration, secrets=secrets, delay=delay, next_step=next_step
            )
        self.outcome = outcome

    def tidy(self):
        """Undo what the attempt left open. An open transaction is a failure: its work is not stored."""
        left_open = tidy_after()
        if left_open and self.outcome.verdict == Verdict.DONE:
            self.fail(exceptions.OpenTransaction(f"a transaction was left open on {', '.join(left_open)}"))

    def _delay(self, exc):
        """Return the seconds until the next attempt as Retry or the performer's backoff() want it, or None."""
        if isinstance(exc, exceptions.Retry) and exc.delay is not None:
            return float(exc.delay)
        performer = _performers.get(self.queuetopia)
        if performer is None or type(performer).backoff is Performer.backoff:
            return None
        try:
            delay = performer.backoff(self.job, exc)
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
        error = describe(exc, _secrets(self.queuetopia, self.job))
        return f"{error['type']}: {error['message']}"

    def _next_step(self, exc):
        configured = self.claim.on_exhausted or self.queuetopia.option("on_exhausted")
        if not callable(configured):
            return None
        try:
            return conf.clean_on_exhausted_name(configured(self.job, exc))
        except Exception as broken:
            logger.warning("on_exhausted failed job=%d error=%r; the job halts", self.claim.job_id, self._told(broken))
            return None


# What follows the commit


_HOOKS = {
    Verdict.DONE: ("handle_done_job",),
    Verdict.RETRY: ("handle_failed_job",),
    Verdict.HALT: ("handle_failed_job", "handle_exhausted_job"),
    Verdict.SKIP: ("handle_failed_job", "handle_exhausted_job"),
}
_SIGNALS = {
    Verdict.DONE: (signals.job_done, signals.queue_unblocked),
    Verdict.RETRY: (signals.job_failed, signals.queue_blocked),
    Verdict.HALT: (signals.job_failed, signals.job_halted, signals.queue_blocked),
    Verdict.SKIP: (signals.job_failed, signals.job_skipped, signals.queue_unblocked),
    Verdict.CANCEL: (signals.job_cancelled, signals.queue_unblocked),
}


def wants_news(queuetopia, verdict) -> bool:
    """True when some hook or receiver waits for the commit of such an end."""
    hooks = _HOOKS.get(verdict, ())
    if any(getattr(queuetopia.performer, name) is not getattr(Performer, name) for name in hooks):
        return True
    return any(signal_.has_listeners(queuetopia) for signal_ in _SIGNALS.get(verdict, ()))


def tell(claim: Claim, outcome: Outcome, exc: BaseException | None) -> None:
    """Call the hooks and send the signals of an end that is committed. Nothing they raise changes anything."""
    queuetopia = by_scope()[claim.scope]
    job = job_of(claim)
    verdict = Verdict(outcome.verdict)
    if exc is None and outcome.error:
        exc = getattr(exceptions, outcome.error["type"], exceptions.AttemptEnded)(outcome.error["message"])
    if verdict == Verdict.DONE:
        _call(queuetopia, "handle_done_job", job)
        _send(signals.job_done, queuetopia, job=job)
    if verdict in FAILURES:
        _call(queuetopia, "handle_failed_job", job, exc)
        if outcome.exhausted and verdict != Verdict.RETRY:
            _call(queuetopia, "handle_exhausted_job", job, exc)
        _send(signals.job_failed, queuetopia, job=job, exc=exc)
    if verdict == Verdict.HALT:
        _send(signals.job_halted, queuetopia, job=job, exc=exc)
    if verdict == Verdict.SKIP:
        _send(signals.job_skipped, queuetopia, job=job, exc=exc)
    if verdict == Verdict.CANCEL:
        _send(signals.job_cancelled, queuetopia, job=job)
    if verdict in (Verdict.RETRY, Verdict.HALT) and not claim.failed_at:
        _whatever_happens(job, partial(alerts.tell_blocked, queuetopia, job, exc))
    if verdict in ENDINGS and claim.failed_at:
        _whatever_happens(job, partial(send_unblocked, queuetopia, job, datetime.fromisoformat(claim.failed_at)))


def _tell_alert(claim, duration, threshold):
    alerts.tell_still_blocked(by_scope()[claim.scope], job_of(claim), duration, threshold)


def _send(signal_, queuetopia, **arguments):
    _whatever_happens(arguments["job"], partial(send, signal_, queuetopia, **arguments))


def _whatever_happens(job, tell_it):
    try:
        tell_it()
    except BaseException as exc:  # a receiver that calls sys.exit
        logger.error("receiver failed job=%d\n%s", job.pk, raised(exc, _secrets(by_scope()[job.scope], job)))


def _call(queuetopia, hook, *arguments):
    if getattr(queuetopia.performer, hook) is getattr(Performer, hook):
        return
    try:
        getattr(performer_of(queuetopia), hook)(*arguments)
    except BaseException as exc:
        job = arguments[0]
        logger.error("hook failed hook=%s job=%d\n%s", hook, job.pk, raised(exc, _secrets(queuetopia, job)))


def _secrets(queuetopia, job):
    return secrets_of(job.params, queuetopia.option("sensitive_params"))


# The process


class Worker:
    """The process's slots, its backlog, and its side of the channel."""

    def __init__(self, channel: socket.socket, board: Board):
        self._channel, self._board = channel, board
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards backlog, free and running
        self._backlog: deque[tuple[int, Claim]] = deque()
        self._free = list(range(board.slots))
        self._running: dict[int, _Run] = {}  # by ticket
        self._inboxes: dict[int, SimpleQueue] = {}
        self._news: SimpleQueue = SimpleQueue()
        self._exceptions: dict[int, BaseException | None] = {}  # by ticket, until the commit is known
        self._send_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news_thread: threading.Thread | None = None

    def serve(self) -> None:
        """Read the channel until it says goodbye, or ends because the scheduler died."""
        self._send("ready", os.getpid())
        frames = Frames()
        while received := self._receive():
            for kind, *content in frames.feed(received):
                if kind == "bye":
                    self._finish_news()
                    return
                getattr(self, f"_on_{kind}")(*content)
        os._exit(1)

    def _receive(self):
        try:
            return receive(self._channel)
        except OSError:  # the scheduler died, or a performer closed the descriptor
            return b""

    def _on_run(self, items):
        claims = [(ticket, Claim._make(claim)) for ticket, claim in items]
        for ticket, claim in claims:
            if claim.scope not in by_scope():
                self._refuse(ticket, claim)
        with self._lock:
            self._backlog.extend((ticket, claim) for ticket, claim in claims if claim.scope in by_scope())
            while self._free and self._backlog:
                self._start_in(self._free.pop())

    def _refuse(self, ticket, claim):
        """Give a job back that this code does not know; the scheduler was started with other code."""
        error = {"message": f"This code has no scope {claim.scope!r}; job {claim.job_id} waits for code that has."}
        outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN, delay=SETUP_RETRY, error=error)
        self._send("end", ticket, outcome)

    def _on_give_back(self):
        with self._lock:
            tickets = [ticket for ticket, _ in self._backlog]
            self._backlog.clear()
        self._send("returned", tickets)

    def _on_stop(self, ticket, kind):
        with self._lock:
            if run := self._running.get(ticket):
                run.stop(getattr(exceptions, kind))

    def _on_news(self, ticket, claim, outcome):
        self._start_news()
        self._news.put(partial(self._tell_end, ticket, Claim._make(claim), Outcome._make(outcome)))

    def _on_alert(self, claim, duration, threshold):
        self._start_news()
        self._news.put(partial(_tell_alert, Claim._make(claim), duration, threshold))

    def _on_mail(self, database, every):
        self._start_news()
        self._news.put(partial(alerts.mail_admins, database, every))

    def _start_news(self):
        if self._news_thread is None:
            self._news_thread = threading.Thread(target=self._tell_news, name="queuetopia-news", daemon=True)
            self._news_thread.start()

    def _on_forget(self, ticket):
        self._exceptions.pop(ticket, None)

    def _tell_news(self):
        while (item := self._news.get()) is not None:
            tidy_before()
            try:
                item()
            except BaseException as exc:  # sys.exit() in a receiver
                logger.error("hooks, receivers or mail failed\n%s", raised(exc))
            tidy_after()
            self._send("told")

    def _tell_end(self, ticket, claim, outcome):
        tell(claim, outcome, self._exceptions.pop(ticket, None))

    def _finish_news(self):
        if self._news_thread is not None:
            self._news.put(None)
            self._news_thread.join()

    # Slots

    def _start_in(self, slot):
        """Start the next job of the backlog in a free slot. The lock is held."""
        ticket, claim = self._backlog.popleft()
        if is_async(claim):
            asyncio.run_coroutine_threadsafe(self._run_async(slot, ticket, claim), self._event_loop())
            return
        if slot not in self._inboxes:
            self._inboxes[slot] = SimpleQueue()
            threading.Thread(target=self._slot_thread, args=(slot,), name=f"queuetopia-{slot}", daemon=True).start()
        self._inboxes[slot].put((ticket, claim))

    def _slot_thread(self, slot):
        inbox = self._inboxes[slot]
        while True:
            ticket, claim = inbox.get()
            self._run_sync(slot, ticket, claim)
            while following := self._following_sync(slot):
                self._run_sync(slot, *following)

    def _following_sync(self, slot):
        """Return the next synchronous job for this slot's thread; else start what is next, or free the slot."""
        with self._lock:
            if self._backlog and not is_async(self._backlog[0][1]):
                return self._backlog.popleft()
            self._free.append(slot)
            if self._backlog:
                self._start_in(self._free.pop())
        return None

    def _run_sync(self, slot, ticket, claim):
        if self._is_fenced(ticket, claim) or (attempt := self._attempt(ticket, claim)) is None:
            return
        run = _ThreadRun(threading.get_ident())
        self._enter(slot, ticket, run)
        try:
            tidy_before()
            attempt.perform()
        except BaseException as exc:
            attempt.fail(exc)
        finally:
            self._leave(ticket)
        run.forget_late_stop()
        attempt.tidy()
        self._report(ticket, attempt, run)
        self._board.clear(slot)  # only now: until the outcome is sent, a crash is this attempt's crash

    async def _run_async(self, slot, ticket, claim):
        try:
            if not self._is_fenced(ticket, claim):
                async with ThreadSensitiveContext():  # a thread and connections of its own, as a request has
                    await self._attempt_async(slot, ticket, claim)
        finally:
            with self._lock:
                self._free.append(slot)
                if self._backlog:
                    self._start_in(self._free.pop())

    async def _attempt_async(self, slot, ticket, claim):
        if (attempt := self._attempt(ticket, claim)) is None:
            return
        run = _TaskRun(asyncio.current_task(), asyncio.get_running_loop())
        tidy_before()
        self._enter(slot, ticket, run)
        await attempt.aperform()
        self._leave(ticket)
        if _has_thread():
            with contextlib.suppress(asyncio.CancelledError):  # a stop that came too late
                await sync_to_async(attempt.tidy)()
                await sync_to_async(connections.close_all)()
        self._report(ticket, attempt, run)
        self._board.clear(slot)

    def _attempt(self, ticket, claim):
        """Return the attempt, or None: then the row is corrupt, which is a failed attempt of its job alone."""
        try:
            return Attempt(claim)
        except Exception as exc:
            self._send("end", ticket, failed(by_scope()[claim.scope], claim, exc))
            return None

    def _is_fenced(self, ticket, claim):
        """Give a job back instead of starting it when the scheduler may have lost its queue already."""
        if uptime() < self._board.deadline:
            return False
        self._send("end", ticket, Outcome(claim.job_id, claim.fence, Verdict.RETURN))
        return True

    def _enter(self, slot, ticket, run):
        with self._lock:
            self._running[ticket] = run
        self._board.start(slot, ticket)

    def _leave(self, ticket):
        with self._lock:
            self._running.pop(ticket, None)

    def _report(self, ticket, attempt, run):
        outcome = attempt.outcome
        if run.stopped_by is exceptions.JobCancelled and outcome.verdict != Verdict.DONE:
            outcome = outcome._replace(verdict=Verdict.CANCEL, error=None)
        elif run.stopped_by is exceptions.JobTimeout:
            where = attempt.exc and attempt.exc.__traceback__
            attempt.fail(exceptions.JobTimeout(timeout_text(attempt.claim)).with_traceback(where))
            outcome = attempt.outcome
        if wants_news(attempt.queuetopia, outcome.verdict):
            self._exceptions[ticket] = attempt.exc
            outcome = outcome._replace(wants_news=True)
        attempt.exc = None  # its traceback holds the attempt: what the performer had would stay until a collection
        self._send("end", ticket, outcome)

    def _send(self, *message):
        if os.getpid() != self._pid:
            os._exit(0)  # a performer forked, and the child came back here
        with self._send_lock:
            try:
                self._channel.sendall(encode(message))
            except OSError:
                os._exit(1)  # the scheduler died, or a performer closed its descriptor

    def _event_loop(self):
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="queuetopia-async", daemon=True).start()
        return self._loop


def _has_thread() -> bool:
    """True when this task has run anything in a thread, as all use of the database does: that thread is its own."""
    context = SyncToAsync.thread_sensitive_context.get(None)
    return context in SyncToAsync.context_to_thread_executor


class _Run:
    """A running attempt, as something that can be asked to stop."""

    stopped_by: type | None = None

    def stop(self, reason):
        self.stopped_by = reason
        self._interrupt(reason)

    def _interrupt(self, reason):
        raise NotImplementedError


class _ThreadRun(_Run):
    def __init__(self, thread_id):
        self._thread_id = thread_id

    def _interrupt(self, reason):
        # Raised in that thread at its next bytecode; a C call that does not return never sees it.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), ctypes.py_object(reason))

    def forget_late_stop(self):
        if self.stopped_by:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)


class _TaskRun(_Run):
    def __init__(self, task, loop):
        self._task, self._loop = task, loop

    def _interrupt(self, reason):
        self._loop.call_soon_threadsafe(self._task.cancel, reason(f"stopped: {reason.__name__}"))


def timeout_text(claim: Claim) -> str:
    timeout = claim.timeout or by_scope()[claim.scope].option("timeout")
    return f"the attempt lasted longer than its timeout of {timeout:g} s and was killed"


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
        if connection.connection is None:
            continue
        if connection.in_atomic_block or not connection.autocommit:
            left_open.append(connection.alias)
            discard(connection)
        else:
            connection.close_if_unusable_or_obsolete()
    return left_open


def discard(connection) -> None:
    """Throw a connection away whatever state it is in; the next use of its alias makes a new one."""
    try:
        connection.connection.close()
    except Exception as exc:
        logger.info("closing connection failed alias=%s error=%r", connection.alias, exc)
    del connections[connection.alias]


def main(options: dict) -> None:
    """Run one worker until its scheduler says goodbye or dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The supervisor decides what these mean. A handler: ignored signals would be ignored in a performer's programs.
        signal.signal(number, lambda *_: None)
    channel = socket.socket(fileno=options["channel"])
    board = Board(options["board"], options["slots"])
    Worker(channel, board).serve()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a performer's forgotten threads must not keep the process
