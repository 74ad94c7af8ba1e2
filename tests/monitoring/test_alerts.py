"""Queues that stay blocked: who is told, when, and what of. That workers tell it: ``processes/test_alerts.py``."""

import uuid
from datetime import timedelta

import pytest
from django.core import mail
from django.utils import timezone

from queuetopia import conf, signals
from queuetopia.attempts import Outcome, Verdict
from queuetopia.backends import upkeep
from queuetopia.backends.values import Ending
from queuetopia.models import Chore, Job, Queue
from queuetopia.testing import drain
from queuetopia.worker import alerts
from tests.commands import HOSTILE
from tests.mails import ADMINS
from tests.states import HOUR, mail_queue, put, wait_behind
from tests.testapp.queues import SlowRetryQueue

pytestmark = [pytest.mark.django_db]

NODE = uuid.UUID(int=5)
MINUTE = timedelta(minutes=1)
SCOPE = SlowRetryQueue.scope


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def heard():
    """What receivers are told: [(signal's name, its arguments)]."""
    found = []
    names = ("queue_blocked", "queue_still_blocked", "queue_unblocked")

    def listen(name):
        def receive(sender, signal, job, **arguments):
            found.append((name, arguments))

        getattr(signals, name).connect(receive, weak=False, dispatch_uid=f"heard.{name}")

    for name in names:
        listen(name)
    yield found
    for name in names:
        getattr(signals, name).disconnect(dispatch_uid=f"heard.{name}")


def end(backend, verdict, action="noop"):
    """Claim the head of the one queue there is and end its attempt; return the row of the queue."""
    (claim,), _ = backend.claim([SCOPE], 1, NODE)
    recorded = backend.record([Ending(claim, Outcome(claim.job_id, claim.fence, verdict))], NODE, "web1:1", never)
    assert recorded.written
    return Queue.objects.get(scope=SCOPE)


def never(claim):
    return False


def blocked_since(duration):
    """Say that the job failed first so long ago; all its alerts are due."""
    Job.objects.update(failed_at=timezone.now() - duration)
    Queue.objects.update(alert_at=timezone.now() - duration + 5 * MINUTE)


class TestWhenToLook:
    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.HALT])
    def test_is_set_by_the_first_failure(self, backend, verdict):
        job = SlowRetryQueue.create_job("a", "noop")
        row = end(backend, verdict)
        job.refresh_from_db()
        assert row.alert_at == job.failed_at + 5 * MINUTE

    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.SKIP, Verdict.SNOOZE, Verdict.INTERRUPT, Verdict.RETURN])
    def test_is_not_set_by_what_blocks_nothing(self, backend, verdict):
        SlowRetryQueue.create_job("a", "noop")
        assert end(backend, verdict).alert_at is None

    def test_is_left_alone_by_the_next_failure(self, backend):
        SlowRetryQueue.create_job("a", "noop")
        first = end(backend, Verdict.RETRY).alert_at
        assert end(backend, Verdict.RETRY).alert_at == first

    def test_is_never_where_no_thresholds_are_wanted(self, backend, settings):
        settings.QUEUETOPIA = {**settings.QUEUETOPIA, "ALERT_AFTER": ()}
        SlowRetryQueue.create_job("a", "noop")
        assert end(backend, Verdict.HALT).alert_at is None


