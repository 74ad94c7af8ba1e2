"""One worker process: gets claims, runs attempts, answers with outcomes. All user code runs here.

The main thread only reads the channel. Each slot runs one attempt at a time: synchronous performers in the slot's
own thread, ``async def`` ones as a task of one event loop. What runs stands on the board, so that the scheduler
knows it also when this process cannot answer.
"""

import asyncio
import atexit
import contextlib
import ctypes
import logging
import os
import random
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextvars import Context
from functools import partial
from queue import SimpleQueue

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import connections

from .. import exceptions
from ..attempts import Claim, Outcome, Verdict, raised
from ..channel import Board, Frames, Message, encode, receive, uptime
from ..completion import cancel
from ..jobs import failed, report_in_background, timeout_text
from ..processes import MB, reap_orphans, resident_memory
from ..registry import by_scope
from . import alerts, surroundings
from .news import notify, send_alert, wants_news
from .performing import SCARCITY, Attempt, is_async, tidy_after, tidy_before

logger = logging.getLogger(__name__)

EXIT_TIME = 2.0  # seconds that functions registered with atexit have at a worker's clean end
UNKNOWN_RETRY = 5.0  # seconds until a job of a scope that this code does not know is tried again
REAP_EVERY = 10.0  # seconds between two searches for dead orphans
MOST_ORPHANS = 100  # dead children that a worker keeps, for what has started them may still ask how they ended


