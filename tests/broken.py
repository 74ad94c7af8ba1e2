"""Databases that cannot be used, for real: away, without our tables, or without rights."""

import copy
import uuid
from contextlib import contextmanager

from django.db import connection, connections
from django.db.utils import load_backend

from queuetopia.backends.trouble import Kind


@contextmanager
def broken_database(kind, folder):
    """Give ``other`` this kind of trouble, on the vendor of the default database."""
    was, config = connections["other"], copy.deepcopy(connection.settings_dict)
    user = f"queuetopia_{uuid.uuid4().hex[:8]}"
    with {"postgresql": _postgresql, "mysql": _mysql, "sqlite": _sqlite}[connection.vendor](kind, config, user, folder):
        broken = connections["other"] = load_backend(config["ENGINE"]).DatabaseWrapper(config, "other")
        try:
            yield "other"
        finally:
            broken.close()
            connections["other"] = was


@contextmanager
def _postgresql(kind, config, user, folder):
    if kind is Kind.UNREACHABLE:
        config |= {"HOST": str(folder), "PORT": "1"}
    elif kind is Kind.NOT_MIGRATED:
        config["OPTIONS"]["options"] = "-c search_path=nowhere"
    else:
        config |= {"USER": user, "PASSWORD": ""}
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE ROLE {user} LOGIN")
    yield
    if kind is Kind.NO_RIGHTS:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP ROLE {user}")


@contextmanager
def _mysql(kind, config, user, folder):
    if kind is Kind.UNREACHABLE:
        config["OPTIONS"]["unix_socket"] = str(folder / "nobody")
    elif kind is Kind.NOT_MIGRATED:
        config["NAME"] = "mysql"
    else:
        config |= {"USER": user, "PASSWORD": ""}
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE USER {user}@localhost")
    yield
    if kind is Kind.NO_RIGHTS:
        with connection.cursor() as cursor:
            cursor.execute(f"DROP USER {user}@localhost")


@contextmanager
def _sqlite(kind, config, user, folder):
    config["NAME"] = str(folder / ("missing/database" if kind is Kind.NO_RIGHTS else "database"))
    if kind is Kind.UNREACHABLE:
        (folder / "database").write_text("no database " * 1_000)
    yield
