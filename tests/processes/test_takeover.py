"""What a killed scheduler ran runs again, in order; a standby node waits for its turn. More in ``test_deaths``."""

import signal

import pytest
from django.db import connection

from tests.faults.ledger import now
from tests.nodes import kill
from tests.processes.waiting import wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

A_MINUTE = {"QUEUETOPIA_TEST_LEASE": "60"}  # so that a takeover that waits for the lease is not taken for a quick one


def create_in_order(count, queues):
    LedgerQueue.create_jobs(
        [LedgerQueue.job(f"queue-{queue}", "write", {"seq": seq}) for seq in range(count) for queue in range(queues)]
    )


@pytest.mark.capability("E6", "E22", "W7")
def test_after_sigkill_of_the_scheduler_a_hundred_jobs_are_done_in_order(nodes, ledger, record_property):
    create_in_order(20, queues=5)
    LedgerQueue.create_job("long", "hang", {"times": 1})
    node = nodes.start(LedgerQueue, env=A_MINUTE)
    wait_for_attempts(ledger, 1, "long")

    killed_at = now()
    kill(node.scheduler)
    again = wait_for_attempts(ledger, 2, "long")[1]

    takeover = again.clock - killed_at
    record_property("takeover_seconds", takeover)
    print(f"\n{connection.vendor}: a killed scheduler's queue runs again after {takeover:.2f} s")  # noqa: T201
    wait_for_all()
    for queue in range(5):
        ended = [record.number for record in ledger.records("end", f"queue-{queue}")]
        # One whose end was not stored yet when the scheduler died has ended once more.
        assert (ended, set(ended)) == (sorted(ended), set(range(20)))


@pytest.mark.capability("E10", "E32")
def test_a_standby_node_serves_at_once_when_the_first_was_killed(nodes, ledger):
    LedgerQueue.create_job("a", "write", {"seq": 1})
    first = nodes.start(LedgerQueue, processes=1, env=A_MINUTE)
    wait_for_all()
    second = nodes.start(LedgerQueue, processes=1, standby=True, env=A_MINUTE)
    second.wait_for_log("standing by")
    create_in_order(10, queues=5)
    wait_for_all()
    assert len({record.pid for record in ledger.records()}) == 1

    first.send_all(signal.SIGKILL)
    LedgerQueue.create_job("b", "write", {"seq": 2})

    wait_for_all()
