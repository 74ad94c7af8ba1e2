"""Waiting for results: what a wait returns and raises, where it is refused, and that it leaves nothing behind."""

import asyncio
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError, connection, transaction
from django.db.models.functions import Now

from queuetopia import (
    Halt,
    JobCancelled,
    JobHalted,
    JobSkipped,
    NoResult,
    Performer,
    Queuetopia,
    Refused,
    action,
    await_many,
    wait_many,
)
from queuetopia.models import Job
from queuetopia.testing import drain, perform_job, wait_until
from tests.threads import elsewhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.capability("H5", "H21", "H33")]

PATIENCE = 120  # seconds: the machine may be busy


class AnswerPerformer(Performer):
    @action
    def answer(self, job, value=None):
        return value

    @action
    async def answer_async(self, job, value=None):
        return value

    @action
    def fail(self, job):
        raise ZeroDivisionError("boom")

    @action
    def halt(self, job):
        raise Halt("ask ann")

    @action
    def wait_for(self, job, pk):
        return Job.objects.get(pk=pk).wait(timeout=PATIENCE)

    @action
    async def wait_for_async(self, job, pk):
        return await (await Job.objects.aget(pk=pk)).await_result(timeout=PATIENCE)


@pytest.fixture
def queues(declare_only):
    declare_only()
    yield type("AnswerQueue", (Queuetopia,), {"performer": AnswerPerformer, "scope": "tests.answers"})
    wait_until(lambda: not watchers(), PATIENCE, message="a thread is left")


def watchers():
    return [thread for thread in threading.enumerate() if thread.name.startswith("queuetopia-wait-")]


def drain_when_watched(queues, count=1):
    wait_until(lambda: len(watchers()) >= count, PATIENCE)
    drain(queues)


def by_wait(job, timeout=None):
    return job.wait(timeout)


def by_await(job, timeout=None):
    return async_to_sync(job.await_result)(timeout)


both = pytest.mark.parametrize("wait", [by_wait, by_await])


# What a wait returns and raises


@both
@pytest.mark.parametrize("value", [None, 0, {"total": [1, "zwei"]}])
def test_the_result_of_a_job_that_has_ended_is_there_at_once(queues, wait, value):
    job = queues.create_job("a", "answer", {"value": value})
    drain(queues)
    assert wait(job) == wait(job, 0) == value
    assert not watchers()


@both
@pytest.mark.parametrize("name", ["answer", "answer_async"])
def test_a_wait_lasts_until_the_job_has_ended(queues, wait, name):
    job = queues.create_job("a", name, {"value": 42})
    thread = elsewhere(drain_when_watched, queues)
    assert wait(job, PATIENCE) == 42
    thread.join()


@both
def test_a_job_that_an_operator_marks_as_done_has_no_result(queues, wait):
    job = queues.create_job("a", "answer", {"value": 42})
    queues.mark_done(job)
    assert wait(job) is None


@both
@pytest.mark.parametrize(
    ("act", "error", "text"),
    [
        (lambda queues, job: drain(queues), JobHalted, r"was halted: Halt: ask ann"),
        (lambda queues, job: (drain(queues), queues.skip(job)), JobSkipped, r"was skipped: Halt: ask ann"),
        (lambda queues, job: queues.cancel(job), JobCancelled, "was cancelled$"),
    ],
)
def test_a_job_without_result_says_so_with_its_last_error(queues, wait, act, error, text):
    job = queues.create_job("a", "halt")
    act(queues, job)
    with pytest.raises(error, match=text) as caught:
        wait(job)
    assert isinstance(caught.value, NoResult)
    assert str(caught.value).startswith(f"Job {job.pk} (halt) of tests.answers/a was ")
    assert (caught.value.job, caught.value.job.state) == (job, Job.objects.get(pk=job.pk).state)


@both
def test_a_job_that_halts_meanwhile_ends_the_wait(queues, wait):
    job = queues.create_job("a", "halt")
    thread = elsewhere(drain_when_watched, queues)
    with pytest.raises(JobHalted):
        wait(job, PATIENCE)
    thread.join()


