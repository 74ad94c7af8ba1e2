"""What people and deploys do to a running node, and what user code is told by it."""

import json
import os

import pytest
from django.db import connection

from queuetopia import Refused
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import HookQueue, LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def has_state(state):
    return lambda job: job.state == state


# People


@pytest.mark.capability("H29")
def test_a_paused_queue_starts_nothing_until_it_is_resumed(nodes, ledger):
    nodes.start(LedgerQueue)
    LedgerQueue.pause("a", by="ann", reason="maintenance")
    paused = LedgerQueue.create_job("a", "write", {"seq": 1})
    wait_for(LedgerQueue.create_job("b", "write", {"seq": 1}), has_state("done"))
    paused.refresh_from_db()
    assert paused.state == "pending"

    LedgerQueue.resume("a")
    wait_for(paused, has_state("done"))


@pytest.mark.capability("H29")
def test_a_queue_paused_while_its_job_runs_finishes_it_and_goes_no_further(nodes, ledger):
    first = LedgerQueue.create_job("a", "write_when_told", {"seq": 0})
    second = LedgerQueue.create_job("a", "write", {"seq": 1})
    nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    LedgerQueue.pause("a")
    (ledger.path.parent / f"{ledger.path.name}.go").touch()
    wait_for(first, has_state("done"))
    wait_for(LedgerQueue.create_job("b", "write", {"seq": 1}), has_state("done"))
    second.refresh_from_db()
    assert (second.state, second.attempts) == ("pending", 0)


@pytest.mark.capability("H34", "E5")
@pytest.mark.parametrize(
    ("action", "concurrency"), [("hang", 1), ("hang", 4), ("hang_async", 4), ("hang_stubbornly", 4)]
)
def test_a_running_job_is_cancelled_and_its_queue_goes_on(nodes, ledger, action, concurrency):
    job = LedgerQueue.create_job("a", action)
    LedgerQueue.create_job("a", "write", {"seq": 1})
    nodes.start(LedgerQueue, processes=1, concurrency=concurrency)
    wait_for_attempts(ledger, 1)

    assert LedgerQueue.cancel(job, by="ann") == "running"
    wait_for(job, has_state("cancelled"))
    wait_for_all()
    assert LedgerQueue.cancel(job) == "finished"


@pytest.mark.capability("E5")
def test_a_blocked_queue_goes_on_at_once_when_its_head_is_skipped(nodes):
    head = SlowRetryQueue.create_job("a", "fail")
    SlowRetryQueue.create_job("a", "noop")
    nodes.start(SlowRetryQueue)
    wait_for(head, lambda job: job.attempts == 2)  # it backs off for 3 s now
    SlowRetryQueue.skip(head)
    wait_for_all(SlowRetryQueue)


@pytest.mark.capability("E5")
def test_a_halted_job_runs_once_more_when_it_is_retried(nodes):
    job = SlowRetryQueue.create_job("a", "fail", {"times": 1}, max_attempts=1)
    nodes.start(SlowRetryQueue)
    wait_for(job, has_state("halted"))
    SlowRetryQueue.retry(job)
    wait_for(job, has_state("done"))
    assert (job.attempts, job.max_attempts) == (2, 2)


def test_verbs_racing_with_a_node_leave_a_queue_that_ends(nodes):
    jobs = LedgerQueue.create_jobs([LedgerQueue.job("a", "fail", {"times": 1}) for _ in range(60)])
    nodes.start(LedgerQueue)
    for job in jobs:
        for verb in (LedgerQueue.cancel, LedgerQueue.retry, LedgerQueue.skip):
            try:
                verb(job)
            except Refused:
                continue
        LedgerQueue.pause("a")
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


# What user code is told


def told(ledger, job):
    path = ledger.path.parent / f"{ledger.path.name}.told"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["what"], line["attempt"], line["exc"], *line["stored"]) for line in lines if line["job"] == job.pk]


@pytest.mark.capability("J16", "J20", "H31", "E4")
@pytest.mark.parametrize("queue", ["calm", "raise"])  # in the queue "raise" each hook and receiver fails after telling
def test_hooks_and_signals_follow_the_commit_once_with_the_right_arguments(nodes, ledger, queue):
    job = HookQueue.create_job(queue, "fail", {"times": 1})
    nodes.start(HookQueue)
    wait_for(job, has_state("done"))
    wait_until(lambda: len(told(ledger, job)) >= 8, PATIENCE, message="not all hooks were called")

    news = [line for line in told(ledger, job) if line[0] != "job_started"]
    assert [line[:3] for line in news] == [
        ("handle_failed_job", 1, "ConnectionError"),
        ("job_failed", 1, "ConnectionError"),
        ("queue_blocked", 1, "ConnectionError"),
        ("handle_done_job", 2, None),
        ("job_done", 2, None),
        ("queue_unblocked", 2, None),
    ]
    assert all(stored >= attempt for _, attempt, _, _, stored in news), "told before it was committed"


@pytest.mark.capability("J16", "H31")
def test_exhaustion_is_told(nodes, ledger):
    job = HookQueue.create_job("a", "fail", max_attempts=1)
    node = nodes.start(HookQueue)
    wait_for(job, has_state("halted"))
    wait_until(lambda: len(told(ledger, job)) >= 6, PATIENCE, message="not all hooks were called")

    names = ["handle_failed_job", "handle_exhausted_job", "job_failed", "job_halted", "queue_blocked"]
    assert [(what, stored) for what, *_, stored, _ in told(ledger, job)[1:]] == [(name, "halted") for name in names]
    assert node.log().count("ERROR   job halted") == 1


@pytest.mark.capability("J16", "H31")
@pytest.mark.parametrize(
    ("action", "params", "exc"), [("hang", {}, "JobTimeout"), ("die", {"how": "os._exit"}, "WorkerDied")]
)
def test_the_end_of_an_attempt_whose_worker_is_dead_is_told_by_another(nodes, ledger, action, params, exc):
    job = HookQueue.create_job("a", action, params, timeout=1, max_attempts=1)
    nodes.start(HookQueue, processes=2)
    wait_for(job, has_state("halted"))
    wait_until(lambda: len(told(ledger, job)) >= 6, PATIENCE, message="not all hooks were called")
    assert {found for _, _, found, *_ in told(ledger, job)[1:]} == {exc}
