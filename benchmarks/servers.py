"""Private servers as the tests start them, but with the durability that servers have by default."""

import os
import tempfile
from unittest.mock import patch

from tests.database import database_url

PRIVATE = ("postgres", "sqlite", "mariadb")


def url_of(database):
    """Return the URL of ``database``: one of PRIVATE, started here and ended with this process, or a URL already."""
    if database not in PRIVATE:
        return database
    if os.path.isdir("/var/tmp"):  # noqa: S108
        tempfile.tempdir = "/var/tmp"  # noqa: S108 - /tmp is memory on many systems: fsync would cost nothing
    with patch.dict(os.environ, QUEUETOPIA_TEST_DB=database):
        os.environ.pop("DATABASE_URL", None)
        url = database_url()
    make_durable = {"postgres": _make_postgres_durable, "mariadb": _make_mariadb_durable}.get(database)
    if make_durable:
        make_durable(url)
    return url


def _make_postgres_durable(url):
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM RESET ALL")
        connection.execute("SELECT pg_reload_conf()")


def _make_mariadb_durable(url):
    import environ
    import MySQLdb

    options = environ.Env.db_url_config(url)["OPTIONS"]
    with MySQLdb.connect(user="root", unix_socket=options["unix_socket"]) as connection:
        connection.query("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