@both
@pytest.mark.parametrize("timeout", [0, 0.05])
def test_when_time_is_up_the_last_error_is_told(queues, wait, timeout):
    job = queues.create_job("a", "fail")
    with pytest.raises(TimeoutError, match=f"has not ended within {timeout:g} s$"):
        wait(job, timeout)
    drain(queues)
    with pytest.raises(TimeoutError, match="and has been tried 1 times: ZeroDivisionError: boom"):
        wait(job, timeout)


@both
def test_a_job_that_is_not_there_is_not_awaited(queues, wait):
    job = queues.create_job("a", "answer")
    Job.objects.filter(pk=job.pk).delete()
    with pytest.raises(Job.DoesNotExist, match="rolled back, or deleted"):
        wait(job)


def test_hostile_text_in_an_error_is_shown_escaped(queues):
    job = queues.create_job("a\x1b[2J", "halt")
    Job.objects.filter(pk=job.pk).update(state="halted", error="\x1b[2J\u202e")
    with pytest.raises(JobHalted) as caught:
        job.wait()
    assert str(caught.value).isprintable()


# Many


def test_the_results_of_many_come_in_the_order_asked_for(queues):
    jobs = [queues.create_job(f"queue-{number % 3}", "answer", {"value": number}) for number in range(9)]
    thread = elsewhere(drain_when_watched, queues)
    assert wait_many([*reversed(jobs), jobs[0]], PATIENCE) == [*reversed(range(9)), 0]
    thread.join()
    assert wait_many([]) == async_to_sync(await_many)([]) == []
    assert async_to_sync(await_many)(queues.jobs().order_by("id")) == list(range(9))


@pytest.mark.parametrize("wait", [wait_many, lambda *args, **kwargs: async_to_sync(await_many)(*args, **kwargs)])
def test_the_first_of_many_without_a_result_ends_the_wait_or_all_are_told(queues, wait):
    jobs = [queues.create_job(name, name, {"value": 1} if name == "answer" else {}) for name in ("answer", "halt")]
    drain(queues)
    late = queues.create_job("late", "answer")
    with pytest.raises(JobHalted):
        wait([late, *jobs], PATIENCE)
    found = wait([late, *jobs], 0.05, return_exceptions=True)
    assert [type(answer) for answer in found] == [TimeoutError, int, JobHalted]


def test_two_hundred_waits_share_one_thread_and_its_connections(queues):
    jobs = queues.create_jobs(queues.job(str(number), "answer") for number in range(200))
    seen = []

    def watch():
        wait_until(watchers, PATIENCE)
        seen.extend(watchers())
        queues.jobs().update(state=Job.State.DONE, done_at=Now(), result=42)

    async def all_at_once():
        return await asyncio.gather(*(job.await_result(PATIENCE) for job in jobs))

    thread = elsewhere(watch)
    assert async_to_sync(all_at_once)() == [42] * 200
    thread.join()
    assert len(seen) == 1


def test_a_wait_in_a_coroutine_holds_up_nothing(queues):
    job = queues.create_job("a", "answer", {"value": 42})

    async def main():
        waiting = asyncio.create_task(job.await_result(PATIENCE))
        while not watchers():
            await asyncio.sleep(0.01)
        await sync_to_async(drain)(queues)
        return await waiting

    assert async_to_sync(main)() == 42


# What is left behind


def test_a_wait_that_is_cancelled_leaves_nothing_behind(queues):
    job = queues.create_job("a", "answer", {"value": 42})

    async def main():
        waiting = asyncio.create_task(job.await_result())
        while not watchers():
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async_to_sync(main)()
    wait_until(lambda: not watchers(), PATIENCE, message="it still polls")
    drain(queues)
    assert job.wait() == 42


