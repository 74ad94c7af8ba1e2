"""The migrations: forwards, backwards and forwards again, and nothing left to migrate."""

import pytest
from django.apps import apps
from django.core import checks
from django.core.management import call_command
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from queuetopia.models import Job, Queue, Scope
from tests.testapp.queues import LedgerQueue

TABLES = {f"queuetopia_{name}" for name in ("job", "queue", "node", "scope", "jobevent", "statistic", "chore")}


def tables():
    return TABLES & set(connection.introspection.table_names())


@pytest.mark.capability("Q7")
@pytest.mark.django_db(transaction=True)
def test_the_tables_go_and_come_back():
    LedgerQueue.create_job("a", "noop")
    call_command("migrate", "queuetopia", "zero", verbosity=0)
    assert tables() == set()
    call_command("migrate", "queuetopia", verbosity=0)
    assert tables() == TABLES
    LedgerQueue.create_job("a", "noop")
    assert Job.objects.count() == 1


def constraints():
    """Return the names of all indexes and constraints with their columns, by table."""
    with connection.cursor() as cursor:
        return {
            table: {
                name: row["columns"] for name, row in connection.introspection.get_constraints(cursor, table).items()
            }
            for table in TABLES
        }


@pytest.mark.capability("Q7")
@pytest.mark.django_db(transaction=True)
def test_indexes_and_constraints_go_and_come_back_too():
    before = constraints()
    assert "queuetopia_job_head" in before["queuetopia_job"]
    assert "queuetopia_queue_due" in before["queuetopia_queue"]
    call_command("migrate", "queuetopia", "zero", verbosity=0)
    call_command("migrate", "queuetopia", verbosity=0)
    assert constraints() == before


@pytest.mark.django_db
def test_django_warns_of_none_of_our_models():
    warnings = checks.run_checks([apps.get_app_config("queuetopia")], databases=["default"])
    assert [warning for warning in warnings if warning.id.startswith("models.")] == []


@pytest.mark.skipif(connection.vendor != "mysql", reason="others have one character set")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("charset", ["utf8mb3", "latin1"])
def test_any_text_can_be_stored_whatever_the_database_s_character_set_is(charset):
    text = "\u0440 \U0001f4a5"
    name = connection.ops.quote_name(connection.settings_dict["NAME"])
    try:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} CHARACTER SET {charset}")
        for target in (["zero"], ["0004"], ["0005"], ["0004"], []):
            call_command("migrate", "queuetopia", *target, verbosity=0)
        job = LedgerQueue.create_job("a", "noop", {"edited": text})
        Job.objects.update(error=text, errors=[{"message": text}], attempted_by=text, result={"a": text})
        LedgerQueue.pause("a", by=text, reason=text)
        LedgerQueue.pause(by=text, reason=text)
        Queue.objects.update(problem=text)
        job.refresh_from_db()
        assert (job.error, job.attempted_by, Queue.objects.get().problem) == (text, text, text)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} CHARACTER SET utf8mb4")
        call_command("migrate", "queuetopia", "zero", verbosity=0)
        call_command("migrate", "queuetopia", verbosity=0)


@pytest.mark.django_db
@pytest.mark.parametrize("auto_field", ["BigAutoField", "AutoField"])
def test_the_migrations_say_what_the_models_say(settings, auto_field):
    settings.DEFAULT_AUTO_FIELD = f"django.db.models.{auto_field}"
    call_command("makemigrations", "queuetopia", check=True, dry_run=True, verbosity=0)


@pytest.mark.django_db
@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"timeout": 1e300},
        {"max_backoff": 1e300},
        {"max_backoff": -1},
        {"max_attempts": 0},
        {"state": "done"},
        {"state": "pending", "done_at": timezone.now()},
        {"state": "unheard of"},
    ],
)
def test_the_database_itself_refuses_rows_that_cannot_be(wrong):
    with pytest.raises(IntegrityError), transaction.atomic():
        Job.objects.create(scope="a", queue="a", action="a", **wrong)


@pytest.mark.capability("J10")
@pytest.mark.django_db
@pytest.mark.parametrize("time", ["infinity", "-infinity", "10000-01-01 00:00:00", "0044-03-15 00:00:00 BC"])
@pytest.mark.parametrize(
    ("model", "column"),
    [
        *[(Job, column) for column in ("scheduled_at", "attempted_at", "next_attempt_at")],
        *[(Queue, column) for column in ("due_at", "held_since", "paused_at")],
    ],
)
def test_the_database_itself_refuses_times_that_python_does_not_know(model, column, time):
    """One such row would be an error for each query that reads it together with others: for a whole node."""
    row = Job.objects.create(scope="a", queue="a", action="a") if model is Job else Queue.objects.create()
    sql = f"UPDATE {model._meta.db_table} SET {column} = %s WHERE id = %s"  # noqa: S608
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(sql, [time, row.pk])


@pytest.mark.django_db
@pytest.mark.parametrize("number", ["NaN", "Infinity"])
@pytest.mark.parametrize("column", ["timeout", "max_backoff"])
def test_the_database_itself_refuses_numbers_that_are_none(column, number):
    row = Job.objects.create(scope="a", queue="a", action="a")
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"UPDATE queuetopia_job SET {column} = %s WHERE id = %s", [number, row.pk])  # noqa: S608


@pytest.mark.django_db
@pytest.mark.parametrize("time", ["1970-01-01 00:00:00", "9999-01-01 23:59:59"])
def test_the_database_itself_takes_every_time_that_a_job_may_be_created_for(time):
    row = Job.objects.create(scope="a", queue="a", action="a")
    with connection.cursor() as cursor:
        cursor.execute("UPDATE queuetopia_job SET scheduled_at = %s WHERE id = %s", [f"{time}", row.pk])
    assert Job.objects.get().scheduled_at.isoformat(" ")[:19] == time


@pytest.mark.django_db
def test_the_database_itself_refuses_a_second_row_of_a_queue_or_scope():
    Queue.objects.create(scope="a", name="a")
    Queue.objects.create(scope="b", name="a")
    with pytest.raises(IntegrityError), transaction.atomic():
        Queue.objects.create(scope="a", name="a")
    Scope.objects.create(name="a")
    with pytest.raises(IntegrityError), transaction.atomic():
        Scope.objects.create(name="a")
