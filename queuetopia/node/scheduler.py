"""The loop of one node: wake, collect, time out, record, claim, hand out, beat.

One process, one thread (beside the one that writes the log), no user code. It owns one database session per database
(a Store), the workers (a Pool) and the ledger of what is on its way between them (Hands). What it knows can always be
thrown away: the truth is in the rows, and a successor goes on from there.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time

from django.db import DatabaseError, InterfaceError
from django.db.backends.signals import connection_created
from django.db.models import signals as model_signals

from .. import conf, exceptions
from ..attempts import raised
from ..backends.trouble import Kind, database_trouble
from ..channel import uptime
from ..logs import fields
from ..processes import Signals, refused_descriptor
from ..progress import Progress
from ..registry import by_scope
from ..repeats import Repeats, pause
from ..text import brief, visible
from .chores import Parts, save_statistics
from .deadline import Deadline
from .hands import Hands, text_of
from .housekeeping import Housekeeping
from .log_queue import LogQueue, leave_at_exit
from .pool import Pool
from .protocol import BEAT, CRASHED, LAST_BEAT, REFUSED, STOP, STOP_AT_ONCE, Options
from .recording import GATHER, Recording
from .store import Store
from .succession import wait_for_turn
from .turns import Turns
from .worker_process import WorkerProcess

logger = logging.getLogger(__name__)

LONGEST_WAIT = (
    0.1  # seconds a claim may wait for a free worker; then other nodes may have its queue, and operators reach it
)
LAST_WAIT = 5.0  # seconds that a stop waits, beyond the grace time, for rows that another transaction has locked
LONGEST_DELAY = 0.8  # seconds between two tries to have a session again: a database that is back is used at once
LONGEST_PAUSE = 1.0  # seconds between two errors of the loop
_OUTAGES = {
    Kind.NOT_MIGRATED: "the database is not migrated",
    Kind.NO_RIGHTS: "the database user lacks rights, see the guide about rights",
}


class Scheduler:
    def __init__(
        self, options: Options, supervisor: int | None = None, *, deadline: Deadline | None = None, output=None
    ):
        """supervisor: descriptor on which a byte is written for each heartbeat.

        deadline: the kernel's timer that kills this process when its lease has run out.
        output: the stream of the progress bar; None means standard error.
        """
        self.options = options
        self.lease = conf.lease()
        self.node = visible(f"{socket.gethostname()}:{os.getpid()}")
        self.stores = self._stores()
        self.hands = Hands(self.stores, self.node)
        self.pool = Pool(
            self.hands,
            size=options.processes,
            slots=options.concurrency,
            verbosity=options.verbosity,
            max_jobs=options.max_jobs_per_worker,
            max_memory=options.max_memory_per_worker,
            node=self.node,
            descriptors=lambda: [descriptor for store in self.stores for descriptor in store.descriptors()],
            node_ids=lambda: [store.node_id for store in self.stores if store.node_id],
        )
        self.turns = Turns(self.stores, self.hands, self.pool, options.slice)
        self._progress = Progress(self.stores, output) if options.progress and options.until_empty else None
        self.recording = Recording(
            self.stores, self.hands, self.pool, self.turns, self.node, self.work_meanwhile, self._progress
        )
        self.housekeeping = self._housekeeping()
        self.exit_code = 0
        self.stop_at: float | None = None  # uptime at which what still runs is killed
        self._beat_at = 0.0
        self._waits_since = 0.0  # uptime at which nothing waited last
        self._errors = 0  # in a row
        self._erring_since = 0.0  # uptime of the first of them
        self._lost_at: float | None = None  # uptime since when there is no session
        self.repeats = Repeats()
        self._supervisor = supervisor
        self._deadline = deadline
        # The supervisor decides what Ctrl-C and SIGTERM mean, which may reach every process of a node.
        self.signals = Signals(STOP, STOP_AT_ONCE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self.signals, selectors.EVENT_READ)

    def _housekeeping(self):
        return Housekeeping([Parts(store, self.hands, self.pool, self.lease, self.node) for store in self.stores])

    def _stores(self):
        scopes: dict[str, list[str]] = {}
        for scope, queuetopia in by_scope().items():
            if (not self.options.scopes or scope in self.options.scopes) and conf.is_enabled(scope):
                scopes.setdefault(queuetopia.database(), []).append(scope)
        return [Store(alias, names, self.options.poll_interval) for alias, names in scopes.items()]

    @property
    def is_stopping(self):
        return self.stop_at is not None

    # The life of the node

    def run(self) -> int:
        """Serve until stopped, or until the queues are empty; return the exit code."""
        failures, has_served = 0, False
        while True:
            is_open = False
            try:
                self.open()
                failures, has_served, is_open = 0, True, True
                self.serve()
                self.close()
                return self.exit_code
            except (
                exceptions.SessionLost, exceptions.SessionRefused, DatabaseError, InterfaceError, OSError
            ) as exc:  # fmt: skip
                refusal = exc if is_open or isinstance(exc, OSError) else refused_descriptor() or exc
                self.drop()
                if isinstance(exc, exceptions.SessionRefused) and not has_served:
                    raise  # else a failover is under way: the database's name leads to a standby for a while
                failures += 1
                if isinstance(refusal, OSError):
                    self._log_error("the operating system refuses a session, trying again node=%s\n%s", refusal)
                else:
                    self._log_outage(exc)
                if self._is_stopped_within(pause(failures, 0.05, LONGEST_DELAY)):
                    return 1

    def _log_outage(self, exc):
        self._lost_at = self._lost_at or uptime()
        event = _OUTAGES.get(database_trouble(exc).kind, "no database session")
        self.repeats.log(
            logger, logging.ERROR, f"{event} node=%s cause=%r for=%.1fs; trying again",
            self.node, brief(exc), uptime() - self._lost_at, cause=brief(exc),
        )  # fmt: skip

    def _log_return(self, returned_at):
        if self._lost_at is not None:
            self.repeats.log(
                logger, logging.WARNING, "database session is back node=%s after=%.1fs",
                self.node, returned_at - self._lost_at,
            )  # fmt: skip
            self._lost_at = None

    def _is_stopped_within(self, seconds):
        """Wait without a session; heartbeats report to the supervisor that this process lives."""
        until = uptime() + seconds
        while (left := until - uptime()) > 0 and not self.is_stopping:
            self._report_to_supervisor()
            self.obey(self.signals.wait(min(left, 1.0)))
        return self.is_stopping

    def open(self) -> None:
        """Open the sessions, announce the node, start the workers: they inherit the locks' descriptors."""
        for store in self.stores:
            store.open(self.lease, self._selector, self._beat_aside)
        opened_at = uptime()
        if self.options.standby and not wait_for_turn(self.stores, self.lease, self.node, self._is_stopped_within):
            return
        for store in self.stores:
            store.register(self.node)
        self.housekeeping = self._housekeeping()
        self._beat_at = 0.0
        self.beat()
        self._log_return(opened_at)
        self._settle()
        if self._progress:
            self._progress.begin()
        logger.info(
            "node started node=%s scopes=%s", self.node, ",".join(s for store in self.stores for s in store.scopes)
        )

    def _settle(self):
        """After a lost session: record what had ended, and give back what we cut short ourselves.

        The server may not have noticed yet that the session is lost: it frees the queues' locks when it does.
        """
        for store in self.stores:
            store.endings.begin_session()
            self.recording.record_in(store)

    def serve(self) -> None:
        while not self.is_finished():
            try:
                self.wait()
                self.collect()
                self.recording.record()
                self.claim()
                if not self.recording.is_due():  # which hands out meanwhile
                    self.hand_out()
                self.beat()
                self._errors = 0
                self.housekeeping.run(is_stopping=self.is_stopping)
            except exceptions.SessionLost:
                raise
            except Exception as exc:
                # The workers go on with their jobs, and what they report is recorded next time.
                self._log_error("scheduler error node=%s\n%s", exc)
                self.survive_error(exc)

    def _log_error(self, event, exc):
        self.repeats.log(logger, logging.ERROR, event, self.node, raised(exc), cause=repr(exc))

    def survive_error(self, exc):
        """Go on with the sessions if they stand: what runs must not end because of an error elsewhere.

        After the fence's time of nothing but errors all is begun anew, for what the loop knows may be the cause. Not so
        after errors of the operating system, which would be the same then.
        """
        if not self._errors:
            self._erring_since = uptime()
        self._errors += 1
        for store in self.stores:
            store.refuse_if_lost()
        seconds = uptime() - self._erring_since
        if seconds >= self.lease.fence and not isinstance(exc, OSError):
            raise exceptions.SessionLost(f"nothing but errors for {seconds:.0f} s, the last: {brief(exc)}") from exc
        try:
            self.beat()
        except (DatabaseError, OSError) as again:
            self._log_error("heartbeat failed node=%s\n%s", again)
        self.obey(self.signals.wait(pause(self._errors, 0.05, LONGEST_PAUSE)))

    def close(self) -> None:
        """End cleanly: the workers finish their hooks, the node's row goes, the locks go with the session."""
        self.pool.say_goodbye()
        until = max(self.stop_at or 0.0, uptime() + 5.0)
        while not self.pool.all_ended() and uptime() < until:
            self.beat()
            self.pool.hear()  # a worker whose messages are not read blocks
            if {STOP, STOP_AT_ONCE} & set(self.signals.wait(0.05)):
                self.exit_code, until = 1, 0.0
        self.pool.kill_all()
        self._clear_deadline()
        for store in self.stores:
            self._save_statistics(store)
            store.unregister(self._selector)
        if self._progress:
            self._progress.end()
        self._report_to_supervisor(LAST_BEAT)
        logger.info("node stopped node=%s", self.node)

    def _save_statistics(self, store):
        try:
            save_statistics(store)
        except DatabaseError as exc:
            logger.warning("statistics not saved alias=%s cause=%r", store.alias, brief(exc))

    def drop(self) -> None:
        """The locks may be gone: kill what runs *first*, then the sessions. What had ended, and what we cut short,
        is kept and recorded in the next session if the fences still stand."""
        self.pool.kill_all()
        self._clear_deadline()
        self.hands.give_back_waiting()
        for store in self.stores:
            store.endings.record_returned()
            store.close(self._selector)

    # Wake

    def wait(self) -> None:
        """Sleep until something happens: a signal, a wake-up, a worker's message, or a timer."""
        self.pool.watch(self._selector)
        if self.recording.is_gathering():
            time.sleep(GATHER / 6)  # woken by each message, we would do nothing but wake up
        for key, events in self._selector.select(self._sleep()):
            if isinstance(key.data, WorkerProcess) and events & selectors.EVENT_WRITE:
                key.data.flush()
        if uptime() > self.pool.deadline:
            raise exceptions.SessionLost("the fence has passed: this process stood still, or the database did")
        for store in self.stores:
            with store.session():
                store.listen()
        self.obey(self.signals.received())

    def _sleep(self):
        """Return the seconds until the next timer, 0 when there is something to do."""
        may_claim = self.turns.may_claim()
        if self._has_something_to_do(may_claim):
            return 0
        timers = [self._beat_at, *self.pool.timers(), *self.housekeeping.timers(is_stopping=self.is_stopping)]
        if self.hands.waiting:
            timers.append(self._waits_since + LONGEST_WAIT)
        if self.stop_at is not None:
            timers.append(self.stop_at + (LAST_WAIT if uptime() >= self.stop_at else 0.0))
        for store in self.stores:
            with store.session():
                timers += store.timers(may_claim=may_claim)
        return max(0.0, min(timers) - uptime())

    def _has_something_to_do(self, may_claim):
        if self.hands.waiting and (self.is_stopping or self.pool.room() > 0):
            return True
        return any(
            store.endings.new or store.endings.returned or (store.may_have_due and may_claim) for store in self.stores
        )

    def obey(self, signals: list[int]) -> None:
        """Stop as the supervisor asks for by signals; others are disregarded."""
        for number in signals:
            if number in (STOP, STOP_AT_ONCE):
                self.stop()
        if STOP_AT_ONCE in signals:
            self.stop()

    def stop(self) -> None:
        """First call: nothing new starts, what runs has the grace time. Second call: it has none; exit code 1."""
        if self.stop_at is None:
            logger.info("stopping node=%s grace=%g", self.node, self.options.grace)
            self.stop_at = uptime() + self.options.grace
            self.pool.wind_down()
            self.turns.end()
            self.recording.end()
        else:
            logger.warning("stopping at once node=%s", self.node)
            self.stop_at = uptime()
            self.exit_code = 1

    def is_finished(self) -> bool:
        if not self.hands.are_empty():
            return False
        if any(store.endings.put_off for store in self.stores) and not self._has_waited_long_enough():
            return False
        if not self.is_stopping and self.options.until_empty:
            if self.pool.is_notifying() or not self.housekeeping.is_empty():
                return False
            self.exit_code = int(self.housekeeping.has_left_over())
            return True
        return self.is_stopping

    def _has_waited_long_enough(self):
        if self.stop_at is None or uptime() < self.stop_at + LAST_WAIT:
            return False
        for ending in (ending for store in self.stores for ending in store.endings.put_off):
            logger.error(
                "stopped before the result could be stored, its rows are locked; the job runs again node=%s %s",
                self.node, text_of(ending.claim), extra=fields(ending.claim, "result not stored", self.node),
            )  # fmt: skip
        return True

    # Collect

    def collect(self) -> None:
        """Hear the workers, stop what outlived its time, replace who died."""
        self.pool.collect()
        self.pool.time_out()
        if self.stop_at is not None and uptime() >= self.stop_at:
            self.pool.kill_all()
        self.pool.replace()

    # Hand out

    def work_meanwhile(self) -> None:
        """Hand out and hear while a database writes: that is half of the loop's own work."""
        try:
            self.hand_out()
            self.pool.hear()
        except Exception as exc:  # must not cost the results that are being written
            self._log_error("scheduler error while results were written node=%s\n%s", exc)

    def hand_out(self) -> None:
        if self.is_stopping:
            self.hands.give_back_waiting()
            return
        self.pool.hand_out()
        if not self.hands.waiting:
            self._waits_since = uptime()
        elif uptime() >= self._waits_since + LONGEST_WAIT:
            self.hands.give_back_waiting()  # another node may have room

    # Claim

    def claim(self) -> None:
        """Take due queues while there is room to run their heads."""
        if not self.turns.may_claim():
            return
        self.turns.note_claim()
        self.stores.append(self.stores.pop(0))  # each database is the first to be asked in its turn
        for store in self.stores:
            limit = self.turns.room()
            if limit > 0 and store.may_have_due:
                with store.unless_busy():
                    for claims in store.claim(limit):
                        self.hands.take(store, claims)

    # Beat

    def beat(self, aside: tuple[Store, str] | None = None) -> None:
        """Prove in every database that this node lives; until the fence time after that, workers may start jobs.

        aside: a database whose session is busy, and the alias to beat through instead.
        """
        began = uptime()
        if began < self._beat_at:
            return
        for store in self.stores:
            if aside and store is aside[0]:
                store.beat(self.pool.report(), aside[1])
                continue
            with store.session():
                store.beat(self.pool.report())
        self.pool.extend_lease(began + self.lease.fence)
        if self._deadline:
            # After the fence this loop, or the supervisor, kills the workers itself if it can.
            self._deadline.set(began + self.lease.fence + self.lease.kill / 2)
        self._beat_at = began + self.lease.heartbeat
        self._report_to_supervisor()

    def _beat_aside(self, store, alias):
        """Go on with what runs while a commit of the store waits for a standby."""
        try:
            self.beat((store, alias))
        except Exception as exc:
            self._log_error("heartbeat failed node=%s\n%s", exc)
        self.work_meanwhile()

    def _clear_deadline(self):
        """No worker runs any more."""
        if self._deadline:
            self._deadline.clear()

    def _report_to_supervisor(self, beat=BEAT):
        if self._supervisor is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._supervisor, beat)


