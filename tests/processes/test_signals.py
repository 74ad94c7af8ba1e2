"""Signals to any process of a node, at any moment, again and again: it stops as it was told, and no process stays."""

import os
import signal

import pytest

from queuetopia.models import Job, Node
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import errors_of, wait_for_attempts
from tests.testapp.queues import HookQueue, LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

FOR_EVER = 3600


def test_a_stop_that_reaches_every_process_as_systemds_does_is_graceful_too(nodes, ledger):
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    node = nodes.start(LedgerQueue, grace=FOR_EVER)
    wait_for_attempts(ledger, 1)

    node.send_all(signal.SIGTERM)
    node.wait_for_log("stopping")
    ledger.go()

    assert node.wait() == 0
    job.refresh_from_db()
    assert (job.state, job.attempts, job.errors) == (Job.State.DONE, 1, [])


@pytest.mark.parametrize("reaches", ["the supervisor", "all"])
@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGPWR", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGABRT"])
def test_a_closed_terminal_or_any_other_signal_that_ends_processes_is_a_graceful_stop(nodes, ledger, name, reaches):
    number = getattr(signal, name)
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 1}, max_attempts=1)
    node = nodes.start(LedgerQueue, processes=1, grace=FOR_EVER)
    wait_for_attempts(ledger, 1)

    if reaches == "all" and name not in ("SIGXCPU", "SIGABRT"):  # of a worker these are its job's fault
        node.send_all(number)
    else:
        node.send(number)
        os.kill(node.scheduler, number)
    node.wait_for_log("stopping")
    ledger.go()

    assert node.wait() == 0
    job.refresh_from_db()
    assert (job.state, job.attempts, job.errors) == (Job.State.DONE, 1, [])


def test_what_outlives_the_grace_time_is_killed_in_a_process_of_many_threads_too(nodes, ledger):
    jobs = [LedgerQueue.create_job(f"queue-{seq}", "hang_stubbornly") for seq in range(3)]
    node = nodes.start(LedgerQueue, processes=1, concurrency=4, grace=0.2)
    wait_for_attempts(ledger, 3)

    assert node.stop() == 0

    assert node.is_gone()
    assert [[(type_, counted) for type_, _, counted in errors_of(job)] for job in jobs] == [
        [("JobInterrupted", False)]
    ] * 3


def test_a_second_ctrl_c_stops_at_once_with_exit_code_1(nodes, ledger):
    LedgerQueue.create_job("a", "hang")
    node = nodes.start(LedgerQueue, grace=FOR_EVER)
    wait_for_attempts(ledger, 1)

    node.send_all(signal.SIGINT)  # a terminal sends it to all
    node.wait_for_log("stopping")
    node.send_all(signal.SIGINT)

    assert node.wait() == 1
    assert node.is_gone()


def test_a_second_signal_ends_hooks_that_hang(nodes, ledger):
    HookQueue.create_job("hang in handle_done_job", "noop")
    node = nodes.start(HookQueue, grace=FOR_EVER)
    wait_until(lambda: "handle_done_job" in ledger.told(), PATIENCE)

    node.send(signal.SIGTERM)
    node.wait_for_log("stopping")
    node.send(signal.SIGTERM)

    assert node.wait() == 1
    assert node.is_gone()


def test_the_third_signal_kills_a_scheduler_that_does_not_react(nodes, ledger):
    LedgerQueue.create_job("a", "hang")
    node = nodes.start(LedgerQueue, grace=FOR_EVER, env={"QUEUETOPIA_TEST_LEASE": str(FOR_EVER)})
    wait_for_attempts(ledger, 1)
    node.send_all(signal.SIGSTOP)

    node.send(signal.SIGCONT)  # the supervisor alone
    wait_until(lambda: node.is_gone() or node.send(signal.SIGTERM), PATIENCE)

    assert node.wait() in (1, -signal.SIGTERM)  # the last one may come when it ends already


def test_a_stop_while_the_node_still_starts_ends_it_cleanly(nodes):
    node = nodes.start(LedgerQueue)
    assert node.scheduler  # there is one, and it listens to nothing yet

    assert node.stop() == 0

    assert node.is_gone()
    assert not Node.objects.exists()


def test_a_running_job_can_be_cancelled_while_its_node_stops(nodes, ledger):
    job = LedgerQueue.create_job("a", "hang")
    node = nodes.start(LedgerQueue, grace=FOR_EVER)
    wait_for_attempts(ledger, 1)
    node.send(signal.SIGTERM)
    node.wait_for_log("stopping")

    LedgerQueue.cancel(job)

    assert node.wait() == 0
    job.refresh_from_db()
    assert job.state == Job.State.CANCELLED
