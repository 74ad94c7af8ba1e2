"""A stop of ours is not the job's fault: what runs has the grace time, what is cut short is not counted."""

import signal

import pytest

from queuetopia.models import Chore, Job, Node, Queue
from queuetopia.testing import wait_until
from tests.processes.waiting import environment, errors_of, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def create_running(ledger):
    """Create a job that lasts until it is told to end, and one behind it; return the first."""
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 0})
    LedgerQueue.create_job("a", "write", {"seq": 1})
    return job


def tell_to_end(ledger):
    (ledger.path.parent / f"{ledger.path.name}.go").touch()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_job_may_finish_and_nothing_new_starts(nodes, ledger, number):
    job = create_running(ledger)
    node = nodes.start(LedgerQueue, grace=60)
    wait_for_attempts(ledger, 1)

    node.send(number)
    node.wait_for_log("stopping")
    tell_to_end(ledger)
    assert node.wait() == 0

    assert node.is_gone()
    job.refresh_from_db()
    assert (job.state, job.attempts) == (Job.State.DONE, 1)
    assert ledger.attempts() == 1
    assert not Node.objects.exists()
    assert not Queue.objects.filter(held_by__isnull=False).exists()


def test_what_outlives_the_grace_time_is_cut_short_not_counted_and_runs_first_afterwards(nodes, ledger):
    job = create_running(ledger)
    node = nodes.start(LedgerQueue, grace=0.2)
    wait_for_attempts(ledger, 1)

    assert node.stop() == 0
    assert node.is_gone()
    job.refresh_from_db()
    assert (job.state, job.attempts, job.attempted_at is None) == (Job.State.PENDING, 0, False)
    assert [(kind, counted) for kind, _, counted in errors_of(job)] == [("JobInterrupted", False)]

    tell_to_end(ledger)
    nodes.start(LedgerQueue)
    wait_for_all()
    assert [record.number for record in ledger.records("end")] == [0, 1]
    job.refresh_from_db()
    assert job.attempts == 1


def test_a_second_signal_stops_at_once_with_exit_code_1(nodes, ledger):
    job = create_running(ledger)
    node = nodes.start(LedgerQueue, grace=600)
    wait_for_attempts(ledger, 1)

    node.send(signal.SIGTERM)
    node.wait_for_log("stopping")
    node.send(signal.SIGTERM)
    assert node.wait() == 1

    assert node.is_gone()
    assert [(kind, counted) for kind, _, counted in errors_of(job)] == [("JobInterrupted", False)]


def test_a_scheduler_that_has_done_everything_is_not_killed_for_silence_while_its_process_ends(nodes, tmp_path):
    slow_end = "import atexit, sys, time\nif sys.argv[1:2] == ['scheduler']: atexit.register(time.sleep, 3)"
    node = nodes.start(LedgerQueue, env={**environment(tmp_path, slow_end), "QUEUETOPIA_TEST_LEASE": "3"})
    node.wait_for_log("node started")

    assert node.stop() == 0
    assert "silent" not in node.log()


def test_jobs_handed_out_ahead_are_given_back_as_if_never_touched(nodes, ledger):
    create_running(ledger)
    others = [LedgerQueue.create_job(f"queue-{number}", "write", {"seq": 1}) for number in range(5)]
    node = nodes.start(LedgerQueue, processes=1, grace=0.2)
    wait_for_attempts(ledger, 1)
    node.stop()

    for job in others:
        job.refresh_from_db()
    assert [(job.attempts, job.attempted_at, job.errors) for job in others] == [(0, None, [])] * 5
    assert not Queue.objects.filter(name__startswith="queue-", current_job__isnull=False).exists()


@pytest.mark.capability("E10", "E32")
def test_a_standby_waits_until_the_first_node_is_gone(nodes, ledger):
    first = nodes.start(LedgerQueue, grace=60)
    first.wait_for_log("node started")
    standby = nodes.start(LedgerQueue, standby=True, verbosity=1)
    standby.wait_for_log("standing by")
    wait_until(Chore.objects.filter(name__startswith="standby ", marks__scopes=[LedgerQueue.scope]).exists)
    LedgerQueue.create_job("a", "write", {"seq": 1})
    wait_for_all()
    assert "node started" not in standby.log()

    first.stop()
    LedgerQueue.create_job("a", "write", {"seq": 2})
    wait_for_all()
    assert "node started" in standby.log()
    assert not Chore.objects.filter(name__startswith="standby ").exists()
    assert len({record.pid for record in ledger.records("end")}) == 2


def test_a_standby_can_be_stopped_while_it_waits(nodes):
    nodes.start(LedgerQueue).wait_for_log("node started")
    standby = nodes.start(LedgerQueue, standby=True)
    standby.wait_for_log("standing by")
    assert standby.stop() == 0
