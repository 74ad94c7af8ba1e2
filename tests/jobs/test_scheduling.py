"""Jobs by the clock: what nodes create at which due times, and what operators can do about it."""

import threading
from datetime import timedelta

import pytest
from django.db import IntegrityError, OperationalError, connection, transaction

from queuetopia import Every, Queuetopia, Refused, jobs
from queuetopia.backends import backend_for
from queuetopia.models import Job, JobEvent, Schedule
from queuetopia.registry import only
from queuetopia.testing import create_due_jobs, drain
from tests.testapp.queues import LedgerPerformer
from tests.threads import elsewhere

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X10")]

HOUR = timedelta(hours=1)


def hourly(**options):
    return Every("tick", hours=1, queue="a", action="noop", **options)


@pytest.fixture
def start():
    """The full hour after the database's now: schedules begin there, and are due an hour later first."""
    return Every("x", hours=1, queue="a", action="noop").after(backend_for("default").now())


@pytest.fixture
def scheduled(start):
    """Return a function that declares a class with schedules, which have begun at ``start``."""
    with only():

        def declare(*schedules):
            class Scheduled(Queuetopia):
                scope = "test.scheduled"
                performer = LedgerPerformer

            Scheduled.schedules = [*schedules]
            assert create_due_jobs(Scheduled, now=start) == []
            return Scheduled

        yield declare


def row():
    return Schedule.objects.get()


def counts():
    return row().created, row().missed, row().held_back


