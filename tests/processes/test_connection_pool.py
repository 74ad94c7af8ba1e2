"""``OPTIONS["pool"]``: whatever jobs do to their connections, the pool has as many for the next ones."""

import pytest
from django.db import connection

from tests.processes.waiting import environment, errors_of, wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="the pool is psycopg's"),
]

SETTINGS = """
from tests.settings import *

DATABASES["default"].setdefault("OPTIONS", {})["pool"] = {"min_size": 1, "max_size": 2, "timeout": 5}
"""

CODE = """
from asgiref.sync import sync_to_async
from django.db import connection, transaction
from queuetopia import action
from tests.testapp.models import Note
from tests.testapp.queues import LedgerPerformer

cursors = []

def execute(sql):
    try:
        connection.cursor().execute(sql)
    except Exception:
        pass

def leave(self, job, value):
    if job.attempts > 1:
        return
    if "transaction" in value:
        transaction.atomic().__enter__()
    if "autocommit" in value:
        connection.set_autocommit(False)
    Note.objects.create(text="lost")
    if "failed" in value:
        execute("SELECT 1/0")
    if "killed" in value:
        execute("SELECT pg_terminate_backend(pg_backend_pid())")
    if "closed" in value:
        connection.close()
    if "closed below" in value:
        connection.ensure_connection()
        connection.connection.close()
    if "cursor" in value:
        rows = Note.objects.iterator()
        next(rows)
        cursors.append((rows, connection.cursor()))

async def leave_async(self, job, seq):
    await sync_to_async(leave)(self, job, seq)

LedgerPerformer.give_answer = action("answer")(leave)
LedgerPerformer.sleep_async = action("sleep_async")(leave_async)
"""

FAILURES = ("transaction", "transaction, failed", "transaction, killed", "autocommit off", "autocommit off, failed")
HARMLESS = ("nothing", "closed", "closed below Django", "killed", "failed", "open cursor")


@pytest.mark.parametrize(("action", "param"), [("answer", "value"), ("sleep_async", "seq")])
def test_what_jobs_leave_costs_the_pool_no_connection(nodes, tmp_path, action, param):
    (tmp_path / "pool_settings.py").write_text(SETTINGS)
    env = environment(tmp_path, CODE)
    jobs = {
        (left, number): LedgerQueue.create_job(f"{left} {number}", action, {param: left})
        for number in range(10)
        for left in (*FAILURES, *HARMLESS)
    }

    nodes.start(LedgerQueue, processes=1, env={**env, "DJANGO_SETTINGS_MODULE": "pool_settings"})
    wait_for_all()

    for (left, _), job in jobs.items():
        assert (left, [type_ for type_, *_ in errors_of(job)]) == (left, ["OpenTransaction"] * (left in FAILURES))
