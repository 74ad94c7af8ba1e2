"""The loop of one node: wake, collect, time out, record, claim, hand out, beat.

One process, no threads, no user code. It owns one database session per database (a Store) and the workers (a
Pool). What it knows can always be thrown away: the truth is in the rows, and a successor goes on from there.
"""

import contextlib
import logging
import os
import selectors
import signal
import socket
import time
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError, OperationalError

from . import conf, exceptions, housekeeping
from .attempts import ENDINGS, FAILURES, Claim, Outcome, Verdict, loggable, masked, raised, readable
from .backends.base import Ending
from .channel import uptime
from .declaration import by_scope
from .performer import known_actions
from .pool import Pool
from .processes import Signals
from .progress import Progress
from .repeats import Repeats, pause
from .store import Store
from .supervisor import BEAT, CRASHED, LAST_BEAT, REFUSED, STOP
from .worker_process import WorkerProcess

logger = logging.getLogger(__name__)

MOST_HELD = 1_000  # queues held at once: PostgreSQL's lock table is finite, and full it refuses everybody
SLICE = 20  # jobs a queue may go straight on with while others wait …
SLICE_TIME = 0.05  # … or seconds that they have run, if they are longer
LONGEST_WAIT = 0.1  # seconds a claim may wait for a free worker while there are other nodes
PATIENCE = 0.01  # seconds a wake-up waits for room for many claims, while the workers have enough to do; then …
MADE_ROOM = 16  # … so many queues that have run a job already make room for those that have just got one
GATHER = 0.003  # seconds a result may wait for others to share its commit, while more of them are to be expected
RECORDED_AT_ONCE = 400  # endings of one transaction: the heartbeat waits with it
LAST_WAIT = 5.0  # seconds that a stop waits, beyond the grace time, for rows somebody has locked
LONGEST_DELAY = 0.8  # seconds between two tries to have a session again: a database that is back is used at once
MOST_ERRORS = 10  # errors in a row after which the scheduler gives up and is started anew


@dataclass
class Options:
    """What ``run_queuetopia`` was told."""

    scopes: list[str] = field(default_factory=list)  # empty: all
    processes: int = 1
    concurrency: int = 1  # attempts at once per worker process
    poll_interval: float | None = None  # seconds; None: the scopes' own
    grace: float = 30.0  # seconds that running jobs have to end on a stop
    until_empty: bool = False
    standby: bool = False
    slice: int = SLICE
    progress: bool = False
    verbosity: int = 1


