"""From the commit of create_job to the start of perform, one job at a time on an idle node."""

import os
import random
import select
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from django.db import connection, transaction

from queuetopia.backends.postgresql import CHANNEL
from queuetopia.models import Job

from .figures import Figure
from .fresh import crowd, fresh_database, tidy_up
from .nodes import running_node
from .queues import START, START_FILE, BenchmarkQueue

GOALS = {"postgresql": (3.0, 15.0), "sqlite": (50.0, None)}  # ms: of the median, of 99 of 100
QUEUES = 10


def measure(size):
    with fresh_database():
        reference_calls, reference_commits = bare_latencies(size)
    with fresh_database():
        calls, commits = node_latencies(size)
    goal, late_goal = GOALS.get(connection.vendor, (None, None))
    return [
        Figure("commit to start, median", "ms", median(commits), median(reference_commits), goal),
        Figure("commit to start, 95 of 100", "ms", late(commits), late(reference_commits)),
        Figure("commit to start, 99 of 100", "ms", late(commits, 0.99), late(reference_commits, 0.99), late_goal),
        Figure("call to start, median", "ms", median(calls), median(reference_calls)),
    ]


def late(times, share=0.95):
    return sorted(times)[int(len(times) * share)]


def node_latencies(size):
    """Return (ms from each call, ms from each commit) to the start of ``perform``."""
    crowd(size)
    tidy_up()
    with start_file() as starts, running_node():
        return latencies(size, create_one, lambda job: next_start(starts, job))


def create_one(queue):
    """Create a job; return it, and the moment its commit returned, before anybody was woken."""
    committed = []
    with transaction.atomic():
        # Called before Queuetopia's own, which wakes the scheduler.
        transaction.on_commit(lambda: committed.append(time.monotonic_ns()))
        job = BenchmarkQueue.create_job(queue, "note_start")
    return job, committed[0]


def latencies(size, create, wait_for_start, queues=QUEUES):
    calls, commits = [], []
    for number in range(QUEUES + size.samples):
        called = time.monotonic_ns()
        job, committed = create(f"queue-{number % queues}")
        started = wait_for_start(job)
        calls.append((started - called) / 1e6)
        commits.append((started - committed) / 1e6)
        time.sleep(0.03 + 0.02 * random.random())  # noqa: S311 - idle again, at no certain point of any timer
    return calls[QUEUES:], commits[QUEUES:]


@contextmanager
def start_file():
    """Make the FIFO that performers write to, and name it in the environment."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ[START_FILE] = f"{folder}/starts"
        os.mkfifo(os.environ[START_FILE])
        descriptor = os.open(os.environ[START_FILE], os.O_RDWR)
        try:
            yield descriptor
        finally:
            os.close(descriptor)
            del os.environ[START_FILE]


def next_start(descriptor, job):
    readable, _, _ = select.select([descriptor], [], [], 60)
    assert readable, f"job {job.pk} did not start"
    job_id, started = START.unpack(os.read(descriptor, START.size))
    assert job_id == job.pk
    return started


# The reference: one INSERT, and a process that waits for nothing else


def bare_latencies(size):
    crowd(size)
    tidy_up()
    listener = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.listener"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    with listener:
        assert listener.stdout.readline() == "ready\n"
        times = latencies(size, insert_one, lambda job: int(listener.stdout.readline()))
        listener.terminate()
    return times


def insert_one(queue):
    job = BenchmarkQueue.job(queue, "note_start")
    Job.objects.bulk_create([job])
    committed = time.monotonic_ns()
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, '')", [CHANNEL])
    return job, committed
