"""``job.completing()`` in workers: whatever kills them, an attempt's own writes are there once, with its success."""

import signal

import pytest
from django.db import OperationalError, connection

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.models import Note
from tests.testapp.queues import AskingQueue, BookingQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

LEASE = {"QUEUETOPIA_TEST_LEASE": "3"}


def booked(using="default"):
    return list(Note.objects.using(using).order_by("pk").values_list("text", flat=True))


@pytest.mark.capability("J24", "X1")
@pytest.mark.parametrize("action", ["book", "book_async"])
def test_a_worker_that_is_killed_inside_the_block_has_done_nothing_and_the_job_runs_again(nodes, ledger, action):
    job = BookingQueue.create_job("a", action, {"inside": "die"})
    nodes.start(BookingQueue)
    wait_for_all(BookingQueue)
    assert [error[0] for error in errors_of(job)] == ["WorkerDied"]
    assert (job.state, booked()) == ("done", [f"a {job.pk}"])


@pytest.mark.capability("J24", "E8")
def test_a_worker_that_is_killed_behind_the_block_has_done_the_job(nodes, ledger):
    job = BookingQueue.create_job("a", "book", {"after": "die"})
    following = BookingQueue.create_job("a", "book")
    node = nodes.start(BookingQueue)
    wait_for_all(BookingQueue)
    assert errors_of(job) == []
    assert (job.state, job.attempts, job.result) == ("done", 1, {"booked": "a"})
    assert booked() == [f"a {job.pk}", f"a {following.pk}"]
    assert ledger.attempts("a") == 2
    assert "attempt failed" not in node.log()


def test_a_job_that_outlives_its_timeout_behind_the_block_is_done(nodes, ledger):
    job = BookingQueue.create_job("a", "book", {"after": "hang"}, timeout=1)
    BookingQueue.create_job("a", "noop")
    nodes.start(BookingQueue)
    wait_for_all(BookingQueue)
    assert errors_of(job) == []
    assert (job.state, job.attempts, len(booked())) == ("done", 1, 1)


@pytest.mark.capability("J24", "E8")
def test_a_node_that_dies_behind_the_block_leaves_the_job_done_and_its_queue_goes_on(nodes, ledger):
    job = BookingQueue.create_job("a", "book", {"after": "hang"})
    BookingQueue.create_job("a", "book")
    node = nodes.start(BookingQueue)
    wait_for(job, lambda job: job.is_ended())
    node.send_all(signal.SIGKILL)
    wait_until(node.is_gone, PATIENCE)

    nodes.start(BookingQueue)
    wait_for_all(BookingQueue)
    assert errors_of(job) == []
    assert (job.attempts, ledger.attempts("a"), len(booked())) == (1, 2, 2)


def test_an_attempt_that_was_frozen_inside_the_block_cannot_commit_when_another_has_taken_over(nodes, ledger):
    job = BookingQueue.create_job("a", "book", {"inside": "wait"})
    first = nodes.start(BookingQueue, env=LEASE, processes=1)
    wait_until(lambda: ledger.records("inside"), PATIENCE)
    (frozen,) = {record.pid for record in ledger.records("inside")}
    first.send_all(signal.SIGSTOP)
    if connection.vendor == "sqlite":  # its one writer is the frozen block: nobody takes over before it is thawed
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 100")
        with pytest.raises(OperationalError, match="locked"):
            Note.objects.create(text="another writer")
        ledger.go()
        first.send_all(signal.SIGCONT)
        wait_for_all(BookingQueue)
        assert booked() == [f"a {job.pk}"]
        return

    second = nodes.start(BookingQueue, env=LEASE)
    wait_for_attempts(ledger, 2)
    wait_for_all(BookingQueue)
    ledger.go()
    first.send_all(signal.SIGCONT)
    wait_until(lambda: not is_running(frozen), PATIENCE, message="the frozen attempt goes on")
    assert booked() == [f"a {job.pk}"]
    assert [error[0] for error in errors_of(job)] == ["NodeDied"]
    assert second.stop() == 0


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a block that goes on keeps the whole file locked")
def test_an_attempt_that_goes_on_beside_its_successor_is_refused_and_rolled_back(nodes, ledger):
    """Its node would have killed it; here the queue's row is changed by hand."""
    job = BookingQueue.create_job("a", "book", {"inside": "wait"})
    node = nodes.start(BookingQueue, processes=1)
    wait_until(lambda: ledger.records("inside"), PATIENCE)
    (worker,) = {record.pid for record in ledger.records("inside")}
    with connection.cursor() as cursor:  # another attempt has the queue, says its row
        cursor.execute("UPDATE queuetopia_queue SET fence = fence + 1")
    ledger.go()
    node.wait_for_log("stale result refused")
    assert booked() == []
    job.refresh_from_db()
    assert job.state == "pending"
    assert is_running(worker)


@pytest.mark.capability("E8")
def test_what_an_attempt_did_in_another_database_is_not_done_again(nodes, ledger):
    job = BookingQueue.create_job("a", "book_elsewhere", {"after": "die"})
    nodes.start(BookingQueue)
    wait_for_all(BookingQueue)
    assert [error[0] for error in errors_of(job)] == ["WorkerDied"]
    assert booked("other") == [f"a {job.pk}"]


def test_a_job_whose_worker_was_killed_is_asked_about_before_it_runs_again(nodes, ledger):
    job = AskingQueue.create_job("done", "die", {"how": "kill"})
    nodes.start(AskingQueue)
    wait_for_all(AskingQueue)
    assert [error[0] for error in errors_of(job)] == ["WorkerDied"]
    assert (job.state, job.attempts) == ("done", 2)
    assert [record.event for record in ledger.records()] == ["attempt", "asked"]
