"""What people can do to jobs, queues and scopes, on every state of a job: allowed, or refused with the reason.

The states are written as rows, as a scheduler leaves them, so that each is there for sure.
"""

import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from unittest import mock

import pytest
from django.db import connection, transaction
from django.db.models.signals import post_delete, pre_delete
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from queuetopia import (
    Halt,
    InvalidJob,
    Performer,
    Refused,
    action,
    jobs,
    pause_all,
    registry,
    resume_all,
    signals,
)
from queuetopia.backends import backend_for
from queuetopia.backends.base import Backend
from queuetopia.decisions import DECISIONS
from queuetopia.jobs import bulk
from queuetopia.models import Job, JobEvent, Queue, Scope
from queuetopia.testing import drain
from tests.conftest import REPOSITORY
from tests.states import ENDED, HOUR, NODE, STATES, UNFINISHED, mail_queue, put


class StrictPerformer(Performer):
    @action
    def charge(self, job, address):
        return address


def line_of(job):
    return Queue.objects.get(scope=job.scope, name=job.queue)


def rows():
    """Everything that is stored, to compare."""
    return [list(model.objects.order_by("pk").values()) for model in (Job, Queue, Scope, JobEvent)]


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def sent(queues):
    """The signals that were sent, as (name, keywords, whether it was inside a transaction)."""
    sent = []
    receivers = []
    for name in ("job_created", "job_done", "job_skipped", "job_cancelled", "queue_unblocked"):

        def receive(sender, signal, name=name, **arguments):
            sent.append((name, sender, arguments, connection.in_atomic_block))

        getattr(signals, name).connect(receive, sender=queues)
        receivers.append((getattr(signals, name), receive))
    yield sent
    for signal, receive in receivers:
        signal.disconnect(receive, sender=queues)


IN_LINE = "waits in line and was never attempted. Cancel it"
IS_RUNNING = "is running, attempt"

# verb -> state before -> the state after, or the reason of the refusal
RETRY = {
    "waiting": Refused(IN_LINE),
    "scheduled": Refused(IN_LINE),
    "running first": Refused(IS_RUNNING),
    "running again": Refused(IS_RUNNING),
    "backing off": "pending",
    "snoozed": "pending",
    "halted": "pending",
    "halted early": "pending",
    "done": Refused("it is done since"),
    "skipped": Refused("it is skipped since"),
    "cancelled": Refused("it is cancelled since"),
}
SKIP = RETRY | dict.fromkeys(("backing off", "snoozed", "halted", "halted early"), "skipped")
HOLDS = "has been attempted and holds its queue: skip it, or retry it"
CANCEL = {
    "waiting": "cancelled",
    "scheduled": "cancelled",
    "running first": "pending",
    "running again": "pending",
    "backing off": Refused(HOLDS),
    "snoozed": Refused(HOLDS),
    "halted": Refused(HOLDS),
    "halted early": Refused(HOLDS),
    "done": "done",
    "skipped": "skipped",
    "cancelled": "cancelled",
}
MARK_DONE = RETRY | {state: "done" for state in UNFINISHED if not state.startswith("running")}
MOVE_TO_END = SKIP | {"waiting": "pending", "scheduled": Refused("is scheduled for .*, and joins the line only then")}
RUN_NOW = RETRY | {
    "waiting": Refused("is due since .*, and waits for its turn"),
    "scheduled": "pending",
    **dict.fromkeys(("backing off", "snoozed", "halted", "halted early"), Refused("holds its queue. Retry it")),
}
TABLE = {
    "retry": RETRY,
    "skip": SKIP,
    "cancel": CANCEL,
    "mark_done": MARK_DONE,
    "move_to_end": MOVE_TO_END,
    "run_now": RUN_NOW,
}
EDIT = RETRY | dict.fromkeys(("waiting", "scheduled"), "pending")
ALL = [(verb, state, after) for verb, cases in TABLE.items() for state, after in cases.items()]
ALLOWED = [case for case in ALL if isinstance(case[2], str) and (case[0] != "cancel" or case[1] not in ENDED)]
REFUSED = [case for case in ALL if isinstance(case[2], Refused)]


def test_the_table_has_every_verb_on_every_state():
    assert all(set(cases) == set(STATES) for cases in TABLE.values())


STATES_IN_WORDS = {
    "waiting": ("waiting", "scheduled"),
    "never attempted": ("waiting", "scheduled"),
    "running": ("running first", "running again"),
    "backing-off": ("backing off", "snoozed"),
    "halted": ("halted", "halted early"),
}


@pytest.mark.parametrize("verb", ["retry", "skip", "cancel", "mark_done"])
def test_the_words_about_a_verb_name_the_states_it_applies_to(verb):
    named = {state for words, states in STATES_IN_WORDS.items() if words in DECISIONS[verb].help for state in states}
    assert named == {state for state, after in TABLE[verb].items() if isinstance(after, str)} - set(ENDED)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (Halt.__doc__, "An operator can (.*?)[.]"),
        (
            (REPOSITORY / "README.md").read_text(),
            "stays visible at the head of its queue until an operator (.*?)[.]",
        ),
    ],
    ids=["Halt", "README"],
)
def test_the_words_about_a_halted_job_name_the_verbs_that_apply_to_it(text, sentence):
    words = {"retr": "retry", "skip": "skip", "edit": "edit", "mark": "mark_done", "mov": "move_to_end"}
    (said,) = re.findall(sentence, text, re.DOTALL)
    named = {verb for word, verb in {**words, "cancel": "cancel"}.items() if word in said}
    assert named == {verb for verb, cases in {**TABLE, "edit": EDIT}.items() if isinstance(cases["halted"], str)}


