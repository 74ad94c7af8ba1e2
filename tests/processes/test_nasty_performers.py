"""Whatever a performer does to its process: that attempt has failed, is counted and says why; nothing else suffers."""

import re
from pathlib import Path

import pytest

from queuetopia.models import Job
from tests.nodes import is_running
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.models import Note
from tests.testapp.queues import DecidingQueue, LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

KILLED_CHANNEL = r"closed or garbled its channel and was killed"
TIMEOUT = r"longer than its timeout of 1 s and was killed"

# action, params, type of the first attempt's error, its message, whether the worker's process outlives it
FAILING = {
    "an exception whose text raises": ("bad_str", {}, "BadStr", "RuntimeError while the message", True),
    "sys.exit": ("die", {"how": "sys.exit"}, "SystemExit", "0", True),
    "KeyboardInterrupt": ("die", {"how": "KeyboardInterrupt"}, "KeyboardInterrupt", "", True),
    "os._exit(0)": ("die", {"how": "os._exit"}, "WorkerDied", "exited with code 0 before it reported", False),
    "os.abort": ("die", {"how": "abort"}, "WorkerDied", "was killed by SIGABRT", False),
    "a segmentation fault": ("die", {"how": "segfault"}, "WorkerDied", "was killed by SIGSEGV", False),
    "SIGKILL, as when memory runs out": ("die", {"how": "kill"}, "WorkerDied", "was killed by SIGKILL", False),
    "memory used up to the last byte": ("fill_memory", {}, "MemoryError", "", True),
    "SIGKILL of its group": ("die", {"how": "kill group"}, "WorkerDied", "was killed by SIGKILL", False),
    "a transaction left open": ("leave_transaction", {}, "OpenTransaction", "left open on default", True),
    "garbage on the result channel": ("die", {"how": "garble channel"}, "WorkerDied", KILLED_CHANNEL, False),
    "garbage on every descriptor": ("die", {"how": "garble all"}, "WorkerDied", KILLED_CHANNEL, False),
    "every descriptor closed": ("die", {"how": "close all"}, "WorkerDied", "exited with code 1 before it", False),
    "every descriptor closed, hanging": (
        "die",
        {"how": "close all and hang"},
        "WorkerDied|JobTimeout",
        f"exited with code 1|{TIMEOUT}",
        False,
    ),
    "hanging": ("hang", {"times": 1}, "JobTimeout", TIMEOUT, False),
    "hanging, deaf to exceptions and signals": ("hang_stubbornly", {"times": 1}, "JobTimeout", TIMEOUT, False),
    "an awaitable of a sync action, hanging": ("hang_awaiting", {"times": 1}, "JobTimeout", TIMEOUT, False),
    "hanging in C with Python's lock": ("hang_in_c", {"times": 1}, "JobTimeout", TIMEOUT, False),
    "a daemon left behind, hanging": ("daemonise", {}, "JobTimeout", TIMEOUT, False),
}
HARMLESS = {
    "Django's connections closed": ("close_connections", {}),
    "ten megabytes printed": ("print_much", {}),
    "a result that is no JSON": ("return_object", {}),
    "a fork that returns": ("fork", {}),
}


@pytest.mark.capability("E25", "J15", "J18", "J19", "Q1", "Q10", "Q17", "H6", "H19")
@pytest.mark.parametrize("what", FAILING)
def test_fails_its_attempt_and_nothing_else(nodes, ledger, what):
    action, params, error, text, worker_survives = FAILING[what]
    LedgerQueue.create_job("calm", "write", {"seq": 0})
    node = nodes.start(LedgerQueue, processes=1)
    wait_for_all()
    (worker,) = node.workers(1)

    nasty = LedgerQueue.create_job("nasty", action, params, timeout=1)
    following = LedgerQueue.create_job("nasty", "write", {"seq": 1})
    LedgerQueue.create_job("calm", "write", {"seq": 1})
    wait_for_all()

    ((type_, message, counted),) = [found for found in errors_of(nasty) if found[0] != "JobInterrupted"]
    assert re.fullmatch(error, type_)
    assert re.search(text, message)
    assert counted
    assert (nasty.state, nasty.attempts) == (Job.State.DONE, 2)
    assert errors_of(following) == []
    assert [record.number for record in ledger.records("end", "calm")] == [0, 1]
    assert (node.workers(1) == [worker]) is worker_survives


@pytest.mark.capability("J19", "Q10")
@pytest.mark.parametrize("what", HARMLESS)
def test_is_no_failure(nodes, what):
    job = LedgerQueue.create_job("a", *HARMLESS[what])
    LedgerQueue.create_job("a", "noop")

    nodes.start(LedgerQueue, processes=1)
    wait_for_all()

    job.refresh_from_db()
    assert (job.state, job.attempts, job.errors, job.result) == (Job.State.DONE, 1, [], None)


def test_work_in_a_transaction_left_open_is_not_stored(nodes):
    LedgerQueue.create_job("a", "leave_transaction")

    nodes.start(LedgerQueue, processes=1)
    wait_for_all()

    assert not Note.objects.exists()


