"""``job.completing()`` and ``job.once()``: an attempt's own writes happen once, with its success or not at all."""

import os
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from queuetopia import StaleAttempt
from queuetopia.models import Job, Once, Queue
from queuetopia.testing import drain, perform_job
from tests.testapp.models import Note
from tests.testapp.queues import LEDGER, AskingQueue, BookingQueue

pytestmark = pytest.mark.django_db(databases=["default", "other"])


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(path))
    return path


def book(queue="a", action="book", **params):
    """Create a job and run what is due; return the job as it is then."""
    job = BookingQueue.create_job(queue, action, params)
    drain(BookingQueue)
    job.refresh_from_db()
    return job


def booked(using="default"):
    return sorted(Note.objects.using(using).values_list("text", flat=True))


@pytest.mark.parametrize("action", ["book", "book_async"])
def test_the_attempts_writes_and_its_success_are_stored_together(action):
    job = book(action=action)
    assert (job.state, job.attempts, job.result, job.error) == ("done", 1, {"booked": "a"}, "")
    assert job.attempted_by.endswith(f":{os.getpid()}")
    assert booked() == [f"a {job.pk}"]
    assert Queue.objects.filter(name="a", held_by=None, current_job=None).exists()


@pytest.mark.capability("J24", "X1")
def test_follow_up_jobs_are_created_with_the_success(ledger):
    book(follow=True)
    (receipt,) = BookingQueue.jobs().filter(queue="receipt of a")
    assert receipt.state == "done"


@pytest.mark.capability("J24", "X1")
@pytest.mark.parametrize("inside", ["raise", "lose"])
def test_what_ends_the_block_early_undoes_all_of_it(inside):
    job = BookingQueue.create_job("a", "book", {"inside": inside, "follow": True}, max_backoff=3600)
    (after_first,) = drain(BookingQueue)
    expected = {"raise": "ConnectionError: refused", "lose": "StaleAttempt: Attempt 1 of job"}[inside]
    assert after_first.error.startswith(expected)
    assert (after_first.state, after_first.attempts, booked()) == ("pending", 1, [])
    assert not BookingQueue.jobs().filter(queue__startswith="receipt").exists()
    drain(BookingQueue, now=timezone.now() + timedelta(minutes=1))  # the second attempt suffers nothing
    job.refresh_from_db()
    assert (job.state, job.attempts, booked()) == ("done", 2, [f"a {job.pk}"])


@pytest.mark.parametrize("after", ["raise", "again"])
def test_what_follows_the_block_changes_nothing(after, caplog):
    job = book(after=after)
    assert (job.state, job.attempts, job.errors, job.result) == ("done", 1, [], {"booked": "a"})
    assert len(booked()) == 1
    assert "raised after its job was completed" in caplog.text


def test_a_block_cannot_stand_in_another_transaction():
    job = BookingQueue.job("a", "book")
    with pytest.raises(RuntimeError, match="is for the job that a performer is handed"), job.completing():
        pass


def test_perform_job_runs_the_block_and_writes_no_row_of_ours():
    job = BookingQueue.job("a", "book", {"after": ""})
    assert perform_job(job) == "not kept"
    assert perform_job(BookingQueue.job("b", "book_elsewhere")) is None
    assert (len(booked()), len(booked("other"))) == (1, 1)
    assert not Job.objects.exists()
    assert not Once.objects.using("other").exists()


def test_an_attempt_that_runs_again_finds_what_was_done_in_another_database():
    job = book(action="book_elsewhere", after="raise")
    assert (job.state, job.attempts) == ("done", 2)
    assert booked("other") == [f"a {job.pk}"]


def test_each_block_of_a_job_has_a_name_of_its_own_and_each_queue_one_row():
    first = book(action="book_elsewhere", steps=["one", "two"], after="raise")
    second = book(action="book_elsewhere", steps=["one"])
    assert booked("other") == sorted([f"a {first.pk} one", f"a {first.pk} two", f"a {second.pk} one"])
    assert Once.objects.using("other").get().job == second.pk


def test_a_block_in_another_database_is_refused_when_a_later_attempt_has_been_there():
    book(action="book_elsewhere")
    Once.objects.using("other").update(fence=1_000)
    BookingQueue.create_job("a", "book_elsewhere", max_backoff=3600)
    (job,) = drain(BookingQueue)
    assert job.error.startswith(StaleAttempt.__name__)
    assert len(booked("other")) == 1


class TestWasDone:
    def cut_short(self, queue, kind="WorkerDied", **entry):
        """Return a job whose first attempt ended so."""
        job = AskingQueue.create_job(queue, "noop")
        now = timezone.now()
        entry = {"attempt": 1, "type": kind, "message": "", "counted": True, **entry}
        Job.objects.filter(pk=job.pk).update(attempts=1, attempted_at=now, failed_at=now, errors=[entry])
        Queue.objects.create(scope=job.scope, name=queue, current_job=job.pk, due_at=now)
        return job

    @pytest.mark.parametrize("kind", ["WorkerDied", "NodeDied", "JobTimeout"])
    def test_a_job_that_was_done_when_its_attempt_was_cut_short_is_not_run_again(self, kind, ledger):
        job = self.cut_short("done", kind)
        drain(AskingQueue)
        job.refresh_from_db()
        assert (job.state, job.attempts) == ("done", 2)
        assert [line.split()[0] for line in ledger.read_text().splitlines()] == ["asked"]

    def test_an_attempt_that_our_own_stop_cut_short_is_asked_about_too(self, ledger):
        self.cut_short("done", "JobInterrupted", counted=False)
        drain(AskingQueue)
        assert "asked" in ledger.read_text()

    def test_one_that_was_not_is_run(self, ledger):
        job = self.cut_short("not yet")
        drain(AskingQueue)
        job.refresh_from_db()
        assert job.state == "done"
        assert "asked" in ledger.read_text()

    def test_an_attempt_that_failed_by_itself_is_not_asked_about(self, ledger):
        self.cut_short("done", "ConnectionError")
        AskingQueue.create_job("new", "noop")
        drain(AskingQueue)
        assert not ledger.exists()

    def test_what_it_raises_is_raised_by_the_attempt(self):
        job = self.cut_short("raise")
        Job.objects.update(max_backoff=3600)
        drain(AskingQueue)
        job.refresh_from_db()
        assert (job.state, job.error) == ("pending", "ConnectionError: cannot ask")

    def test_the_question_is_asked_again_when_it_could_not_be_answered(self, ledger):
        job = self.cut_short("raise")
        Job.objects.update(max_backoff=3600)
        for minutes in (0, 10):
            drain(AskingQueue, now=timezone.now() + timedelta(minutes=minutes))
        job.refresh_from_db()
        assert (job.state, job.attempts) == ("pending", 3)
        assert [line.split()[:3] for line in ledger.read_text().splitlines()] == [["asked", "raise", n] for n in "23"]


@pytest.mark.django_db(transaction=True)
def test_a_block_inside_another_transaction_is_refused(monkeypatch):
    job = BookingQueue.create_job("a", "book")
    with transaction.atomic(), pytest.raises(RuntimeError, match="durable"):
        perform_job(job)
