"""Chunks in workers: whatever is killed inside one, its jobs are done again in order, and what is at fault is found."""

import signal

import pytest

from queuetopia import Refused
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import errors_of, wait_for, wait_for_all
from tests.testapp.queues import ChunkQueue

pytestmark = [pytest.mark.processes, pytest.mark.capability("X2"), pytest.mark.django_db(transaction=True)]

LEASE = {"QUEUETOPIA_TEST_LEASE": "3"}


def put(count, action="sync", **which):
    """Create jobs numbered from 1; ``which`` says how some of them end: ``_3="fail"``."""
    hows = {int(name[1:]): how for name, how in which.items()}
    new = [ChunkQueue.job("a", action, {"n": n, "how": hows.get(n)}) for n in range(1, count + 1)]
    return ChunkQueue.create_jobs(new)


def chunks(ledger):
    """Return what each attempt was handed, as "1,2,3"."""
    lines = [line.split() for line in ledger.path.read_text().splitlines()] if ledger.path.exists() else []
    return [line[4] for line in lines if line[0] == "chunk"]


def assert_done_in_order(count):
    done = ChunkQueue.jobs().filter(state="done").order_by("done_at", "id")
    assert [job.params["n"] for job in done] == [*range(1, count + 1)]
    assert ChunkQueue.memory("a")["done"] == [*range(1, count + 1)]


def test_a_worker_that_is_killed_inside_a_chunk_repeats_it_in_order_one_by_one(nodes, ledger):
    jobs = put(12, _3="die once")
    nodes.start(ChunkQueue)
    wait_for_all(ChunkQueue)
    assert chunks(ledger) == ["1,2,3,4,5", "1", "2", "3", "4", "5", "6,7,8,9,10", "11,12"]
    assert [error[0] for error in errors_of(jobs[0])] == ["WorkerDied"]
    assert [errors_of(job) for job in jobs[1:]] == [[]] * 11
    assert_done_in_order(12)


def test_a_job_that_kills_its_worker_is_found_and_all_before_it_are_done(nodes, ledger):
    jobs = put(7, _3="die")
    nodes.start(ChunkQueue)
    wait_for(jobs[2], lambda job: job.attempts)
    assert chunks(ledger)[:4] == ["1,2,3,4,5", "1", "2", "3"]
    assert errors_of(jobs[2])[0][0] == "WorkerDied"
    assert_done_in_order(2)
    assert not ChunkQueue.jobs().filter(pk__in=[job.pk for job in jobs[3:]], attempted_at__isnull=False).exists()


def test_a_node_that_dies_inside_a_chunk_leaves_nothing_of_it_done(nodes, ledger):
    jobs = put(7, _2="hang")
    first = nodes.start(ChunkQueue, env=LEASE)
    wait_until(lambda: chunks(ledger), PATIENCE, message="no chunk")
    with pytest.raises(Refused, match=f"it is done together with job {jobs[0].pk}"):
        ChunkQueue.cancel(jobs[3])
    first.send_all(signal.SIGKILL)
    wait_until(first.is_gone, PATIENCE)
    assert not ChunkQueue.jobs().filter(state="done").exists()

    nodes.start(ChunkQueue, env=LEASE)
    wait_for_all(ChunkQueue)
    assert chunks(ledger) == ["1,2,3,4,5", "1", "2", "3", "4", "5", "6,7"]
    assert_done_in_order(7)


def test_a_cancel_of_the_first_stops_the_chunk_and_the_others_stand_in_line_again(nodes, ledger):
    jobs = put(6, _2="hang")
    nodes.start(ChunkQueue)
    wait_until(lambda: chunks(ledger), PATIENCE, message="no chunk")
    assert ChunkQueue.cancel(jobs[0]) == "running"
    wait_for(jobs[0], lambda job: job.state == "cancelled")
    wait_until(lambda: len(chunks(ledger)) == 2, PATIENCE, message="no second chunk")
    assert chunks(ledger)[1] == "2,3,4,5,6"


@pytest.mark.parametrize("action", ["sync", "sync-async"])
def test_a_long_line_is_done_in_chunks(nodes, ledger, action):
    put(203, action)
    nodes.start(ChunkQueue)
    wait_for_all(ChunkQueue)
    assert len(chunks(ledger)) == 41
    done = ChunkQueue.jobs().filter(state="done").order_by("done_at", "id")
    assert [job.params["n"] for job in done] == [*range(1, 204)]
