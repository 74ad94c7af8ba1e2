"""What queuetopia.testing offers to the tests of projects."""

import asyncio
import warnings
from contextvars import ContextVar
from datetime import date, timedelta
from decimal import Decimal

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.utils import timezone

from queuetopia import Performer, Queuetopia, Snooze, action, signals
from queuetopia.exceptions import ReadOnlyJob
from queuetopia.models import Job, Queue
from queuetopia.monitoring.events import Event
from queuetopia.testing import (
    assert_job_created,
    assert_no_job_created,
    capture_events,
    drain,
    jobs_created,
    perform_job,
    wait_until,
)
from tests.testapp.models import Note

tenant = ContextVar("tenant", default=None)


class MailPerformer(Performer):
    is_set_up = False

    def setup(self):
        self.is_set_up = True

    @action
    def send_mail(self, job, to, body=""):
        return {"to": to, "body": body, "set up": self.is_set_up}

    @action
    async def send_later(self, job, to):
        await asyncio.sleep(0)
        await Note.objects.acreate(text=to)
        return f"later {to}"

    @action
    def look(self, job):
        return job

    @action
    def fail(self, job):
        raise ZeroDivisionError("boom")

    @action
    def snooze(self, job):
        raise Snooze(5)

    @action
    def write(self, job):
        job.save()

    def handle_done_job(self, job):
        raise AssertionError("no hook is called")


@pytest.fixture
def queues(declare_only):
    declare_only()
    options = {"performer": MailPerformer, "scope": "tests.mail", "sensitive_params": ("body",)}
    return type("MailQueue", (Queuetopia,), options)


@pytest.fixture
def three(queues):
    """Three jobs, the second of them scheduled before the first."""
    return [
        queues.create_job("ann", "send_mail", {"to": "ann@x", "body": "hello"}),
        queues.create_job("bob", "send_mail", {"to": "bob@x"}),
        queues.create_job("ann", "look"),
    ]


@pytest.mark.django_db
class TestCount:
    @pytest.mark.parametrize(("wanted", "count"), [({}, 3), ({"queue": "ann"}, 2), ({"params": {"to": "bob@x"}}, 1)])
    def test_is_how_many_jobs_match(self, queues, three, wanted, count):
        newest = jobs_created(queues, **wanted)[-1]
        assert assert_job_created(queues, **wanted, count=count) == newest
        for wrong in {1, 2, 3, 4} - {count}:
            with pytest.raises(AssertionError) as caught:
                assert_job_created(queues, **wanted, count=wrong)
            assert str(caught.value).startswith(f"MailQueue has {count} with ")
            assert f", not {wrong}:\n  " in str(caught.value)
            assert "'look', {}, pending" in str(caught.value)  # all that were created are listed

    def test_of_none_is_told_like_no_job(self, queues, three):
        with pytest.raises(AssertionError, match=r"has no job with queue='carl'\. There are 3:"):
            assert_job_created(queues, queue="carl", count=2)

    @pytest.mark.parametrize("count", [0, -1, True, "1", 1.0])
    def test_is_a_number_from_one_on(self, queues, three, count):
        with pytest.raises(ValueError, match="for none there is assert_no_job_created"):
            assert_job_created(queues, count=count)


@pytest.mark.django_db
class TestCapturedEvents:
    @pytest.fixture(autouse=True)
    def no_hook(self, monkeypatch):
        monkeypatch.delattr(MailPerformer, "handle_done_job")

    def test_are_what_happened_in_the_block(self, queues, three):
        queues.create_job("ann", "fail", max_attempts=1)
        drain(queues, queue="bob")
        queues.pause("before")
        with capture_events(queues) as events:
            drain(queues)
            queues.pause("bob", by="ann", reason="a talk")
            assert events == []
        assert [(event.event, event.queue, event.action) for event in events] == [
            ("done", "ann", "send_mail"),
            ("done", "ann", "look"),
            ("halted", "ann", "fail"),
            ("pause", "bob", None),
        ]
        assert (events[2].error, events[2].attempt) == ("ZeroDivisionError: boom", 1)
        assert (events[3].by, events[3].reason) == ("ann", "a talk")
        assert all(isinstance(event, Event) and event.scope == "tests.mail" for event in events)

    def test_tell_each_failure_before_the_end(self, queues):
        job = queues.create_job("ann", "fail", max_attempts=5)
        with capture_events() as events:
            for hours in (0, 1):
                drain(queues, now=timezone.now() + timedelta(hours=hours))
            queues.skip(job)
        told = [(event.event, event.attempt) for event in events]
        assert sorted(told, key=str) == [("failed", 1), ("failed", 2), ("skip", None), ("skipped", 2)]

    def test_are_those_of_the_classes_named(self, queues, three):
        other = type("OtherQueue", (Queuetopia,), {"performer": MailPerformer, "scope": "tests.other"})
        other.create_job("a", "look")
        with capture_events(other) as events, capture_events() as all_events:
            drain(queues)
            drain(other)
        assert [event.scope for event in events] == ["tests.other"]
        assert len(all_events) == 4

    def test_let_an_error_of_the_block_through(self, queues):
        with pytest.raises(ZeroDivisionError), capture_events(queues):
            raise ZeroDivisionError


