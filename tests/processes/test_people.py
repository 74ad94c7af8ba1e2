"""What people decide reaches a node at once, though it polls once an hour."""

import re
import subprocess
import sys
import time
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone

from queuetopia import jobs
from queuetopia.models import Job
from queuetopia.monitoring import status
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

# "other" because the command line looks into every database.
pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

AN_HOUR = 3600  # so that nothing is found by polling


@pytest.fixture
def node(nodes):
    node = nodes.start(LedgerQueue, SlowRetryQueue, processes=2, poll_interval=AN_HOUR)
    node.wait_for_log("node started")
    return node


def say(environment, *words):
    command = [sys.executable, "-m", "django", "queuetopia", *map(str, words)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.capability("H29")
@pytest.mark.parametrize("queue", ["a", None], ids=["queue", "scope"])
def test_a_pause_lets_the_running_job_finish_and_holds_the_next_until_it_is_resumed(node, ledger, queue):
    LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    LedgerQueue.create_job("a", "write", {"seq": 2})
    SlowRetryQueue.create_job("a", "write_when_told", {"seq": 1})
    wait_for_attempts(ledger, 2)

    LedgerQueue.pause(queue, by="ann", reason="month's end")
    ledger.go()
    wait_for_all(SlowRetryQueue)
    wait_until(lambda: LedgerQueue.jobs().unfinished().count() == 1, PATIENCE)
    SlowRetryQueue.create_job("b", "write", {"seq": 3})
    wait_for_all(SlowRetryQueue)  # the node had time for the paused one too
    assert LedgerQueue.jobs().unfinished().get().attempted_at is None

    LedgerQueue.resume(queue)
    wait_for_all()


@pytest.mark.capability("E5", "H5", "H33", "H34")
@pytest.mark.parametrize(("action", "slots"), [("hang_stubbornly", 1), ("hang_stubbornly", 2)])
def test_cancelling_a_running_job_kills_it_whatever_it_does_and_its_queue_goes_on(nodes, ledger, action, slots):
    job = LedgerQueue.create_job("a", action)
    LedgerQueue.create_job("a", "noop")
    nodes.start(LedgerQueue, processes=1, concurrency=slots, poll_interval=AN_HOUR)
    (attempt,) = wait_for_attempts(ledger, 1)

    assert LedgerQueue.cancel(job, by="ann") == "running"

    wait_for_all()
    job.refresh_from_db()
    assert (job.state, job.attempts) == (Job.State.CANCELLED, 1)
    assert not is_running(attempt.pid)
    assert LedgerQueue.cancel(job) == "finished"


@pytest.mark.capability("H5")
@pytest.mark.parametrize("action", ["hang", "hang_async"])
def test_cancelling_one_of_many_attempts_of_a_process_leaves_the_others_alone(nodes, ledger, action):
    node = nodes.start(LedgerQueue, processes=1, concurrency=3, poll_interval=AN_HOUR)
    other = LedgerQueue.create_job("other", "write_when_told", {"seq": 1})
    job = LedgerQueue.create_job("a", action)
    wait_for_attempts(ledger, 2)
    (worker,) = node.workers(1)

    assert LedgerQueue.cancel(job) == "running"
    wait_for(job, lambda job: job.state == Job.State.CANCELLED)
    ledger.go()
    wait_for_all()

    other.refresh_from_db()
    assert (other.state, other.attempts) == (Job.State.DONE, 1)
    assert node.workers(1) == [worker]


@pytest.mark.capability("E18", "W6")
def test_a_transaction_left_open_for_longer_than_the_fence_costs_nobody_an_attempt(nodes, ledger):
    """Somebody's locks hold up what they lock. On SQLite that is the whole database: then everything waits."""
    mine = LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    others = [LedgerQueue.create_job(f"queue-{number}", "write_when_told", {"seq": number}) for number in range(3)]
    lease = {"QUEUETOPIA_TEST_LEASE": "3"}
    node = nodes.start(LedgerQueue, processes=4, env=lease)
    wait_for_attempts(ledger, 4)
    other = nodes.start(SlowRetryQueue, processes=1, env=lease)  # who looks for dead ones meanwhile
    other.wait_for_log("node started")
    scheduler, workers = node.scheduler, node.workers(4)

    until = time.monotonic() + 4  # seconds; the fence passes after 1.8, and silence is death after 2.8
    with transaction.atomic():
        LedgerQueue.pause("a")
        ledger.go()
        if connection.vendor != "sqlite":
            for job in others:
                wait_for(job, lambda job: job.done_at)
        # How long the fault lasts is the fault: nothing else can be waited for.
        wait_until(lambda: time.monotonic() > until or not is_running(scheduler), PATIENCE)
        assert is_running(scheduler)
    wait_for_all()

    assert (node.scheduler, node.workers(4)) == (scheduler, workers)
    assert "taking over" not in other.log()
    assert set(Job.objects.values_list("attempts", flat=True)) == {1}
    assert errors_of(mine) == []


@pytest.mark.capability("E18", "H23")
@pytest.mark.skipif(connection.vendor == "sqlite", reason="there somebody's transaction locks the whole database")
def test_a_result_that_cannot_be_stored_yet_takes_no_worker_from_the_others(nodes, ledger):
    LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    nodes.start(LedgerQueue, processes=1)
    wait_for_attempts(ledger, 1)
    other = LedgerQueue.create_job("b", "noop")
    with transaction.atomic():
        LedgerQueue.pause("a")
        ledger.go()
        wait_for(other, lambda job: job.done_at)
    wait_for_all()


@pytest.mark.capability("E18")
@pytest.mark.skipif(connection.vendor != "postgresql", reason="no such lock")
def test_a_table_that_is_locked_for_some_seconds_costs_no_attempt(nodes, ledger):
    """By a migration, or VACUUM FULL."""
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    LedgerQueue.create_job("b", "noop", scheduled_at=timezone.now() + timedelta(seconds=0.5))
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("LOCK TABLE queuetopia_queue IN ACCESS EXCLUSIVE MODE")
        node.wait_for_log("locked by another transaction, retrying later", times=12)
    ledger.go()
    wait_for_all()

    assert errors_of(job) == []
    assert "no database session" not in node.log()


@pytest.mark.capability("E5", "H5")
def test_cancelling_one_running_job_disturbs_no_other_of_the_node(nodes, ledger):
    """Also when the node looks for forgotten queues in the same moment, as it does with such a poll interval."""
    others = [LedgerQueue.create_job(f"queue-{number}", "write_when_told", {"seq": number}) for number in range(2)]
    job = LedgerQueue.create_job("a", "hang")
    node = nodes.start(LedgerQueue, processes=3, poll_interval=0.01)
    wait_for_attempts(ledger, 3)

    assert LedgerQueue.cancel(job) == "running"
    wait_for(job, lambda job: job.state == Job.State.CANCELLED)
    ledger.go()
    wait_for_all()

    assert [errors_of(other) for other in others] == [[], []]
    assert not [line for line in node.log().splitlines() if "held by nobody" in line or "no database session" in line]


@pytest.mark.capability("H5")
def test_cancelling_a_job_that_waits_in_line_takes_it_out_of_the_line(node, ledger):
    LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    second, third = (LedgerQueue.create_job("a", "write", {"seq": seq}) for seq in (2, 3))
    wait_for_attempts(ledger, 1)

    assert LedgerQueue.cancel(second) == "cancelled"
    ledger.go()
    wait_for(third, lambda job: job.done_at)

    assert [record.number for record in ledger.records("end")] == [1, 3]


@pytest.mark.capability("E5", "E27", "Q2")
@pytest.mark.parametrize("max_attempts", [1, 3], ids=["halted", "backing off"])
def test_when_a_blocked_job_is_skipped_the_next_runs_at_once(node, max_attempts):
    job = SlowRetryQueue.create_job("a", "fail", max_attempts=max_attempts, max_backoff=AN_HOUR)
    wait_for(job, lambda job: job.attempts == 1)
    follower = SlowRetryQueue.create_job("a", "noop")

    SlowRetryQueue.skip(job, by="ann", reason="paid by hand")

    wait_for(follower, lambda job: job.state == Job.State.DONE)
    job.refresh_from_db()
    assert job.state == Job.State.SKIPPED


@pytest.mark.capability("E5", "E27")
@pytest.mark.parametrize("max_attempts", [1, 3], ids=["halted", "backing off"])
def test_a_blocked_job_that_is_retried_runs_at_once(node, ledger, max_attempts):
    job = SlowRetryQueue.create_job("a", "fail", {"times": 1}, max_attempts=max_attempts, max_backoff=AN_HOUR)
    wait_for(job, lambda job: job.attempts == 1)

    SlowRetryQueue.retry(job)

    wait_for(job, lambda job: job.state == Job.State.DONE)
    assert job.attempts == 2


@pytest.mark.capability("E5", "E27")
def test_the_command_line_decides_too(node, nodes, ledger):
    halted = SlowRetryQueue.create_job("a", "fail", max_attempts=1)
    hanging = LedgerQueue.create_job("b", "hang")
    wait_for(halted, lambda job: job.state == Job.State.HALTED)
    wait_for_attempts(ledger, 1, "b")

    assert say(nodes.environment, "skip", halted.pk, "--by", "ann").returncode == 0
    assert say(nodes.environment, "cancel", hanging.pk).returncode == 0

    wait_for(halted, lambda job: job.state == Job.State.SKIPPED)
    wait_for(hanging, lambda job: job.state == Job.State.CANCELLED)
    assert say(nodes.environment, "retry", hanging.pk).returncode == 1


@pytest.mark.capability("E7", "H26")
def test_status_shows_which_worker_runs_what(node, nodes, ledger):
    job = LedgerQueue.create_job("a", "hang")
    (attempt,) = wait_for_attempts(ledger, 1)

    def workers():
        (found,) = status.nodes(LedgerQueue.database())
        return {worker["pid"]: [running["job"] for running in worker["jobs"]] for worker in found["workers"]}

    wait_until(lambda: workers().get(attempt.pid) == [job.pk], PATIENCE)
    assert str(attempt.pid) in say(nodes.environment, "status").stdout


@pytest.mark.capability("E7", "H26")
def test_status_shows_how_many_attempts_have_ended_in_each_worker(node, nodes):
    job = LedgerQueue.create_job("a", "fail", {"times": 1})
    LedgerQueue.create_jobs(LedgerQueue.job(f"queue-{number}", "noop") for number in range(3))
    wait_for(job, lambda job: job.state == Job.State.DONE)

    def attempts():
        (found,) = status.nodes(LedgerQueue.database())
        return sum(worker["attempts"] for worker in found["workers"] if worker["pid"])

    wait_until(lambda: attempts() == 5, PATIENCE)
    assert re.search(r"attempts: \d+, \d+ MB\)", say(nodes.environment, "status").stdout)


@pytest.mark.capability("Q22", "H22")
def test_what_has_ended_is_pruned_by_the_node_and_what_has_not_never(nodes, ledger):
    halted = SlowRetryQueue.create_job("a", "fail", max_attempts=1)
    behind = SlowRetryQueue.create_job("a", "noop")
    done = SlowRetryQueue.create_job("b", "noop")
    nodes.start(SlowRetryQueue, until_empty=True).wait()
    long_ago = done.scheduled_at.replace(year=2001)
    Job.objects.update(scheduled_at=long_ago)
    Job.objects.filter(pk=done.pk).update(done_at=long_ago)

    nodes.start(SlowRetryQueue)
    wait_until(lambda: not Job.objects.filter(pk=done.pk).exists(), PATIENCE)

    assert set(Job.objects.values_list("pk", flat=True)) == {halted.pk, behind.pk}
    assert jobs.prune(SlowRetryQueue, older_than=0) == 0
