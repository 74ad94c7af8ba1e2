"""The same as latency, while the node drains other queues: what a new job waits for its turn."""

import threading

from django.db import connection, connections

from .figures import Figure
from .fresh import create_jobs, fresh_database, tidy_up
from .latency import create_one, late, latencies, next_start, start_file
from .nodes import running_node
from .queues import BenchmarkQueue

GOAL = 250.0  # ms
OTHERS = 500  # queues that are drained


def measure(size):
    with fresh_database(), start_file() as starts, running_node():
        tidy_up()
        stop = threading.Event()
        crowd = threading.Thread(target=keep_busy, args=(stop,))
        crowd.start()
        try:
            _, commits = latencies(size, create_one, lambda job: next_start(starts, job))
        finally:
            stop.set()
            crowd.join()
    goal = GOAL if connection.vendor == "postgresql" else None
    return [
        Figure("commit to start, median", "ms", late(commits, 0.5)),
        Figure("commit to start, 99 of 100", "ms", late(commits, 0.99), None, goal),
    ]


def keep_busy(stop):
    """See to it that the others always have jobs waiting."""
    jobs = BenchmarkQueue.jobs().unfinished().filter(queue__startswith="other-")
    while not stop.wait(0.1):
        if jobs[:10_000].count() < 10_000:
            create_jobs(10_000, OTHERS, "other")
    connections.close_all()
