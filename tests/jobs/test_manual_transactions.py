"""Where autocommit is off, jobs are created inside atomic() or not at all, and verbs do what they do elsewhere."""

import pytest
from django.db import connection, transaction

from queuetopia.exceptions import Refused
from queuetopia.models import Job, Queue
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = pytest.mark.django_db(transaction=True)


commits_by_itself = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="with autocommit off, SQLite commits at the end of Django's savepoints"
)


class OrderedQueue(SlowRetryQueue):
    scope = "tests.manual"
    commit_ordered = True


@pytest.fixture
def manual():
    """Autocommit is off during the test."""
    transaction.set_autocommit(False)
    yield
    transaction.rollback()
    transaction.set_autocommit(True)


@pytest.mark.parametrize("queuetopia", [LedgerQueue, OrderedQueue])
@pytest.mark.parametrize("number", [1, 3])
def test_a_creation_is_refused_before_anything_is_written(manual, queuetopia, number):
    jobs = [queuetopia.job("a", "noop") for _ in range(number)]

    with pytest.raises(Refused, match=r"autocommit is off.*transaction\.atomic\(\)"):
        queuetopia.create_jobs(jobs)
    with pytest.raises(Refused, match="No job was created"):
        queuetopia.create_job("a", "noop")

    transaction.commit()
    assert Job.objects.count() == Queue.objects.count() == 0


def test_inside_atomic_a_job_is_stored_with_the_callers_commit_and_wakes_then(manual):
    with transaction.atomic():
        LedgerQueue.create_job("a", "noop")
    transaction.commit()
    assert Job.objects.count() == 1
    transaction.commit()

    transaction.set_autocommit(True)  # when Django calls what waits for the commit

    assert Queue.objects.get().due_at is not None


@commits_by_itself
def test_what_is_rolled_back_was_never_created(manual):
    with transaction.atomic():
        LedgerQueue.create_job("a", "noop")
    transaction.rollback()
    transaction.set_autocommit(True)
    assert Job.objects.count() == Queue.objects.count() == 0


@commits_by_itself
def test_verbs_are_part_of_the_callers_transaction():
    job = LedgerQueue.create_job("a", "noop")
    transaction.set_autocommit(False)
    try:
        LedgerQueue.pause("a")
        LedgerQueue.cancel(job.pk)
        transaction.rollback()
        assert (Job.objects.get().state, Queue.objects.get().paused_at) == ("pending", None)
        LedgerQueue.cancel(job.pk)
        transaction.commit()
    finally:
        transaction.rollback()
        transaction.set_autocommit(True)
    assert Job.objects.get().state == "cancelled"
