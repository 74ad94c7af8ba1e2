"""Figures for Prometheus: what they say, what they cost, and that counters never fall."""

import json
import re
import uuid
from datetime import timedelta

import pytest
from django.db import DatabaseError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from queuetopia import Every
from queuetopia.backends import backend_for, upkeep
from queuetopia.contrib.metrics import QueuetopiaCollector, view
from queuetopia.models import Queue, Schedule, Scope, Statistic
from queuetopia.monitoring import health
from tests.commands import HOSTILE
from tests.conftest import REPOSITORY
from tests.states import HOUR, mail_queue, put, put_node

pytestmark = pytest.mark.django_db

OF_SCOPE = {"database": "default", "scope": "tests.mail"}
EXAMPLES = REPOSITORY / "docs" / "prometheus"


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def figure(rf):
    """figure(name, label=value): what the page says."""

    def read(name, **labels):
        response = view(rf.get("/metrics"))
        assert response.status_code == 200
        for family in text_string_to_metric_families(response.content.decode()):
            for sample in family.samples:
                if sample.name == f"queuetopia_{name}" and labels.items() <= sample.labels.items():
                    return sample.value
        return None

    return read


def count(action="send_mail", age=timedelta(0), **columns):
    at = timezone.now() - age
    return Statistic.objects.create(scope="tests.mail", action=action, at=at, node=uuid.uuid4(), **columns)


def test_queues_and_jobs_are_counted_by_their_states(queues, figure):
    for name, state in enumerate(["waiting", "scheduled", "running first", "backing off", "halted", "done"]):
        put(queues, state, queue=f"queue {name}")
    Queue.objects.filter(name="queue 0").update(paused_at=timezone.now())
    states = {
        state: figure("queues", state=state, **OF_SCOPE) for state in ("running", "backing_off", "halted", "paused")
    }
    assert states == {"running": 1, "backing_off": 1, "halted": 1, "paused": 1}
    assert figure("jobs", state="pending", **OF_SCOPE) == 4
    assert figure("jobs", state="halted", **OF_SCOPE) == 1
    assert figure("oldest_job_seconds", **OF_SCOPE) == pytest.approx(HOUR.total_seconds(), abs=60)


def test_nodes_and_workers_are_counted_and_which_scopes_they_serve(queues, figure):
    put_node(workers=[{"pid": 1, "jobs": [7]}, {"pid": 2, "jobs": []}])
    put_node(id=uuid.uuid4(), last_seen=timezone.now() - HOUR, workers=[{"pid": 3, "jobs": []}])
    mail_queue("tests.other")
    assert [figure("nodes", state=state) for state in ("alive", "gone")] == [1, 1]
    assert [figure("workers", state=state) for state in ("busy", "idle")] == [1, 1]
    assert [figure("scope_nodes", scope=scope) for scope in ("tests.mail", "tests.other")] == [1, 0]


def test_pauses_and_snoozes_show(queues, figure):
    assert [figure("paused", **OF_SCOPE), figure("snoozed", **OF_SCOPE)] == [0, 0]
    Scope.objects.create(name="tests.mail", snoozed_until=timezone.now() + HOUR)
    Scope.objects.create(name=Scope.EVERYTHING, paused_at=timezone.now())
    assert [figure("paused", **OF_SCOPE), figure("snoozed", **OF_SCOPE)] == [1, 1]


def test_schedules_are_late_when_no_node_has_dealt_with_their_times(declare_only, figure):
    declare_only()
    mail_queue(schedules=[Every("digest", hours=1, queue="digest", action="send_mail")])
    assert figure("schedule_late_seconds", schedule="digest", **OF_SCOPE) == 0
    Schedule.objects.create(scope="tests.mail", name="digest", until=timezone.now() - 3 * HOUR)
    assert figure("schedule_late_seconds", schedule="digest", **OF_SCOPE) >= 3600


def test_jobs_of_a_scope_that_no_code_knows_show(queues, declare_only, figure):
    put(mail_queue("tests.gone"), "waiting")
    declare_only(queues)
    assert figure("jobs", scope="tests.gone") == 1
    assert figure("scope_nodes", scope="tests.gone") == 0


