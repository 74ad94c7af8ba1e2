"""Independent jobs under fire: nodes run them while they are created, fail, and are pruned with their queues' rows."""

import threading
import time
from collections import Counter
from functools import partial

import pytest
from django.db import OperationalError, connection

from queuetopia.attempts import Verdict
from queuetopia.backends import backend_for, upkeep
from queuetopia.backends.contract.base import Contract
from queuetopia.backends.contract.toolkit import NODE, Dice, IndependentQueue, claim, end, join, record
from queuetopia.jobs import prune
from queuetopia.models import Job, Queue
from tests.nodes import PATIENCE

SECONDS, FEWEST = 3, 100
VERDICTS = (*[Verdict.DONE] * 8, Verdict.RETRY, Verdict.SNOOZE, Verdict.RETURN, Verdict.SKIP)


class Fire:
    def __init__(self):
        self.until = time.monotonic() + SECONDS
        self.created, self.ended = 0, Counter()
        self.is_over = threading.Event()

    def create(self, seed):
        dice = Dice(seed)
        while time.monotonic() < self.until or self.created < FEWEST:
            jobs = [IndependentQueue.job(dice.choice("ab"), "noop") for _ in range(dice.choice((1, 1, 5)))]
            if is_done(partial(IndependentQueue.create_jobs, jobs)):
                self.created += len(jobs)
                self.is_over.wait(0.005)

    def prune(self):
        while not self.is_over.is_set():
            is_done(partial(prune, IndependentQueue, older_than=0, batch=20))
            self.is_over.wait(0.005)

    def serve(self, backend, holder):
        dice, claims, locked = Dice(str(holder)), [], []
        while claims or locked or not self.is_over.is_set():
            claims += claim(backend, dice.randint(1, 20), scopes=[IndependentQueue.scope], holder=holder)
            endings = locked + [end(one, dice.choice(VERDICTS)) for one in claims]
            recorded = record(backend, *endings, holder=holder, keep=dice.random() < 0.5)
            assert not recorded.stale
            for ending in recorded.written:
                self.ended[ending.claim.job_id] += ending.outcome.verdict in (Verdict.DONE, Verdict.SKIP)
            claims, locked = recorded.claims, recorded.locked
            if not claims:  # a creator may have left a wake-up to the sweep, where there is one writer
                upkeep.sweep(backend, IndependentQueue.scope, "")
                self.is_over.wait(0.002)

    def watch(self, creator):
        try:
            creator.result()
            until = time.monotonic() + PATIENCE / 2
            while Job.objects.unfinished().exists() and time.monotonic() < until:
                self.is_over.wait(0.02)
        finally:
            self.is_over.set()


def is_done(act):
    """Act; return False where there is one writer, and this one waited for too long."""
    try:
        act()
    except OperationalError as exc:
        assert not connection.features.has_select_for_update and backend_for("default").is_busy(exc), exc
        return False
    return True


@pytest.mark.capability("X12")
class TestIndependentJobs(Contract):
    def test_each_runs_once_and_its_row_goes_with_it_under_fire(self, backend, node, elsewhere):
        fire = Fire()
        creator = elsewhere().start(fire.create, 1)
        others = [
            creator,
            elsewhere().start(fire.prune),
            elsewhere().start(fire.watch, creator),
            node.start(fire.serve, node.backend, node.id),
        ]
        try:
            fire.serve(backend, NODE)
        finally:
            fire.is_over.set()
        join(others)
        assert not Job.objects.unfinished().exists()
        assert len(fire.ended) == fire.created and set(fire.ended.values()) == {1}
        while prune(IndependentQueue, older_than=0):
            pass
        assert not Job.objects.exists()
        assert not Queue.objects.exists()