@pytest.mark.django_db
@pytest.mark.capability("Q23")
class TestCreatedJobs:
    def test_are_listed_in_the_order_of_their_creation(self, queues, three):
        assert jobs_created(queues) == three

    def test_are_those_of_the_class_alone(self, queues, three):
        other = type("OtherQueue", (Queuetopia,), {"performer": MailPerformer, "scope": "tests.other"})
        assert jobs_created(other) == []
        job = other.create_job("ann", "look")
        assert jobs_created(other) == [job]
        assert jobs_created(queues) == three

    @pytest.mark.parametrize(
        ("wanted", "found"),
        [
            ({"queue": "ann"}, [0, 2]),
            ({"action": "send_mail"}, [0, 1]),
            ({"queue": "ann", "action": "send_mail"}, [0]),
            ({"params": {"to": "bob@x"}}, [1]),
            ({"params": {"to": "ann@x", "body": "hello"}}, [0]),
            ({"params": {"to": "ann@x", "body": "other"}}, []),
            ({"params": {"cc": None}}, []),
            ({"params": {}}, [0, 1, 2]),
            ({"queue": "nobody"}, []),
            ({"queue": ""}, []),
        ],
    )
    def test_match_queue_action_and_at_least_the_params(self, queues, three, wanted, found):
        matching = [three[number] for number in found]
        assert jobs_created(queues, **wanted) == matching
        if matching:
            assert assert_job_created(queues, **wanted) == matching[-1]
            with pytest.raises(AssertionError):
                assert_no_job_created(queues, **wanted)
        else:
            assert_no_job_created(queues, **wanted)
            with pytest.raises(AssertionError):
                assert_job_created(queues, **wanted)

    def test_match_by_the_types_that_were_given(self, queues):
        job = queues.create_job("ann", "send_mail", {"to": Decimal("1.50"), "body": date(2026, 1, 31)})
        assert jobs_created(queues, params={"to": Decimal("1.50"), "body": date(2026, 1, 31)}) == [job]
        assert jobs_created(queues, params={"to": "1.50"}) == []

    def test_are_seen_inside_the_transaction_that_creates_them_and_not_after_its_rollback(self, queues):
        with transaction.atomic():
            queues.create_job("ann", "look")
            assert_job_created(queues)
            transaction.set_rollback(True)
        assert_no_job_created(queues)

    def test_that_are_missing_are_told_with_those_that_are_there(self, queues, three):
        with pytest.raises(AssertionError) as caught:
            assert_job_created(queues, queue="eve", params={"to": "eve@x"})
        message = str(caught.value)
        assert "MailQueue has no job with queue='eve', params={'to': 'eve@x'}. There are 3:" in message
        assert f"{three[1].pk}: 'bob', 'send_mail', {{'to': 'bob@x'}}, pending" in message

    def test_that_are_missing_altogether_are_told_so(self, queues):
        with pytest.raises(AssertionError, match=r"MailQueue has no job with anything\. There are none\."):
            assert_job_created(queues)

    def test_that_should_not_be_there_are_told_and_no_others(self, queues, three):
        with pytest.raises(AssertionError) as caught:
            assert_no_job_created(queues, queue="bob")
        message = str(caught.value)
        assert "MailQueue has 1 with queue='bob':" in message
        assert "'ann'" not in message

    def test_are_told_without_sensitive_params(self, queues, three):
        with pytest.raises(AssertionError) as caught:
            assert_no_job_created(queues)
        assert "hello" not in str(caught.value)
        assert "'body': '********'" in str(caught.value)

    def test_are_told_up_to_a_bound_the_newest(self, queues):
        queues.create_jobs([queues.job(f"queue-{number}", "look") for number in range(50)])
        with pytest.raises(AssertionError) as caught:
            assert_no_job_created(queues)
        message = str(caught.value)
        assert "… 30 older ones" in message
        assert "'queue-29'" not in message
        assert "'queue-30'" in message
        assert "'queue-49'" in message


