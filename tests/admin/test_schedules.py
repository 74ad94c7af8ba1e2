"""The pages of schedules: what they show, and what can be done there."""

import re

import pytest
from django.urls import reverse

from queuetopia import Every
from queuetopia.models import Job, JobEvent, Schedule
from queuetopia.testing import create_due_jobs, drain
from tests.admin.client import HOSTILE, client_of, page, plain
from tests.states import mail_queue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X10")]

LIST = "/admin/queuetopia/schedule/"
ALL = ("view_schedule", "run_now_schedule", "pause_schedule", "resume_schedule", "delete_schedule")
PARAMS = {"email_address": "ann@mail.com", "body": "Welcome"}


@pytest.fixture
def queues(declare_only):
    declare_only()
    queue = mail_queue()
    queue.schedules = [
        Every(name, hours=1, queue="digest", action="send_mail", params=PARAMS) for name in ("digest", HOSTILE)
    ]
    create_due_jobs(queue)
    return queue


@pytest.fixture
def boss():
    return client_of(*ALL, "view_job", "view_queue", username="boss")


def row(name="digest"):
    return Schedule.objects.get(name=name)


def of(name="digest"):
    return f"{LIST}{row(name).pk}/"


def test_the_list_shows_when_each_is_due_and_what_was_left_out(boss, queues):
    job = queues.run_schedule("digest")
    text = page(boss, LIST)
    assert "every hour" in text
    assert reverse("admin:queuetopia_job_change", args=[job.pk]) in text
    assert "<img src=x" not in text


@pytest.mark.parametrize(("verb", "event"), [("run_now", "run_schedule"), ("pause", "pause_schedule")])
def test_one_is_run_and_paused_after_a_confirmation_with_a_reason(boss, queues, verb, event):
    assert boss.post(f"{of()}{verb}/").status_code == 200
    assert (Job.objects.count(), row().paused_at) == (0, None)
    boss.post(f"{of()}{verb}/", {"confirmed": "yes", "reason": "audit"})
    done = JobEvent.objects.get()
    assert (done.verb, done.by, done.reason, done.after["schedule"]) == (event, "boss", "audit", "digest")
    assert "audit" in plain(page(boss, f"{of()}change/"))


def test_a_paused_one_is_resumed(boss, queues):
    queues.pause_schedule("digest")
    assert "paused" in page(boss, LIST)
    boss.post(f"{of()}resume/", {"confirmed": "yes"})
    assert row().paused_at is None


def test_several_are_chosen_in_the_list(boss, queues):
    ids = [row().pk, row(HOSTILE).pk]
    asked = boss.post(LIST, {"action": "pause", "_selected_action": ids, "index": 0})
    assert re.search("Pause 2 schedules", asked.content.decode())
    boss.post(f"{LIST}pause/", {"confirmed": "yes", "_selected_action": ids})
    assert Schedule.objects.filter(paused_at=None).count() == 0


def test_one_that_is_declared_no_more_is_shown_as_that_and_can_be_forgotten(boss, queues):
    boss.post(f"{of()}delete/", {"confirmed": "yes"})
    assert Schedule.objects.count() == 2  # it is declared
    queues.schedules = []
    assert "no longer declared" in page(boss, LIST)
    boss.post(f"{of()}delete/", {"confirmed": "yes"})
    assert [each.name for each in Schedule.objects.all()] == [HOSTILE]


@pytest.mark.parametrize("verb", ["run_now", "pause", "resume", "delete"])
def test_each_verb_needs_its_permission(queues, verb):
    queues.pause_schedule("digest")
    viewer = client_of("view_schedule")
    assert viewer.post(f"{of()}{verb}/", {"confirmed": "yes"}).status_code == 403
    assert viewer.get(LIST).status_code == 200


def test_the_list_costs_the_same_however_many_there_are(boss, queues, django_assert_max_num_queries):
    for name in map(str, range(30)):
        Schedule.objects.create(scope=queues.scope, name=name, until=row().until)
    drain(queues)
    with django_assert_max_num_queries(9):
        page(boss, LIST)
