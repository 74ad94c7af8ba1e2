"""The migrations: forwards, backwards and forwards again, and nothing left to migrate."""

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
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


@pytest.mark.django_db
def test_the_database_itself_refuses_a_second_row_of_a_queue_or_scope():
    Queue.objects.create(scope="a", name="a")
    Queue.objects.create(scope="b", name="a")
    with pytest.raises(IntegrityError), transaction.atomic():
        Queue.objects.create(scope="a", name="a")
    Scope.objects.create(name="a")
    with pytest.raises(IntegrityError), transaction.atomic():
        Scope.objects.create(name="a")