@pytest.mark.django_db
@pytest.mark.capability("E5", "H18")
class TestVerbOnAJob:
    @pytest.mark.parametrize(("verb", "state", "reason"), REFUSED)
    def test_is_refused_with_the_reason_and_changes_nothing(self, queues, verb, state, reason):
        job = put(queues, state)
        before = rows()
        with pytest.raises(Refused, match=str(reason)):
            getattr(queues, verb)(job, by="ann")
        assert rows() == before

    @pytest.mark.parametrize(("verb", "state", "after"), ALLOWED)
    def test_changes_the_job_and_tells_the_running_claim(self, queues, verb, state, after):
        job = put(queues, state)
        rev, attempts = line_of(job).rev, job.attempts
        getattr(queues, verb)(job.pk, by="ann", reason="customer called")
        job.refresh_from_db()
        assert job.state == after
        assert job.attempts == attempts
        assert (job.done_at is not None) == (after in ENDED)
        assert line_of(job).rev == rev + 1

    @pytest.mark.parametrize(("verb", "state", "after"), ALLOWED)
    def test_leaves_who_when_and_why(self, queues, verb, state, after):
        job = put(queues, state)
        began = timezone.now()
        getattr(queues, verb)(job, by="ann", reason="customer called")
        event = JobEvent.objects.get(job=job.pk)
        assert (event.verb, event.scope, event.queue, event.job) == (verb, job.scope, job.queue, job.pk)
        assert (event.by, event.reason) == ("ann", "customer called")
        assert began - timedelta(seconds=1) < event.at <= timezone.now()
        seen = {"state": job.state, "attempts": job.attempts, "running": state.startswith("running")}
        assert event.before.items() >= seen.items()
        assert event.after["state"] == after

    @pytest.mark.parametrize("verb", TABLE)
    def test_is_refused_for_a_job_that_is_not_there(self, queues, verb):
        with pytest.raises(Refused, match=r"no job 12345 in tests\.mail"):
            getattr(queues, verb)(12345)

    @pytest.mark.parametrize("verb", TABLE)
    def test_is_refused_for_a_job_of_another_scope(self, queues, verb):
        job = put(mail_queue("tests.other"), "backing off")
        with pytest.raises(Refused, match=f"no job {job.pk} in tests.mail"):
            getattr(queues, verb)(job)

    @pytest.mark.parametrize("verb", TABLE)
    def test_touches_no_other_job_and_no_other_queue(self, queues, verb):
        put(queues, "halted", "other")
        put(mail_queue("tests.other"), "backing off")
        before = rows()
        state = {"cancel": "waiting", "move_to_end": "waiting", "run_now": "scheduled"}.get(verb, "backing off")
        job = put(queues, state)
        getattr(queues, verb)(job)
        job_rows, queue_rows, scope_rows, _ = rows()
        assert [row for row in job_rows if row["id"] != job.pk] == before[0]
        assert [row for row in queue_rows if row["name"] != job.queue or row["scope"] != job.scope] == before[1]
        assert scope_rows == before[2]

    @pytest.mark.parametrize("verb", ["skip", "retry"])
    def test_goes_with_the_transaction_it_is_in(self, queues, verb):
        job = put(queues, "halted")
        before = rows()
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            getattr(queues, verb)(job)
            raise ZeroDivisionError
        assert rows() == before

    def test_keeps_hostile_and_endless_words_storable(self, queues):
        queues.skip(put(queues, "halted"), by="a\x00\ud800" * 300, reason="\x00" + "x" * 5000)
        event = JobEvent.objects.get()
        assert event.by.startswith("a␀\\ud800")
        assert len(event.by) == 255
        assert len(event.reason) == 500


@pytest.mark.django_db
@pytest.mark.capability("E5")
class TestRetry:
    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted", "halted early"])
    def test_makes_the_job_due_now_as_the_head_it_is(self, queues, state):
        job = put(queues, state)
        stored = queues.retry(job)
        line = line_of(job)
        assert stored.next_attempt_at == line.due_at <= timezone.now()
        assert stored.scheduled_at == job.scheduled_at
        assert (line.current_job, line.held_by) == (job.pk, None)

    def test_gives_a_job_that_ran_out_of_attempts_one_more(self, queues):
        job = queues.retry(put(queues, "halted"))
        assert (job.attempts, job.max_attempts) == (20, 21)

    def test_gives_one_more_each_time(self, queues):
        job = put(queues, "halted", max_attempts=20)
        for most in (21, 22):
            queues.retry(job)
            job.refresh_from_db()
            assert job.max_attempts == most
            job.state, job.attempts = "halted", job.attempts + 1
            job.save()

    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted early"])
    def test_gives_no_attempt_to_a_job_that_has_some_left(self, queues, state):
        assert queues.retry(put(queues, state)).max_attempts is None

    def test_keeps_the_history(self, queues):
        job = queues.retry(put(queues, "halted", errors=[{"attempt": 20, "message": "boom"}]))
        job.refresh_from_db()
        assert job.error == "ValueError: boom"
        assert job.errors == [{"attempt": 20, "message": "boom"}]
        assert job.attempted_at is not None


