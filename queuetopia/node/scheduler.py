"""The loop of one node: wake, collect, time out, record, claim, hand out, beat.

One process, one thread (beside the one that writes the log), no user code. It owns one database session per database
(a Store) and the workers (a Pool). What it knows can always be thrown away: the truth is in the rows, and a successor
goes on from there.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from contextlib import contextmanager

from django.db import DatabaseError, InterfaceError, OperationalError
from django.db.backends.signals import connection_created
from django.db.models import signals as model_signals

from .. import conf, exceptions
from ..attempts import ENDINGS, FAILURES, Claim, Outcome, Verdict, raised, readable
from ..backends.trouble import Kind, database_trouble
from ..backends.values import Ending
from ..channel import uptime
from ..performer import known_actions
from ..processes import Signals, refused_descriptor
from ..progress import Progress
from ..registry import by_scope
from ..repeats import Repeats, pause
from ..text import brief, loggable, masked, visible
from . import housekeeping
from .deadline import Deadline
from .log_queue import LogQueue, leave_at_exit
from .pool import Pool
from .protocol import BEAT, CRASHED, LAST_BEAT, REFUSED, STOP, STOP_AT_ONCE, Options
from .store import Store
from .worker_process import WorkerProcess

logger = logging.getLogger(__name__)

MOST_HELD = 1_000  # queues held at once: PostgreSQL's lock table is finite, and full it refuses everybody
SLICE_TIME = 0.05  # seconds a queue's jobs may run straight on while others wait, even if its slice is not used up
LONGEST_WAIT = 0.1  # seconds a claim may wait for a free worker; then other nodes, and people, may have its queue
PATIENCE = 0.01  # seconds a wake-up waits for room for many claims, while the workers have enough to do; then …
MADE_ROOM = 16  # … so many queues that have run a job already make room for those that have just got one
GATHER = 0.003  # seconds a result may wait for others to share its commit, while more of them are to be expected
RECORDED_AT_ONCE = 400  # endings of one transaction: the heartbeat waits with it
LONGEST_PARAMS = 10_000  # characters of params in the log
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
        self.waiting: deque[tuple[Store, Claim]] = deque()  # claimed, not handed out
        self.pool = Pool(
            size=options.processes,
            slots=options.concurrency,
            verbosity=options.verbosity,
            node=self.node,
            descriptors=lambda: [descriptor for store in self.stores for descriptor in store.descriptors()],
            node_ids=lambda: [store.node_id for store in self.stores if store.node_id],
        )
        self.exit_code = 0
        self.stop_at: float | None = None  # uptime at which what still runs is killed
        self._beat_at = 0.0
        self._gather_until = 0.0  # uptime
        self._made_room = 0  # queues let go since the last claim because others had just got work
        self._waits_since = 0.0  # uptime at which nothing waited last
        self._errors = 0  # in a row
        self._erring_since = 0.0  # uptime of the first of them
        self._lost_at: float | None = None  # uptime since when there is no session
        self.repeats = Repeats()
        self._supervisor = supervisor
        self._deadline = deadline
        # The supervisor decides what Ctrl-C and SIGTERM mean, which may reach every process of a node.
        self._signals = Signals(STOP, STOP_AT_ONCE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._progress = Progress(self.stores, output) if options.progress and options.until_empty else None

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
        """Serve until told to stop, or until the queues are empty; return the exit code."""
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
                    self._tell_of_outage(exc)
                if self._is_stopped_within(pause(failures, 0.05, LONGEST_DELAY)):
                    return 1

    def _tell_of_outage(self, exc):
        self._lost_at = self._lost_at or uptime()
        event = _OUTAGES.get(database_trouble(exc).kind, "no database session")
        self.repeats.log(
            logger, logging.ERROR, f"{event} node=%s cause=%r for=%.1fs; trying again",
            self.node, brief(exc), uptime() - self._lost_at, cause=brief(exc),
        )  # fmt: skip

    def _tell_of_return(self, returned_at):
        if self._lost_at is not None:
            self.repeats.log(
                logger, logging.WARNING, "database session is back node=%s after=%.1fs",
                self.node, returned_at - self._lost_at,
            )  # fmt: skip
            self._lost_at = None

    def _is_stopped_within(self, seconds):
        """Wait without a session; the supervisor is told that we live and hold nothing."""
        until = uptime() + seconds
        while (left := until - uptime()) > 0 and not self.is_stopping:
            self._tell_supervisor()
            self.obey(self._signals.wait(min(left, 1.0)))
        return self.is_stopping

    def open(self) -> None:
        """Open the sessions, announce the node, start the workers: they inherit the locks' descriptors."""
        for store in self.stores:
            store.open(self.lease, self._selector)
            store.backend.meanwhile = self.work_meanwhile
        opened_at = uptime()
        if self.options.standby and not housekeeping.wait_for_turn(self):
            return
        for store in self.stores:
            store.register(self.node)
        self._beat_at = 0.0
        self.beat()
        self._tell_of_return(opened_at)
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
            endings, store.endings = store.endings, []
            store.put_off_recording(endings, seconds=0.0)
            self._record(store)

    def serve(self) -> None:
        while not self.is_finished():
            try:
                self.wait()
                self.collect()
                self.record()
                self.claim()
                if not self._records_next():  # which hands out meanwhile
                    self.hand_out()
                self.beat()
                self._errors = 0
                self._keep_house()
            except exceptions.SessionLost:
                raise
            except Exception as exc:
                # The workers go on with their jobs, and what they report is recorded next time.
                self._log_error("scheduler error node=%s\n%s", exc)
                self._survive_error(exc)

    def _keep_house(self):
        """An error in what is done beside the jobs costs no job: it is logged, and tried again in a second."""
        try:
            housekeeping.keep_house(self)
        except exceptions.SessionLost:
            raise
        except Exception as exc:
            self._log_error("housekeeping failed node=%s\n%s", exc)
            for store in self.stores:
                store.refuse_if_lost()
                store.step_at = uptime() + housekeeping.LOOK_FOR_DEAD

    def _log_error(self, event, exc):
        self.repeats.log(logger, logging.ERROR, event, self.node, raised(exc), cause=repr(exc))

    def _survive_error(self, exc):
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
        self.obey(self._signals.wait(pause(self._errors, 0.05, LONGEST_PAUSE)))

    def close(self) -> None:
        """End cleanly: the workers finish their hooks, the node's row goes, the locks go with the session."""
        self.pool.say_goodbye()
        until = max(self.stop_at or 0.0, uptime() + 5.0)
        while not self.pool.all_ended() and uptime() < until:
            self.beat()
            self.pool.hear()  # a worker whose messages are not read blocks
            if {STOP, STOP_AT_ONCE} & set(self._signals.wait(0.05)):
                self.exit_code, until = 1, 0.0
        self.pool.kill_all()
        self._clear_deadline()
        for store in self.stores:
            housekeeping.save_statistics(store)
            store.unregister(self._selector)
        if self._progress:
            self._progress.end()
        self._tell_supervisor(LAST_BEAT)
        logger.info("node stopped node=%s", self.node)

    def drop(self) -> None:
        """The locks may be gone: kill what runs *first*, then the sessions. What had ended, and what we cut short,
        is kept and recorded in the next session if the fences still stand."""
        self.pool.kill_all()
        self._clear_deadline()
        self._take_from_pool()
        self._return_waiting()
        for store in self.stores:
            store.endings += store.returned
            store.returned = []
            store.close(self._selector)

    # Wake

    def wait(self) -> None:
        """Sleep until something happens: a signal, a wake-up, a worker's message, or a timer."""
        self.pool.watch(self._selector)
        if self._is_gathering():
            time.sleep(GATHER / 6)  # woken by each message, we would do nothing but wake up
        for key, events in self._selector.select(self._sleep()):
            if isinstance(key.data, WorkerProcess) and events & selectors.EVENT_WRITE:
                key.data.flush()
        if uptime() > self.pool.deadline:
            raise exceptions.SessionLost("the fence has passed: this process stood still, or the database did")
        for store in self.stores:
            with self.session(store):
                store.listen()
        self.obey(self._signals.received())

    def _sleep(self):
        """Return the seconds until the next timer, 0 when there is something to do."""
        if self._has_something_to_do():
            return 0
        timers = [self._beat_at, *self.pool.timers()]
        if self.waiting:
            timers.append(self._waits_since + LONGEST_WAIT)
        if self.stop_at is not None:
            timers.append(self.stop_at + (LAST_WAIT if uptime() >= self.stop_at else 0.0))
        for store in self.stores:
            with self.session(store):
                timers += store.timers(may_claim=self._may_claim())
        return max(0.0, min(timers) - uptime())

    def _has_something_to_do(self):
        if self.pool.ended or self.pool.unstarted or (self.waiting and (self.is_stopping or self.pool.room() > 0)):
            return True
        may_claim = self._may_claim()
        return any(store.endings or store.returned or (store.may_have_due and may_claim) for store in self.stores)

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
        else:
            logger.warning("stopping at once node=%s", self.node)
            self.stop_at = uptime()
            self.exit_code = 1

    def is_finished(self) -> bool:
        if self.pool.in_flight or self.pool.ended or self.pool.unstarted or self.waiting:
            return False
        if any(store.endings or store.returned for store in self.stores):
            return False
        if any(store.put_off for store in self.stores) and not self._has_waited_long_enough():
            return False
        if not self.is_stopping and self.options.until_empty:
            if self.pool.is_telling() or not housekeeping.is_empty(self):
                return False
            self.exit_code = int(housekeeping.has_left_over(self))
            return True
        return self.is_stopping

    def _has_waited_long_enough(self):
        if self.stop_at is None or uptime() < self.stop_at + LAST_WAIT:
            return False
        for ending in (ending for store in self.stores for ending in store.put_off):
            logger.error(
                "stopped before the result could be stored, its rows are locked; the job runs again node=%s %s",
                self.node, _name(ending.claim),
            )  # fmt: skip
        return True

    # Collect

    def collect(self) -> None:
        """Hear the workers, stop what outlived its time, replace who died."""
        self.pool.collect()
        self.pool.time_out()
        if self.stop_at is not None and uptime() >= self.stop_at:
            self.pool.kill_all()
        self._take_from_pool()
        self.pool.replace()

    def _take_from_pool(self):
        if self.pool.ended and not any(store.endings for store in self.stores):
            self._gather_until = uptime() + GATHER
        for store, ending in self.pool.ended:
            store.endings.append(store.apart(ending))
        self.waiting.extendleft(reversed(self.pool.unstarted))
        self.pool.ended.clear()
        self.pool.unstarted.clear()

    def claims_in_hand(self, store) -> list[Claim]:
        """Return all claims of which something is still to be done or recorded, wherever they are on their way."""
        on_their_way = [*self.pool.claims(), *self.waiting, *self.pool.unstarted]
        ended = [*store.unrecorded(), *(ending for owner, ending in self.pool.ended if owner is store)]
        return [claim for owner, claim in on_their_way if owner is store] + [ending.claim for ending in ended]

    # Record

    def record(self) -> None:
        if self._is_gathering():
            return
        for store in self.stores:
            self._record(store)

    def _is_gathering(self):
        """True while results wait for others: less than half of what was handed out has ended.

        Only while every worker has enough in its hands to be busy meanwhile. A lone job does not wait.
        """
        ended = sum(len(store.endings) for store in self.stores)
        may_gather = 0 < ended < len(self.pool.in_flight) and uptime() < self._gather_until
        return may_gather and self.pool.is_busy() and not self.is_stopping

    def _records_next(self):
        return any(store.endings for store in self.stores) and not self._is_gathering()

    def _record(self, store) -> None:
        """Store how attempts ended and take what may follow them; what is refused as stale is logged and dropped."""
        with self.unless_busy(store):
            if store.returned:
                store.give_back()
            store.take_up_again()
        endings = store.endings[:RECORDED_AT_ONCE]
        if not endings:
            return
        store.count_streaks(endings)
        with self.session(store):
            recorded = housekeeping.record_storable(
                store, endings, self.node, lambda claim: self._may_keep(store, claim)
            )
        del store.endings[: len(endings)]
        store.put_off_recording(recorded.locked)
        for claim in recorded.claims:
            self._accept(store, claim)
        store.end_streaks(endings, recorded.claims)
        store.note_due(recorded)
        store.tally.add(recorded.written)
        store.note_for_followers()
        for ending in recorded.stale:
            logger.warning("stale result refused node=%s %s", self.node, _name(ending.claim))
            if ending.teller:
                self.pool.forget(ending)
        for ending in recorded.written:
            self._follow(ending)
        if self._progress:
            self._progress.advance(sum(ending.outcome.verdict in ENDINGS for ending in recorded.written))

    def work_meanwhile(self) -> None:
        """Hand out and hear while a database writes: that is half of the loop's own work."""
        try:
            self.hand_out()
            self.pool.hear()
        except Exception as exc:  # must not cost the results that are being written
            self._log_error("scheduler error while results were written node=%s\n%s", exc)

    def _may_keep(self, store, claim):
        """A queue goes straight on with its next job, but while others wait only for a bounded slice."""
        if self.is_stopping or not self.pool.workers:
            return False
        is_wanted_elsewhere = self._has_peers() and self.pool.has_more_than_it_runs()
        if not (self.waiting or is_wanted_elsewhere or any(other.may_have_due for other in self.stores)):
            return True
        if self._made_room < MADE_ROOM and self._is_waited_for():
            self._made_room += 1
            return False
        jobs, seconds = store.streaks[claim.queue_id]
        return jobs < self.options.slice and seconds < SLICE_TIME

    def _follow(self, ending):
        """Log a committed end, and have it told to hooks and receivers."""
        claim, outcome = ending.claim, ending.outcome
        if outcome.verdict in FAILURES:
            self._log_failure(claim, outcome)
        elif outcome.verdict == Verdict.INTERRUPT:
            logger.warning("attempt interrupted, not counted node=%s %s", self.node, _name(claim))
        if ending.teller and outcome.verdict in FAILURES | ENDINGS:
            self.pool.tell(ending)

    def _log_failure(self, claim, outcome):
        message = outcome.error["message"].splitlines() or [""]
        cause = f"{outcome.error['type']}: {message[0][:200]}"
        if outcome.verdict == Verdict.RETRY:
            logger.warning(
                "attempt failed %s attempt=%d cause=%r next_in=%gs", _name(claim), claim.attempt, cause, outcome.delay
            )
            return
        params: object = f"{len(claim.params)} characters"
        if len(claim.params) <= LONGEST_PARAMS:
            params = masked(readable(claim.params), by_scope()[claim.scope].option("sensitive_params"))
        what, then = "skipped", "its queue goes on"
        if outcome.verdict == Verdict.HALT:
            what, then = "halted", "its queue is blocked until it is retried or skipped"
        logger.error(
            "job %s, %s %s attempt=%d cause=%r params=%r\n%s",
            what, then, _name(claim), claim.attempt, cause, params,
            loggable(outcome.error["traceback"]),
        )  # fmt: skip

    # Claim

    def room(self) -> int:
        # Where something has ended, the queue's next job will be; what is put off holds its queue, but no worker.
        ended = len(self.pool.ended) + sum(len(store.endings) for store in self.stores)
        returned = sum(len(store.returned) for store in self.stores)
        waiting = len(self.waiting) + len(self.pool.unstarted) + ended + returned
        held = waiting + len(self.pool.in_flight) + sum(len(store.put_off) for store in self.stores)
        most = min(MOST_HELD, *(store.backend.most_held for store in self.stores))
        return min(self.pool.room() - waiting, most - held)

    def _may_claim(self):
        """True while there is room; while the workers have enough to do, enough of it to be worth two commits."""
        room = self.room()
        if self.is_stopping or room <= 0:
            return False
        if 8 * room >= len(self.pool.in_flight) or not self.pool.is_busy():
            return True
        return self._is_waited_for()

    def _is_waited_for(self):
        return any(uptime() >= store.woken_at + PATIENCE for store in self.stores)

    def claim(self) -> None:
        """Take due queues while there is room to run their heads."""
        if not self._may_claim():
            return
        self._made_room = 0
        self.stores.append(self.stores.pop(0))  # each database is the first to be asked in its turn
        for store in self.stores:
            limit = self.room()
            if limit <= 0 or not store.may_have_due:
                continue
            with self.unless_busy(store):
                store.woken_at = float("inf")
                claims, more = store.backend.claim(store.scopes, limit, store.node_id)
                store.may_have_due = more and bool(claims)
                store.knows_next = False
                if more and not claims:
                    store.claim_later()
                for claim in claims:
                    self._accept(store, claim)

    def _accept(self, store, claim):
        known = known_actions(by_scope()[claim.scope].performer)
        if known is None or claim.action in known:
            self.waiting.append((store, claim))
            return
        self.repeats.log(
            logger, logging.ERROR, "unknown action, job left untouched node=%s %s", self.node, _name(claim),
            cause=f"{claim.scope} {claim.action}",
        )  # fmt: skip
        error = {"message": f"This code has no action {claim.action!r}; job {claim.job_id} waits for code that has."}
        outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN, delay=store.poll_interval, error=error)
        store.endings.append(Ending(claim, outcome))

    # Hand out

    def hand_out(self) -> None:
        if self.is_stopping:
            self._return_waiting()
            return
        self.pool.hand_out(self.waiting)
        if not self.waiting:
            self._waits_since = uptime()
        elif uptime() >= self._waits_since + LONGEST_WAIT:
            self._return_waiting()  # another node may have room

    def _has_peers(self):
        return any(store.has_peers for store in self.stores)

    def _return_waiting(self):
        for store, claim in self.waiting:
            outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN)
            # Any worker may tell of it, should a person have cancelled it meanwhile.
            store.returned.append(Ending(claim, outcome, (None, 0)))
        self.waiting.clear()

    # Beat

    def beat(self) -> None:
        """Prove in every database that this node lives; until the fence time after that, workers may start jobs."""
        began = uptime()
        if began < self._beat_at:
            return
        for store in self.stores:
            with self.session(store):
                store.beat(self.pool.report())
        self.pool.extend_lease(began + self.lease.fence)
        if self._deadline:
            # After the fence this loop, or the supervisor, kills the workers itself if it can.
            self._deadline.set(began + self.lease.fence + self.lease.kill / 2)
        self._beat_at = began + self.lease.heartbeat
        self._tell_supervisor()

    def _clear_deadline(self):
        """No worker runs any more."""
        if self._deadline:
            self._deadline.clear()

    def _tell_supervisor(self, beat=BEAT):
        if self._supervisor is not None:
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                os.write(self._supervisor, beat)

    @contextmanager
    def session(self, store):
        """Turn any error that leaves the session dead into SessionLost; others are the caller's."""
        try:
            yield
        except (OperationalError, InterfaceError):
            store.refuse_if_lost()
            raise

    @contextmanager
    def unless_busy(self, store):
        """Run the block in the session; if another transaction has locked what it needs, retry later."""
        try:
            with self.session(store):
                yield
        except OperationalError as exc:
            if not store.backend.is_busy(exc):
                raise
            logger.info("locked by another transaction, retrying later node=%s cause=%r", self.node, brief(exc))
            store.claim_later()


def _name(claim):
    return f"scope={claim.scope} queue={claim.queue!r} job={claim.job_id} action={claim.action!r} fence={claim.fence}"


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
