"""Jobs per second through real worker processes."""

import time
import uuid

from django.db import connection
from django.db.models import Max

from queuetopia import conf
from queuetopia.attempts import Outcome, Verdict
from queuetopia.backends import backend_for
from queuetopia.backends.base import Ending

from .figures import Figure
from .fresh import create_jobs, crowd, fresh_database, tidy_up
from .nodes import PROCESSES, check, running_nodes, wait_until_drained
from .queues import BenchmarkQueue

AT_ONCE = 200  # queues held at once by the reference


GOALS = {"postgresql": 10_000, "sqlite": 2_000}
LEAST_OF_REFERENCE = 0.5


def measure(size):
    with fresh_database():
        reference = drain_in_one_process(size)
    with fresh_database():
        value = drain_by_nodes(size)
    goal = GOALS.get(connection.vendor)
    return [
        Figure("drain", "jobs/s", value, reference, goal, more_is_better=True),
        Figure("drain, of reference", "jobs/s", value, reference, LEAST_OF_REFERENCE, "ratio", more_is_better=True),
    ]


def drain_by_nodes(size, nodes=1, processes=PROCESSES, **options):
    crowd(size)
    with running_nodes(nodes, processes, **options):
        BenchmarkQueue.pause()
        create_jobs(size.jobs, size.queues)
        tidy_up()
        seconds = since_resumed()
    check(size.jobs)
    return size.jobs / seconds


def since_resumed():
    """Resume the scope; return the seconds until the last of its jobs is done, by the database's clock."""
    began = backend_for("default").now()
    BenchmarkQueue.resume()
    wait_until_drained()
    return (
        BenchmarkQueue.jobs().filter(done_at__gt=began).aggregate(last=Max("done_at"))["last"] - began
    ).total_seconds()


def drain_in_one_process(size, keep=True):
    """Return jobs/s of the backend's own statements, one after the other, whatever Python does beside them."""
    crowd(size)
    create_jobs(size.jobs, size.queues)
    tidy_up()
    backend, holder = backend_for("default"), uuid.uuid4()
    backend.open_session(conf.lease())
    try:
        began = time.monotonic()
        while claims := backend.claim([BenchmarkQueue.scope], AT_ONCE, holder)[0]:
            while claims:
                endings = [Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.DONE)) for claim in claims]
                claims = backend.record(endings, holder, "reference", lambda claim: keep).claims
        seconds = time.monotonic() - began
    finally:
        backend.close_session()
    check(size.jobs)
    return size.jobs / seconds
