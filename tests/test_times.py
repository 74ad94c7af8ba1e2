"""Times are stored as Django reads them, or are refused; whatever is shown of them carries its zone."""

import logging
import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from io import StringIO
from zoneinfo import ZoneInfo

import pytest
from django.core.checks import run_checks
from django.core.management import CommandError, call_command
from django.db import connection
from django.urls import reverse
from django.utils import timezone

from queuetopia import conf, processes
from queuetopia.admin.charts import Line, chart
from queuetopia.backends import backend_for
from queuetopia.exceptions import InvalidJob, Refused, TimesRefused
from queuetopia.models import Job, Node, Queue
from queuetopia.node.protocol import Options
from queuetopia.node.scheduler import Scheduler
from queuetopia.testing import drain
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

NODE = uuid.UUID(int=1)
NEW_YORK = "America/New_York"
has_zones = connection.vendor == "postgresql"
postgresql = pytest.mark.skipif(not has_zones, reason="PostgreSQL's own settings")
mysql = pytest.mark.skipif(connection.vendor != "mysql", reason="MySQL's and MariaDB's own settings")


@pytest.fixture
def reconnect(monkeypatch):
    """Return reconnect(TIME_ZONE=…, OPTIONS=…): the default connection has these settings until the test ends."""

    def change(**changed):
        changed["OPTIONS"] = {**connection.settings_dict["OPTIONS"], **changed.get("OPTIONS", {})}
        for name, value in changed.items():
            monkeypatch.setitem(connection.settings_dict, name, value)
        forget()

    def forget():
        connection.close()
        for name in ("timezone", "timezone_name"):
            vars(connection).pop(name, None)

    yield change
    monkeypatch.undo()
    forget()


@pytest.fixture
def wrong_zone(reconnect):
    reconnect(TIME_ZONE=NEW_YORK)


@pytest.fixture
def without_zones(settings):
    settings.USE_TZ = False


@pytest.fixture(params=["wrong_zone", "without_zones"])
def wrong(request, transactional_db):
    """The job that was stored before settings were changed to those that are refused."""
    if request.param == "wrong_zone" and has_zones:
        pytest.skip("PostgreSQL stores times with their zone")
    job = LedgerQueue.create_job("a", "noop")
    request.getfixturevalue(request.param)
    return job


def the_error():
    """Return the one problem that the checks find of times."""
    (problem,) = (problem for problem in run_checks() if problem.id == "queuetopia.E015")
    return problem


def test_the_check_names_setting_cause_and_remedy(wrong, settings):
    problem = the_error()

    assert problem.is_serious()
    setting = "['TIME_ZONE'] = 'America/New_York'" if settings.USE_TZ else "USE_TZ = False"
    assert setting in problem.msg
    assert problem.hint == (
        "Remove TIME_ZONE from DATABASES['default']; the setting TIME_ZONE may be any."
        if settings.USE_TZ
        else "Set USE_TZ = True."
    )


def act(verb):
    def call(job):
        return getattr(LedgerQueue, verb)(job.pk)

    return pytest.param(call, id=verb)


@pytest.mark.parametrize(
    "write",
    [
        pytest.param(lambda job: LedgerQueue.create_job("b", "noop"), id="create_job"),
        pytest.param(lambda job: LedgerQueue.create_job("b", "noop", scheduled_at=datetime.now(UTC)), id="scheduled"),
        pytest.param(lambda job: LedgerQueue.create_jobs([LedgerQueue.job("b", "noop")] * 1), id="create_jobs"),
        *map(act, ("retry", "skip", "cancel", "mark_done", "move_to_end")),
        pytest.param(lambda job: LedgerQueue.edit(job.pk, {"edited": 1}), id="edit"),
        pytest.param(lambda job: LedgerQueue.pause("b"), id="pause"),
        pytest.param(lambda job: LedgerQueue.resume(), id="resume"),
        pytest.param(lambda job: drain(LedgerQueue), id="drain"),
        pytest.param(lambda job: Scheduler(Options(scopes=[LedgerQueue.scope])), id="node"),
    ],
)
def test_nothing_is_written_where_times_would_be_wrong(wrong, write):
    with pytest.raises(TimesRefused, match=r"TIME_ZONE|USE_TZ"):
        write(wrong)

    assert Job.objects.filter(state="pending", attempted_at=None).count() == Job.objects.count() == 1


def test_commands_say_so_in_one_line(wrong):
    with pytest.raises(CommandError, match=r"TIME_ZONE|USE_TZ"):
        call_command("queuetopia", "pause", LedgerQueue.scope)