class TestDueTimes:
    def test_what_is_due_gets_a_job_of_that_time_which_runs(self, scheduled, start):
        queue = scheduled(Every("tick", hours=1, queue="digest", action="answer", params={"value": 3}))
        (job,) = create_due_jobs(queue, now=start + HOUR)
        assert (job.queue, job.action, job.params, job.scheduled_at) == ("digest", "answer", {"value": 3}, start + HOUR)
        assert [done.result for done in drain(queue, now=start + HOUR)] == [3]
        assert (row().last_due_at, row().last_job, counts()) == (start + HOUR, job.pk, (1, 0, 0))

    def test_a_new_one_has_missed_nothing(self, scheduled, start):
        queue = scheduled(hourly(missed="all", pile_up=True))
        assert create_due_jobs(queue, now=start + HOUR - timedelta(seconds=1)) == []
        assert len(create_due_jobs(queue, now=start + HOUR)) == 1

    def test_each_time_gets_one_job_however_often_nodes_look(self, scheduled, start):
        queue = scheduled(hourly(pile_up=True))
        for quarter in range(4 * 24 + 1):
            for _ in range(2):
                create_due_jobs(queue, now=start + quarter * HOUR / 4)
        times = [job.scheduled_at for job in queue.jobs().in_order()]
        assert times == [start + n * HOUR for n in range(1, 25)]

    def test_a_clock_that_is_set_back_repeats_nothing(self, scheduled, start):
        queue = scheduled(hourly(pile_up=True))
        for now in (start + 2 * HOUR, start + HOUR, start + 2 * HOUR, start + 3 * HOUR):
            create_due_jobs(queue, now=now)
        assert [job.scheduled_at for job in queue.jobs().in_order()] == [start + 2 * HOUR, start + 3 * HOUR]

    def test_a_node_that_comes_second_creates_nothing(self, scheduled, start):
        queue = scheduled(hourly(pile_up=True))
        backend, found, late = backend_for("default"), {queue: jobs.declared(queue)}, row()
        jobs.create_due(backend, found, start + HOUR)
        assert jobs.scheduling.create_due_of(backend, queue, found[queue]["tick"], late, start + HOUR) == []
        assert queue.jobs().count() == 1

    def test_the_next_due_time_is_returned_in_seconds(self, scheduled, start):
        queue = scheduled(hourly())
        _, seconds = jobs.create_due(backend_for("default"), {queue: jobs.declared(queue)}, start + HOUR / 4)
        assert seconds == 2700

    @pytest.mark.parametrize(("missed", "number"), [("last", 1), ("all", 5), ("none", 0)])
    def test_after_an_outage_as_many_are_created_as_missed_says(self, scheduled, start, missed, number):
        queue = scheduled(hourly(missed=missed, pile_up=True))
        created = create_due_jobs(queue, now=start + 5.5 * HOUR)
        assert [job.scheduled_at for job in created] == [start + n * HOUR for n in range(6 - number, 6)]
        assert counts() == (number, 5 - number, 0)
        assert len(create_due_jobs(queue, now=start + 6 * HOUR)) == 1

    def test_of_very_many_that_were_missed_the_last_thousand_are_created(self, scheduled, start):
        queue = scheduled(Every("tick", seconds=1, queue="a", action="noop", missed="all", pile_up=True))
        created = create_due_jobs(queue, now=start + HOUR)
        assert (len(created), created[-1].scheduled_at) == (1000, start + HOUR)

    def test_none_is_created_while_the_last_has_not_ended(self, scheduled, start):
        queue = scheduled(hourly())
        (job,) = create_due_jobs(queue, now=start + HOUR)
        assert create_due_jobs(queue, now=start + 2 * HOUR) == create_due_jobs(queue, now=start + 3 * HOUR) == []
        assert counts() == (1, 0, 2)
        queue.mark_done(job)
        assert len(create_due_jobs(queue, now=start + 4 * HOUR)) == 1

    def test_another_interval_holds_from_now_on(self, scheduled, start):
        queue = scheduled(Every("tick", weeks=1, queue="a", action="noop"))
        create_due_jobs(queue, now=start + 50.5 * HOUR)  # as nodes do each minute
        queue.schedules = [hourly(missed="all", pile_up=True)]
        assert len(create_due_jobs(queue, now=start + 51 * HOUR)) == 1

    def test_two_versions_of_the_code_lose_none(self, scheduled, start):
        queue = scheduled(hourly(pile_up=True))
        half = Every("tick", minutes=30, queue="a", action="noop", pile_up=True)
        for n in range(1, 9):
            queue.schedules = [half if n % 2 else hourly(pile_up=True)]
            create_due_jobs(queue, now=start + n * HOUR / 2 + timedelta(seconds=1))
            queue.schedules = [hourly(pile_up=True) if n % 2 else half]
            create_due_jobs(queue, now=start + n * HOUR / 2 + timedelta(seconds=2))
        assert [job.scheduled_at for job in queue.jobs().in_order()] == [start + n * HOUR / 2 for n in range(1, 9)]

    def test_a_wrong_one_is_left_out_and_the_others_are_served(self, scheduled, start):
        queue = scheduled(hourly(), Every("wrong", hours=0, queue="a", action="nothing"))
        assert len(create_due_jobs(queue, now=start + HOUR)) == 1
        assert Schedule.objects.count() == 1

    def test_without_schedules_there_is_no_query(self, scheduled, django_assert_num_queries):
        queue = scheduled()
        with django_assert_num_queries(0):
            assert create_due_jobs(queue) == []

    def test_what_is_not_due_costs_one_query(self, scheduled, start, django_assert_num_queries):
        queue = scheduled(hourly(), Every("tock", hours=2, queue="a", action="noop"))
        with django_assert_num_queries(1):
            assert create_due_jobs(queue, now=start + timedelta(seconds=30)) == []

    def test_job_and_row_are_written_together_or_not_at_all(self, scheduled, start):
        queue = scheduled(hourly())
        backend = backend_for("default")

        def fail(jobs):
            raise ConnectionError

        backend.insert = fail
        with pytest.raises(ConnectionError):
            jobs.create_due(backend, {queue: jobs.declared(queue)}, start + HOUR)
        assert (row().until, queue.jobs().count()) == (start, 0)

    def test_one_that_cannot_be_written_keeps_no_other_from_its_jobs(self, scheduled, start):
        queue = scheduled(hourly(), Every("tock", hours=1, queue="b", action="noop"))
        backend = backend_for("default")
        insert = backend.insert

        def refuse(jobs):
            if jobs[0].queue == "a":
                raise IntegrityError("refused")
            insert(jobs)

        backend.insert = refuse
        with pytest.raises(IntegrityError):
            jobs.create_due(backend, {queue: jobs.declared(queue)}, start + HOUR)
        assert [job.queue for job in queue.jobs()] == ["b"]