class Worker:
    """The process's slots, its backlog, and its side of the channel."""

    def __init__(
        self, channel: socket.socket, board: Board, *, max_jobs: int | None = None, max_memory: int | None = None
    ):
        """max_jobs: attempts after which it is replaced, up to a tenth fewer: not all workers are to be at once.

        max_memory: resident MB, after an attempt, above which it is replaced.
        """
        self._channel, self._board = channel, board
        self._max_jobs = max_jobs and max_jobs - random.randrange(max_jobs // 10 + 1)  # noqa: S311 - no secret
        self._max_memory = max_memory
        self._begun = 0  # attempts
        self._pid = os.getpid()
        self._lock = threading.Lock()  # guards backlog, free and running
        self.backlog: deque[tuple[int, Claim]] = deque()
        self._free = list(range(board.slots))
        self._running: dict[int, _Run] = {}  # by ticket
        self._inboxes: dict[int, SimpleQueue] = {}
        self._news: SimpleQueue = SimpleQueue()
        self._exceptions: dict[int, BaseException | None] = {}  # by ticket, until the commit is known
        self._reap_at = 0.0  # uptime
        self._send_lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_retiring = False  # nothing more begins here
        self._news_thread = threading.Thread(target=self._send_news, name="queuetopia-news", daemon=True)

    def serve(self) -> None:
        """Read the channel until it says goodbye, or ends because the scheduler died."""
        self._news_thread.start()  # now, because later there may be none to be had
        self._send(Message.READY, os.getpid())
        answers: dict[str, Callable[..., None]] = {
            Message.RUN: self._run, Message.STOP: self._stop, Message.FORGET: self._forget,
            Message.NEWS: self._queue_news, Message.ALERT: self._queue_alert, Message.MAIL: self._queue_mail,
        }  # fmt: skip
        frames = Frames()
        while received := self._receive():
            for kind, *content in frames.feed(received):
                if kind == Message.BYE:
                    self._finish_news()
                    return
                answers[kind](*content)
        os._exit(1)

    def _receive(self):
        try:
            return receive(self._channel)
        except OSError:  # the scheduler died, or a performer closed the descriptor
            return b""

    def _run(self, items):
        if uptime() >= self._reap_at:
            reap_orphans(MOST_ORPHANS)
            self._reap_at = uptime() + REAP_EVERY
        claims = [(ticket, Claim._make(claim)) for ticket, claim in items]
        for ticket, claim in claims:
            if claim.scope not in by_scope():
                self._refuse(ticket, claim)
        with self._lock:
            self.backlog.extend((ticket, claim) for ticket, claim in claims if claim.scope in by_scope())
            while self._free and self.backlog:
                self._start_in(self._free.pop())

    def _refuse(self, ticket, claim):
        """Give a job back that this code does not know; the scheduler was started with other code."""
        error = {"message": f"This code has no scope {claim.scope!r}; job {claim.job_id} waits for code that has."}
        outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN, delay=UNKNOWN_RETRY, error=error)
        self._send(Message.END, ticket, outcome)

    def _stop(self, ticket, kind):
        with self._lock:
            if run := self._running.get(ticket):
                run.stop(getattr(exceptions, kind))

    def _queue_news(self, ticket, claim, outcome):
        self._news.put(partial(self._notify_of_end, ticket, Claim._make(claim), Outcome._make(outcome)))

    def _queue_alert(self, claim, duration, threshold):
        self._news.put(partial(send_alert, Claim._make(claim), duration, threshold))

    def _queue_mail(self, database, every):
        self._news.put(partial(alerts.mail_admins, database, every))

    def _forget(self, ticket):
        self._exceptions.pop(ticket, None)

    def _send_news(self):
        while (item := self._news.get()) is not None:
            tidy_before()
            try:
                Context().run(item)
            except BaseException as exc:  # sys.exit() in a receiver
                logger.error("hooks, receivers or mail failed\n%s", raised(exc))
            tidy_after()
            self._send(Message.NOTIFIED)

    def _notify_of_end(self, ticket, claim, outcome):
        notify(claim, outcome, self._exceptions.pop(ticket, None))

    def _finish_news(self):
        self._news.put(None)
        self._news_thread.join()

    # Slots

    def _start_in(self, slot):
        """Start the next job of the backlog in a free slot. The lock is held."""
        ticket, claim = self.backlog.popleft()
        try:
            self._hand_to(slot, ticket, claim)
        except SCARCITY as exc:  # no thread can be started
            self._free.append(slot)
            self._give_back(ticket, claim, exc)

    def _hand_to(self, slot, ticket, claim):
        if is_async(claim):
            # An empty context: the decimal context in a copy of this thread's would be the same object for all.
            Context().run(asyncio.run_coroutine_threadsafe, self._run_async(slot, ticket, claim), self._event_loop())
            return
        if slot not in self._inboxes:
            inbox: SimpleQueue = SimpleQueue()
            name = f"queuetopia-{slot}"
            threading.Thread(target=self._slot_thread, args=(slot, inbox), name=name, daemon=True).start()
            self._inboxes[slot] = inbox
        self._inboxes[slot].put((ticket, claim))

    def _slot_thread(self, slot, inbox):
        while True:
            ticket, claim = inbox.get()
            self._run_sync(slot, ticket, claim)
            while following := self._following_sync(slot):
                self._run_sync(slot, *following)

    def _following_sync(self, slot):
        """Return the next synchronous job for this slot's thread; else start what is next, or free the slot."""
        with self._lock:
            if self.backlog and not is_async(self.backlog[0][1]):
                return self.backlog.popleft()
            self._free.append(slot)
            if self.backlog:
                self._start_in(self._free.pop())
        return None

    def _run_sync(self, slot, ticket, claim):
        if self._is_fenced(ticket, claim) or (attempt := self._attempt(ticket, claim)) is None:
            return
        run = _ThreadRun(threading.get_ident())
        if not self.enter(slot, ticket, run):
            return
        try:
            tidy_before()
            Context().run(attempt.perform)
        except BaseException as exc:
            attempt.end_by(exc)
        finally:
            self._leave(ticket, claim.action)
        run.forget_late_stop()
        attempt.tidy()
        self._report(ticket, attempt, run)
        self._board.clear(slot)  # only now: until the outcome is sent, a crash is this attempt's crash
        self._retire_if_used_up()

    async def _run_async(self, slot, ticket, claim):
        try:
            if not self._is_fenced(ticket, claim):
                async with ThreadSensitiveContext():  # a thread and connections of its own, as a request has
                    await self._attempt_async(slot, ticket, claim)
        finally:
            with self._lock:
                self._free.append(slot)
                if self.backlog:
                    self._start_in(self._free.pop())

    async def _attempt_async(self, slot, ticket, claim):
        if (attempt := self._attempt(ticket, claim)) is None:
            return
        run = _TaskRun(asyncio.current_task(), asyncio.get_running_loop())
        tidy_before()
        if not self.enter(slot, ticket, run):
            return
        await attempt.aperform()
        self._leave(ticket, claim.action)
        if _has_thread():
            with contextlib.suppress(asyncio.CancelledError):  # a stop that came too late
                await sync_to_async(attempt.tidy)()
                await sync_to_async(connections.close_all)()
        self._report(ticket, attempt, run)
        self._board.clear(slot)
        self._retire_if_used_up()

    def _attempt(self, ticket, claim):
        """Return the attempt, or None: then the row is corrupt, which is a failed attempt of its job alone."""
        try:
            return Attempt(claim)
        except MemoryError as exc:
            with self._lock:
                self._give_back(ticket, claim, exc)
            return None
        except Exception as exc:
            self._send(Message.END, ticket, failed(by_scope()[claim.scope], claim, exc))
            return None

    def _is_fenced(self, ticket, claim):
        """Give a job back instead of starting it when the scheduler may have lost its queue already."""
        if uptime() < self._board.deadline:
            return False
        self._send(Message.END, ticket, Outcome(claim.job_id, claim.fence, Verdict.RETURN))
        return True

    def enter(self, slot, ticket, run) -> bool:
        """Show on the board that the job begins; return False if the scheduler has taken it back before."""
        with self._lock:
            self._running[ticket] = run
            self._retire_if_all_begun()
            self._board.start(slot, ticket)
            begins = not self._is_retiring and ticket > self._board.recalled  # read only now: see Board
            self._begun += begins
        if begins:
            return True
        self._leave(ticket)
        self._board.clear(slot)
        self._send(Message.RETURNED, [ticket, *self._drop_recalled()])
        return False

    def _drop_recalled(self):
        with self._lock:
            recalled = [ticket for ticket, _ in self.backlog if ticket <= self._board.recalled]
            for _ in recalled:  # they are the first: tickets come in their order
                self.backlog.popleft()
        return recalled

    def _leave(self, ticket, action="not begun"):
        with self._lock:
            self._running.pop(ticket, None)
            if not self._running and (spoilt := surroundings.restore(action)):
                beside = " or one that ran beside it" if self._board.slots > 1 else ""
                self._retire(f"action {action!r}{beside} changed {spoilt}, which cannot be put back")

    def _retire_if_all_begun(self):
        """Begin nothing more once all attempts that this process may run have begun. The lock is held."""
        if self._begun == self._max_jobs:
            self._retire(f"of the number of jobs it has run: {self._begun}", Message.USED_UP)

    def _retire_if_used_up(self):
        """Have this process replaced if it has run as many attempts, or takes as much memory, as it may."""
        with self._lock:
            self._retire_if_all_begun()
            if self._max_memory and (taken := resident_memory() // MB) > self._max_memory:
                self._retire(f"of the memory it takes: {taken} MB, after {self._begun} jobs", Message.USED_UP)

    def _retire(self, why, kind=Message.RETIRING):
        """Begin nothing more, and have this process replaced. The lock is held."""
        if not self._is_retiring:
            self._is_retiring = True
            self._send(kind, why)

    def _give_back(self, ticket, claim, exc):
        """Return a job that this process cannot begin, and retire. The lock is held."""
        self._retire(f"it cannot begin a job: {exc!r}")
        self._send(Message.END, ticket, Outcome(claim.job_id, claim.fence, Verdict.RETURN))

    def _report(self, ticket, attempt, run):
        outcome = attempt.outcome
        if outcome.verdict == Verdict.RETURN and outcome.error is None:
            with self._lock:
                self._give_back(ticket, attempt.claim, attempt.exc)
            return
        if run.stopped_by is exceptions.JobCancelled and outcome.verdict != Verdict.DONE:
            outcome = outcome._replace(verdict=Verdict.CANCEL, error=None)
        elif run.stopped_by is exceptions.JobTimeout and not attempt.is_completed:
            where = attempt.exc and attempt.exc.__traceback__
            attempt.fail(exceptions.JobTimeout(timeout_text(attempt.claim)).with_traceback(where))
            outcome = attempt.outcome
        if wants_news(attempt.queuetopia, outcome.verdict):
            self._exceptions[ticket] = attempt.exc
            outcome = outcome._replace(wants_news=True)
        attempt.exc = None  # its traceback holds the attempt: what the performer had would stay until a collection
        self._send(Message.END, ticket, outcome)

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
        if cancel(self._thread_id, reason(f"stopped: {reason.__name__}")):
            return
        # Raised in that thread at its next bytecode; a C call that does not return never gets it.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), ctypes.py_object(reason))

    def forget_late_stop(self):
        if self.stopped_by:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread_id), None)


