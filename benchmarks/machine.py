"""``python -m benchmarks.machine``: what the figures were measured on, the machine and the database."""

import os
import platform
from pathlib import Path

import django
from django.db import connection


def machine():
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    load = ", ".join(f"{load:.1f}" for load in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({model}), load {load}; Python {platform.python_version()}, "
        f"Django {django.get_version()}"
    )


def database():
    return {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mysql}[connection.vendor]()


def _postgresql():
    import psycopg

    settings = ("fsync", "synchronous_commit", "full_page_writes", "autovacuum", "shared_buffers")
    values = ", ".join(f"{name} {_ask(f'SHOW {name}')}" for name in settings)
    return f"PostgreSQL {_ask('SHOW server_version')}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__}): {values}"


def _sqlite():
    levels = ("off", "normal", "full", "extra")
    mode, level = _ask("PRAGMA journal_mode"), levels[_ask("PRAGMA synchronous")]
    return f"SQLite {_ask('SELECT sqlite_version()')}: journal_mode {mode}, synchronous {level}"


def _mysql():
    flush = _ask("SELECT @@innodb_flush_log_at_trx_commit")
    return f"{_ask('SELECT version()')}: innodb_flush_log_at_trx_commit {flush}"


def _ask(sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


if __name__ == "__main__":
    django.setup()
    print(machine())
    print(database())