@pytest.mark.skipif(has_zones, reason="PostgreSQL stores times with their zone")
def test_a_lock_database_in_another_zone_is_refused_too(transactional_db, settings, reconnect):
    settings.QUEUETOPIA = {"LOCK_DATABASE": "default"}
    backend = backend_for("default")
    reconnect(TIME_ZONE=NEW_YORK)

    with pytest.raises(TimesRefused, match="TIME_ZONE"):
        backend.open_session(conf.lease())


@pytest.mark.parametrize("zone", [None, "UTC", "Etc/UTC"])
def test_the_zone_that_the_clock_has_is_not_refused(transactional_db, reconnect, zone):
    reconnect(TIME_ZONE=zone)
    assert_times_are_right()
    assert [problem for problem in run_checks() if problem.id == "queuetopia.E015"] == []


@postgresql
@pytest.mark.parametrize(
    "changed",
    [
        {"TIME_ZONE": NEW_YORK},
        {"TIME_ZONE": "Asia/Kolkata"},
        {"OPTIONS": {"options": "-c timezone=America/New_York"}},
        {"TIME_ZONE": "Pacific/Apia", "OPTIONS": {"options": "-c timezone=America/New_York"}},
    ],
    ids=str,
)
def test_postgresql_keeps_times_right_in_any_zone(transactional_db, reconnect, changed):
    reconnect(**changed)
    assert_times_are_right()
    assert [problem for problem in run_checks() if problem.id == "queuetopia.E015"] == []


@mysql
@pytest.mark.parametrize("zone", ["+05:00", "-11:00"])
def test_the_time_zone_of_a_mysql_session_changes_nothing(transactional_db, reconnect, zone):
    reconnect(OPTIONS={"init_command": f"SET time_zone = '{zone}'"})
    assert_times_are_right()


def assert_times_are_right():
    """A job without a time and one for now are due now, and in the order in which they were created."""
    before = timezone.now() - timedelta(seconds=1)  # clocks of server and client
    first = LedgerQueue.create_job("a", "noop")
    second = LedgerQueue.create_job("a", "noop", scheduled_at=timezone.now())
    third = LedgerQueue.create_job("a", "noop")
    LedgerQueue.create_job("later", "noop", scheduled_at=timezone.now() + timedelta(minutes=30))
    first.refresh_from_db()
    assert before < first.scheduled_at < timezone.now() + timedelta(seconds=1)
    assert set(LedgerQueue.jobs().filter(queue="a").in_order()) == {first, second, third}
    backend = backend_for("default")
    backend.open_session(conf.lease())
    try:
        claims, _ = backend.claim([LedgerQueue.scope], 10, NODE)
        assert [claim.queue for claim in claims] == ["a"]
        assert datetime.fromisoformat(claims[0].scheduled_at) == first.scheduled_at
        assert 1700 < backend.next_due([LedgerQueue.scope]) <= 1801
    finally:
        backend.close_session()


# Daylight saving


TWICE = datetime(2026, 10, 25, 2, 30)
NEVER = datetime(2026, 3, 29, 2, 30)


@pytest.mark.parametrize("naive", [TWICE, NEVER])
def test_a_time_without_a_zone_is_refused(db, naive):
    with pytest.raises(InvalidJob, match="naive datetime"):
        LedgerQueue.create_job("a", "noop", scheduled_at=naive)


def test_the_hour_that_comes_twice_is_stored_as_it_was_meant(db):
    paris = ZoneInfo("Europe/Paris")
    early = LedgerQueue.create_job("a", "noop", scheduled_at=TWICE.replace(tzinfo=paris, fold=0))
    late = LedgerQueue.create_job("a", "noop", scheduled_at=TWICE.replace(tzinfo=paris, fold=1))

    early.refresh_from_db()
    late.refresh_from_db()

    assert early.scheduled_at == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
    assert late.scheduled_at == datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


# Migrations


