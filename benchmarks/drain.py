"""Jobs per second through real worker processes."""

import time
import uuid

from django.db import connection

from queuetopia import conf
from queuetopia.attempts import Outcome, Verdict
from queuetopia.backends import backend_for
from queuetopia.backends.values import Ending
from queuetopia.testing import wait_until

from .figures import Figure
from .fresh import create_jobs, create_waiting_jobs, crowd, fresh_database, tidy_up
from .nodes import PROCESSES, check, running_nodes
from .queues import BenchmarkQueue

AT_ONCE = 200  # queues held at once by the reference
GOALS = {"postgresql": 10_000, "sqlite": 2_000}
LEAST_OF_REFERENCE = 0.5


def measure(size):
    with fresh_database():
        reference = drain_in_one_process(size)
    with fresh_database():
        value = drain_by_nodes(size, size.nodes, max(1, PROCESSES // size.nodes))
    goal = GOALS.get(connection.vendor)
    return [
        Figure("drain", "jobs/s", value, reference, goal, more_is_better=True),
        Figure("drain, of reference", "jobs/s", value, reference, LEAST_OF_REFERENCE, "ratio", more_is_better=True),
    ]


def drain_by_nodes(
    size, nodes=1, processes=PROCESSES, queuetopia=BenchmarkQueue, action="do_nothing", **options
):  # fmt: skip
    crowd(size)
    with running_nodes(nodes, processes, **options):
        queuetopia.pause()
        create_jobs(size.jobs, size.queues, queuetopia=queuetopia, action=action)
        create_waiting_jobs(size.waiting, size.queues)
        tidy_up()
        seconds = since_resumed(size.jobs, queuetopia)
        queuetopia.pause()
    check(size.jobs, queuetopia)
    return size.jobs / seconds


def since_resumed(count, queuetopia=BenchmarkQueue):
    """Resume the scope; return the seconds until so many of its jobs are done, by the database's clock."""
    began = backend_for("default").now()
    queuetopia.resume()
    done = queuetopia.jobs().filter(done_at__gt=began).order_by("done_at").values_list("done_at", flat=True)
    wait_until(lambda: done[count - 1 : count], timeout=600, interval=0.1)
    return (done[count - 1] - began).total_seconds()


def drain_in_one_process(size, keep=True):
    """Return jobs/s of the backend's own statements, one after the other, whatever Python does beside them."""
    crowd(size)
    create_jobs(size.jobs, size.queues)
    create_waiting_jobs(size.waiting, size.queues)
    tidy_up()
    backend, holder = backend_for("default"), uuid.uuid4()
    backend.open_session(conf.lease())
    try:
        began, done = time.monotonic(), 0
        while done < size.jobs and (claims := backend.claim([BenchmarkQueue.scope], AT_ONCE, holder)[0]):
            while claims and done < size.jobs:
                endings = [Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.DONE)) for claim in claims]
                claims = backend.record(endings, holder, "reference", lambda claim: keep).claims
                done += len(endings)
        seconds = time.monotonic() - began
    finally:
        backend.close_session()
    check(size.jobs)
    return done / seconds
