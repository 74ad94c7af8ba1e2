"""What only a vendor's own SQL can do or show. A vendor that is not here: see ``WAITING``."""

import contextlib

import pytest
from django.db import DatabaseError, connection, transaction

ONE_WRITER = {"sqlite"}  # vendors where a second transaction that writes waits for the first

# A row whose second column is above 0 while a statement waits for a row that another transaction has locked.
# A backend for another vendor adds its own statement; without row locks it always answers 1.
WAITING = {
    "postgresql": "SELECT 1, count(*) FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database()",
    # Of the whole server: innodb_trx gives the same answer for ever if it is asked more than ten times a second.
    "mysql": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",
    "sqlite": "SELECT 1, 1",
}


def has_one_writer() -> bool:
    return connection.vendor in ONE_WRITER


def is_waiting() -> bool:
    """True while a statement waits for a row that another transaction has locked; SQLite cannot show it."""
    if connection.vendor not in WAITING:
        raise LookupError(f"queuetopia.backends.contract.vendors.WAITING has no statement for {connection.vendor!r}")
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # in a transaction it would give the first answer for ever
            cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(WAITING[connection.vendor])
        return int(cursor.fetchone()[1]) > 0


def nowhere() -> dict:
    """Return settings of a database that cannot be reached."""
    options = connection.settings_dict["OPTIONS"]
    return {
        "postgresql": {"HOST": "/nowhere"},
        "mysql": {"OPTIONS": {**options, "unix_socket": "/nowhere"}, "HOST": ""},
        "sqlite": {"NAME": "/nowhere/database"},
    }.get(connection.vendor, {"HOST": "nowhere.invalid"})


@contextlib.contextmanager
def serializable_by_default(monkeypatch):
    """Make every new connection isolate its transactions as far as the database can."""
    options, level = connection.settings_dict["OPTIONS"], "serializable"
    name = connection.settings_dict["NAME"]
    if connection.vendor == "postgresql":
        from psycopg import IsolationLevel

        level = IsolationLevel.SERIALIZABLE
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} SET default_transaction_isolation TO serializable")
    monkeypatch.setitem(options, "isolation_level", level)
    yield
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {name} RESET default_transaction_isolation")


@contextlib.contextmanager
def repeatable_read():
    """A transaction of the usual connection that sees one snapshot."""
    level = "TRANSACTION ISOLATION LEVEL"
    with connection.cursor() as cursor, contextlib.ExitStack() as stack:
        if connection.vendor == "mysql":
            cursor.execute(f"SET SESSION {level} REPEATABLE READ")
            stack.callback(cursor.execute, f"SET SESSION {level} READ COMMITTED")
        with transaction.atomic():
            if connection.vendor == "postgresql":
                cursor.execute(f"SET {level} REPEATABLE READ")
            yield


@contextlib.contextmanager
def locked(model, what):
    """Lock the model's table, or all of its rows, in this thread's transaction."""
    table = model._meta.db_table
    if what == "table" and connection.vendor == "mysql":
        with connection.cursor() as cursor:
            cursor.execute(f"LOCK TABLES {table} WRITE")
            yield
            cursor.execute("UNLOCK TABLES")
        return
    with transaction.atomic():
        if what == "table":
            with connection.cursor() as cursor:
                cursor.execute(f"LOCK TABLE {table}")
        else:
            list(model.objects.select_for_update())
        yield


def look_for_deadlocks_after(seconds):
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('deadlock_timeout', %s, false)", [f"{seconds}s"])


def write_corrupt(job, column, text):
    """Write text into a JSON column, past the database's own check where that is possible; else skip the test."""
    off, on = {
        "sqlite": ("PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF"),
        "mysql": ("SET check_constraint_checks = 0", "SET check_constraint_checks = 1"),
        "postgresql": ("SELECT 1", "SELECT 1"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(off)
        try:
            cursor.execute(f"UPDATE queuetopia_job SET {column} = %s WHERE id = %s", [text, job.pk])
        except DatabaseError:
            pytest.skip("this database stores no such thing")
        finally:
            cursor.execute(on)
