"""What a node does beside running jobs: one small class each, with its own timer. ``housekeeping.CHORES`` lists them.

No job waits for a chore; each step is short, so that the loop soon goes on.
"""

import logging
from dataclasses import dataclass

from django.db import OperationalError

from .. import conf, exceptions, jobs
from ..attempts import raised
from ..backends import upkeep
from ..channel import Message, uptime
from ..monitoring import census
from ..registry import by_scope
from ..text import brief
from .hands import Hands
from .pool import Pool
from .store import Store

logger = logging.getLogger(__name__)

POLL_NODES = 1.0  # seconds between polls for dead nodes and for requests to stop a job; two for a lone, idle node
POLL_PEERS = 0.25  # … a lone, busy node polls so often for others, which may have room for its waiting jobs
POLL_ALERTS = 5.0  # seconds between polls for queues blocked for too long, at most
POLL_SCHEDULES = 60.0  # seconds between polls for due schedules, at most: the database's clock may have been set
POLL_MAIL = 60.0  # seconds between polls for blocked queues to mail about
FLUSH = 10.0  # seconds between two writes of statistics
STEP = 0.01  # seconds between two steps of a sweep or of pruning …
SHARE = 0.1  # … and what they may take of the scheduler's time while jobs run
AGAIN = 1.0  # seconds until what failed is tried again


@dataclass
class Parts:
    """The parts of a node that its chores use, for one of its databases."""

    store: Store
    hands: Hands
    pool: Pool
    lease: conf.Lease
    node: str

    def until_next_poll(self) -> float:
        """Return the seconds between two polls for what other nodes and operators did."""
        if self.store.has_peers:
            return POLL_NODES
        return POLL_PEERS if self.hands.in_flight else 2 * POLL_NODES

    def pause_after(self, began: float) -> float:
        """Return the pause after a step of a long chore, in seconds: jobs go on between its steps."""
        took = uptime() - began
        return max(STEP, took / SHARE if self.hands.in_flight else took)


class Chore:
    """One duty in one database. ``run`` does a short step and returns the seconds until the next one."""

    while_stopping = False  # a node that waits for its last jobs still does it

    def __init__(self, parts: Parts):
        self.parts, self.store = parts, parts.store
        self.due_at = 0.0  # uptime

    def run(self) -> float:
        raise NotImplementedError

    def is_left(self) -> bool:
        """True while --until-empty has to wait for this chore, which may find a job to run."""
        return False

    def run_if_due(self, now: float) -> None:
        """Do a step if the chore is due. An error costs no job: it is logged, and the step retried in a second."""
        if now < self.due_at:
            return
        self.due_at = now + AGAIN
        try:
            with self.store.session():
                self.due_at = now + self.run()
        except exceptions.SessionLost:
            raise
        except Exception as exc:
            self.store.refuse_if_lost()
            name, cause = type(self).__name__, raised(exc)
            if isinstance(exc, OperationalError) and self.store.backend.is_busy(exc):
                logger.info("put off, rows are locked node=%s chore=%s cause=%r", self.parts.node, name, brief(exc))
                return
            self.store.repeats.log(
                logger, logging.ERROR, "housekeeping failed node=%s chore=%s\n%s", self.parts.node, name, cause,
                cause=f"{name} {exc!r}",
            )  # fmt: skip


# Requests of operators, lost wake-ups


class StopRequests(Chore):
    """Stop the running jobs that operators have cancelled."""

    while_stopping = True

    def run(self):
        claims = [claim for owner, claim in self.parts.hands.in_flight.values() if owner is self.store]
        if claims and (job_ids := upkeep.stop_requests(self.store.backend, claims)):
            self.parts.pool.stop_jobs(self.store, job_ids)
        return self.parts.until_next_poll()


class Unchecked(Chore):
    """Check again the queues that got a job while their rows were locked."""

    while_stopping = True

    def run(self):
        if self.store.backend.unchecked and self.store.backend.recheck([]):
            self.store.claim_soon()
        return self.parts.until_next_poll()

    def is_left(self):
        return bool(self.store.backend.unchecked)


