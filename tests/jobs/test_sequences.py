"""After a restore of the rows alone, new rows would get ids that are taken: it is said with its remedy."""

import pytest
from django.core.checks import Tags, run_checks
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from queuetopia.backends import backend_for
from queuetopia.models import Chore, Job, JobEvent, Queue, Scope, Statistic
from tests.testapp.queues import LedgerQueue

pytestmark = pytest.mark.django_db(transaction=True)
postgresql = pytest.mark.skipif(connection.vendor != "postgresql", reason="other databases count on by themselves")
MODELS = [Chore, Job, JobEvent, Queue, Scope, Statistic]


@pytest.fixture
def rows(declare_only):
    """A row in each table that has a sequence."""
    declare_only(LedgerQueue)
    LedgerQueue.create_job("a", "noop")
    LedgerQueue.pause("a")
    Scope.objects.create(name="shop.mail")
    Chore.objects.create(name="chore")
    Statistic.objects.create(scope="shop.mail", action="a", at=timezone.now(), node=Statistic.NOBODY)


def execute(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)


def warned():
    return [problem for problem in run_checks(tags=[Tags.database], databases=["default"]) if "W011" in problem.id]


def restart(model, number):
    execute(f"ALTER SEQUENCE {model._meta.db_table}_id_seq RESTART WITH {number}")


@postgresql
@pytest.mark.parametrize("model", MODELS)
def test_each_table_is_looked_at(rows, model):
    assert backend_for("default").behind_their_tables() == []
    restart(model, 1)

    assert backend_for("default").behind_their_tables() == [model._meta.db_table]
    (problem,) = warned()
    assert model._meta.db_table in problem.msg
    assert problem.hint == "Run: manage.py sqlsequencereset queuetopia | manage.py dbshell"


@postgresql
def test_the_remedy_helps(rows, capsys):
    for model in MODELS:
        restart(model, 1)
    assert len(warned()) == len(MODELS)

    call_command("sqlsequencereset", "queuetopia", no_color=True)
    execute(capsys.readouterr().out)

    assert warned() == []


@postgresql
def test_a_sequence_that_was_put_ahead_by_hand_is_well(rows):
    for model in MODELS:
        restart(model, 1_000)
    assert backend_for("default").behind_their_tables() == []


def test_a_database_that_is_well_is_told_nothing(rows):
    assert backend_for("default").behind_their_tables() == []
    assert warned() == []


def test_ids_follow_rows_that_were_loaded(rows, tmp_path):
    call_command("dumpdata", "queuetopia", output=str(tmp_path / "rows.json"), verbosity=0)
    call_command("flush", interactive=False, verbosity=0)
    call_command("loaddata", str(tmp_path / "rows.json"), verbosity=0)

    LedgerQueue.create_job("b", "noop")

    assert Queue.objects.filter(due_at__isnull=False, name="b").count() == 1
    assert warned() == []