class Scheduler:
    def __init__(self, options: Options, supervisor: int | None = None):
        """supervisor: descriptor on which a byte is written for each heartbeat."""
        self.options = options
        self.lease = conf.lease()
        self.node = f"{socket.gethostname()}:{os.getpid()}"
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
        self._errors = 0
        self._lost_at: float | None = None  # uptime since when there is no session
        self.repeats = Repeats()
        self._supervisor = supervisor
        # The supervisor decides what Ctrl-C and SIGTERM mean, which may reach every process of a node.
        self._signals = Signals(STOP, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._signals, selectors.EVENT_READ)
        self._progress = Progress(self.stores) if options.progress and options.until_empty else None

    def _stores(self):
        scopes: dict[str, list[str]] = {}
        for scope, queuetopia in by_scope().items():
            if not self.options.scopes or scope in self.options.scopes:
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
            try:
                self.open()
                failures, has_served = 0, True
                self.serve()
                self.close()
                return self.exit_code
            except (
                exceptions.SessionLost, exceptions.SessionRefused, DatabaseError, InterfaceError, OSError
            ) as exc:  # fmt: skip
                self.drop()
                if isinstance(exc, exceptions.SessionRefused) and not has_served:
                    raise  # else a failover is under way: the database's name leads to a standby for a while
                failures += 1
                self._tell_of_outage(str(exc))
                if self._is_stopped_within(pause(failures, 0.05, LONGEST_DELAY)):
                    return 1

    def _tell_of_outage(self, cause):
        self._lost_at = self._lost_at or uptime()
        self.repeats.log(
            logger, logging.ERROR, "no database session node=%s cause=%r for=%.1fs; trying again",
            self.node, cause, uptime() - self._lost_at, cause=cause,
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
            if STOP in self._signals.wait(min(left, 1.0)):
                self.stop()
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
                self._survive_error()

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

    def _survive_error(self):
        self._errors += 1
        if self._errors >= MOST_ERRORS:
            raise exceptions.SessionLost(f"{MOST_ERRORS} errors in a row")
        for store in self.stores:
            store.refuse_if_lost()
        if STOP in self._signals.wait(0.05):
            self.stop()

    def close(self) -> None:
        """End cleanly: the workers finish their hooks, the node's row goes, the locks go with the session."""
        self.pool.say_goodbye()
        until = max(self.stop_at or 0.0, uptime() + 5.0)
        while not self.pool.all_ended() and uptime() < until:
            self.beat()
            self.pool.hear()  # a worker whose words nobody reads stands still
            if STOP in self._signals.wait(0.05):
                self.exit_code, until = 1, 0.0
        self.pool.kill_all()
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
        self._take_from_pool()
        self._return_waiting()
        for store in self.stores:
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
        for number in self._signals.received():
            if number == STOP:
                self.stop()

    def _sleep(self):
        """Return the seconds until the next timer, 0 when there is something to do."""
        if self._has_something_to_do():
            return 0
        timers = [self._beat_at, *self.pool.timers()]
        if self.waiting and self._has_peers():
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
        return any(store.endings or (store.may_have_due and may_claim) for store in self.stores)

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
        if any(store.endings for store in self.stores):
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
            store.endings.append(ending)
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

        Only while every worker has enough in its hands to be busy meanwhile. A lone job waits for nobody.
        """
        ended = sum(len(store.endings) for store in self.stores)
        may_gather = 0 < ended < len(self.pool.in_flight) and uptime() < self._gather_until
        return may_gather and self.pool.is_busy() and not self.is_stopping

    def _records_next(self):
        return any(store.endings for store in self.stores) and not self._is_gathering()

    def _record(self, store) -> None:
        """Store how attempts ended and take what may follow them; what is refused as stale is logged and dropped."""
        with self.unless_busy(store):
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
        if not self.waiting and not any(other.may_have_due for other in self.stores):
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
        waiting = len(self.waiting) + len(self.pool.unstarted) + ended
        held = waiting + len(self.pool.in_flight) + sum(len(store.put_off) for store in self.stores)
        return min(self.pool.room() - waiting, MOST_HELD - held)

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
        elif self._has_peers() and uptime() >= self._waits_since + LONGEST_WAIT:
            self._return_waiting()  # another node may have room

    def _has_peers(self):
        return any(store.has_peers for store in self.stores)

    def _return_waiting(self):
        for store, claim in self.waiting:
            store.endings.append(Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.RETURN)))
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
        self._beat_at = began + self.lease.heartbeat
        self._tell_supervisor()

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
        """Do something in the session; if somebody has locked what it needs, leave it for later."""
        try:
            with self.session(store):
                yield
        except OperationalError as exc:
            if not store.backend.is_busy(exc):
                raise
            logger.info("locked by somebody, later node=%s cause=%r", self.node, str(exc))
            store.claim_later()


def _name(claim):
    return f"scope={claim.scope} queue={claim.queue!r} job={claim.job_id} action={claim.action!r} fence={claim.fence}"


def main(options: dict) -> int:
    """Run the scheduler of one node in this process; return its exit code."""
    heartbeat = options.pop("heartbeat")
    os.set_blocking(heartbeat, False)
    try:
        return Scheduler(Options(**options), heartbeat).run()
    except exceptions.SessionRefused as exc:
        logger.error("cannot start: %s", exc)
        return REFUSED
    except Exception as exc:
        logger.error("scheduler crashed\n%s", raised(exc))
        return CRASHED
