"""Hooks and signals: told in a worker, after the commit, what happened, at most once; what they raise is harmless."""

import pytest

from queuetopia.models import Job
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import HookQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

TIMEOUT = "the attempt lasted longer than its timeout of 0.2 s and was killed"


def told_once(nodes, ledger, job, expected, **options):
    """Run the job until all expected was told; return {what: what it was told}, each of it once."""
    node = nodes.start(HookQueue, **options)
    wait_until(lambda: ledger.told().keys() >= expected, PATIENCE, message="not told")
    wait_for(job, lambda job: job.done_at or job.state == Job.State.HALTED)
    node.stop()  # what is told twice is told by then
    told = ledger.told()
    assert {what: len(entries) for what, entries in told.items() if what != "job_started"} == dict.fromkeys(expected, 1)
    return {what: entries[0] for what, entries in told.items()}


@pytest.mark.capability("J16", "J20", "H31", "J4", "J23")
def test_success_is_told_after_its_commit_by_the_process_that_ran_it(nodes, ledger):
    job = HookQueue.create_job("a", "write", {"seq": 1})

    told = told_once(nodes, ledger, job, {"handle_done_job", "job_done"})

    (pid,) = {record.pid for record in ledger.records()}
    expected = {"job": job.pk, "attempt": 1, "exc": None, "text": None, "stored": ["done", 1], "pid": pid}
    assert [told["handle_done_job"], told["job_done"]] == [
        {"what": "handle_done_job", **expected},
        {"what": "job_done", **expected},
    ]
    assert told["job_started"]["stored"] == ["pending", 0]


@pytest.mark.capability("J16", "J20", "H31", "J4")
def test_a_failure_and_what_follows_are_told_in_order_with_the_exception(nodes, ledger):
    job = HookQueue.create_job("a", "fail", {"times": 1, "text": "no route"})

    failed, done = ["handle_failed_job", "job_failed", "queue_blocked"], ["handle_done_job", "job_done"]
    told = told_once(nodes, ledger, job, {*failed, *done, "queue_unblocked"})

    assert [what for what in told if what != "job_started"] == [*failed, *done, "queue_unblocked"]
    assert {(told[what]["attempt"], told[what]["exc"], told[what]["text"]) for what in failed} == {
        (1, "ConnectionError", "no route")
    }
    assert {(told[what]["attempt"], told[what]["exc"]) for what in done} == {(2, None)}


@pytest.mark.capability("J16", "E4", "E28")
def test_exhaustion_is_told_and_logged_as_an_error_once(nodes, ledger):
    job = HookQueue.create_job("a", "fail", {"text": "no route"}, max_attempts=1)

    expected = {"handle_failed_job", "handle_exhausted_job", "job_failed", "job_halted", "queue_blocked"}
    told = told_once(nodes, ledger, job, expected)

    assert {tuple(told[what]["stored"]) for what in expected} == {("halted", 1)}
    assert nodes.logs().count("ERROR   job halted") == 1


@pytest.mark.capability("J16", "H20")
def test_a_job_skipped_by_exhaustion_is_told_as_skipped(nodes, ledger):
    job = HookQueue.create_job("a", "fail", max_attempts=1, on_exhausted="skip")

    told = told_once(nodes, ledger, job, {"handle_failed_job", "handle_exhausted_job", "job_failed", "job_skipped"})

    assert told["job_skipped"]["stored"] == ["skipped", 1]


@pytest.mark.capability("J16", "J20", "H31")
@pytest.mark.parametrize(
    ("action", "params", "exc", "text"),
    [("hang_in_c", {}, "JobTimeout", TIMEOUT), ("die", {"how": "kill"}, "WorkerDied", "was killed by SIGKILL")],
)
def test_after_a_kill_another_worker_tells_what_happened(nodes, ledger, action, params, exc, text):
    job = HookQueue.create_job("a", action, params, timeout=0.2, max_attempts=1)

    expected = {"handle_failed_job", "handle_exhausted_job", "job_failed", "job_halted", "queue_blocked"}
    told = told_once(nodes, ledger, job, expected, processes=1)

    (attempt,) = wait_for_attempts(ledger, 1)
    assert {told[what]["exc"] for what in expected} == {exc}
    assert all(text in told[what]["text"] for what in expected)
    assert attempt.pid not in {told[what]["pid"] for what in expected}