def disconnect_receivers() -> None:
    """Have no receiver of the project's run in this process when rows are read or written.

    One that is connected without a sender, as those of search indexers and audit packages are, would get our rows too.
    Receivers of connection_created run, because they may set a schema or a role; what they raise is logged.
    """
    for sent in vars(model_signals).values():
        if isinstance(sent, model_signals.ModelSignal):
            sent.receivers = []
            sent.sender_receivers_cache.clear()
    connection_created.send = _send_and_log  # type: ignore[assignment,method-assign]


def _send_and_log(sender, connection, **named):
    answers = connection_created.send_robust(sender, connection=connection, **named)
    for receiver, answer in answers:
        if isinstance(answer, Exception):
            logger.error(
                "a receiver of connection_created failed alias=%s receiver=%r\n%s",
                connection.alias, receiver, raised(answer),
            )  # fmt: skip
    return answers


def main(options: dict) -> int:
    """Run the scheduler of one node in this process; return its exit code."""
    heartbeat = options.pop("heartbeat")
    os.set_blocking(heartbeat, False)
    disconnect_receivers()
    log_queue = LogQueue()
    output = log_queue.stream(sys.stderr) if sys.stderr else None
    try:
        code = Scheduler(Options(**options), heartbeat, deadline=Deadline(), output=output).run()
    except (exceptions.SessionRefused, exceptions.TimesRefused) as exc:
        logger.error("cannot start: %s", exc)
        code = REFUSED
    except Exception as exc:
        logger.error("scheduler crashed\n%s", raised(exc))
        code = CRASHED
    if not log_queue.close():
        leave_at_exit(code)
    return code
