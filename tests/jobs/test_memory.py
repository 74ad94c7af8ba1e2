"""``job.memory``: what a queue remembers from one success to the next."""

from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from django.db import transaction
from django.utils import timezone

from queuetopia import InvalidJob, Refused
from queuetopia.attempts import MEMORY_LIMIT
from queuetopia.models import JobEvent, Queue
from queuetopia.testing import drain, perform_job
from tests.testapp.queues import MemoryQueue

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ledger"), pytest.mark.capability("X4")]

DAY = timedelta(days=1)


def add(*hows, queue="a", action="add", **params):
    """Create a job for each and run what is due; return the jobs as they are then."""
    created = [MemoryQueue.create_job(queue, action, {"how": how, **params}, max_backoff=3600) for how in hows]
    drain(MemoryQueue)
    for job in created:
        job.refresh_from_db()
    return created


def the_next_attempt_of_all():
    return drain(MemoryQueue, now=timezone.now() + DAY)


def test_each_attempt_is_handed_what_the_success_before_it_has_left():
    jobs = add("", "", "", n=5)
    assert MemoryQueue.memory("a") == {"sum": 15, "jobs": [job.pk for job in jobs]}


def test_each_queue_has_its_own():
    add("", n=1)
    add("", n=2, queue="b")
    assert (MemoryQueue.memory("a")["sum"], MemoryQueue.memory("b")["sum"]) == (1, 2)
    assert MemoryQueue.memory("nobody") == {}


def test_changing_it_in_place_is_enough_in_an_async_action_too():
    for _ in range(2):
        MemoryQueue.create_job("a", "add_async", {"n": 4})
    drain(MemoryQueue)
    assert MemoryQueue.memory("a") == {"sum": 8}


def test_a_queue_whose_jobs_do_not_ask_for_it_has_none():
    MemoryQueue.create_job("a", "noop", max_backoff=3600)
    drain(MemoryQueue)
    assert Queue.objects.get().memory is None


def test_a_failed_attempt_leaves_it_as_it_was_and_the_next_one_finds_it_so():
    first, second = add("", "fail once")
    assert MemoryQueue.memory("a") == {"sum": 1, "jobs": [first.pk]}
    the_next_attempt_of_all()
    assert MemoryQueue.memory("a") == {"sum": 2, "jobs": [first.pk, second.pk]}


def test_a_job_that_is_given_up_leaves_it_as_it_was():
    first, second = add("", "skip")
    assert second.state == "skipped"
    assert MemoryQueue.memory("a")["jobs"] == [first.pk]


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("large", f"over the limit of {MEMORY_LIMIT}: keep a cursor, a version or a sum in it"),
        ("wrong", "memory.exc: ValueError cannot be stored"),
        ("none", "a queue's memory must be a dict, not NoneType"),
        ("fail in the block", f"over the limit of {MEMORY_LIMIT}"),
    ],
)
def test_an_attempt_that_leaves_what_cannot_be_stored_has_failed(how, error):
    first, job = add("", how)
    assert (job.state, job.attempts) == ("pending", 1)
    assert job.error.startswith("InvalidMemory: ")
    assert error in job.error
    assert MemoryQueue.memory("a")["jobs"] == [first.pk]


def test_it_holds_what_params_can_hold():
    memory = {"at": timezone.now(), "sum": Decimal("1.50"), "nested": [{"a": None}], "text": "Ä🙂"}
    MemoryQueue.edit_memory("a", memory)
    assert MemoryQueue.memory("a") == memory
    (job,) = add("")
    assert MemoryQueue.memory("a") == {**memory, "sum": Decimal("2.50"), "jobs": [job.pk]}


@pytest.mark.parametrize("how", ["complete", "complete, then change"])
def test_it_is_stored_with_what_completing_commits(how):
    jobs = add("", how, "")
    assert MemoryQueue.memory("a") == {"sum": 3, "jobs": [job.pk for job in jobs]}


def test_that_of_a_deferred_attempt_waits_for_its_success(ledger):
    first, job = add("", "defer")
    assert MemoryQueue.memory("a")["jobs"] == [first.pk]
    assert not job.is_reported()
    MemoryQueue.complete(Path(f"{ledger}.token.a").read_text(), {"pages": 3})
    drain(MemoryQueue)
    job.refresh_from_db()
    assert (job.state, job.result) == ("done", {"pages": 3})
    assert MemoryQueue.memory("a")["jobs"] == [first.pk, job.pk]


def test_that_of_a_deferred_attempt_is_forgotten_with_its_failure(ledger):
    first, job = add("", "defer")
    MemoryQueue.fail(Path(f"{ledger}.token.a").read_text(), "paper jam")
    drain(MemoryQueue)
    job.refresh_from_db()
    assert job.error == "FailedOutside: paper jam"
    assert MemoryQueue.memory("a")["jobs"] == [first.pk]


def test_the_end_of_a_program_is_a_success_like_any_other():
    jobs = add("", "program")
    assert MemoryQueue.memory("a")["jobs"] == [job.pk for job in jobs]


