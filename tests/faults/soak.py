"""What a node occupies while jobs are created, fail, time out and are killed for a long time: it must not grow."""

import statistics
from collections import defaultdict

import psutil

from .campaign import pids_of
from .ledger import now

EVERY = 5.0  # seconds between two samples
WARM_UP = 0.1  # of the samples, which are left out
MAY_GROW = 1.1  # times, from the first third to the last …
OR_BY = 4  # … or so many MiB, descriptors, sessions, queues: the grain of what is sampled


class Samples:
    """What the nodes of a campaign occupy, sampled again and again."""

    def __init__(self, campaign):
        self._campaign = campaign
        self._next_at = 0.0
        self.values: dict[str, list[float]] = defaultdict(list)

    def take(self) -> None:
        """Take a sample if it is time to."""
        if now() < self._next_at:
            return
        self._next_at = now() + EVERY
        sample = defaultdict(list)
        for member in self._campaign.members:
            for role in ("supervisor", "scheduler", "worker"):
                for pid in pids_of(member.node, role):
                    self._measure(sample, role, pid)
        for name, values in sample.items():
            self.values[name].append(max(values))
        self.values["database sessions of all nodes"].append(len(self._campaign.server.sessions("node")))
        self.values["locks and queues held"].append(_held())

    def _measure(self, sample, role, pid):
        try:
            process = psutil.Process(pid)
            sample[f"{role}: MiB"].append(process.memory_info().rss / 2**20)
            sample[f"{role}: descriptors"].append(process.num_fds())
            sample[f"{role}: threads"].append(process.num_threads())
        except psutil.NoSuchProcess:
            return  # killed meanwhile

    def thirds(self) -> list[tuple[str, float, float, bool]]:
        """Return each figure's median in the first third and in the last, and whether it has not grown."""
        found = []
        for name, values in sorted(self.values.items()):
            steady = values[int(len(values) * WARM_UP) :]
            third = max(1, len(steady) // 3)
            first, last = statistics.median(steady[:third]), statistics.median(steady[-third:])
            found.append((name, first, last, last <= max(first * MAY_GROW, first + OR_BY)))
        return found


def _held():
    from queuetopia.models import Queue

    return Queue.objects.held().count()
