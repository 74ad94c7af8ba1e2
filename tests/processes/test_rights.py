"""Nodes, web processes and monitors whose database users may do what the page about rights grants, and nothing else."""

import copy
import os
import re
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection, connections
from django.db.utils import load_backend

from queuetopia.models import Chore, Job, JobEvent, Node, Statistic
from queuetopia.testing import wait_until
from tests.admin.client import client_of
from tests.commands import check, run
from tests.nodes import PATIENCE
from tests.processes.waiting import settings, wait_for
from tests.testapp.models import Note
from tests.testapp.queues import BookingQueue, LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "rights.md").read_text()
HEADINGS = {"postgresql": "## PostgreSQL", "mysql": "## MariaDB"}
GRANT_ALL = {"postgresql": 'GRANT ALL ON "{table}" TO {user}', "mysql": "GRANT ALL ON `{table}` TO {user}"}


@pytest.fixture
def users(node_environment):
    """Create a user for each role of the page, with names of this test's own; return {role: name}."""
    if connection.vendor not in HEADINGS:
        pytest.skip("has no users")
    is_postgresql = connection.vendor == "postgresql"
    kind, option = ("ROLE", " LOGIN") if is_postgresql else ("USER", "")
    block = PAGE[PAGE.index(HEADINGS[connection.vendor]) :].split("```sql\n")[1].split("```")[0]
    grants = re.findall(r"(GRANT .*) TO (\w+);", block)
    names = {role: f"{role}_{uuid.uuid4().hex[:8]}" for _, role in grants}
    database = connection.settings_dict["NAME"]
    with connection.cursor() as cursor:
        for name in names.values():
            cursor.execute(f"CREATE {kind} {name}{option}")
        for rights, role in grants:
            cursor.execute(f"{rights.replace('shop.', f'`{database}`.')} TO {names[role]}")
    yield names
    with connection.cursor() as cursor:
        for name in names.values():
            if is_postgresql:
                cursor.execute(f"DROP OWNED BY {name}")
            cursor.execute(f"DROP {kind} {name}")


@contextmanager
def connected_as(user):
    """Have this process use the default database as another user."""
    was, config = connections["default"], copy.deepcopy(connection.settings_dict)
    other = load_backend(config["ENGINE"]).DatabaseWrapper({**config, "USER": user, "PASSWORD": ""}, "default")
    connections["default"] = other
    try:
        yield
    finally:
        other.close()
        connections["default"] = was


def started_as(user):
    """Return what makes a node connect as another user."""
    return {"DATABASE_URL": re.sub("//[^/]*@", f"//{user}@", os.environ["DATABASE_URL"])}


def test_a_node_needs_no_more(nodes, users):
    jobs = [LedgerQueue.create_job("a", "noop"), LedgerQueue.create_job("b", "fail", max_attempts=1)]
    node = nodes.start(LedgerQueue, env=started_as(users["queuetopia_node"]))
    wait_for(jobs[0], lambda job: job.done_at)
    wait_for(jobs[1], lambda job: job.state == Job.State.HALTED)
    wait_until(Statistic.objects.filter(done=1).exists, PATIENCE)
    wait_until(Chore.objects.exclude(done_at=None).exists, PATIENCE)

    assert node.stop() == 0

    assert not Node.objects.exists()
    assert not re.search("denied|rights", node.log())


def test_limits_and_blocks_that_are_done_once_need_no_more(nodes, users, tmp_path):
    with connection.cursor() as cursor:  # what the performer writes
        cursor.execute(GRANT_ALL[connection.vendor].format(table=Note._meta.db_table, user=users["queuetopia_node"]))
        if connection.vendor == "postgresql":
            cursor.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {users['queuetopia_node']}")
    jobs = [
        BookingQueue.create_job("a", "book"),
        BookingQueue.create_job("b", "book_elsewhere", {"using": "default"}),
    ]
    limited = settings(tmp_path, nodes, SCOPES={BookingQueue.scope: {"max_running": 1}})
    node = nodes.start(BookingQueue, env={**started_as(users["queuetopia_node"]), **limited})
    for job in jobs:
        wait_for(job, lambda job: job.done_at)
    assert Note.objects.count() == 2
    assert not re.search("denied|rights", node.log())


def test_web_processes_need_no_more(users):
    with connection.cursor() as cursor:
        for table in connection.introspection.table_names(cursor):
            if not table.startswith("queuetopia_"):  # Django's own
                cursor.execute(GRANT_ALL[connection.vendor].format(table=table, user=users["queuetopia_web"]))
        if connection.vendor == "postgresql":
            cursor.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {users['queuetopia_web']}")
    with connected_as(users["queuetopia_web"]):
        scope = LedgerQueue.scope
        first, second = [LedgerQueue.create_job("a", "noop") for _ in range(2)]
        for verb in (
            ("move-to-end", first.pk), ("cancel", first.pk), ("pause", scope), ("pause", scope, "a"), ("resume", scope),
            ("mark-done", second.pk), ("status",), ("explain", scope, "a"), ("statistics",),
            ("prune", "--older-than", "0"),
        ):  # fmt: skip
            assert run(*verb)[1] is None, verb
        third = LedgerQueue.create_job("b", "noop")
        boss = client_of(username="boss", is_superuser=True)
        for place in ("scope/", "queue/", "job/", f"job/{third.pk}/change/"):
            assert boss.get(f"/admin/queuetopia/{place}").status_code == 200
        boss.post(f"/admin/queuetopia/job/{third.pk}/cancel/", {"confirmed": "yes"})
        boss.post(f"/admin/queuetopia/job/{third.pk}/delete/", {"confirmed": "yes"})
    assert not Job.objects.exists()


def test_monitors_need_no_more_and_change_nothing(users):
    job = LedgerQueue.create_job("a", "noop")
    with connected_as(users["queuetopia_monitor"]):
        assert check(LedgerQueue.scope) == (
            1,
            ["tests.ledger: there are unfinished jobs, and no live node serves them"],
        )
        for verb in (("status",), ("explain", LedgerQueue.scope, "a"), ("statistics",)):
            assert run(*verb)[1] is None
        assert "Rights are missing in the database: " in run("cancel", job.pk)[1]
    assert not JobEvent.objects.exists()


def test_a_node_without_rights_says_so_and_serves_once_it_has_them(nodes, users):
    user = users["queuetopia_monitor"]
    job = LedgerQueue.create_job("a", "noop")
    with connection.cursor() as cursor:
        cursor.execute(f"GRANT SELECT ON django_migrations TO {user}")
    node = nodes.start(LedgerQueue, env=started_as(user))
    node.wait_for_log("the database user lacks rights")
    assert "no database session" not in node.log()
    with connection.cursor() as cursor:
        for table in ("job", "queue", "node", "statistic", "chore", "jobevent"):
            cursor.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON queuetopia_{table} TO {user}")
    wait_for(job, lambda job: job.done_at)