def test_perform_job_hands_it_out_and_leaves_in_it_what_the_attempt_does():
    memory = {"sum": 1}
    job = MemoryQueue.create_job("a", "add", {"n": 2})
    perform_job(job, memory)
    assert memory == {"sum": 3, "jobs": [job.pk]}
    perform_job(job)
    assert MemoryQueue.memory("a") == {}


def test_a_job_that_runs_nowhere_has_none():
    (job,) = add("")
    with pytest.raises(RuntimeError, match=r"MemoryQueue|MailQueue.memory\(queue\) reads it"):
        _ = job.memory


def test_a_sensitive_value_in_it_is_masked_in_errors():
    add("secret", secret="open sesame")
    (job,) = add("fail once")
    assert job.error == "ConnectionError: refused ********"
    assert MemoryQueue.memory("a")["secret"] == "open sesame"


def test_what_cannot_be_read_fails_only_the_attempts_that_ask_for_it():
    MemoryQueue.create_job("a", "noop", max_backoff=3600)
    drain(MemoryQueue)
    Queue.objects.update(memory=[1, 2])
    (job,) = add("")
    assert job.error.startswith("InvalidMemory: the stored memory of this queue cannot be read")
    MemoryQueue.retry(job)
    MemoryQueue.edit_memory("a", {})
    drain(MemoryQueue)
    assert MemoryQueue.memory("a")["jobs"] == [job.pk]


class TestEdit:
    def test_the_next_attempt_is_handed_the_new_one_and_the_old_one_is_kept_with_who_and_why(self):
        (first,) = add("")
        MemoryQueue.edit_memory("a", {"sum": 100}, by="ann", reason="a gap in May")
        (second,) = add("")
        assert MemoryQueue.memory("a") == {"sum": 101, "jobs": [second.pk]}
        event = JobEvent.objects.get(verb="edit_memory")
        assert (event.scope, event.queue, event.job) == ("tests.memory", "a", None)
        assert (event.by, event.reason) == ("ann", "a gap in May")
        assert event.before == {"memory": {"sum": 1, "jobs": [first.pk]}}
        assert event.after == {"memory": {"sum": 100}, "changed": ["jobs", "sum"]}

    def test_what_is_sensitive_is_not_kept(self):
        MemoryQueue.edit_memory("a", {"secret": "one", "sum": 1})
        MemoryQueue.edit_memory("a", {"secret": "two", "sum": 1})
        event = JobEvent.objects.order_by("-pk")[0]
        assert event.before == {"memory": {"secret": "********", "sum": 1}}
        assert event.after == {"memory": {"secret": "********", "sum": 1}, "changed": ["secret"]}

    def test_a_queue_may_get_one_before_its_first_job(self):
        MemoryQueue.edit_memory("new", {"sum": 7})
        add("", queue="new")
        assert MemoryQueue.memory("new")["sum"] == 8

    def test_a_blocked_queue_may_get_another_one(self):
        add("fail once")
        MemoryQueue.edit_memory("a", {"sum": 7})
        the_next_attempt_of_all()
        assert MemoryQueue.memory("a")["sum"] == 8

    @pytest.mark.parametrize(
        ("memory", "error"),
        [
            (None, "a queue's memory must be a dict, not NoneType"),
            ({"a": {1}}, "memory.a: a set cannot be stored"),
            ({"a": "x" * 20_000}, f"over the limit of {MEMORY_LIMIT}"),
        ],
    )
    def test_a_wrong_one_is_refused_before_anything_is_written(self, memory, error):
        with pytest.raises(InvalidJob) as refusal:
            MemoryQueue.edit_memory("a", memory)
        assert error in refusal.value.message_dict["memory"][0]
        assert not Queue.objects.exists()

    def test_a_wrong_name_is_refused(self):
        with pytest.raises(InvalidJob) as refusal:
            MemoryQueue.edit_memory("", {})
        assert "queue" in refusal.value.message_dict

    def test_it_is_refused_while_a_job_runs(self):
        add("")
        Queue.objects.update(held_by="00000000-0000-0000-0000-000000000001", current_job=7)
        with pytest.raises(Refused, match="job 7 runs, and may change it"), transaction.atomic():
            MemoryQueue.edit_memory("a", {"sum": 7})
        assert MemoryQueue.memory("a")["sum"] == 1

    def test_it_is_refused_while_a_jobs_attempt_goes_on_outside(self):
        (job,) = add("defer")
        with pytest.raises(Refused, match=f"job {job.pk} runs, and may change it"):
            MemoryQueue.edit_memory("a", {"sum": 7})

    def test_it_is_refused_when_the_memory_is_another_one_by_now(self):
        add("", "")
        with pytest.raises(Refused, match="it has changed meanwhile"):
            MemoryQueue.edit_memory("a", {"sum": 7}, was={"sum": 1})
        MemoryQueue.edit_memory("a", {"sum": 7}, was=MemoryQueue.memory("a"))
        assert MemoryQueue.memory("a") == {"sum": 7}
