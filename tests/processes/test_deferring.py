"""Work that ends elsewhere, beside real nodes: it survives them all, and a program dies with its attempt."""

import signal

import pytest

from queuetopia.models import Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import HookQueue, LedgerQueue

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.capability("J21", "J22"),
]

HANG = "time.sleep(3600)"


def token_of(ledger, queue="a"):
    return (ledger.path.parent / f"{ledger.path.name}.token.{queue}").read_text()


def wait_for_deferral(job):
    return wait_for(job, lambda job: job.is_outside())


def test_a_deferred_attempt_survives_its_node_and_is_completed_while_none_runs(nodes, ledger):
    job = LedgerQueue.create_job("a", "defer")
    LedgerQueue.create_job("a", "write", {"seq": 1})
    node = nodes.start(LedgerQueue)
    wait_for_deferral(job)
    assert Queue.objects.get().held_by is None
    node.send_all(signal.SIGKILL)
    wait_until(node.is_gone, PATIENCE)

    LedgerQueue.complete(token_of(ledger), {"pages": 30})
    nodes.start(LedgerQueue)
    wait_for_all()

    job.refresh_from_db()
    assert (job.state, job.attempts, job.result) == ("done", 1, {"pages": 30})
    assert (ledger.attempts(), errors_of(job)) == (2, [])


@pytest.mark.parametrize("how", ["complete", "fail", "deadline"])
def test_hooks_and_signals_follow_the_end_that_was_reported(nodes, ledger, how):
    timeout = 1 if how == "deadline" else 3600
    job = HookQueue.create_job("a", "defer", {"timeout": timeout}, max_attempts=1)
    nodes.start(HookQueue, poll_interval=3600)
    wait_for_attempts(ledger, 1)
    if how != "deadline":
        wait_for_deferral(job)
        getattr(HookQueue, how)(token_of(ledger))
    hook = "handle_done_job" if how == "complete" else "handle_exhausted_job"
    wait_until(lambda: hook in ledger.told(), PATIENCE)
    job.refresh_from_db()
    error = {"complete": "", "fail": "FailedOutside: failed outside, without a reason"}.get(how, "JobTimeout: ")
    assert job.error.startswith(error)
    assert (job.state, job.attempts) == ("done" if how == "complete" else "halted", 1)


def test_a_completion_reaches_a_node_that_waits_for_hours_at_once(nodes, ledger):
    job = LedgerQueue.create_job("a", "defer")
    nodes.start(LedgerQueue, poll_interval=3600)
    wait_for_deferral(job)
    LedgerQueue.complete(token_of(ledger))
    wait_for_all()


@pytest.mark.parametrize("how", ["timeout", "cancel", "stop", "node killed"])
def test_a_program_that_an_attempt_waits_for_dies_with_it(nodes, ledger, how):
    timeout = 1 if how == "timeout" else None
    job = LedgerQueue.create_job("a", "run_program", {"code": HANG}, timeout=timeout, max_attempts=1)
    node = nodes.start(LedgerQueue)
    path = ledger.path.parent / f"{ledger.path.name}.pid"
    wait_until(lambda: path.exists() and path.read_text(), PATIENCE)
    pid = int(path.read_text())
    match how:
        case "cancel":
            LedgerQueue.cancel(job)
        case "stop":
            node.send(signal.SIGTERM)
            node.send(signal.SIGTERM)
        case "node killed":
            node.send_all(signal.SIGKILL)
            nodes.start(LedgerQueue)
    wait_until(lambda: not is_running(pid), PATIENCE, message="the program outlived its attempt")
    if how in ("timeout", "cancel"):
        wait_for(job, lambda job: job.state == {"timeout": "halted", "cancel": "cancelled"}[how])


def test_a_program_that_ends_well_is_a_success(nodes):
    LedgerQueue.create_job("a", "run_program", {"code": "pass"})
    LedgerQueue.create_job("b", "run_program_async", {"code": "pass"})
    nodes.start(LedgerQueue)
    wait_for_all()
    assert set(LedgerQueue.jobs().values_list("state", flat=True)) == {"done"}