def test_counters_are_sums_by_action(queues, figure):
    count(done=3, run_seconds=1.5)
    count(done=4, failed=2, run_seconds=0.5)
    count("other", done=5)
    of_action = {**OF_SCOPE, "action": "send_mail"}
    assert figure("jobs_done_total", **of_action) == 7
    assert figure("attempts_failed_total", **of_action) == 2
    assert figure("run_seconds_total", **of_action) == 2
    assert figure("jobs_done_total", scope="tests.mail", action="other") == 5


def test_counters_do_not_fall_when_statistics_are_pruned(queues, figure):
    for age in range(5):
        count(age=age * HOUR, done=10, blocked_seconds=0.5)
    backend = backend_for("default")
    for keep in (3.5, 2.5, 0.5):
        assert upkeep.prune_statistics(backend, ["tests.mail"], keep * 3600) > 0
        assert figure("jobs_done_total", **OF_SCOPE) == 50
        assert figure("blocked_seconds_total", **OF_SCOPE) == 2.5
    assert Statistic.objects.count() == 2
    assert upkeep.prune_statistics(backend, ["tests.mail"], 0.5 * 3600) == 0


def test_a_counter_goes_on_past_what_a_column_of_four_bytes_holds(queues, figure):
    for _ in range(2):
        count(age=HOUR, created=2**31 - 1)
    upkeep.prune_statistics(backend_for("default"), ["tests.mail"], 60)
    assert figure("jobs_created_total", **OF_SCOPE) == 2 * (2**31 - 1)


def test_a_database_that_cannot_be_read_is_down_and_the_others_are_up(queues, figure, monkeypatch):
    mail_queue("tests.elsewhere", using="other")
    read = health.read

    def refuse(alias, *more, **options):
        if alias == "other":
            raise DatabaseError("connection refused")
        return read(alias, *more, **options)

    monkeypatch.setattr(health, "read", refuse)
    assert [figure("up", database=alias) for alias in ("default", "other")] == [1, 0]
    assert figure("scope_nodes", scope="tests.elsewhere") is None


def test_what_users_named_is_escaped(queues, figure):
    Statistic.objects.create(scope="tests.mail", action=HOSTILE, at=timezone.now(), node=uuid.uuid4(), done=1)
    assert figure("jobs_done_total", action=HOSTILE) == 1


@pytest.mark.parametrize("number", [1, 20])
def test_a_scrape_costs_at_most_twelve_queries_whatever_the_number_of_scopes(declare_only, rf, number):
    declare_only()
    for scope in range(number):
        queues = mail_queue(f"tests.scope{scope}")
        for state in ("waiting", "halted", "backing off"):
            put(queues, state, queue=state, error="boom")
        Queue.objects.filter(name="waiting").update(problem="unknown action")
    with CaptureQueriesContext(connection) as context:
        view(rf.get("/metrics"))
    assert len(context) <= 12


def test_registering_the_collector_reads_nothing(queues):
    with CaptureQueriesContext(connection) as context:
        CollectorRegistry(auto_describe=True).register(QueuetopiaCollector())
    assert len(context) == 0


def test_only_reading_is_allowed(rf):
    assert view(rf.post("/metrics")).status_code == 405


@pytest.mark.parametrize("name", ["alerts.yml", "dashboard.json"])
def test_the_examples_use_figures_and_labels_that_there_are(queues, rf, name):
    families = {family.name: family for family in QueuetopiaCollector().describe()}
    known = {f"{family}_total" if families[family].type == "counter" else family for family in families}
    text = (EXAMPLES / name).read_text()
    used = set(re.findall(r"\bqueuetopia_\w+", text))
    assert used, name
    assert used <= known
    labels = {label for family in families.values() for label in family._labelnames}
    assert set(re.findall(r"(\w+)=~?\\?\"", text)) - {"job"} <= labels
    if name.endswith(".json"):
        panels = json.loads(text)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
