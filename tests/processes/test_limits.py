"""``max_running``: so many jobs of a class run at once in the whole cluster, and no more."""

import signal

import pytest

from tests.processes.waiting import settings, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True), pytest.mark.capability("E2", "J2")]

MOST = 3
AN_HOUR = 3600  # so that nothing is found by polling


@pytest.fixture
def limited(nodes, tmp_path):
    return settings(tmp_path, nodes, SCOPES={LedgerQueue.scope: {"max_running": MOST}})


def at_once(ledger):
    """The number of jobs that ran, after each start and each end that the ledger has."""
    running, numbers = set(), []
    for record in ledger.records():
        job = record.queue, record.number
        running = running | {job} if record.event == "start" else running - {job}
        numbers.append(len(running))
    return numbers


def test_of_all_nodes_together_no_more_run_than_may_and_as_many_as_may(nodes, ledger, limited):
    jobs = [LedgerQueue.job(f"q{n % 20}", "write", {"seq": n // 20, "lasts": 0.03}) for n in range(100)]
    LedgerQueue.create_jobs(jobs)
    SlowRetryQueue.create_job("unlimited, beside them", "noop")
    for _ in range(3):
        nodes.start(LedgerQueue, SlowRetryQueue, processes=3, poll_interval=AN_HOUR, env=limited)

    wait_for_all()
    wait_for_all(SlowRetryQueue)

    assert max(at_once(ledger)) == MOST


def test_the_places_of_a_killed_node_are_free_after_it_is_taken_over(nodes, ledger, limited):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{number}", "write_when_told", {"seq": 1}) for number in range(6)])
    first = nodes.start(LedgerQueue, processes=MOST, env=limited)
    wait_for_attempts(ledger, MOST)
    nodes.start(LedgerQueue, processes=6, env=limited).wait_for_log("node started")

    first.send_all(signal.SIGKILL)

    wait_for_attempts(ledger, 2 * MOST)
    ledger.go()
    wait_for_all()
    assert len(ledger.records("end")) == 6