@pytest.mark.django_db
@pytest.mark.capability("E24")
class TestPerformJob:
    def test_leaves_no_context_variable_as_in_a_worker(self):
        class Tenants(Performer):
            def handle_start(self, job):
                tenant.set(job.queue)

            @action
            async def look(self, job):
                return tenant.get()

            @action
            def change(self, job):
                found = tenant.get()
                tenant.set("changed")
                return found

        queues = type("Q", (Queuetopia,), {"performer": Tenants, "scope": "tests.tenants"})
        for name in ("look", "change"):
            assert perform_job(queues.job("acme", name)) == "acme"
            assert tenant.get() is None

    @pytest.mark.parametrize("make", ["job", "create_job"])
    def test_returns_what_the_performer_returned_after_setup(self, queues, make):
        job = getattr(queues, make)("ann", "send_mail", {"to": "ann@x"})
        assert perform_job(job) == {"to": "ann@x", "body": "", "set up": True}

    def test_raises_what_the_performer_raised(self, queues):
        with pytest.raises(ZeroDivisionError, match="boom"):
            perform_job(queues.job("ann", "fail"))
        with pytest.raises(Snooze):
            perform_job(queues.job("ann", "snooze"))

    def test_runs_an_async_action_to_its_end_in_the_tests_transaction(self, queues):
        assert perform_job(queues.job("ann", "send_later", {"to": "ann@x"})) == "later ann@x"
        assert Note.objects.get().text == "ann@x"

    def test_works_from_an_async_test(self, queues):
        async def test():
            return await sync_to_async(perform_job)(queues.job("ann", "send_later", {"to": "ann@x"}))

        assert async_to_sync(test)() == "later ann@x"  # as Django runs async tests

    def test_says_how_to_run_an_async_action_inside_an_event_loop(self, queues):
        async def test():
            perform_job(queues.job("ann", "send_later", {"to": "ann@x"}))

        with warnings.catch_warnings(), pytest.raises(RuntimeError, match="await sync_to_async"):
            warnings.simplefilter("error")
            asyncio.run(test())

    def test_hands_over_a_job_as_a_worker_does(self, queues):
        stored = queues.create_job("ann", "look", timeout=5)
        handed = perform_job(stored)
        assert handed is not stored
        assert (handed.pk, handed.queue, handed.action, handed.timeout) == (stored.pk, "ann", "look", 5.0)
        assert (handed.attempts, stored.attempts) == (1, 0)
        assert handed.scheduled_at == stored.scheduled_at
        assert isinstance(handed.fence, int)

    def test_counts_on_from_the_attempts_there_were(self, queues):
        stored = queues.create_job("ann", "look")
        stored.attempts = 4
        assert perform_job(stored).attempts == 5

    def test_refuses_to_save_the_job_as_a_worker_does(self, queues):
        with pytest.raises(ReadOnlyJob):
            perform_job(queues.create_job("ann", "write"))

    def test_writes_nothing_and_tells_nobody(self, queues):
        def receive(**arguments):
            raise AssertionError("no signal is sent")

        stored = queues.create_job("ann", "look")
        signals.job_done.connect(receive, sender=queues)
        try:
            before = list(Job.objects.values()), list(Queue.objects.values())
            perform_job(stored)
            perform_job(queues.job("ann", "look"))
        finally:
            signals.job_done.disconnect(receive, sender=queues)
        assert (list(Job.objects.values()), list(Queue.objects.values())) == before

    def test_asks_no_queue(self, queues):
        queues.create_job("ann", "fail")
        queues.pause("ann")
        assert perform_job(queues.create_job("ann", "send_mail", {"to": "x"}))["to"] == "x"

    def test_gives_each_run_params_of_its_own(self, queues):
        class Greedy(Performer):
            @action
            def take(self, job, items):
                return items.pop()

        greedy = type("GreedyQueue", (Queuetopia,), {"performer": Greedy, "scope": "tests.greedy"})
        job = greedy.job("ann", "take", {"items": [1, 2]})
        assert perform_job(job) == perform_job(job) == 2

    def test_says_what_code_is_missing(self, queues):
        with pytest.raises(LookupError, match=r"No Queuetopia has the scope 'tests\.gone'"):
            perform_job(Job(scope="tests.gone", queue="a", action="look"))
        with pytest.raises(LookupError, match="MailPerformer has no action 'send_fax'"):
            perform_job(Job(scope="tests.mail", queue="a", action="send_fax"))


class TestWaitUntil:
    def test_returns_what_the_condition_returned(self):
        answers = iter([0, "", None, "here"])
        assert wait_until(lambda: next(answers), interval=0) == "here"

    def test_returns_at_once_what_is_true_at_once_whatever_the_timeout(self):
        assert wait_until(lambda: 7, timeout=0) == 7

    def test_raises_the_message_when_it_takes_too_long(self):
        with pytest.raises(AssertionError, match=r"the mail is sent \(waited 0.02 s\)"):
            wait_until(lambda: False, timeout=0.02, message="the mail is sent")

    def test_says_what_stayed_untrue(self):
        with pytest.raises(AssertionError, match=r"stayed \[\]"):
            wait_until(list, timeout=0)

    def test_lets_the_conditions_own_errors_through(self):
        with pytest.raises(ZeroDivisionError):
            wait_until(lambda: 1 / 0)
