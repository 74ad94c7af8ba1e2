"""The migrations: forwards, backwards and forwards again, and nothing left to migrate."""

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from queuetopia.models import Job
from tests.testapp.queues import LedgerQueue

TABLES = {f"queuetopia_{name}" for name in ("job", "queue", "node", "scope", "jobevent")}


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


@pytest.mark.django_db
def test_the_migrations_say_what_the_models_say():
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
