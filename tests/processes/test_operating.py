"""Deploys, broken rows and racing verbs at a running node."""

import contextlib
import os

import pytest
from django.db import OperationalError, connection

from queuetopia import Refused
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for, wait_for_all
from tests.testapp.queues import HookQueue, LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def has_state(state):
    return lambda job: job.state == state


def test_verbs_racing_with_a_node_leave_a_queue_that_ends(nodes):
    jobs = LedgerQueue.create_jobs([LedgerQueue.job("a", "fail", {"times": 1}) for _ in range(60)])
    nodes.start(LedgerQueue)
    for job in jobs:
        for verb, target in (("cancel", job), ("retry", job), ("skip", job), ("pause", "a"), ("resume", "a")):
            # MySQL may end a deadlock by rolling the verb back whole: its caller may say it again.
            with contextlib.suppress(Refused, OperationalError):
                getattr(LedgerQueue, verb)(target)
    with contextlib.suppress(Refused):
        LedgerQueue.resume("a")
    wait_for_all()

    assert set(LedgerQueue.jobs().values_list("state", flat=True)) <= {"done", "skipped", "cancelled"}
    assert not Queue.objects.filter(held_by__isnull=False).exists()


# Deploys


@pytest.mark.capability("E30")
def test_an_unknown_action_leaves_its_job_untouched_and_runs_when_the_code_is_back(nodes, ledger):
    job = LedgerQueue.create_job("a", "noop")
    Job.objects.filter(pk=job.pk).update(action="from-the-future")
    code = ledger.path.parent / "future_code.py"
    code.write_text(
        "from queuetopia import action\n"
        "from tests.testapp.queues import LedgerPerformer\n"
        "LedgerPerformer.from_the_future = action('from-the-future')(lambda self, job: None)\n"
    )
    old = nodes.start(LedgerQueue)
    problem = Queue.objects.filter(name="a").exclude(problem="")
    wait_until(problem.exists, PATIENCE)
    wait_for(LedgerQueue.create_job("b", "noop"), has_state("done"))
    job.refresh_from_db()
    assert (job.state, job.attempts, job.attempted_at, job.errors) == ("pending", 0, None, [])
    assert "no action 'from-the-future'" in problem.get().problem
    old.stop()

    environment = {"QUEUETOPIA_TEST_CODE": "future_code", "PYTHONPATH": f"{code.parent}:{os.environ['PYTHONPATH']}"}
    nodes.start(LedgerQueue, env=environment)
    wait_for(job, has_state("done"))
    assert not problem.exists()


@pytest.mark.capability("E30")
def test_an_unknown_scope_is_left_alone_and_others_go_on(nodes):
    job = LedgerQueue.create_job("a", "noop")
    Job.objects.filter(pk=job.pk).update(scope="gone.queue")
    Queue.objects.filter(name="a").update(scope="gone.queue")
    nodes.start(LedgerQueue)
    wait_for(LedgerQueue.create_job("b", "noop"), has_state("done"))
    job.refresh_from_db()
    assert (job.state, job.attempts) == ("pending", 0)


@pytest.mark.capability("J10")
def test_a_corrupt_row_is_reported_and_blocks_only_its_own_queue(nodes):
    job = SlowRetryQueue.create_job("a", "noop")
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE queuetopia_job SET params = %s WHERE id = %s",
            ['{"a": {"__queuetopia__": "date", "value": "no date"}}', job.pk],
        )
    nodes.start(SlowRetryQueue)
    wait_for(job, lambda job: job.attempts == 1)
    assert "the stored params cannot be read" in job.error
    wait_for(SlowRetryQueue.create_job("b", "noop"), has_state("done"))


@pytest.mark.capability("H10", "H12")
def test_setup_is_called_once_per_worker_process_and_a_failing_one_uses_no_attempt(nodes, ledger):
    code = ledger.path.parent / "setup_code.py"
    code.write_text(
        "import os\n"
        "from tests.testapp.queues import LEDGER, HookPerformer, LedgerPerformer, note\n"
        "def setup(self):\n"
        "    note('setup', 'setup', 0, 0)\n"
        "LedgerPerformer.setup = setup\n"
        "def fail(self):\n"
        "    raise OSError('no connection to the printer')\n"
        "HookPerformer.setup = fail\n"
    )
    environment = {"QUEUETOPIA_TEST_CODE": "setup_code", "PYTHONPATH": f"{code.parent}:{os.environ['PYTHONPATH']}"}
    node = nodes.start(LedgerQueue, HookQueue, processes=2, env=environment)
    broken = HookQueue.create_job("a", "noop")
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{number}", "write", {"seq": 1}) for number in range(20)])
    wait_for_all()
    wait_until(lambda: Queue.objects.filter(scope=HookQueue.scope).exclude(problem="").exists(), PATIENCE)

    setups = [record.pid for record in ledger.records("setup")]
    assert sorted(setups) == sorted({record.pid for record in ledger.records("end")})
    assert set(setups) <= set(node.workers(2))
    broken.refresh_from_db()
    assert (broken.state, broken.attempts) == ("pending", 0)
    assert "no connection to the printer" in Queue.objects.get(scope=HookQueue.scope).problem