class TestVerbs:
    def test_a_paused_one_creates_nothing_and_goes_on_from_when_it_is_resumed(self, scheduled, start):
        queue = scheduled(hourly(missed="all", pile_up=True))
        queue.pause_schedule("tick", by="ann", reason="audit")
        assert create_due_jobs(queue, now=start + 3 * HOUR) == []
        assert (row().paused_by, row().paused_reason) == ("ann", "audit")
        queue.resume_schedule("tick", by="bob")
        now = row().until
        assert row().paused_at is None
        assert abs(backend_for("default").now() - now) < timedelta(minutes=1)
        assert [event.verb for event in JobEvent.objects.order_by("id")] == ["pause_schedule", "resume_schedule"]
        assert JobEvent.objects.latest("id").after["schedule"] == "tick"

    def test_one_is_run_now_besides_its_due_times(self, scheduled, start):
        queue = scheduled(hourly())
        job = queue.run_schedule("tick", by="ann", reason="the customer asks")
        assert (job.queue, job.action, row().last_job, row().until) == ("a", "noop", job.pk, start)
        drain(queue)
        assert len(create_due_jobs(queue, now=start + HOUR)) == 1

    def test_it_is_not_run_while_its_last_job_has_not_ended(self, scheduled):
        queue = scheduled(hourly())
        job = queue.run_schedule("tick")
        with pytest.raises(Refused, match=f"its last job, {job.pk}, has not ended"):
            queue.run_schedule("tick")
        assert Job.objects.count() == 1

    def test_with_pile_up_it_is(self, scheduled):
        queue = scheduled(hourly(pile_up=True))
        queue.run_schedule("tick")
        queue.run_schedule("tick")
        assert Job.objects.count() == 2

    @pytest.mark.parametrize("verb", ["pause_schedule", "resume_schedule", "run_schedule"])
    def test_an_unknown_name_is_refused_with_those_that_are_known(self, scheduled, verb):
        with pytest.raises(Refused, match=r"no schedule 'tock' .* It has: tick\."):
            getattr(scheduled(hourly()), verb)("tock")

    def test_what_is_not_paused_cannot_be_resumed(self, scheduled):
        with pytest.raises(Refused, match="is not paused"):
            scheduled(hourly()).resume_schedule("tick")

    def test_one_that_no_node_has_served_yet_can_be_paused(self, scheduled):
        queue = scheduled(hourly())
        Schedule.objects.all().delete()
        queue.pause_schedule("tick")
        assert row().paused_at is not None

    def test_what_is_declared_no_more_is_pruned_and_nothing_else(self, scheduled):
        queue = scheduled(hourly(), Every("old", hours=1, queue="a", action="noop"))
        queue.schedules = [hourly()]
        assert jobs.prune_schedules("default", queue.scope) == ["old"]
        assert row().name == "tick"


@pytest.mark.django_db(transaction=True)
class TestSeveralNodesAtOnce:
    def test_each_due_time_gets_one_job(self, transactional_db, scheduled, start):
        queue = scheduled(hourly(pile_up=True))
        found, errors = {queue: jobs.declared(queue)}, []

        def look():
            backend = backend_for("default")
            for n in range(1, 21):
                barrier.wait()
                while True:
                    try:
                        jobs.create_due(backend, found, start + n * HOUR)
                        break
                    except OperationalError as exc:
                        if not backend.is_busy(exc):
                            errors.append(exc)
                            barrier.abort()
                            raise

        barrier = threading.Barrier(4)
        for thread in [elsewhere(look) for _ in range(4)]:
            thread.join()
        assert errors == []
        assert [job.scheduled_at for job in queue.jobs().in_order()] == [start + n * HOUR for n in range(1, 21)]
        assert counts() == (20, 0, 0)

    def test_a_row_that_an_operator_has_locked_is_passed_over(self, transactional_db, scheduled, start):
        queue = scheduled(hourly())
        if connection.features.has_select_for_update_skip_locked:  # SQLite has one writer, for which others wait
            with transaction.atomic():
                Schedule.objects.select_for_update().get()
                elsewhere(lambda: create_due_jobs(queue, now=start + HOUR)).join()
            assert (row().until, queue.jobs().count()) == (start, 0)
        assert len(create_due_jobs(queue, now=start + HOUR)) == 1
