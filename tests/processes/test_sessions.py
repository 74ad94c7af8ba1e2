"""The scheduler's database session ends under it, again and again: nothing is counted, lost, or out of order."""

import resource

import pytest
from django.db import connection

from queuetopia.models import Job
from queuetopia.testing import wait_until
from tests.faults.ledger import check
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def end_sessions():
    """Return a function that ends every session on the test database but the test's own."""
    select = {
        "postgresql": "SELECT pid FROM pg_stat_activity WHERE application_name = 'queuetopia'"
        " AND datname = current_database()",
        "mysql": "SELECT id FROM information_schema.processlist WHERE id <> connection_id() AND db = database()",
    }.get(connection.vendor)
    if select is None:
        pytest.skip("SQLite has no sessions: its locks are the kernel's")
    end = {"postgresql": "SELECT pg_terminate_backend(%s)", "mysql": "KILL %s"}[connection.vendor]

    def end_sessions():
        with connection.cursor() as cursor:
            cursor.execute(select)
            for (session,) in cursor.fetchall():
                cursor.execute(end, [session])

    return end_sessions


@pytest.mark.capability("E16", "E33")
def test_jobs_run_in_order_and_no_two_of_a_queue_at_once_while_sessions_end(nodes, ledger, end_sessions):
    created = {f"queue-{number}": list(range(20)) for number in range(5)}
    LedgerQueue.create_jobs(
        [
            LedgerQueue.job(queue, "fail_at_random", {"seq": seq, "chance": 0, "lasts": 0.02})
            for seq in range(20)
            for queue in created
        ]
    )
    node = nodes.start(LedgerQueue)

    for ended in range(3):
        wait_for_attempts(ledger, ledger.attempts() + 15)
        end_sessions()
        node.wait_for_log("node started", times=ended + 2)
    wait_for_all()

    assert check(ledger.records(), created).wrong == []
    assert set(Job.objects.values_list("attempts", flat=True)) == {1}
    assert not [line for line in node.log().splitlines() if "scheduler error" in line]


@pytest.mark.capability("J3")
def test_a_node_without_work_has_a_new_session_before_there_is_some(nodes, end_sessions):
    node = nodes.start(LedgerQueue, poll_interval=3600)
    node.wait_for_log("node started")

    end_sessions()
    node.wait_for_log("node started", times=2)
    LedgerQueue.create_job("a", "noop")

    wait_until(lambda: not LedgerQueue.jobs().unfinished().exists(), PATIENCE)


def test_descriptors_that_are_used_up_are_not_taken_for_a_lost_database(nodes, end_sessions):
    node = nodes.start(LedgerQueue, processes=1)
    node.wait_for_log("node started")
    before = resource.prlimit(node.scheduler, resource.RLIMIT_NOFILE)
    resource.prlimit(node.scheduler, resource.RLIMIT_NOFILE, (5, before[1]))

    end_sessions()
    node.wait_for_log("the operating system refuses a session")

    assert "Too many open files" in node.log()
    resource.prlimit(node.scheduler, resource.RLIMIT_NOFILE, before)
    LedgerQueue.create_job("a", "noop")
    wait_for_all()