@pytest.mark.capability("J16")
def test_a_running_job_that_is_cancelled_is_told_as_cancelled(nodes, ledger):
    job = HookQueue.create_job("a", "hang")
    nodes.start(HookQueue)
    wait_for_attempts(ledger, 1)

    HookQueue.cancel(job)

    wait_until(lambda: ledger.told().get("job_cancelled"), PATIENCE)
    assert ledger.told()["job_cancelled"][0]["stored"] == ["cancelled", 1]


@pytest.mark.capability("J16", "Q9")
def test_until_empty_ends_when_the_hooks_have_ended_too(nodes, ledger):
    HookQueue.create_job("sleep in handle_done_job", "noop")

    assert nodes.start(HookQueue, until_empty=True).wait() == 0

    assert [what for what in ledger.told() if what != "job_started"] == ["handle_done_job", "job_done"]


@pytest.mark.capability("J16", "Q10")
def test_a_stop_waits_for_the_hooks_of_what_is_done(nodes, ledger):
    jobs = HookQueue.create_jobs([HookQueue.job(f"queue-{number % 20}", "noop") for number in range(400)])
    node = nodes.start(HookQueue, processes=1, grace=PATIENCE)
    wait_for_all(HookQueue)

    assert node.stop() == 0

    assert sorted(entry["job"] for entry in ledger.told()["job_done"]) == sorted(job.pk for job in jobs)


@pytest.mark.capability("J16", "J20")
def test_the_worker_of_a_hook_that_hangs_is_replaced_and_the_jobs_go_on(nodes, ledger, tmp_path):
    code = "import queuetopia.node.worker_process\nqueuetopia.node.worker_process.HOOK_TIME = 0.5"
    hanging = HookQueue.create_job("hang in handle_done_job", "noop")
    node = nodes.start(HookQueue, processes=1, env=environment(tmp_path, code))
    wait_for(hanging, lambda job: job.done_at)
    (worker,) = node.workers(1)

    node.wait_for_log("a hook or receiver hangs")
    wait_for(HookQueue.create_job("a", "noop"), lambda job: job.done_at)

    wait_until(lambda: len(ledger.told().get("job_done", [])) == 1, PATIENCE)
    assert node.workers(1) != [worker]
    hanging.refresh_from_db()
    assert hanging.state == Job.State.DONE


@pytest.mark.capability("J16", "J20", "H31")
@pytest.mark.parametrize("queue", ["raise", "exit"])  # what every hook and receiver does after telling
def test_hooks_and_receivers_that_fail_are_logged_and_change_nothing(nodes, ledger, queue):
    first = HookQueue.create_job(queue, "fail", {"times": 1})
    second = HookQueue.create_job(queue, "noop")
    HookQueue.create_job("calm", "noop")

    node = nodes.start(HookQueue, processes=1)
    wait_for_all(HookQueue)

    names = lambda: {entry.get("hook", "").partition(" ")[0] for entry in HookQueue.jobs().get(pk=first.pk).errors}  # noqa: E731
    expected = {
        "",
        "handle_failed_job",
        "job_failed",
        "queue_blocked",
        "handle_done_job",
        "job_done",
        "queue_unblocked",
    }
    wait_until(lambda: names() == expected, PATIENCE, message="not kept")
    for job, attempts in ((first, 2), (second, 1)):
        job.refresh_from_db()
        assert (job.state, job.attempts) == (Job.State.DONE, attempts)
    # Whoever tells goes on telling.
    wait_until(lambda: len(ledger.told().get("job_done", [])) == 3, PATIENCE)
    node.wait_for_log("handle_failed_job " + ("fails" if queue == "raise" else "exits"))
    node.wait_for_log("job_failed " + ("fails" if queue == "raise" else "exits"))
