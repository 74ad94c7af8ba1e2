"""What a node costs that has nothing to do, as a share of one core."""

import time

from queuetopia.models import Node

from .figures import Figure
from .fresh import fresh_database
from .nodes import cpu_seconds, running_node

SETTLING = 1.0  # seconds after the last job


def measure(size):
    with fresh_database(), running_node() as node:
        time.sleep(SETTLING)
        row = Node.objects.get()
        scheduler = share_of([row.pid], size.seconds)
        everything = share_of([node.pid, row.pid, *(worker["pid"] for worker in row.workers)], size.seconds)
    return [Figure("scheduler, idle", "% of a core", scheduler), Figure("node, idle", "% of a core", everything)]


def share_of(pids, seconds):
    began, used = time.monotonic(), sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return 100 * (sum(map(cpu_seconds, pids)) - used) / (time.monotonic() - began)
