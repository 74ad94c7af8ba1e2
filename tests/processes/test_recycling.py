"""Workers that are replaced because they have run enough jobs, or take too much memory; no job pays for it."""

import re
from collections import defaultdict

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from queuetopia import start_node
from queuetopia.models import Job
from queuetopia.testing import wait_until
from tests.faults.ledger import check
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, wait_for_all, wait_for_attempts
from tests.testapp.queues import HookQueue, LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True), pytest.mark.capability("H10")]

USED_UP = "worker used up, replaced"


def jobs_by_worker(ledger):
    """Return what each worker began: {pid: [(queue, number), …]}."""
    begun = defaultdict(list)
    for record in ledger.records():
        if record.event in ("start", "attempt"):
            begun[record.pid].append((record.queue, record.number))
    return dict(begun)


def assert_nothing_was_amiss(node):
    log = node.log()
    assert "ERROR" not in log
    assert "worker died" not in log
    assert "interrupted" not in log


@pytest.mark.parametrize(
    ("processes", "concurrency", "action"), [(1, 1, "write"), (2, 4, "write"), (1, 4, "sleep_async")]
)
def test_a_worker_runs_so_many_jobs_and_no_more_in_order_each_attempt_counted_once(
    nodes, ledger, processes, concurrency, action
):
    created = {f"queue-{number}": list(range(4)) for number in range(5)}
    LedgerQueue.create_jobs(
        LedgerQueue.job(queue, action, {"seq": seq, "lasts": 0.01}) for seq in range(4) for queue in created
    )

    node = nodes.start(
        LedgerQueue, processes=processes, concurrency=concurrency, until_empty=True, max_jobs_per_worker=6
    )

    assert node.wait() == 0
    jobs = jobs_by_worker(ledger)
    assert len(jobs) >= 20 / 6
    assert max(map(len, jobs.values())) <= 6
    assert check(ledger.records(), created) == ([], 0)
    assert not LedgerQueue.jobs().exclude(state="done", attempts=1, errors=[]).exists()
    assert "because of the number of jobs it has run: 6" in node.log()
    assert_nothing_was_amiss(node)


def test_one_that_has_run_failing_jobs_only_is_replaced_at_once(nodes, ledger):
    LedgerQueue.create_jobs(LedgerQueue.job(f"queue-{number}", "fail", {"times": 1}) for number in range(2))

    node = nodes.start(LedgerQueue, processes=1, max_jobs_per_worker=1)
    wait_for_all()

    assert [len(jobs) for jobs in jobs_by_worker(ledger).values()] == [1] * 4
    assert not LedgerQueue.jobs().exclude(attempts=2).exists()
    assert_nothing_was_amiss(node)


def test_one_tells_hooks_of_its_last_job_with_the_exception_before_it_ends(nodes, ledger):
    for queue in ("a", "sleep in handle_failed_job", "raise"):
        HookQueue.create_job(queue, "fail", {"text": "no route"}, max_attempts=1)

    node = nodes.start(HookQueue, processes=1, max_jobs_per_worker=1)
    wait_until(lambda: len(ledger.told().get("queue_blocked", ())) == 3, PATIENCE, message="not told")
    node.stop()

    began_in = {(entry["job"], entry["pid"]) for entry in ledger.told()["job_started"]}
    assert len(began_in) == 3
    for what in ("handle_failed_job", "handle_exhausted_job", "job_failed", "job_halted", "queue_blocked"):
        told = ledger.told()[what]
        assert {(entry["job"], entry["pid"]) for entry in told} == began_in
        assert [(entry["exc"], entry["text"]) for entry in told] == [("ConnectionError", "no route")] * 3


@pytest.mark.skipif(connection.vendor == "sqlite", reason="locks no rows")
def test_one_waits_for_the_commit_of_its_last_job_to_tell_hooks_of_it(nodes, ledger):
    job = HookQueue.create_job("a", "write_when_told", {"seq": 1})
    node = nodes.start(HookQueue, processes=1, max_jobs_per_worker=1)
    (begun,) = wait_for_attempts(ledger, 1)

    with transaction.atomic():
        Job.objects.select_for_update().get(pk=job.pk)
        ledger.go()
        node.wait_for_log(USED_UP)
        assert begun.pid in node.workers(2)
    wait_until(lambda: "handle_done_job" in ledger.told(), PATIENCE, message="not told")

    assert [entry["pid"] for entry in ledger.told()["handle_done_job"]] == [begun.pid]


GROWS = """
from queuetopia import action
from tests.testapp.queues import LedgerPerformer, note

kept = []

def grow(self, job, value):
    note("attempt", job.queue, value, job.fence)
    kept.append(b"x" * (value * 2**20))

LedgerPerformer.give_answer = action("answer")(grow)
"""


def test_one_that_takes_too_much_memory_is_replaced_after_its_job(nodes, ledger, tmp_path):
    for megabytes in (1, 500, 2, 3, 501, 4):
        LedgerQueue.create_job("a", "answer", {"value": megabytes})

    node = nodes.start(LedgerQueue, processes=1, env=environment(tmp_path, GROWS), max_memory_per_worker=400)
    wait_for_all()

    begun = [[value for _, value in jobs] for jobs in jobs_by_worker(ledger).values()]
    assert begun == [[1, 500], [2, 3, 501], [4]]
    assert not LedgerQueue.jobs().exclude(attempts=1).exists()
    assert USED_UP in node.log()
    assert_nothing_was_amiss(node)


def test_none_is_replaced_unless_it_is_asked_for(nodes, ledger):
    LedgerQueue.create_jobs(LedgerQueue.job(f"queue-{seq}", "write", {"seq": seq}) for seq in range(50))

    node = nodes.start(LedgerQueue, processes=1, until_empty=True)

    assert node.wait() == 0
    assert len(jobs_by_worker(ledger)) == 1
    assert "replaced" not in node.log()


@pytest.mark.parametrize("option", ["max_jobs_per_worker", "max_memory_per_worker", "processes", "concurrency"])
def test_a_number_that_is_none_is_refused(option):
    argument = f"--{option.replace('_', '-')}"
    for text in ("0", "-1", "x", "1.5"):
        with pytest.raises(CommandError, match=f"{argument}: invalid positive int value: '{re.escape(text)}'"):
            call_command("run_queuetopia", f"{argument}={text}")
    for wrong in (-1, 1.5, True, "1"):
        with pytest.raises(ValueError, match=f"^{option} must be a positive whole number, not "):
            start_node(LedgerQueue, **{option: wrong})
