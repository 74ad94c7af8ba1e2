"""``job.memory`` in workers: whatever is killed, it is the fold over the jobs that are done."""

import random
import signal
from pathlib import Path

import pytest

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, kill
from tests.processes.waiting import errors_of, wait_for, wait_for_all
from tests.testapp.queues import MemoryQueue

pytestmark = [
    pytest.mark.processes, pytest.mark.capability("X4"), pytest.mark.django_db(transaction=True)
]  # fmt: skip


def assert_is_the_fold(queue):
    done = MemoryQueue.jobs().filter(queue=queue, state="done").in_order()
    assert MemoryQueue.memory(queue) == {
        "jobs": [job.pk for job in done],
        "sum": sum(job.params.get("n", 1) for job in done),
    }


def test_it_is_the_fold_over_the_done_jobs_whatever_is_killed(nodes, ledger):
    dice = random.Random(15)
    hows = [*[""] * 8, "fail once", "die once", "skip", "complete", "complete, then die"]
    jobs = [
        MemoryQueue.job(queue, "add", {"n": dice.randrange(100), "how": dice.choice(hows)})
        for _ in range(25)
        for queue in ("a", "b")
    ]
    MemoryQueue.create_jobs(jobs)
    node = nodes.start(MemoryQueue, env={"QUEUETOPIA_TEST_LEASE": "3"})
    for victim in ("worker", "scheduler", "node"):
        seen = ledger.attempts()
        wait_until(lambda seen=seen: ledger.attempts() >= seen + 5, PATIENCE, message="no more attempts")
        if victim == "worker":
            kill(dice.choice(node.workers(2)))
        elif victim == "scheduler":
            kill(node.scheduler)
        else:
            node.send_all(signal.SIGKILL)
            wait_until(node.is_gone, PATIENCE)
    nodes.start(MemoryQueue, env={"QUEUETOPIA_TEST_LEASE": "3"})
    wait_for_all(MemoryQueue)
    assert_is_the_fold("a")
    assert_is_the_fold("b")


def test_a_worker_that_dies_before_its_success_is_stored_leaves_it_as_it_was(nodes, ledger):
    job = MemoryQueue.create_job("a", "add", {"how": "die once"})
    MemoryQueue.create_job("a", "add_async", {"n": 10})
    nodes.start(MemoryQueue)
    wait_for_all(MemoryQueue)
    assert [error[0] for error in errors_of(job)] == ["WorkerDied"]
    assert MemoryQueue.memory("a") == {"sum": 11, "jobs": [job.pk]}


def test_a_deferred_attempt_remembers_over_a_restart_of_all(nodes, ledger):
    job = MemoryQueue.create_job("a", "add", {"how": "defer"})
    node = nodes.start(MemoryQueue)
    wait_for(job, lambda job: job.is_outside())
    assert MemoryQueue.memory("a") == {}
    node.send_all(signal.SIGKILL)
    wait_until(node.is_gone, PATIENCE)
    MemoryQueue.complete(Path(f"{ledger.environment['QUEUETOPIA_TEST_LEDGER']}.token.a").read_text())
    nodes.start(MemoryQueue)
    wait_for_all(MemoryQueue)
    assert_is_the_fold("a")