class _TaskRun(_Run):
    def __init__(self, task, loop):
        self._task, self._loop = task, loop

    def _interrupt(self, reason):
        self._loop.call_soon_threadsafe(self._task.cancel, reason(f"stopped: {reason.__name__}"))


def _run_exit_functions():
    """Call what libraries have registered with atexit, as to send what they have gathered; for a bounded moment."""
    thread = threading.Thread(target=atexit._run_exitfuncs, name="queuetopia-exit", daemon=True)
    with contextlib.suppress(*SCARCITY):  # then they are not called
        thread.start()
        thread.join(EXIT_TIME)


def main(options: dict) -> None:
    """Run one worker until its scheduler says goodbye or dies."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # The supervisor decides what these mean. A handler: ignored signals would be ignored in a performer's programs.
        signal.signal(number, lambda *_: None)
    channel = socket.socket(fileno=options["channel"])
    board = Board(options["board"], options["slots"])
    surroundings.keep()
    report_in_background()
    # A scheduler that was started with older code gives no limits.
    Worker(channel, board, max_jobs=options.get("max_jobs"), max_memory=options.get("max_memory")).serve()
    _run_exit_functions()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError, OSError):  # there is none, or it is closed
            stream.flush()
    os._exit(0)  # a performer's forgotten threads must not keep the process
