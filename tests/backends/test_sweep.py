"""A step of the sweep costs the same however many jobs wait in one queue."""

import pytest
from django.db import connection, transaction

from queuetopia.backends import backend_for, upkeep
from queuetopia.models import Job, Queue
from tests.backends.test_plans import DIGITS, JOBS, _handler_reads, _read_in_transaction, literal
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]
SCOPE = LedgerQueue.scope
FEW, MANY = 100, 50_000


def insert(number, *, first):
    """Put jobs into one queue, whose pause keeps them waiting."""
    digits = ", ".join(f"({DIGITS}) {place}" for place in "abcef")
    numbers = f"SELECT a.d + 10*b.d + 100*c.d + 1000*e.d + 10000*f.d AS n FROM {digits}"  # noqa: S608
    sql = JOBS.format(
        first_id=first, scope=SCOPE, name="'m'", earlier=literal(backend_for("default").now()), state="'pending'",
        attempts=0, attempted_at="NULL", next_attempt_at="NULL", numbers=numbers,
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} WHERE n < {number}")
        if connection.vendor != "mysql":
            cursor.execute("ANALYZE")


def effort(backend):
    """Return what a sweep of all queues costs, in units of this database."""
    if connection.vendor == "postgresql":
        with transaction.atomic(using=backend.alias):
            before = _read_in_transaction(backend)
            sweep(backend)
            return _read_in_transaction(backend) - before
    if connection.vendor == "mysql":
        before = _handler_reads(backend)
        sweep(backend)
        return _handler_reads(backend) - before
    ticks = []
    backend.connection.connection.set_progress_handler(lambda: ticks.append(1), 10)
    sweep(backend)
    backend.connection.connection.set_progress_handler(None, 0)
    return len(ticks)


def sweep(backend):
    after, steps = "", 0
    while after is not None:
        _, after = upkeep.sweep(backend, SCOPE, after)
        steps += 1
    assert steps < 10


def test_a_sweep_reads_no_more_beside_many_jobs_in_one_queue(backend):
    for name in ("a", "m", "z"):
        LedgerQueue.create_job(name, "noop")
    LedgerQueue.pause("m")
    insert(FEW, first=1_000_000)
    with_few = effort(backend)
    insert(MANY, first=2_000_000)
    Queue.objects.filter(name="z").update(due_at=None)

    with_many = effort(backend)

    assert Job.objects.count() > MANY
    assert Queue.objects.get(name="z").due_at is not None
    # A page of jobs more, but none for each that waits.
    assert with_many < with_few * 3 + 2_000
