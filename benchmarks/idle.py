"""What a node costs that has nothing to do: as a share of one core, and in transactions."""

import time

from django.db import connection

from queuetopia.models import Node

from .figures import Figure
from .fresh import fresh_database
from .nodes import cpu_seconds, running_node

SETTLING = 1.0  # seconds after the last job


MOST_CPU, MOST_QUERIES = 0.5, 2.0


def measure(size):
    with fresh_database(), running_node() as node:
        time.sleep(SETTLING)
        row = Node.objects.get()
        before = transactions()
        scheduler = share_of([row.pid], size.seconds)
        queries = (transactions() - before) / size.seconds
        everything = share_of([node.pid, row.pid, *(worker["pid"] for worker in row.workers)], size.seconds)
    is_fast = connection.vendor == "postgresql"
    figures = [
        Figure("scheduler, idle", "% of a core", scheduler, None, MOST_CPU if is_fast else None),
        Figure("node, idle", "% of a core", everything),
    ]
    if is_fast:
        figures.append(Figure("scheduler, idle", "transactions/s", queries, None, MOST_QUERIES))
    return figures


def transactions():
    """Return how many transactions the database has run, where it counts them."""
    if connection.vendor != "postgresql":
        return 0
    time.sleep(1.0)  # sessions report their counts once a second
    with connection.cursor() as cursor:
        cursor.execute("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]


def share_of(pids, seconds):
    began, used = time.monotonic(), sum(map(cpu_seconds, pids))
    time.sleep(seconds)
    return 100 * (sum(map(cpu_seconds, pids)) - used) / (time.monotonic() - began)
