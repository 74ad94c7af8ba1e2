"""Jobs that need no order (``ordered = False``), beside ordered ones over many queues; then what pruning them costs."""

import time

from queuetopia.jobs import prune
from queuetopia.models import Queue

from .drain import drain_by_nodes
from .figures import Figure
from .fresh import fresh_database
from .queues import BenchmarkQueue, IndependentQueue

LEAST_OF_ORDERED = 0.7


def measure(size):
    with fresh_database():
        ordered = drain_by_nodes(size)
    with fresh_database():
        value = drain_by_nodes(size, queuetopia=IndependentQueue)
        began = time.monotonic()
        while prune(IndependentQueue, older_than=0):
            pass
        pruned = size.jobs / (time.monotonic() - began)
        left = Queue.objects.filter(scope=IndependentQueue.scope).count()
        assert not left, f"{left} rows of queues are left after pruning"
    with fresh_database():
        drain_by_nodes(size)
        began = time.monotonic()
        while prune(BenchmarkQueue, older_than=0):
            pass
        pruned_in_order = size.jobs / (time.monotonic() - began)
    return [
        Figure("independent jobs", "jobs/s", value, ordered, LEAST_OF_ORDERED, "ratio", more_is_better=True),
        Figure("pruned, with their queues", "jobs/s", pruned, pruned_in_order, more_is_better=True),
    ]
