"""What limits let through, and what a node costs while they let nothing: shares of what they allow."""

import json
import os
import time
from bisect import bisect_left
from contextlib import ExitStack, contextmanager
from itertools import accumulate

from django.db import connection

from queuetopia.models import Job, Node, Queue
from queuetopia.node.supervisor import start_node
from queuetopia.testing import wait_until

from .figures import Figure
from .fresh import fresh_database
from .idle import SETTLING, share_of, transactions
from .queues import OPTIONS, BenchmarkQueue

NODES, QUEUES, MOST, NUMBER = 3, 200, 3, 50
LASTS = 0.25  # seconds of a job


def measure(size):
    seconds = 2 * size.seconds
    return [*_places(seconds), *_rate(seconds), *_full(size.seconds)]


@contextmanager
def limited_nodes(**options):
    os.environ[OPTIONS] = json.dumps(options)
    try:
        with fresh_database(), ExitStack() as started:
            for _ in range(NODES):  # not warm: with limits, not each worker gets a job
                started.enter_context(start_node(processes=2))
            wait_until(lambda: sum(len(node.workers) for node in Node.objects.all()) == 2 * NODES, timeout=60)
            yield
    finally:
        del os.environ[OPTIONS]


def _places(seconds):
    with limited_nodes(max_running=MOST):
        spans = _spans(int(MOST * seconds / LASTS))
    running, used = [0, *accumulate(change for _, change in spans)], 0.0
    last_start = max(at for at, change in spans if change > 0)
    for place, (at, _) in enumerate(spans[:-1]):
        if at < last_start:
            used += min(running[place + 1], MOST) * (min(spans[place + 1][0], last_start) - at)
    share = 100 * used / MOST / (last_start - spans[0][0])
    yield Figure(f"max_running={MOST}, used", "% of the time", share, None, 95, more_is_better=True)
    yield Figure(f"max_running={MOST}, most at once", "jobs", max(running), None, MOST)


def _spans(number):
    """Run jobs; return (when, +1 or -1) of each start and end, in order."""
    jobs = [BenchmarkQueue.job(f"queue-{n % QUEUES}", "last", {"seconds": LASTS}) for n in range(number)]
    BenchmarkQueue.create_jobs(jobs)
    spans = _results(number)
    return sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])


def _results(number):
    done = BenchmarkQueue.jobs().filter(queue__startswith="queue-", action="last", state=Job.State.DONE)
    wait_until(lambda: done.count() >= number, timeout=600, interval=0.1)
    return list(done.values_list("result", flat=True))


def _rate(seconds):
    number = int(NUMBER * seconds)
    with limited_nodes(rate=[NUMBER, 1]):
        BenchmarkQueue.create_jobs(
            [BenchmarkQueue.job(f"queue-{n % QUEUES}", "last", {"seconds": 0}) for n in range(number)]
        )
        starts = sorted(start for start, _ in _results(number))
    most = max(bisect_left(starts, start + 1) - place for place, start in enumerate(starts))
    used = 100 * (number - 1) / NUMBER / (starts[-1] - starts[0])
    yield Figure(f"rate=({NUMBER}, 1), used", "% of the rate", used, None, 95, more_is_better=True)
    yield Figure(f"rate=({NUMBER}, 1), most", "starts in 1 s", most, None, NUMBER)


def _full(seconds):
    with limited_nodes(max_running=1):
        BenchmarkQueue.create_jobs(
            [BenchmarkQueue.job(f"queue-{n}", "rest", {"seconds": 10 * seconds}) for n in range(QUEUES)]
        )
        wait_until(Queue.objects.with_a_place().exists)
        time.sleep(SETTLING)
        pids = [node.pid for node in Node.objects.all()]
        before = transactions()
        share = share_of(pids, seconds) / NODES
        queries = (transactions() - before) / seconds / NODES
    yield Figure("a node's scheduler, no place free", "% of a core", share, None, 1)
    if connection.vendor == "postgresql":
        yield Figure("a node, no place free", "transactions/s", queries, None, 5)