@pytest.mark.django_db
@pytest.mark.capability("E5")
class TestSkip:
    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted"])
    def test_lets_the_queue_go_on_at_once(self, queues, state):
        job = put(queues, state)
        assert queues.skip(job).state == "skipped"
        line = line_of(job)
        assert (line.current_job, line.held_by) == (None, None)
        assert line.due_at <= timezone.now()

    def test_keeps_the_error_that_led_to_it(self, queues):
        assert queues.skip(put(queues, "halted")).error == "ValueError: boom"


@pytest.mark.django_db
class TestCancel:
    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.capability("H34")
    def test_says_what_came_of_it(self, queues, state):
        job = put(queues, state)
        if state in ("waiting", "scheduled"):
            assert queues.cancel(job) == "cancelled"
        elif state.startswith("running"):
            assert queues.cancel(job) == "running"
        elif state in ENDED:
            assert queues.cancel(job) == "finished"
        else:
            with pytest.raises(Refused):
                queues.cancel(job)

    @pytest.mark.capability("H34")
    def test_asks_a_running_job_to_stop_and_leaves_its_row_to_the_holder(self, queues):
        job = put(queues, "running first")
        before = Job.objects.filter(pk=job.pk).values().get()
        queues.cancel(job)
        line = line_of(job)
        assert line.stop_requested
        assert (line.held_by, line.current_job, line.fence) == (NODE, job.pk, 7)
        assert Job.objects.filter(pk=job.pk).values().get() == before

    @pytest.mark.parametrize("state", ENDED)
    def test_of_an_ended_job_changes_nothing_and_leaves_no_event(self, queues, state):
        job = put(queues, state)
        before = Job.objects.values().get()
        assert queues.cancel(job) == "finished"
        assert Job.objects.values().get() == before
        assert not JobEvent.objects.exists()

    def test_works_anywhere_in_line_while_the_head_runs(self, queues):
        second = put(queues, "waiting")
        head = put(queues, "running again")
        assert queues.cancel(second) == "cancelled"
        line = line_of(head)
        assert (line.current_job, line.held_by, line.stop_requested) == (head.pk, NODE, False)

    def test_works_behind_a_halted_head(self, queues):
        second = put(queues, "waiting")
        head = put(queues, "halted")
        assert queues.cancel(second) == "cancelled"
        assert (line_of(head).current_job, line_of(head).due_at) == (head.pk, None)

    def test_works_before_the_queue_has_a_row(self, queues):
        job = put(queues, "waiting")
        Queue.objects.all().delete()
        assert queues.cancel(job) == "cancelled"


@pytest.mark.django_db
@pytest.mark.capability("E5")
class TestMarkDone:
    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted"])
    def test_lets_the_queue_go_on_at_once(self, queues, state):
        job = queues.mark_done(put(queues, state), reason="paid in cash")
        assert (job.state, job.result, job.error) == ("done", None, "")
        line = line_of(job)
        assert (line.current_job, line.held_by) == (None, None)
        assert line.due_at <= timezone.now()

    def test_works_in_the_middle_of_a_line(self, queues):
        second = put(queues, "waiting")
        head = put(queues, "running again")
        queues.mark_done(second)
        assert (line_of(head).current_job, line_of(head).held_by) == (head.pk, NODE)


@pytest.mark.django_db
class TestRunNow:
    def test_makes_a_job_due_behind_those_that_are(self, queues):
        later, due = put(queues, "scheduled"), put(queues, "waiting")
        event_before = later.scheduled_at
        job = queues.run_now(later)
        in_line = Job.objects.unfinished().in_queue(job.scope, job.queue).in_order()
        assert list(in_line.values_list("pk", flat=True)) == [due.pk, later.pk]
        assert job.scheduled_at <= backend_for("default").now()
        event = JobEvent.objects.get()
        assert event.before["scheduled_at"] == event_before.isoformat()
        assert event.after["scheduled_at"] == job.scheduled_at.isoformat()

    @pytest.mark.django_db(transaction=True)
    def test_wakes_its_queue(self, queues):
        job = put(queues, "scheduled")
        queues.run_now(job)
        assert line_of(job).due_at <= backend_for("default").now()


@pytest.mark.django_db
@pytest.mark.capability("X5")
class TestReschedule:
    @pytest.mark.parametrize("state", ["waiting", "scheduled"])
    def test_gives_a_job_another_time(self, queues, state):
        job, at = put(queues, state), timezone.now() + 5 * HOUR
        event_before = job.scheduled_at
        assert queues.reschedule(job, at, by="ann", reason="not before noon").scheduled_at == at
        assert Job.objects.get().scheduled_at == at
        event = JobEvent.objects.get()
        assert (event.verb, event.by, event.reason) == ("reschedule", "ann", "not before noon")
        assert (event.before["scheduled_at"], event.after["scheduled_at"]) == (event_before.isoformat(), at.isoformat())

    @pytest.mark.django_db(transaction=True)
    def test_wakes_its_queue_for_an_earlier_time(self, queues):
        job, at = put(queues, "scheduled"), timezone.now() + HOUR / 2
        queues.reschedule(job, at)
        assert line_of(job).due_at == at

    @pytest.mark.parametrize("state", sorted({*STATES} - {"waiting", "scheduled"}))
    def test_is_refused_for_what_was_attempted_runs_or_has_ended(self, queues, state):
        job = put(queues, state)
        with pytest.raises(Refused, match=f"^Job {job.pk} cannot be rescheduled: it "):
            queues.reschedule(job, timezone.now() + HOUR)
        assert Job.objects.get().scheduled_at == job.scheduled_at

    @pytest.mark.parametrize("at", [None, "tomorrow", 7, datetime(2030, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)])
    def test_takes_an_aware_time_to_come(self, queues, at):
        job = put(queues, "waiting")
        with pytest.raises(InvalidJob) as wrong:
            queues.reschedule(job, at)
        assert list(wrong.value.message_dict) == ["at"]
        assert JobEvent.objects.count() == 0