@pytest.mark.parametrize("command", ["migrate", "makemigrations --check --dry-run", "check", "run_queuetopia"])
@pytest.mark.parametrize("skips", [[], ["--skip-checks"]], ids=["", "skip-checks"])
def test_commands_end_with_the_reason_and_no_traceback(node_environment, tmp_path, command, skips):
    if skips and (command != "migrate" or connection.vendor != "sqlite"):
        pytest.skip("it has nothing to write here")
    settings = "from tests.settings import *\nUSE_TZ = False\n"
    tmp_path.joinpath("naive_settings.py").write_text(settings)
    path = os.pathsep.join([str(tmp_path), node_environment["PYTHONPATH"]])
    environment = {**node_environment, "PYTHONPATH": path, "DJANGO_SETTINGS_MODULE": "naive_settings"}
    if connection.vendor == "sqlite":
        environment["DATABASE_URL"] = f"sqlite:///{tmp_path}/new.sqlite3"

    ended = subprocess.run(
        [sys.executable, "-m", "django", *command.split(), *skips],
        env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip

    assert ended.returncode != 0
    assert "USE_TZ = False" in ended.stderr
    assert ("Traceback" in ended.stderr) == bool(skips)


def test_a_project_without_queues_hears_of_it_too(settings, declare_only):
    declare_only()
    settings.USE_TZ = False
    assert "USE_TZ = False" in the_error().msg


# What is shown

TIME = re.compile(r"\d\d:\d\d(?::\d\d)?(?:[.,]\d+)?(?P<zone> ?[+-]\d\d:?\d\d)?")


def zones_of(text):
    """Return the offset of each time in a text; None for a time without one."""
    return {found["zone"] and found["zone"].strip().replace(":", "") for found in TIME.finditer(text)}


@pytest.fixture
def work(transactional_db):
    """Queues that are blocked, running, paused and waiting, with a past."""
    for number, action in enumerate(("noop", "fail", "fail", "noop")):
        SlowRetryQueue.create_job(f"queue-{number}", action)
    SlowRetryQueue.create_job("later", "noop", scheduled_at=timezone.now() + timedelta(hours=30))
    SlowRetryQueue.pause("queue-3", by="ann")
    drain(SlowRetryQueue)
    SlowRetryQueue.pause(by="ann")
    Node.objects.create(id=NODE, host="web1", pid=1, scopes=[SlowRetryQueue.scope])


VERBS = [
    ["status", SlowRetryQueue.scope],
    ["explain", SlowRetryQueue.scope, "queue-1"],
    ["statistics", SlowRetryQueue.scope, "--by", "hour"],
    ["status", SlowRetryQueue.scope, "--json"],
    ["statistics", SlowRetryQueue.scope, "--by", "hour", "--json"],
]


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "UTC"])
@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_commands_show_each_time_with_its_zone(work, settings, verb, zone, monkeypatch, databases_of_ledger):
    settings.TIME_ZONE = zone
    out = StringIO()

    call_command("queuetopia", *verb, stdout=out)

    expected = {"Asia/Kolkata": {"+0530"}, "UTC": {"+0000"}}[zone]
    if "--json" in verb:
        expected = zones_of(out.getvalue()) - {None}  # the database's, for programs
    if verb[0] != "explain":  # which shows spans of time
        assert expected
        assert zones_of(out.getvalue()) == expected


@pytest.fixture
def databases_of_ledger(declare_only):
    """Only the class that the test uses is declared."""
    declare_only(SlowRetryQueue)


@pytest.mark.parametrize("page", ["overview", "job", "queue", "job/1", "queue/1"])
def test_the_admin_shows_each_time_with_its_zone(work, client, django_user_model, page, databases_of_ledger):
    client.force_login(django_user_model.objects.create_superuser("boss"))
    address = reverse("admin:queuetopia_scope_changelist")
    if page != "overview":
        name = page.partition("/")[0]
        model = {"job": Job, "queue": Queue}[name]
        address = reverse(f"admin:queuetopia_{name}_changelist")
        if "/" in page:
            row = model.objects.exclude(**{"attempts": 0} if name == "job" else {"current_job": None}).first()
            address += f"default:{row.pk}/change/"

    answer = client.get(address, follow=True)

    assert answer.status_code == 200
    text = re.sub(r"<[^>]*>", " ", answer.content.decode())
    assert zones_of(text) - {"+0100", "+0200"} == set()


def test_log_lines_carry_their_zone():
    formatter = processes.LogFormatter("%(asctime)s %(message)s")
    record = logging.makeLogRecord({"msg": "node started", "created": 1_790_000_000.25})
    # Django has set the zone of this process to TIME_ZONE.
    assert formatter.format(record) == "2026-09-21 16:13:20.250+02:00 node started"


def test_refusals_and_charts_tell_the_zone(work, settings):
    settings.TIME_ZONE = "Asia/Kolkata"
    later = SlowRetryQueue.jobs().get(queue="later")
    with pytest.raises(Refused) as refused:
        SlowRetryQueue.move_to_end(later.pk)
    assert zones_of(str(refused.value)) == {"+0530"}
    drawn = chart("jobs", [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)], [Line("all", [1, 2])])
    assert (drawn["begins"], drawn["ends"], drawn["rows"][0][0]) == ("05:30+05:30", "05:30+05:30", "05:30+05:30")