def test_a_forked_child_that_returns_does_nothing_in_its_parents_name(nodes, ledger):
    LedgerQueue.create_job("a", "fork")
    LedgerQueue.create_job("a", "write", {"seq": 1})

    nodes.start(LedgerQueue, processes=1)
    wait_for_all()

    assert ledger.attempts() == 2


@pytest.mark.capability("J5")
def test_a_program_that_an_attempt_started_is_killed_with_it_wherever_it_went(nodes, ledger):
    job = LedgerQueue.create_job("a", "daemonise", timeout=1)
    nodes.start(LedgerQueue, processes=1)
    wait_for(job, lambda job: job.attempts == 2)

    daemon = int(Path(f"{ledger.path}.daemon1").read_text())
    assert not is_running(daemon)


def test_a_program_left_behind_by_a_job_that_is_done_ends_with_its_worker(nodes, ledger):
    job = LedgerQueue.create_job("a", "daemonise", timeout=1)
    node = nodes.start(LedgerQueue, processes=1)
    wait_for(job, lambda job: job.done_at)
    daemon = int(Path(f"{ledger.path}.daemon2").read_text())

    node.stop()

    assert not is_running(daemon)


# Time out, with others beside it


@pytest.mark.capability("Q17", "E3")
def test_a_timed_out_job_is_tried_again_after_its_backoff(nodes):
    job = SlowRetryQueue.create_job("a", "hang", {"times": 1}, timeout=0.5)
    follower = SlowRetryQueue.create_job("a", "noop")

    nodes.start(SlowRetryQueue, processes=1)

    wait_for(job, lambda job: job.attempts == 1)
    assert (job.next_attempt_at - job.attempted_at).total_seconds() == pytest.approx(2, abs=1e-3)
    assert job.error == "JobTimeout: the attempt lasted longer than its timeout of 0.5 s and was killed"
    wait_for_all(SlowRetryQueue)
    job.refresh_from_db()
    follower.refresh_from_db()
    assert job.done_at < follower.done_at


@pytest.mark.capability("H20", "H32")
@pytest.mark.parametrize(
    ("action", "params", "state", "decided"),
    [
        ("fail", {}, Job.State.SKIPPED, True),
        ("die", {"how": "kill"}, Job.State.HALTED, False),  # there is no worker left to ask
        ("hang_in_c", {}, Job.State.SKIPPED, False),
    ],
)
def test_what_a_failure_leads_to_is_decided_in_the_worker_or_by_the_kind_of_error(
    nodes, ledger, action, params, state, decided
):
    job = DecidingQueue.create_job("a", action, params, timeout=1)
    nodes.start(DecidingQueue, processes=1)
    stored = wait_for(job, lambda job: job.state != Job.State.PENDING)
    assert (stored.state, stored.attempts) == (state, 1)
    (attempt,) = wait_for_attempts(ledger, 1)
    assert [record.pid for record in ledger.records("decided")] == [attempt.pid] * decided


@pytest.mark.capability("Q17")
@pytest.mark.parametrize(
    ("action", "process_survives"),
    [("hang", True), ("hang_async", True), ("hang_awaiting", True), ("hang_stubbornly", False)],
)
def test_a_timeout_leaves_the_other_attempts_of_its_process_alone(nodes, ledger, action, process_survives):
    LedgerQueue.create_jobs([LedgerQueue.job(f"calm-{seq}", "write_when_told", {"seq": seq}) for seq in range(3)])
    node = nodes.start(LedgerQueue, processes=1, concurrency=4)
    wait_for_attempts(ledger, 3)
    (worker,) = node.workers(1)

    job = LedgerQueue.create_job("nasty", action, {"times": 1}, timeout=0.2)
    if process_survives:
        wait_for(job, lambda job: job.done_at)
    else:
        node.workers(2)  # it gets no new work, and another one was started
    ledger.go()
    wait_for_all()

    ((type_, message, counted),) = errors_of(job)
    assert (type_, counted) == ("JobTimeout", True)
    assert "longer than its timeout of 0.2 s" in message
    assert [ledger.attempts(f"calm-{seq}") for seq in range(3)] == [1, 1, 1]
    assert (node.workers(1) == [worker]) is process_survives


@pytest.mark.capability("Q17")
def test_what_a_hanging_c_call_froze_with_it_is_tried_again_and_not_counted(nodes, ledger):
    frozen = LedgerQueue.create_job("frozen", "write_when_told", {"seq": 1})
    nodes.start(LedgerQueue, processes=1, concurrency=4)
    wait_for_attempts(ledger, 1)

    job = LedgerQueue.create_job("nasty", "hang_in_c", {"times": 1}, timeout=0.2)
    wait_for_attempts(ledger, 2, "frozen")
    ledger.go()
    wait_for_all()

    assert [(type_, counted) for type_, _, counted in errors_of(job)] == [("JobTimeout", True)]
    assert [(type_, counted) for type_, _, counted in errors_of(frozen)] == [("JobInterrupted", False)]
    assert frozen.attempts == 1