@pytest.mark.django_db
@pytest.mark.capability("E5")
class TestMoveToEnd:
    def in_line(self, job):
        return list(Job.objects.unfinished().in_queue(job.scope, job.queue).in_order().values_list("pk", flat=True))

    def test_puts_a_waiting_job_behind_all_that_are_due(self, queues):
        now = timezone.now()
        first, second = put(queues, "waiting"), put(queues, "waiting", scheduled_at=now)
        later = put(queues, "scheduled")
        moved = queues.move_to_end(first)
        assert self.in_line(first) == [second.pk, first.pk, later.pk]
        assert moved == first and moved.attempts == 0
        event = JobEvent.objects.get()
        assert event.before["scheduled_at"] < event.after["scheduled_at"] == moved.scheduled_at.isoformat()

    def test_passes_a_job_of_the_same_moment(self, queues):
        """On a clock of milliseconds the one that was created last has the higher id, and would come later."""
        first, second = put(queues, "waiting"), put(queues, "waiting")
        at = backend_for("default").now() + timedelta(seconds=1)
        Job.objects.update(scheduled_at=at)
        with mock.patch.object(Backend, "now", lambda backend: at):
            queues.move_to_end(first)
        assert self.in_line(first) == [second.pk, first.pk]

    def test_keeps_the_order_of_several_that_are_moved_one_after_the_other(self, queues):
        first, second, third = (put(queues, "waiting") for _ in range(3))
        for job in (first, second):
            queues.move_to_end(job)
        assert self.in_line(first) == [third.pk, first.pk, second.pk]

    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted"])
    def test_skips_a_blocking_job_and_copies_it_to_the_end(self, queues, state):
        """What was attempted holds its queue until it ends: so it ends, and is done anew."""
        options = {"timeout": 7.0, "max_backoff": 8.0, "max_attempts": 3, "on_exhausted": "skip"}
        following = put(queues, "waiting")
        job = put(queues, state, params={"name": "toto", "day": date(2026, 1, 31)}, **options)
        copy = queues.move_to_end(job, by="ann", reason="later")
        copy.refresh_from_db()
        job.refresh_from_db()
        assert job.state == "skipped"
        assert self.in_line(job) == [following.pk, copy.pk]
        assert (copy.attempts, copy.attempted_at, copy.error, copy.state) == (0, None, "", "pending")
        assert {name: getattr(copy, name) for name in ("action", "params", *options)} == {
            "action": "send_mail", "params": job.params, **options
        }  # fmt: skip
        line = line_of(job)
        assert (line.current_job, line.due_at <= timezone.now()) == (None, True)

    def test_says_of_both_jobs_where_they_come_from(self, queues):
        job = put(queues, "halted")
        copy = queues.move_to_end(job, by="ann", reason="later")
        events = {event.job: event for event in JobEvent.objects.all()}
        assert events[job.pk].after["copy"] == copy.pk and events[copy.pk].before == {"copy_of": job.pk}
        assert {(event.verb, event.by, event.reason) for event in events.values()} == {("move_to_end", "ann", "later")}


