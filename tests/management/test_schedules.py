"""``manage.py queuetopia schedules``, and what ``status --check`` says of schedules."""

from datetime import timedelta

import pytest

from queuetopia import Every
from queuetopia.backends import backend_for
from queuetopia.models import JobEvent, Schedule
from queuetopia.testing import create_due_jobs
from queuetopia.times import local
from tests.commands import HOSTILE, check, run, run_json
from tests.states import mail_queue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X10")]

PARAMS = {"email_address": "ann@mail.com", "body": "Welcome"}


@pytest.fixture
def queues(declare_only):
    declare_only()
    queue = mail_queue()
    queue.schedules = [Every("digest", hours=1, queue="digest", action="send_mail", params=PARAMS)]
    create_due_jobs(queue)
    return queue


def row():
    return Schedule.objects.get(name="digest")


def put_back(**until):
    Schedule.objects.update(until=backend_for("default").now() - timedelta(**until))


class TestSchedules:
    def test_are_listed(self, queues):
        text, refused = run("schedules")
        assert refused is None
        assert "digest" in text and "every hour" in text

    def test_are_listed_for_machines(self, queues):
        answer, _ = run_json("schedules", queues.scope)
        (digest,) = answer["scopes"][0]["schedules"]
        assert (digest["schedule"], digest["created"], digest["declared"]) == ("digest", 0, True)

    def test_one_is_paused_resumed_and_run_with_who_and_why(self, queues):
        for option in ("--pause", "--resume", "--run-now"):
            text, refused = run("schedules", queues.scope, option, "digest", "--by", "ann", "--reason", "audit")
            assert (refused, text.startswith(f"Schedule digest of {queues.scope} is ")) == (None, True)
        verbs = JobEvent.objects.order_by("id").values_list("verb", "by", "reason")
        assert [*verbs] == [(f"{verb}_schedule", "ann", "audit") for verb in ("pause", "resume", "run")]

    def test_a_pause_is_listed_and_hostile_text_cannot_steer_the_terminal(self, queues):
        queues.pause_schedule("digest", by="ann", reason=HOSTILE)
        text, _ = run("schedules", "-v", "2")
        assert "by ann: " in text
        assert "\x1b" not in text

    @pytest.mark.parametrize("option", ["--pause", "--resume", "--run-now"])
    def test_an_unknown_one_is_refused(self, queues, option):
        _, refused = run("schedules", queues.scope, option, "digestt")
        assert "no schedule 'digestt'" in refused

    def test_one_needs_its_scope(self, queues):
        assert "name the one scope" in run("schedules", "--pause", "digest")[1]

    def test_what_is_declared_no_more_is_listed_and_pruned(self, queues):
        Schedule.objects.create(scope=queues.scope, name="old", until=row().until)
        Schedule.objects.create(scope="gone.scope", name="older", until=row().until)
        assert "no longer declared" in run("schedules")[0]
        text, _ = run("schedules", "--prune")
        assert "schedules forgotten: old." in text and "schedules forgotten: older." in text
        assert Schedule.objects.get() == row()


def test_status_says_when_the_next_is_due(queues):
    assert queues.status()["schedules"][0]["schedule"] == "digest"
    assert "  schedules: 1; the next is due in " in run("status")[0]


def test_explain_says_when_an_empty_queue_gets_its_next_job(queues):
    next_at = local(queues.list_schedules()[0]["next_at"])
    assert queues.explain("digest")["sentence"].endswith(f"; schedule digest creates its next at {next_at}.")
    assert "schedule" not in queues.explain("another")["sentence"]
    queues.pause_schedule("digest")
    assert queues.explain("digest")["sentence"].endswith("; schedule digest is paused.")


class TestCheck:
    def test_nothing_is_wrong_with_one_that_is_not_due(self, queues):
        assert check() == (0, ["ok"])

    def test_a_late_one_is_reported(self, queues):
        put_back(hours=3)
        code, (line,) = check()
        assert code == 1
        assert line.startswith("tests.mail: schedule digest is due for ")
        assert line.endswith("and no node has created its job")

    def test_a_paused_one_is_not_late(self, queues):
        queues.pause_schedule("digest")
        put_back(hours=3)
        assert check() == (0, ["ok"])

    def test_one_that_a_wrong_clock_has_put_ahead_is_reported_and_can_be_mended(self, queues):
        put_back(hours=-50)
        _, (line,) = check()
        assert "dealt with for 2 days ahead" in line or "ahead, because the database's clock" in line
        queues.pause_schedule("digest")
        queues.resume_schedule("digest")
        assert check() == (0, ["ok"])
