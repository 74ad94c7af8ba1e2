"""The same as latency, while the node drains other queues: what a new job waits for its turn."""

import threading
import time
from dataclasses import replace

from django.db import connection, connections

from .figures import Figure
from .fresh import create_jobs, fresh_database, tidy_up
from .latency import create_one, late, latencies, next_start, start_file
from .nodes import running_node
from .queues import BenchmarkQueue

GOAL = 250.0  # ms
OTHERS = 1_000  # queues that are drained …
BACKLOG = 250_000  # … of so many jobs
QUEUES = 500  # the new jobs'


def measure(size):
    with fresh_database(), start_file() as starts, running_node():
        BenchmarkQueue.pause()
        if size.rate is None:
            create_jobs(BACKLOG, OTHERS, "other")
        tidy_up()
        BenchmarkQueue.resume()
        stop = threading.Event()
        others = threading.Thread(target=create_at_rate, args=(stop, size.rate or 0))
        others.start()
        try:
            samples = replace(size, samples=size.samples // 2)
            _, commits = latencies(samples, create_one, lambda job: next_start(starts, job), QUEUES)
            assert size.rate is not None or others_wait(), "drained too soon"
        finally:
            stop.set()
            others.join()
    goal = GOAL if connection.vendor == "postgresql" else None
    return [
        Figure("commit to start, median", "ms", late(commits, 0.5)),
        Figure("commit to start, 99 of 100", "ms", late(commits, 0.99), None, goal),
    ]


def others_wait():
    return BenchmarkQueue.jobs().unfinished().filter(queue__startswith="other-").exists()


def create_at_rate(stop, rate):
    created, began = 0, time.monotonic()
    while not stop.wait(0.1):
        if missing := int(rate * (time.monotonic() - began)) - created:
            create_jobs(missing, QUEUES, "other")
            created += missing
    connections.close_all()