class Sweep(Chore):
    """The safety net: find the due jobs whose wake-up was lost, scope by scope, once per poll interval."""

    def __init__(self, parts):
        super().__init__(parts)
        self._left: list[tuple[str, str]] = []  # (scope, queue after which to go on)
        self._poll_at = 0.0  # uptime

    def run(self):
        began = uptime()
        is_poll = began >= self._poll_at
        if is_poll:
            self._poll_at = began + self.store.poll_interval
            self.store.claim_soon()
        if not self._left and (is_poll or self.store.backend.is_sweep_wanted()):
            self._left = [(scope, "") for scope in self.store.scopes]
            self.store.close_unused_breakers()
        if self._left:
            self._step()
            if self._left:
                return self.parts.pause_after(began)
        return max(STEP, min(self._poll_at - began, self.parts.until_next_poll()))

    def _step(self):
        scope, after = self._left[0]
        repaired, go_on_after = upkeep.sweep(self.store.backend, scope, after)
        if repaired:
            logger.info("sweep found lost wake-ups scope=%s queues=%d", scope, repaired)
            self.store.claim_soon()
        self._left[:1] = [] if go_on_after is None else [(scope, go_on_after)]

    def is_left(self):
        return bool(self._left) or self._poll_at == 0.0


# Schedules


class Schedules(Chore):
    """Create the jobs of schedules at their due times. Without schedules it makes no query."""

    def __init__(self, parts):
        super().__init__(parts)
        classes = [by_scope()[scope] for scope in self.store.scopes]
        self._declared = {each: schedules for each in classes if (schedules := jobs.declared(each))}
        self._has_run = False
        for each in classes:
            jobs.log_wrong(each)

    def run(self):
        if not self._declared:
            return float("inf")
        created, seconds = jobs.create_due(self.store.backend, self._declared)
        self._has_run = True
        if created:
            self.store.claim_soon()
        return max(STEP, min(seconds, POLL_SCHEDULES))

    def is_left(self):
        return bool(self._declared) and not self._has_run


# Alerts: found here, sent by a worker, because receivers and mail servers may block


class Alerts(Chore):
    """Give workers the signals of queues that are still blocked."""

    def run(self):
        if self.parts.pool.may_notify():
            for claim, duration, threshold in upkeep.due_alerts(self.store.backend, self.store.scopes):
                self.parts.pool.notify_any(Message.ALERT, claim, duration, threshold)
        return min([POLL_ALERTS, *conf.alert_after()])


class Mail(Chore):
    """Give a worker the mail about blocked queues."""

    def run(self):
        if (every := conf.mail_admins_every()) and self.parts.pool.may_notify():
            self.parts.pool.notify_any(Message.MAIL, self.store.database, every)
            return POLL_MAIL
        return POLL_MAIL if not every else POLL_ALERTS


# Statistics


class SavedStatistics(Chore):
    """Write the counts since the last time. Counts that cannot be written now are written the next time."""

    while_stopping = True

    def __init__(self, parts):
        super().__init__(parts)
        self.due_at = uptime() + FLUSH

    def run(self):
        save_statistics(self.store)
        return FLUSH


def save_statistics(store: Store) -> None:
    unsaved = store.tally.unsaved() if conf.statistics_retention() != 0 else []
    if unsaved:
        upkeep.save_statistics(store.backend, store.node_id, unsaved)
    store.tally.saved()
    store.tally.set_clock(store.backend.now())


class Census(Chore):
    """Count the jobs that were created and those that operators ended; go on soon if there are many."""

    while_stopping = True

    def run(self):
        began = uptime()
        if conf.statistics_retention() == 0:
            return census.EVERY
        is_left = upkeep.take_census(self.store.backend, census.look, census.EVERY)
        return (uptime() - began) / SHARE if is_left else census.EVERY


class StatisticsRetention(Chore):
    """Delete statistics that are old enough."""

    def run(self):
        if (keep := conf.statistics_retention()) is not None:
            upkeep.prune_statistics(self.store.backend, self.store.scopes, keep)
        return self.store.poll_interval


class Retention(Chore):
    """Delete ended jobs that are old enough, scope by scope, from one poll to the next."""

    def __init__(self, parts):
        super().__init__(parts)
        self._left: list[str] = []  # scopes
        self._poll_at = 0.0  # uptime

    def run(self):
        began = uptime()
        if not self._left and began >= self._poll_at:
            self._poll_at = began + self.store.poll_interval
            self._left = list(self.store.scopes)
        if not self._left:
            return max(STEP, self._poll_at - began)
        # If this fails, say because a row of the project refers to a job, the other scopes go first.
        scope = self._left.pop(0)
        if jobs.prune(by_scope()[scope], alias=self.store.alias):
            self._left.insert(0, scope)
        return self.parts.pause_after(began)
