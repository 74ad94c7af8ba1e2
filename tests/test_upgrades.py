"""Upgrades with jobs in the tables: every migration forward and back, and code of the version before beside the new.

The tests walk over whatever migrations there are, so that a new one is tested by being there.
"""

import datetime
from itertools import pairwise

import pytest
from django.core.management import call_command
from django.db import models
from django.db.migrations.loader import MigrationLoader
from django.utils import timezone

from queuetopia.attempts import Verdict, describe
from queuetopia.backends.contract.toolkit import end, finish, record
from queuetopia.models import Job, Queue
from tests.ledger import SCOPE, claim
from tests.testapp.queues import LedgerQueue

LOADER = MigrationLoader(None)
MIGRATIONS = sorted(name for app, name in LOADER.disk_migrations if app == "queuetopia")
STEPS = list(pairwise(MIGRATIONS))

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def latest(transactional_db):
    """Whatever happens in a test, the next one finds the tables as they should be."""
    yield
    call_command("migrate", "queuetopia", verbosity=0)


def migrate(name):
    call_command("migrate", "queuetopia", name, verbosity=0)


def models_at(name):
    """Return the app's models as they were after the migration: what the code of that version writes with."""
    return LOADER.project_state(("queuetopia", name)).apps


def all_states(backend):
    """Fill queues with jobs in every state: each queue's name says in which state its head is."""
    for name in ("done", "skipped", "halted", "backing off", "snoozed", "interrupted"):
        LedgerQueue.create_job(name, "write", {"seq": 1, "lasts": 0.5})
    boom = {"error": describe(ValueError("boom"))}
    ends = {
        "done": (Verdict.DONE, {"result": '{"answer": 42}'}),
        "skipped": (Verdict.SKIP, boom),
        "halted": (Verdict.HALT, boom),
        "backing off": (Verdict.RETRY, {"delay": 3600, **boom}),
        "snoozed": (Verdict.SNOOZE, {"delay": 3600}),
        "interrupted": (Verdict.INTERRUPT, boom),
    }
    record(backend, *(end(one, ends[one.queue][0], **ends[one.queue][1]) for one in claim(backend)))
    for name in [*ends, "waiting", "paused"]:
        LedgerQueue.create_job(name, "write", {"seq": 2})
    LedgerQueue.create_job("later", "write", {"seq": 1}, scheduled_at=timezone.now() + datetime.timedelta(days=1))
    LedgerQueue.cancel(LedgerQueue.create_job("waiting", "write", {"seq": 3}))
    LedgerQueue.pause("paused", by="ann", reason="to be looked at")
    LedgerQueue.create_job("running", "write", {"seq": 1})
    claims = claim(backend, only="running")
    assert len(claims) == 1
    return claims[0]


def stored(apps):
    """Return every row of the app's tables that code of this version knows."""
    return {
        model.__name__: list(model.objects.order_by("pk").values()) for model in apps.get_models() if _is_ours(model)
    }


def _is_ours(model):
    return model._meta.app_label == "queuetopia"


def columns(apps):
    return {
        model.__name__: {field.attname for field in model._meta.fields}
        for model in apps.get_models()
        if _is_ours(model)
    }


def common(rows, apps, others):
    """Return the rows with the columns that both versions have."""
    mine, theirs = columns(apps), columns(others)
    return {
        name: [{column: row[column] for column in mine[name] & theirs[name]} for row in rows[name]]
        for name in mine.keys() & theirs.keys()
    }


@pytest.mark.capability("Q7")
@pytest.mark.parametrize("name", MIGRATIONS)
def test_jobs_in_every_state_survive_the_way_back_to_a_version_and_forward_again(backend, name):
    running = all_states(backend)
    latest, then = models_at(MIGRATIONS[-1]), models_at(name)
    before = stored(latest)

    migrate(name)
    assert common(stored(then), then, latest) == common(before, latest, then)
    migrate(MIGRATIONS[-1])

    assert common(stored(latest), latest, then) == common(before, latest, then)
    assert {one.queue for one in claim(backend)} == {"done", "skipped", "interrupted", "waiting"}
    finish(backend, running)
    LedgerQueue.resume("paused", by="ann")
    LedgerQueue.skip(LedgerQueue.jobs().halted().get())
    assert {one.queue for one in claim(backend)} == {"halted", "paused"}


@pytest.mark.capability("Q7")
@pytest.mark.parametrize("name", MIGRATIONS[:-1])
def test_jobs_written_by_the_code_of_a_version_run_after_the_upgrade(name):
    migrate(name)
    OldJob, OldQueue = (models_at(name).get_model("queuetopia", model) for model in ("Job", "Queue"))
    head = OldJob.objects.create(scope=SCOPE, queue="halted", action="noop", state="halted", attempts=3,
                                 attempted_at=timezone.now())  # fmt: skip
    OldQueue.objects.create(scope=SCOPE, name="halted", current_job=head.pk)
    OldJob.objects.create(scope=SCOPE, queue="waiting", action="noop")
    migrate(MIGRATIONS[-1])
    assert LedgerQueue.retry(head.pk).state == "pending"
    assert Job.objects.unfinished().count() == 2


@pytest.mark.capability("Q7")
@pytest.mark.parametrize(("old", "new"), STEPS)
def test_code_of_a_version_writes_to_the_tables_of_the_next(backend, old, new):
    """A rolling deploy migrates first: then old code inserts rows without the columns that are new."""
    migrate(new)
    try:
        for model in models_at(old).get_models():
            if _is_ours(model) and model._meta.model_name in ("job", "queue", "node", "scope", "jobevent"):
                _insert(model)
    finally:
        migrate(MIGRATIONS[-1])
    assert Job.objects.get().queue == "q"
    assert Queue.objects.get().name == "q"


def _insert(model):
    """Insert a row as that model does: with a value for each of its columns that has no default of the database's."""
    texts = {"scope": SCOPE, "queue": "q", "name": "q", "action": "noop", "verb": "skip", "host": "web1"}
    given = {name: text for name, text in texts.items() if name in {field.name for field in model._meta.fields}}
    row = model(**given, **({"pid": 1} if model._meta.model_name == "node" else {}))
    row.save(force_insert=True)


@pytest.mark.parametrize("model", [Job, Queue])
def test_every_column_that_a_row_needs_is_there_from_the_start_or_has_a_default(model):
    """What a later migration adds is nullable or has a default in the database: old code does not name it."""
    first = columns(models_at(MIGRATIONS[0]))[model.__name__]
    for field in model._meta.fields:
        if field.attname not in first:
            assert field.null or field.db_default is not models.NOT_PROVIDED, field.name
