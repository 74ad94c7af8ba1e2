"""What comes back at once, time after time, does not spin: neither a job that is put off nor a refused claim."""

from itertools import pairwise

import pytest

from queuetopia.models import Job, Queue
from queuetopia.node.endings import APART, FREE
from tests.processes.waiting import environment, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

WRONG_CLOCK = """
from queuetopia import action
from queuetopia.worker import process as worker
from tests.testapp.queues import LedgerPerformer

def noop(self, job, edited=None):
    worker.uptime = lambda: 1e12

LedgerPerformer.noop = action(noop)
"""


@pytest.mark.parametrize(
    ("action", "params"),
    [("say", {"verdict": "snooze"}), ("say", {"verdict": "retry"}), ("fail", {})],
    ids=["Snooze(0)", "Retry(0)", "max_backoff=0"],
)
def test_attempts_without_a_pause_are_a_second_apart_after_the_first_ones(nodes, ledger, action, params):
    LedgerQueue.create_job("a", action, params, max_backoff=0, max_attempts=1000)
    nodes.start(LedgerQueue, processes=1)
    attempts = wait_for_attempts(ledger, FREE + 4)
    gaps = [later.clock - earlier.clock for earlier, later in pairwise(attempts)]
    assert min(gaps[FREE + 1 :]) > APART - 0.1


def test_a_worker_whose_clock_a_job_has_changed_is_replaced_and_costs_no_queue_an_attempt(nodes, ledger, tmp_path):
    nodes.start(LedgerQueue, processes=1, env=environment(tmp_path, WRONG_CLOCK))
    LedgerQueue.create_job("spoils", "noop")
    wait_for_all()
    LedgerQueue.create_jobs([LedgerQueue.job(f"q-{number}", "write", {"seq": number}) for number in range(10)])
    wait_for_all()
    assert sorted(record.number for record in ledger.records("start")) == [*range(10)]
    assert not Job.objects.exclude(attempts=1).exists()
    assert max(Queue.objects.values_list("fence", flat=True)) < 10
