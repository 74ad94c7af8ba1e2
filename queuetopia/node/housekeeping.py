"""The chores of a node, database by database, and the end of a node that runs until its queues are empty."""

from collections.abc import Iterator

from ..backends import upkeep
from ..channel import uptime
from ..models import Job, Queue
from .chores import (
    Alerts,
    Census,
    Chore,
    Mail,
    Parts,
    Retention,
    SavedStatistics,
    Schedules,
    StatisticsRetention,
    StopRequests,
    Sweep,
    Unchecked,
)  # fmt: skip
from .succession import DeadNodes, Forgotten, Orphans

CHORES: list[type[Chore]] = [
    StopRequests,
    Unchecked,
    Sweep,
    Schedules,
    DeadNodes,
    Alerts,
    Mail,
    SavedStatistics,
    Census,
    StatisticsRetention,
    Retention,
    Forgotten,
    Orphans,
]


class Housekeeping:
    """The chores of one session."""

    def __init__(self, all_parts: list[Parts]):
        self._chores = [chore(parts) for parts in all_parts for chore in CHORES]
        self._stores = [parts.store for parts in all_parts]

    def run(self, *, is_stopping: bool) -> None:
        for store in self._stores:
            store.wake_by_time()
            with store.session():
                store.notify_followers()
        now = uptime()  # one for all: what is due at the same intervals stays due at the same moments
        for chore in self._chores:
            if chore.while_stopping or not is_stopping:
                chore.run_if_due(now)

    def timers(self, *, is_stopping: bool) -> Iterator[float]:
        """Yield the uptimes at which something is to be done."""
        return (chore.due_at for chore in self._chores if chore.while_stopping or not is_stopping)

    def is_empty(self) -> bool:
        """True when every served queue is empty, halted, paused or only scheduled for later."""
        if any(chore.is_left() for chore in self._chores):
            return False
        for store in self._stores:
            with store.session():
                if store.may_have_due or upkeep.has_work(store.backend, store.scopes):
                    return False
        return True

    def has_left_over(self) -> bool:
        """True when a halted job is left, or one that this code cannot serve."""
        for store in self._stores:
            jobs = Job.objects.using(store.alias).unfinished().halted().filter(scope__in=store.scopes)
            queues = Queue.objects.using(store.alias).filter(scope__in=store.scopes, paused_at=None).exclude(problem="")
            if jobs.exists() or queues.exists():
                return True
        return False