@pytest.mark.skipif("connection.vendor != 'postgresql'", reason="ends sessions")
def test_an_error_of_the_database_comes_through_and_the_next_wait_begins_anew(queues):
    job = queues.create_job("a", "answer", {"value": 42})

    def end_sessions():
        wait_until(watchers, PATIENCE)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (own,) = cursor.fetchone()

        def end():
            with connection.cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
                    " AND pid NOT IN (%s, %s) AND query LIKE '%%queuetopia_job%%'",
                    [own, main],
                )
            return not watchers()

        wait_until(end, PATIENCE, interval=0.1)

    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (main,) = cursor.fetchone()
    thread = elsewhere(end_sessions)
    with pytest.raises(OperationalError):
        job.wait(PATIENCE)
    thread.join()
    drain(queues)
    assert job.wait() == 42


# Where it is refused


@both
def test_a_wait_inside_a_transaction_is_refused_unless_the_job_has_ended(queues, wait):
    before = queues.create_job("a", "answer", {"value": 1})
    with transaction.atomic():
        inside = queues.create_job("b", "answer", {"value": 2})
        for job in (before, inside):
            with pytest.raises(Refused, match=f"^Job {job.pk} .* has not ended, and this transaction .* is open"):
                wait(job, PATIENCE)
            with pytest.raises(TimeoutError):
                wait(job, 0)
    drain(queues)
    with transaction.atomic():
        assert (wait(before), wait(inside)) == (1, 2)


def test_after_the_commit_a_wait_is_allowed(queues):
    told = []

    def tell(job):
        thread = elsewhere(drain_when_watched, queues)
        told.append(job.wait(PATIENCE))
        thread.join()

    with transaction.atomic():
        job = queues.create_job("a", "answer", {"value": 42})
        transaction.on_commit(lambda: tell(job))
    assert told == [42]


@pytest.mark.parametrize("name", ["wait_for", "wait_for_async"])
def test_a_performer_cannot_wait_for_what_stands_behind_it(queues, name):
    behind = queues.create_job("a", "answer")
    Job.objects.filter(pk=behind.pk).update(scheduled_at="2030-01-01T00:00:00Z")
    ahead = queues.create_job("a", name, {"pk": behind.pk})
    drain(queues)
    ahead.refresh_from_db()
    assert ahead.error.startswith(f"Refused: Job {behind.pk} (answer) of tests.answers/a stands in the queue")
    with pytest.raises(Refused, match=f"that job {ahead.pk}, which this attempt runs, holds"):
        perform_job(ahead)


@pytest.mark.parametrize("name", ["wait_for", "wait_for_async"])
def test_a_performer_may_wait_for_another_queue_and_a_cancelled_job_there_is_its_failure(queues, name):
    answer = queues.create_job("other", "answer", {"value": 42})
    drain(queues)
    cancelled = queues.create_job("other", "answer")
    queues.cancel(cancelled)
    jobs = [queues.create_job(str(pk), name, {"pk": pk}) for pk in (answer.pk, cancelled.pk)]
    drain(queues)
    for job in jobs:
        job.refresh_from_db()
    assert (jobs[0].state, jobs[0].result) == ("done", 42)
    assert (jobs[1].state, jobs[1].attempts) == ("pending", 1)
    assert jobs[1].error.startswith(f"JobCancelled: Job {cancelled.pk}")


def test_what_can_be_no_job_or_time_is_refused(queues):
    job = queues.create_job("a", "answer")
    for wrong in (job.pk, None, "a"):
        with pytest.raises(TypeError, match="is a Job, as create_job returns it"):
            wait_many([wrong])
    with pytest.raises(ValueError, match="was not stored"):
        queues.job("a", "answer").wait()
    for timeout, text in ((-1, "less than 0"), (float("nan"), "not a finite"), ("5", "neither a number")):
        with pytest.raises(ValueError, match=text):
            job.wait(timeout)


def test_in_async_code_the_error_names_the_remedy(queues):
    job = queues.create_job("a", "answer")

    async def main():
        job.wait(1)

    with pytest.raises(SynchronousOnlyOperation, match=r"await job\.await_result"):
        async_to_sync(main)()
