"""Waking many queues takes few statements, and nobody who creates jobs waits long for it."""

import threading
from collections import Counter
from contextlib import contextmanager
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from queuetopia.backends import backend_for, base, upkeep
from queuetopia.backends.contract.toolkit import Elsewhere
from queuetopia.channel import uptime
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.ledger import SCOPE
from tests.testapp.queues import LedgerQueue

pytestmark = pytest.mark.django_db(transaction=True)
HOUR = timedelta(hours=1)
TABLE = Queue._meta.db_table
LONG = 30.0  # seconds for which another transaction holds its locks, unless it is told to end


def statements(number, *, times=1):
    """Return how many statements it takes to wake so many queues, due at so many different times."""
    web = backend_for("default")
    now = web.now()
    wakes = [(SCOPE, f"queue {n}", now - (n % times) * HOUR) for n in range(number)]
    with CaptureQueriesContext(connection) as captured:
        assert web.wake(wakes) == 0
    assert Counter(Queue.objects.values_list("due_at", flat=True).filter(due_at__gt=now)) == Counter()
    assert Queue.objects.filter(due_at__isnull=False).count() == number
    return len(captured)


@pytest.mark.parametrize("times", [1, 500])
@pytest.mark.parametrize("known", [False, True])
def test_a_thousand_queues_take_a_few_statements(monkeypatch, known, times):
    monkeypatch.setattr(base, "WAKE_TIMEOUT", 600.0)  # the machine may be busy
    if known:
        statements(1_000)
        Queue.objects.update(due_at=None)
    # SQLite takes some hundred rows in one INSERT.
    assert statements(1_000, times=times) <= (30 if connection.vendor == "sqlite" else 9)


def test_each_queue_is_due_at_its_own_time():
    web = backend_for("default")
    now = web.now()
    with transaction.atomic():
        web.wake([(SCOPE, "known", now), (SCOPE, "sooner", now + HOUR), (SCOPE, "held", now)])
    Queue.objects.filter(name="held").update(current_job=7, due_at=None)
    times = {"known": now + HOUR, "sooner": now - HOUR, "held": now, "new": now + 2 * HOUR, "other": now + 3 * HOUR}

    assert web.wake([(SCOPE, name, due_at) for name, due_at in times.items()]) == 0

    due = dict(Queue.objects.values_list("name", "due_at"))
    # On PostgreSQL one that has just got work is some seconds ahead.
    assert abs(due.pop("known") - now) < timedelta(seconds=10)
    assert due == {"sooner": now - HOUR, "held": None, "new": now + 2 * HOUR, "other": now + 3 * HOUR}


@contextmanager
def locked(*sql):
    """Another transaction that has run these statements, until the block ends."""
    ready, end, elsewhere = threading.Event(), threading.Event(), Elsewhere()

    def hold():
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in sql:
                cursor.execute(statement)
            ready.set()
            end.wait(LONG)

    holding = elsewhere.start(hold)
    try:
        assert ready.wait(LONG)
        yield
    finally:
        end.set()
        holding.result(LONG)
        elsewhere.close()


@contextmanager
def locked_table():
    """The queues' table, or on SQLite the whole database, locked by another session until the block ends."""
    statement = {
        "postgresql": f"LOCK TABLE {TABLE} IN ACCESS EXCLUSIVE MODE",
        "mysql": f"LOCK TABLES {TABLE} WRITE",
        "sqlite": f"UPDATE {TABLE} SET due_at = NULL",  # noqa: S608
    }[connection.vendor]
    with locked(statement):
        yield


def seconds_of(function, *args):
    began = uptime()
    function(*args)
    return uptime() - began


def create(number):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{n}", "noop") for n in range(number)])


@pytest.mark.skipif(connection.vendor == "sqlite", reason="the INSERT of the job itself waits there")
@pytest.mark.parametrize("number", [1, 2, 50])
def test_a_creator_does_not_wait_out_a_locked_table(number, caplog):
    create(number)
    Queue.objects.update(due_at=None)
    with locked_table():
        # Far below LONG, and far above the second that is promised: the machine may be busy.
        assert seconds_of(create, number) < LONG / 3
    assert Job.objects.count() == 2 * number
    assert f"wake-up failed, the sweep finds the jobs scope={SCOPE} queues={number}" in caplog.text


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a row cannot be locked there")
def test_a_creator_does_not_wait_for_one_locked_row_after_the_other():
    create(50)
    Queue.objects.update(due_at=None)
    with locked(f"UPDATE {TABLE} SET rev = rev + 1 WHERE name <> 'q7'"):  # noqa: S608
        assert seconds_of(create, 50) < LONG / 3
    assert [queue.name for queue in Queue.objects.exclude(due_at=None)] == ["q7"]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's lock is the database's")
def test_a_wake_does_not_wait_long_for_another_writer():
    create(1)
    with locked_table():
        assert backend_for("default").wake([(SCOPE, "q0", backend_for("default").now() - HOUR)]) == 1
    with connection.cursor() as cursor:  # the project's own limit is back
        assert cursor.execute("PRAGMA busy_timeout").fetchone() == (20_000,)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="a way of PostgreSQL's driver")
@pytest.mark.parametrize("number", [1, 2])
def test_parameters_bound_by_the_server_change_nothing(monkeypatch, number):
    monkeypatch.setitem(
        connection.settings_dict, "OPTIONS", {**connection.settings_dict["OPTIONS"], "server_side_binding": True}
    )
    connection.close()
    try:
        create(number)
        Queue.objects.update(due_at=None)
        with locked_table():
            assert seconds_of(create, number) < LONG / 3
        create(number)
        assert Queue.objects.filter(due_at__isnull=False).count() == number
    finally:
        monkeypatch.undo()
        connection.close()


def test_no_time_is_left_after_a_second(monkeypatch):
    """What the budget does not reach is counted, and the sweep is asked to come."""
    monkeypatch.setattr(base, "WAKE_TIMEOUT", 0.0)
    web = backend_for("default")
    assert web.wake([(SCOPE, f"queue {n}", web.now()) for n in range(3)]) == 3


def test_a_node_sweeps_soon_when_a_creator_could_not_wake(backend, monkeypatch):
    assert not any(backend.is_sweep_wanted() for _ in range(3))
    with monkeypatch.context() as patched:
        patched.setattr(base, "WAKE_TIMEOUT", 0.0)
        create(3)
    assert not Queue.objects.exists()

    def asked():
        backend.has_news()
        return backend.is_sweep_wanted()

    wait_until(asked)
    assert not asked()
    assert upkeep.sweep(backend, SCOPE, "")[0] == 3


def test_bulk_creators_of_the_same_new_queues_do_not_deadlock():
    together = threading.Barrier(4)
    others = [Elsewhere() for _ in range(4)]

    def work(seed):
        for round_ in range(5):
            names = [f"{round_} {n}" for n in range(50)]
            together.wait(LONG)
            backend_for("default").wake(
                [(SCOPE, name, backend_for("default").now()) for name in names[:: -1 if seed % 2 else 1]]
            )

    try:
        for running in [other.start(work, seed) for seed, other in enumerate(others)]:
            running.result(60)
    finally:
        for other in others:
            other.close()
    assert Queue.objects.filter(due_at__isnull=False).count() >= (1 if connection.vendor == "sqlite" else 250)