class TestDueAlerts:
    @pytest.fixture
    def blocked(self, backend):
        job = SlowRetryQueue.create_job("a", "noop")
        end(backend, Verdict.HALT)
        return job

    def test_are_none_before_the_first_threshold(self, backend, blocked):
        assert upkeep.due_alerts(backend, [SCOPE]) == []

    @pytest.mark.parametrize(
        ("duration", "threshold", "after"),
        [(6 * MINUTE, 300, HOUR), (2 * HOUR, 3600, 24 * HOUR), (25 * HOUR, 86_400, None)],
    )
    def test_tell_the_longest_threshold_passed_once_and_wait_for_the_next(
        self, backend, blocked, duration, threshold, after
    ):
        blocked_since(duration)
        (alert,) = upkeep.due_alerts(backend, [SCOPE])
        assert (alert.claim.job_id, alert.claim.attempt, alert.threshold) == (blocked.pk, 1, threshold)
        assert alert.duration == pytest.approx(duration.total_seconds(), abs=30)
        assert upkeep.due_alerts(backend, [SCOPE]) == []
        blocked.refresh_from_db()
        assert Queue.objects.get().alert_at == (after and blocked.failed_at + after)

    def test_are_none_for_a_queue_that_goes_on(self, backend, blocked):
        blocked_since(HOUR)
        SlowRetryQueue.retry(blocked)
        end(backend, Verdict.DONE)
        assert upkeep.due_alerts(backend, [SCOPE]) == []
        assert Queue.objects.get().alert_at is None

    def test_are_none_for_a_queue_blocked_anew_by_another_job(self, backend, blocked):
        SlowRetryQueue.skip(blocked)
        SlowRetryQueue.create_job("a", "noop")
        end(backend, Verdict.RETRY)
        Queue.objects.update(alert_at=timezone.now() - HOUR)  # as the first one left it
        assert upkeep.due_alerts(backend, [SCOPE]) == []
        assert Queue.objects.get().alert_at > timezone.now() + 4 * MINUTE

    def test_are_told_of_served_scopes_only_and_in_batches(self, backend):
        SlowRetryQueue.create_jobs([SlowRetryQueue.job(f"queue-{number}", "noop") for number in range(3)])
        for _ in range(3):
            (claim,), _ = backend.claim([SCOPE], 1, NODE)
            ending = Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.HALT))
            backend.record([ending], NODE, "web1:1", never)
        blocked_since(HOUR * 2)
        assert upkeep.due_alerts(backend, ["tests.other"]) == []
        assert [len(upkeep.due_alerts(backend, [SCOPE], limit=2)) for _ in range(3)] == [2, 1, 0]


def test_a_turn_is_one_callers_until_the_interval_is_over(backend):
    assert not upkeep.was_done(backend, "mail", 3600)
    assert [upkeep.is_turn(backend, "mail", 3600) for _ in range(3)] == [True, False, False]
    assert upkeep.was_done(backend, "mail", 3600)
    assert upkeep.is_turn(backend, "other", 3600)
    assert upkeep.is_turn(backend, "mail", 0)


class TestSignals:
    def test_of_a_block_and_its_end_say_how_long_and_who_waits(self, heard, tmp_path, monkeypatch):
        monkeypatch.setenv("QUEUETOPIA_TEST_LEDGER", str(tmp_path / "ledger"))
        SlowRetryQueue.create_job("a", "fail", {"times": 1})
        SlowRetryQueue.create_job("a", "noop")
        SlowRetryQueue.create_job("a", "noop", scheduled_at=timezone.now() + 9 * HOUR)
        drain(SlowRetryQueue)
        Job.objects.filter(failed_at__isnull=False).update(failed_at=timezone.now() - HOUR)
        drain(SlowRetryQueue, now=timezone.now() + MINUTE)
        (blocked, first), (unblocked, second) = heard
        assert (blocked, first["queue"], first["waiting"]) == ("queue_blocked", "a", 1)
        assert (unblocked, second["queue"], second["waiting"]) == ("queue_unblocked", "a", 1)
        assert second["duration"] == pytest.approx(3660, abs=30)

    @pytest.mark.django_db(transaction=True)
    def test_of_a_persons_skip_say_it_too(self, queues, heard):
        job = put(queues, "halted", failed_at=timezone.now() - 2 * HOUR)
        wait_behind(queues, 3)
        queues.skip(job)
        ((name, arguments),) = heard
        assert (name, arguments["waiting"]) == ("queue_unblocked", 3)
        assert arguments["duration"] == pytest.approx(7200, abs=30)

    def test_of_a_block_that_lasts_are_sent_unless_the_job_has_ended_meanwhile(self, queues, heard):
        job = put(queues, "halted")
        wait_behind(queues, 2)
        alerts.send_still_blocked(queues, job, 400.0, 300.0)
        assert heard == [
            ("queue_still_blocked", {"queue": job.queue, "duration": 400.0, "threshold": 300.0, "waiting": 2})
        ]
        queues.skip(job)
        del heard[:]
        alerts.send_still_blocked(queues, job, 400.0, 300.0)
        assert heard == []


