"""What the settings of each kind of database get wrong; ``queuetopia.checks`` makes system checks of it.

A trouble is (id, what is wrong, remedy). Nothing here connects.
"""

PGBOUNCER_PORT = "6432"
SQLITE_OPTIONS = (
    '"OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, '
    '"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;"}'
)


def troubles(connection, *, has_lock_database):
    """Yield the troubles of one connection; ``has_lock_database``: another one holds its locks."""
    if connection.vendor == "postgresql":
        yield from _driver_troubles()
        if not has_lock_database:
            yield from _pooler_troubles(connection)
    elif connection.vendor == "sqlite":
        yield from _sqlite_troubles(connection)


def _driver_troubles():
    from django.db.backends.postgresql import psycopg_any

    if not psycopg_any.is_psycopg3:
        yield "E013", "is served by psycopg2", 'Install psycopg 3: pip install "queuetopia[postgres]".'


def _pooler_troubles(connection):
    signs = {
        f"PORT {PGBOUNCER_PORT}": str(connection.settings_dict["PORT"]) == PGBOUNCER_PORT,
        "DISABLE_SERVER_SIDE_CURSORS": connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"),
    }
    if seen := [sign for sign, is_seen in signs.items() if is_seen]:
        hint = (
            "If it pools by transaction: add an alias to DATABASES that goes past it, and name that alias in "
            f"QUEUETOPIA = {{'LOCK_DATABASE': {{{connection.alias!r}: …}}}}."
        )
        yield "W006", f"looks like PgBouncer ({', '.join(seen)}), which may not hold locks", hint


def _sqlite_troubles(connection):
    name, options = str(connection.settings_dict["NAME"]), connection.settings_dict["OPTIONS"]
    mode = options.get("transaction_mode") if isinstance(options, dict) else None
    where = f"DATABASES[{connection.alias!r}]"
    if connection.is_in_memory_db():
        if not name.startswith("file:memorydb_"):  # Django's own name for a test database
            yield "W004", "is in memory, where no other process sees it", f"Set {where}['NAME'] to a file."
    elif str(mode).upper() not in ("IMMEDIATE", "EXCLUSIVE"):
        yield "W005", 'lets writes fail with "database is locked"', f"Write in {where}: {SQLITE_OPTIONS}."