@pytest.mark.django_db
@pytest.mark.capability("E5")
class TestEdit:
    @pytest.mark.parametrize("state", [state for state, after in EDIT.items() if isinstance(after, Refused)])
    def test_is_refused_with_the_reason_and_changes_nothing(self, queues, state):
        job = put(queues, state)
        before = rows()
        with pytest.raises(Refused, match=str(EDIT[state])):
            queues.edit(job, {"name": "toto"})
        assert rows() == before

    @pytest.mark.parametrize("state", ["waiting", "scheduled"])
    def test_leaves_a_job_that_was_never_attempted_in_its_place(self, queues, state):
        job = put(queues, state, params={"name": "toto"})
        line = line_of(job)
        edited = queues.edit(job.pk, {"name": "titi"})
        edited.refresh_from_db()
        assert edited.params == {"name": "titi"}
        assert (edited.scheduled_at, edited.next_attempt_at) == (job.scheduled_at, None)
        after = line_of(job)
        assert (after.due_at, after.current_job, after.rev) == (line.due_at, None, line.rev + 1)

    @pytest.mark.parametrize("state", ["backing off", "snoozed", "halted", "halted early"])
    def test_retries_a_job_that_holds_its_queue(self, queues, state):
        job = put(queues, state)
        edited = queues.edit(job, {"day": date(2026, 1, 31), "price": Decimal("1.50")})
        edited.refresh_from_db()
        assert edited.params == {"day": date(2026, 1, 31), "price": Decimal("1.50")}
        assert (edited.state, edited.attempts) == ("pending", job.attempts)
        assert edited.next_attempt_at == line_of(job).due_at <= timezone.now()
        assert edited.max_attempts == (21 if state == "halted" else None)

    @pytest.mark.parametrize(
        ("params", "problem"),
        [
            ({"address": 1, "adrs": "x"}, "unknown param 'adrs' of action 'charge'"),
            ({}, "missing param 'address' of action 'charge'"),
            ({"address": float("nan")}, "nan is not JSON"),
            ({"address": "x" * 300_000}, "over QUEUETOPIA"),
            ("text", "must be a dict"),
            (None, "must be a dict"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_refuses_params_that_the_action_would_not_take(self, queues, params, problem):
        job = put(mail_queue("tests.strict", performer=StrictPerformer), "halted", action="charge")
        before = rows()
        with pytest.raises(InvalidJob) as caught:
            registry.by_scope()["tests.strict"].edit(job, params)
        assert problem in caught.value.message_dict["params"][0]
        assert rows() == before

    def test_keeps_old_and_new_params_with_the_sensitive_ones_masked(self, queues):
        secret = mail_queue("tests.secret", sensitive_params=("card",))
        job = put(secret, "halted", params={"card": "4111", "day": date(2026, 1, 31), "gone": 1})
        secret.edit(job, {"card": "4222", "day": date(2026, 1, 31)}, by="ann", reason="new card")
        event = JobEvent.objects.get()
        day = {"__queuetopia__": "date", "value": "2026-01-31"}
        assert event.before["params"] == {"card": "********", "day": day, "gone": 1}
        assert event.after["params"] == {"card": "********", "day": day}
        assert event.after["changed"] == ["card", "gone"]
        assert (event.verb, event.by, event.reason) == ("edit", "ann", "new card")

    def test_is_refused_when_somebody_else_was_faster(self, queues):
        job = put(queues, "halted", params={"name": "toto"})
        queues.edit(job, {"name": "titi"}, was={"name": "toto"})
        with pytest.raises(Refused, match="its params have changed meanwhile"):
            queues.edit(job, {"name": "tata"}, was={"name": "toto"})

    def test_mends_params_that_cannot_be_read(self, queues):
        job = put(queues, "halted", params=[1, 2])
        assert queues.edit(job, {"name": "toto"}).params == {"name": "toto"}
        assert JobEvent.objects.get().before["params"] == {"unreadable": "[1, 2]"}


@pytest.mark.django_db(transaction=True)
class TestSignals:
    @pytest.mark.parametrize(
        ("verb", "state", "names"),
        [
            ("skip", "backing off", ["job_skipped", "queue_unblocked"]),
            ("skip", "halted", ["job_skipped", "queue_unblocked"]),
            ("skip", "snoozed", ["job_skipped"]),  # it never failed, so that nobody was told of a blocked queue
            ("cancel", "waiting", ["job_cancelled"]),
            ("cancel", "running first", []),  # the worker sends it when it has stopped
            ("cancel", "done", []),
            ("retry", "halted", []),
            ("mark_done", "halted", ["job_done", "queue_unblocked"]),
            ("mark_done", "waiting", ["job_done"]),
            ("move_to_end", "waiting", []),
            ("move_to_end", "halted", ["job_skipped", "queue_unblocked", "job_created"]),
        ],
    )
    def test_follow_the_commit(self, queues, sent, verb, state, names):
        job = put(queues, state)
        with transaction.atomic():
            getattr(queues, verb)(job)
            assert sent == []
        assert [name for name, *_ in sent] == names
        for name, sender, arguments, in_transaction in sent:
            assert sender is queues
            assert (arguments["job"] == job) is (name != "job_created")
            assert not in_transaction

    def test_say_which_queue_goes_on_and_that_no_exception_led_to_it(self, queues, sent):
        queues.skip(put(queues, "halted"))
        arguments = {name: arguments for name, _, arguments, _ in sent}
        assert arguments["job_skipped"]["exc"] is None
        assert arguments["queue_unblocked"]["queue"] == "customer-42"

    def test_are_not_sent_when_the_transaction_is_rolled_back(self, queues, sent):
        job = put(queues, "halted")
        with transaction.atomic():
            queues.skip(job)
            transaction.set_rollback(True)
        assert sent == []

    def test_are_not_sent_for_a_refused_verb(self, queues, sent):
        with pytest.raises(Refused):
            queues.skip(put(queues, "running first"))
        assert sent == []

    def test_a_receiver_that_raises_is_logged_and_changes_nothing(self, queues, sent, caplog):
        def raises(**arguments):
            raise ValueError("receiver")

        signals.job_skipped.connect(raises, sender=queues)
        try:
            job = queues.skip(put(queues, "halted"))
        finally:
            signals.job_skipped.disconnect(raises, sender=queues)
        assert "receiver failed" in caplog.text
        assert job.state == "skipped"
        assert [name for name, *_ in sent] == ["job_skipped", "queue_unblocked"]


@pytest.mark.django_db
class TestPrioritize:
    def test_moves_a_ready_queue_forward_in_line_and_leaves_who_and_why(self, queues):
        job = put(queues, "waiting")
        before = line_of(job)
        queues.prioritize("customer-42", timedelta(minutes=5), by="ann", reason="a complaint")
        after = line_of(job)
        assert (before.due_at - after.due_at, after.rev) == (timedelta(minutes=5), before.rev + 1)
        event = JobEvent.objects.get()
        assert (event.verb, event.queue, event.by, event.reason) == ("prioritize", "customer-42", "ann", "a complaint")
        assert event.before["due_at"] > event.after["due_at"]

    @pytest.mark.parametrize(
        ("state", "why"),
        [
            ("running first", "runs job"),
            ("halted", "is ready to start"),
            ("scheduled", "is ready"),
            ("backing off", "ready"),
        ],
    )
    def test_refuses_a_queue_that_waits_for_no_worker(self, queues, state, why):
        put(queues, state)
        with pytest.raises(Refused, match=why):
            queues.prioritize("customer-42")
        assert not JobEvent.objects.exists()

    def test_refuses_a_queue_that_is_not_there_and_no_number_of_seconds(self, queues):
        with pytest.raises(Refused, match=r"There is no queue customer-4 in tests\.mail"):
            queues.prioritize("customer-4")
        put(queues, "waiting")
        with pytest.raises(InvalidJob) as info:
            queues.prioritize("customer-42", 0)
        assert info.value.message_dict == {"seconds": ["0 is not more than 0 seconds."]}


@pytest.mark.django_db
@pytest.mark.capability("H29")
class TestPauseAndResume:
    def test_resuming_a_scope_that_a_job_has_snoozed_ends_that_too(self, queues):
        put(queues, "waiting")
        Scope.objects.create(name=queues.scope, snoozed_until=timezone.now() + timedelta(hours=1))
        assert drain(queues) == []
        queues.resume(by="ann")
        assert Scope.objects.get().snoozed_until is None
        assert len(drain(queues)) == 1
        with pytest.raises(Refused, match="is not paused"):
            queues.resume()

    @pytest.mark.parametrize("state", STATES)
    def test_of_a_queue_leave_its_job_and_its_time_alone(self, queues, state):
        job = put(queues, state)
        before, line = Job.objects.values().get(), line_of(job)
        queues.pause("customer-42", by="ann", reason="provider is down")
        paused = line_of(job)
        assert (paused.paused_by, paused.paused_reason) == ("ann", "provider is down")
        assert paused.paused_at is not None
        queues.resume("customer-42", by="bob")
        resumed = line_of(job)
        assert (resumed.paused_at, resumed.paused_by, resumed.paused_reason) == (None, "", "")
        for row in (paused, resumed):
            assert (row.due_at, row.current_job, row.held_by) == (line.due_at, line.current_job, line.held_by)
        assert resumed.rev == line.rev + 2
        assert Job.objects.values().get() == before

    def test_leave_who_when_and_why(self, queues):
        queues.pause("customer-42", by="ann", reason="provider is down")
        queues.resume("customer-42", by="bob", reason="up again")
        pause, resume = JobEvent.objects.order_by("id")
        assert (pause.verb, pause.scope, pause.queue, pause.job) == ("pause", "tests.mail", "customer-42", None)
        assert (pause.by, pause.reason) == ("ann", "provider is down")
        assert (pause.before["paused"], pause.after["paused"]) == (False, True)
        assert (resume.verb, resume.by, resume.reason) == ("resume", "bob", "up again")
        assert (resume.before["by"], resume.after["paused"]) == ("ann", False)

    def test_work_before_the_queues_first_job(self, queues):
        queues.pause("customer-42")
        put(queues, "waiting")
        line = Queue.objects.get()
        assert line.paused_at is not None
        assert line.due_at is not None
        queues.resume("customer-42")
        assert Queue.objects.get().paused_at is None

    def test_of_a_scope_touch_no_queue(self, queues):
        job = put(queues, "waiting")
        line = Queue.objects.values().get()
        queues.pause(by="ann", reason="deploy")
        scope = Scope.objects.get()
        assert (scope.name, scope.paused_by, scope.paused_reason) == ("tests.mail", "ann", "deploy")
        queues.resume(by="ann")
        assert Scope.objects.get().paused_at is None
        assert Queue.objects.values().get() == line
        assert [event.queue for event in JobEvent.objects.all()] == ["", ""]
        assert job.queue == line["name"]

    def test_of_one_scope_leave_the_others_alone(self, queues):
        queues.pause()
        mail_queue("tests.other").pause()
        queues.resume()
        assert Scope.objects.get(name="tests.other").paused_at is not None

    @pytest.mark.parametrize("queue", [None, "customer-42"])
    def test_pausing_again_replaces_who_and_why(self, queues, queue):
        queues.pause(queue, by="ann", reason="one")
        queues.pause(queue, by="bob", reason="two")
        row = Queue.objects.get() if queue else Scope.objects.get()
        assert (row.paused_by, row.paused_reason) == ("bob", "two")

    @pytest.mark.parametrize(("queue", "name"), [(None, "tests.mail"), ("customer-42", "tests.mail/customer-42")])
    def test_resuming_what_is_not_paused_is_refused_and_changes_nothing(self, queues, queue, name):
        before = rows()
        with pytest.raises(Refused, match=f"{name} is not paused"):
            queues.resume(queue)
        assert rows() == before

    @pytest.mark.parametrize("queue", ["", "x" * 256, "a\x00b", 7])
    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_refuse_what_is_no_name_of_a_queue(self, queues, verb, queue):
        with pytest.raises(InvalidJob) as caught:
            getattr(queues, verb)(queue)
        assert list(caught.value.message_dict) == ["queue"]

    def test_of_everything_is_one_row_and_leaves_an_event_each(self, queues):
        pause_all(by="ann", reason="moving")
        row = Scope.objects.get()
        assert (row.name, row.paused_by, row.paused_reason) == ("*", "ann", "moving")
        resume_all(by="bob", reason="moved")
        events = JobEvent.objects.order_by("id").values_list("verb", "scope", "by", "reason")
        assert [*events] == [("pause", "*", "ann", "moving"), ("resume", "*", "bob", "moved")]

    def test_of_everything_leaves_the_pauses_of_scopes_and_queues_as_they_are(self, queues):
        queues.pause(by="eve")
        queues.pause("customer-42", by="eve")
        pause_all()
        resume_all()
        assert Scope.objects.get(name="tests.mail").paused_by == Queue.objects.get().paused_by == "eve"

    @pytest.mark.parametrize("using", [None, "default"])
    def test_resuming_everything_that_is_not_paused_is_refused(self, queues, using):
        queues.pause()
        before = rows()
        with pytest.raises(Refused, match="not paused"):
            resume_all(using=using)
        assert rows() == before

    @pytest.mark.parametrize("verb", [pause_all, resume_all])
    def test_of_everything_name_the_databases_there_are(self, queues, verb):
        with pytest.raises(Refused, match="There is no database 'nope'; DATABASES has default"):
            verb(using="nope")

    @pytest.mark.parametrize("job", ["abc", None, [7]])
    @pytest.mark.parametrize("verb", ["retry", "skip", "cancel", "mark_done", "move_to_end", "run_now"])
    def test_of_what_is_no_job_are_refused(self, queues, verb, job):
        with pytest.raises(Refused, match="A job is named by a Job or its id, an int"):
            getattr(queues, verb)(job)

    def test_a_blocked_job_is_retried_under_a_pause_and_waits_for_its_end(self, queues):
        job = put(queues, "halted")
        queues.pause("customer-42")
        queues.retry(job)
        line = line_of(job)
        assert line.paused_at is not None
        assert line.due_at <= timezone.now()


@pytest.mark.django_db
@pytest.mark.capability("Q22")
class TestPrune:
    def ended(self, queuetopia, days, state="done", **columns):
        return put(queuetopia, state, done_at=timezone.now() - timedelta(days=days), **columns)

    def test_deletes_jobs_that_ended_before_the_retention(self, queues):
        for state in ENDED:
            self.ended(queues, 8, state)
        kept = [self.ended(queues, 6, state) for state in ENDED]
        assert jobs.prune(queues) == 3
        assert list(queues.jobs().order_by("id")) == kept

    @pytest.mark.parametrize("state", UNFINISHED)
    @pytest.mark.capability("H22")
    def test_deletes_no_unfinished_job_however_old(self, queues, state):
        long_ago = timezone.now() - timedelta(days=3000)
        job = put(queues, state, scheduled_at=long_ago)
        assert jobs.prune(queues, older_than=0) == 0
        assert queues.jobs().get() == job

    def test_deletes_nothing_of_another_scope(self, queues):
        self.ended(mail_queue("tests.other"), 99)
        assert jobs.prune(queues, older_than=0) == 0
        assert Job.objects.count() == 1

    def test_deletes_no_more_than_a_batch_the_oldest_first(self, queues):
        newest, *_ = [self.ended(queues, days) for days in (8, 9, 10)]
        assert jobs.prune(queues, batch=2) == 2
        assert queues.jobs().get() == newest
        assert jobs.prune(queues, batch=2) == 1
        assert jobs.prune(queues, batch=2) == 0

    def test_deletes_what_people_did_to_them_and_nothing_else_of_that(self, queues):
        gone, kept = put(queues, "halted"), put(queues, "halted", "other")
        queues.pause("customer-42")
        for job in (gone, kept):
            queues.skip(job)
        Job.objects.filter(pk=gone.pk).update(done_at=timezone.now() - timedelta(days=8))
        jobs.prune(queues)
        assert sorted(JobEvent.objects.values_list("verb", "job"), key=str) == [("pause", None), ("skip", kept.pk)]

    def test_deletes_old_pauses_when_no_job_is_left_to_delete(self, queues):
        queues.pause("old")
        JobEvent.objects.update(at=timezone.now() - timedelta(days=8))
        queues.pause("new")
        assert jobs.prune(queues) == 0
        assert JobEvent.objects.get().queue == "new"

    @pytest.mark.parametrize(
        ("others", "days", "left"), [(2, 6, 2), (2, 8, 0), (30, 29, 2), (30, 31, 0), (None, 99, 2)]
    )
    def test_deletes_pauses_of_everything_after_the_longest_retention(self, queues, others, days, left):
        mail_queue("tests.others", retention=others and others * 24 * HOUR)
        pause_all()
        resume_all()
        JobEvent.objects.update(at=timezone.now() - timedelta(days=days))
        mail_queue("tests.new")
        pause_all()
        assert jobs.prune(queues) == 0
        assert JobEvent.objects.count() == left + 1

    def test_calls_nothing_of_the_projects(self, queues):
        """A node prunes too, and user code runs in its workers only."""
        called = []
        receiver = lambda **arguments: called.append(arguments)  # noqa: E731
        self.ended(queues, 8)
        for sent in (pre_delete, post_delete):
            sent.connect(receiver, sender=Job)
        try:
            assert jobs.prune(queues) == 1
        finally:
            for sent in (pre_delete, post_delete):
                sent.disconnect(receiver, sender=Job)
        assert called == []

    def test_takes_the_retention_of_the_class(self, queues):
        short = mail_queue("tests.short", retention=HOUR)
        self.ended(short, 1 / 12)
        assert jobs.prune(short) == 1

    def test_keeps_everything_for_a_retention_of_none(self, queues):
        for_ever = mail_queue("tests.ever", retention=None)
        self.ended(for_ever, 3000)
        assert jobs.prune(for_ever) == 0
        assert jobs.prune(for_ever, older_than=timedelta(days=2999)) == 1

    def test_takes_as_long_a_time_as_the_option(self, queues):
        self.ended(queues, 500)
        assert jobs.prune(queues, older_than=timedelta(days=600)) == 0
        assert jobs.prune(queues, older_than=timedelta(days=400)) == 1

    @pytest.mark.parametrize("wrong", [-1, float("nan"), True, "7"])
    def test_refuses_what_is_no_time(self, queues, wrong):
        with pytest.raises(ValueError, match=r"second|number"):
            jobs.prune(queues, older_than=wrong)


@pytest.mark.capability("H22")
class TestEveryPath(TestCase):
    """Any verbs in any order, with pruning in between."""

    @given(
        states=st.lists(st.sampled_from(STATES), min_size=1, max_size=4),
        steps=st.lists(
            st.tuples(st.sampled_from([*TABLE, "pause", "resume", "prune"]), st.integers(0, 3)), max_size=12
        ),
    )
    def test_deletes_no_unfinished_job_and_lowers_no_attempts(self, states, steps):
        with registry.only():
            queuetopia = mail_queue()
        put_jobs = [put(queuetopia, state, f"queue-{number}") for number, state in enumerate(states)]
        for verb, number in steps:
            job = put_jobs[number % len(put_jobs)]
            before = dict(Job.objects.unfinished().values_list("pk", "attempts"))
            self.step(queuetopia, verb, job)
            after = dict(Job.objects.values_list("pk", "attempts"))
            assert all(after[pk] >= attempts for pk, attempts in before.items())

    def step(self, queuetopia, verb, job):
        try:
            if verb == "prune":
                jobs.prune(queuetopia, older_than=0)
            elif verb in TABLE:
                getattr(queuetopia, verb)(job)
            else:
                getattr(queuetopia, verb)(job.queue)
        except Refused:
            pass


@pytest.mark.django_db
class TestAll:
    @pytest.fixture
    def jobs(self, queues):
        states = {
            "a": ("halted", "ConnectionError"),
            "b": ("backing off", "ConnectionError"),
            "c": ("halted", "ValueError"),
            "d": ("running again", "ConnectionError"),
            "e": ("waiting", ""),
            "f": ("halted early", "ConnectionError"),
        }
        return {name: put(queues, state, name, error=f"{error}: {name}") for name, (state, error) in states.items()}

    def test_are_retried_as_one_by_one(self, queues, jobs):
        assert queues.retry_all(error="connectionerror", by="ann", reason="back") == 3

        states = {name: (job.state, job.max_attempts, line_of(job).due_at) for name, job in fresh(jobs).items()}
        assert {name: state for name, (state, *_) in states.items()} == {
            "a": "pending", "b": "pending", "c": "halted", "d": "pending", "e": "pending", "f": "pending",
        }  # fmt: skip
        assert {name: most for name, (_, most, _) in states.items()} == {**dict.fromkeys("bcdef"), "a": 21}
        assert fresh(jobs)["a"].next_attempt_at == states["a"][2] <= timezone.now()
        events = JobEvent.objects.order_by("pk")
        assert [(event.queue, event.verb, event.by, event.reason) for event in events] == [
            (name, "retry", "ann", "back") for name in "abf"
        ]
        assert events[0].before == {"state": "halted", "attempts": 20, "running": False}
        assert events[0].after == {"state": "pending", "attempts": 20, "running": False}
        assert queues.retry_all(error="ConnectionError") == 0

    def test_are_skipped_and_their_queues_go_on(self, queues, jobs, django_capture_on_commit_callbacks):
        told = []
        receiver = lambda **arguments: told.append((arguments["job"].queue, arguments["job"].state))  # noqa: E731
        signals.job_skipped.connect(receiver)
        try:
            with django_capture_on_commit_callbacks(execute=True):
                assert queues.skip_all() == 4
        finally:
            signals.job_skipped.disconnect(receiver)

        assert {name for name, job in fresh(jobs).items() if job.state == "skipped"} == set("abcf")
        assert told == [(name, "skipped") for name in "abcf"]
        assert {line_of(jobs[name]).current_job for name in "abcf"} == {None}
        assert {line_of(jobs[name]).rev for name in "abcf"} == {1}

    def test_of_one_queue(self, queues, jobs):
        assert queues.skip_all("c") == 1
        assert fresh(jobs)["c"].state == "skipped"

    def test_go_on_in_batches(self, queues, jobs, monkeypatch):
        monkeypatch.setattr(bulk, "BATCH", 2)
        assert queues.retry_all() == 4

    def test_cost_a_fixed_number_of_statements(self, queues):
        def cost(number):
            for index in range(number):
                put(queues, "halted", f"{number}-{index}")
            with CaptureQueriesContext(connection) as context:
                assert queues.retry_all() == number
            return len(context)

        assert cost(2) == cost(40)


def fresh(jobs):
    return {name: Job.objects.get(pk=job.pk) for name, job in jobs.items()}