class TestMail:
    @pytest.fixture(autouse=True)
    def admins(self, settings):
        settings.ADMINS = ADMINS
        settings.EMAIL_SUBJECT_PREFIX = "[shop] "

    def test_explains_the_queues_that_have_been_blocked_for_long(self, queues):
        put(queues, "halted", "first", failed_at=timezone.now() - 2 * HOUR)
        put(queues, "backing off", "second", failed_at=timezone.now() - HOUR)
        put(queues, "backing off", "just now", failed_at=timezone.now() - MINUTE)
        put(queues, "waiting", "fine")
        alerts.mail_admins("default", 3600.0)
        (message,) = mail.outbox
        assert message.subject == "[shop] Queuetopia: 2 queues are blocked"
        first, second = message.body.strip().split("\n\n")
        assert first.startswith("tests.mail: first is held by job ")
        assert second.startswith("tests.mail: second is held by job ")

    def test_is_not_sent_when_nothing_is_blocked_and_then_no_turn_is_used_up(self, queues):
        put(queues, "waiting")
        alerts.mail_admins("default", 3600.0)
        assert mail.outbox == []
        put(queues, "halted", "a", failed_at=timezone.now() - HOUR)
        alerts.mail_admins("default", 3600.0)
        assert len(mail.outbox) == 1

    def test_is_sent_once_in_the_interval(self, queues):
        put(queues, "halted", failed_at=timezone.now() - HOUR)
        for _ in range(3):
            alerts.mail_admins("default", 3600.0)
        assert len(mail.outbox) == 1
        Chore.objects.update(done_at=timezone.now() - 2 * HOUR)
        alerts.mail_admins("default", 3600.0)
        assert len(mail.outbox) == 2

    def test_has_a_bound(self, queues, monkeypatch):
        monkeypatch.setattr(alerts, "MOST_MAILED", 2)
        for number in range(4):
            put(queues, "halted", f"queue-{number}", failed_at=timezone.now() - HOUR)
        alerts.mail_admins("default", 3600.0)
        (message,) = mail.outbox
        assert message.body.count("is held by") == 2
        assert "and 2 more: manage.py queuetopia status" in message.body

    def test_holds_nothing_that_could_be_a_header_or_a_control_character(self, queues):
        put(queues, "halted", HOSTILE, failed_at=timezone.now() - HOUR, error=HOSTILE, action=HOSTILE,
            params={"body": "private"})  # fmt: skip
        alerts.mail_admins("default", 3600.0)
        (message,) = mail.outbox
        assert message.subject == "[shop] Queuetopia: 1 queue is blocked"
        assert all(char.isprintable() or char == "\n" for char in message.body)
        assert "fake line" not in message.body.splitlines()
        assert "private" not in message.body


class TestSettings:
    @pytest.mark.parametrize("value", [(), [5], (timedelta(hours=1), 60), {300, 3600}])
    def test_of_thresholds_take_seconds_and_timedeltas(self, value):
        assert list(conf.clean_alert_after(value)) == sorted(conf.clean_alert_after(value))

    @pytest.mark.parametrize("value", [300, "5 min", None, [0], [-1], ["x"], [True], {"a": 1}])
    def test_of_thresholds_refuse_all_else(self, value):
        with pytest.raises(ValueError, match="seconds"):
            conf.clean_alert_after(value)

    def test_of_mail_refuse_a_flood(self):
        assert conf.clean_mail_admins_every(None) is None
        assert conf.clean_mail_admins_every(timedelta(hours=1)) == 3600
        with pytest.raises(ValueError, match="less than 60 seconds"):
            conf.clean_mail_admins_every(1)
