"""One queue whose jobs are done in chunks, beside the same number done one by one."""

from dataclasses import replace

from django.db import connection

from .drain import drain_by_nodes
from .figures import Figure
from .fresh import fresh_database

GOAL = 10  # times the rate of one job at a time


def measure(size):
    one_queue = replace(size, jobs=size.line, queues=1)
    with fresh_database():
        reference = drain_by_nodes(one_queue)
    with fresh_database():
        value = drain_by_nodes(replace(one_queue, jobs=10 * size.line), action="do_nothing_together")
    goal = GOAL if connection.vendor == "postgresql" else None
    return [Figure("one queue, in chunks", "jobs/s", value, reference, goal, "ratio", more_is_better=True)]
