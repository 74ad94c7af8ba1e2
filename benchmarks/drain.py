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
from .fresh import create_blocked_queues, create_jobs, fresh_database, tidy_up
from .nodes import check, running_node, wait_until_drained
from .queues import BenchmarkQueue

AT_ONCE = 200  # queues held at once by the reference


def measure(size):
    with fresh_database():
        reference = drain_in_one_process(size)
    with fresh_database():
        value = drain_by_node(size)
    goal = 2_000 if connection.vendor == "postgresql" else None
    return [Figure("drain", "jobs/s", value, reference, goal, more_is_better=True)]


def drain_by_node(size):
    create_blocked_queues(size.blocked)
    with running_node():
        BenchmarkQueue.pause()
        create_jobs(size.jobs, size.queues)
        tidy_up()
        began = backend_for("default").now()
        BenchmarkQueue.resume()
        wait_until_drained()
        ended = BenchmarkQueue.jobs().aggregate(last=Max("done_at"))["last"]
    check(size.jobs)
    return size.jobs / (ended - began).total_seconds()


def drain_in_one_process(size):
    """Return jobs/s of the backend's own statements, one after the other, whatever Python does beside them."""
    create_blocked_queues(size.blocked)
    create_jobs(size.jobs, size.queues)
    tidy_up()
    backend, holder = backend_for("default"), uuid.uuid4()
    backend.open_session(conf.lease())
    try:
        began = time.monotonic()
        while claims := backend.claim([BenchmarkQueue.scope], AT_ONCE, holder)[0]:
            while claims:
                endings = [Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.DONE)) for claim in claims]
                claims = backend.record(endings, holder, "reference", lambda claim: True).claims
        seconds = time.monotonic() - began
    finally:
        backend.close_session()
    check(size.jobs)
    return size.jobs / seconds
