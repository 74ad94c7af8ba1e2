"""Rows that the database refuses to write: their queues wait and say why, all others go on, on the same node."""

import sys

import pytest
from django.db import connection

from queuetopia.attempts import REFUSED
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.faults.servers import MariaDB
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for
from tests.refusing import allow_rows, refuse_rows
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

DJANGO = [sys.executable, "-m", "django"]
JOB, QUEUE = Job._meta.db_table, Queue._meta.db_table


@pytest.fixture
def refuse():
    """Have every UPDATE of a table's rows refused where the condition on NEW holds."""
    yield refuse_rows
    allow()


def allow():
    for table in (JOB, QUEUE):
        allow_rows(table)
    allow_rows(JOB, "no_halt")


def wait_for_others(node):
    """Wait until jobs of ten other queues, created now, have run in this very node."""
    scheduler = node.scheduler
    for number in range(10):
        LedgerQueue.create_job(f"good-{number}", "noop")
    good = LedgerQueue.jobs().unfinished().filter(queue__startswith="good")
    wait_until(lambda: not good.exists(), PATIENCE, message="other queues stand still")
    assert node.scheduler == scheduler
    assert "no database session" not in node.log()


def test_a_result_that_a_constraint_refuses_halts_its_job_alone(nodes, refuse):
    refuse(JOB, "NEW.queue = 'bad' AND NEW.state = 'done'")
    bad = LedgerQueue.create_job("bad", "noop")
    node = nodes.start(LedgerQueue)
    wait_for(bad, lambda job: job.state == Job.State.HALTED)
    assert bad.error == f"AttemptEnded: {REFUSED}"
    wait_for_others(node)


def test_a_row_that_takes_no_result_at_all_waits_with_a_problem_until_it_does(nodes, refuse):
    refuse(JOB, "NEW.queue = 'bad'")
    refuse(JOB, "NEW.state = 'halted'", "no_halt")  # stays: a try writes the result, then a halt, and may lie across
    bad = LedgerQueue.create_job("bad", "noop")
    node = nodes.start(LedgerQueue)
    row = Queue.objects.filter(name="bad").exclude(problem="")
    wait_until(row.exists, PATIENCE, message="no problem on the queue")
    assert "not this row" in row.get().problem
    wait_for_others(node)
    allow_rows(JOB)
    wait_for(bad, lambda job: job.state == Job.State.DONE)
    assert node.stop() == 0


def test_a_node_with_a_row_that_takes_no_result_can_be_stopped(nodes, refuse):
    refuse(JOB, "NEW.queue = 'bad'")
    LedgerQueue.create_job("bad", "noop")
    node = nodes.start(LedgerQueue)
    node.wait_for_log("the database refuses a row")
    assert node.stop() == 0


def test_a_queue_that_cannot_be_claimed_is_left_out_until_it_can(nodes, refuse):
    bad = LedgerQueue.create_job("bad", "noop")
    refuse(QUEUE, "NEW.name = 'bad' AND NEW.held_by IS NOT NULL")
    node = nodes.start(LedgerQueue)
    row = Queue.objects.filter(name="bad").exclude(problem="")
    wait_until(row.exists, PATIENCE, message="no problem on the queue")
    wait_for_others(node)
    allow()
    wait_for(bad, lambda job: job.state == Job.State.DONE)


def test_a_queue_whose_row_takes_nothing_costs_no_other_anything(nodes, refuse):
    LedgerQueue.create_job("bad", "noop")
    refuse(QUEUE, "NEW.name = 'bad'")
    node = nodes.start(LedgerQueue)
    node.wait_for_log("the database refuses to start a queue")
    wait_for_others(node)


@pytest.mark.skipif(connection.vendor != "mysql", reason="MySQL's limit")
def test_a_result_larger_than_the_server_takes_halts_its_job_and_the_node_goes_on(nodes):
    """The server ends the session for it."""
    server = MariaDB()  # of its own: the limit is one for all its clients
    env = {"DATABASE_URL": server.url("admin")}

    def create(*job):
        code = f"from tests.testapp.queues import LedgerQueue; LedgerQueue.create_job{job!r}"
        assert nodes.run([*DJANGO, "shell", "-c", code], env=env).wait() == 0

    def wait_for_job(queue, *expected):
        sql = f"SELECT state, error FROM queuetopia.queuetopia_job WHERE queue = '{queue}'"  # noqa: S608
        wait_until(lambda: server._ask(sql) == (expected,), PATIENCE, message=f"{queue} is not {expected}")

    assert nodes.run([*DJANGO, "migrate", "--run-syncdb", "--verbosity=0"], env=env).wait() == 0
    server._ask("SET GLOBAL max_allowed_packet = 16384")
    create("bad", "fail", {"text": "\U0001f4a5" * 1_000})
    nodes.start(LedgerQueue, env=env)
    wait_for_job("bad", "halted", f"AttemptEnded: {REFUSED}")
    create("good", "noop")
    wait_for_job("good", "done", "")
