"""Limits of a class in the whole cluster: ``max_running``, ``rate``, ``spacing``, a snooze; and its ``priority``."""

import signal
from itertools import pairwise

import pytest

from queuetopia.models import Scope
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import settings, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue, PulseQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

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


@pytest.mark.capability("E2", "J2")
def test_of_all_nodes_together_no_more_run_than_may_and_as_many_as_may(nodes, ledger, limited):
    jobs = [LedgerQueue.job(f"q{n % 20}", "write", {"seq": n // 20, "lasts": 0.03}) for n in range(100)]
    LedgerQueue.create_jobs(jobs)
    SlowRetryQueue.create_job("unlimited, beside them", "noop")
    for _ in range(3):
        nodes.start(LedgerQueue, SlowRetryQueue, processes=3, poll_interval=AN_HOUR, env=limited)

    wait_for_all()
    wait_for_all(SlowRetryQueue)

    assert max(at_once(ledger)) == MOST


@pytest.mark.capability("E2", "J2")
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


def test_no_span_has_more_starts_than_the_rate_lets(nodes, ledger, tmp_path):
    number, seconds = 6, 4
    paced = settings(tmp_path, nodes, SCOPES={LedgerQueue.scope: {"rate": (number, seconds)}})
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{n % 7}", "write", {"seq": n // 7}) for n in range(14)])
    PulseQueue.create_job("beside them", "noop")
    for _ in range(2):
        nodes.start(LedgerQueue, PulseQueue, processes=3, poll_interval=AN_HOUR, env=paced)

    wait_for_all(PulseQueue)
    assert LedgerQueue.jobs().unfinished().exists()
    wait_for_all()

    starts = [record.clock for record in ledger.records("start")]
    # What holds exactly holds for claims, as the contract's tests show: under load a job may begin long after its own.
    assert all(later - first > seconds / 2 for first, later in zip(starts, starts[number:], strict=False))


def test_starts_in_one_queue_are_as_far_apart_as_its_spacing(nodes, ledger, tmp_path):
    spaced = settings(tmp_path, nodes, SCOPES={LedgerQueue.scope: {"spacing": 2}})
    for seq in range(3):
        LedgerQueue.create_jobs([LedgerQueue.job(name, "write", {"seq": seq}) for name in ("a", "b")])
    nodes.start(LedgerQueue, poll_interval=AN_HOUR, env=spaced)

    wait_for_all()

    for name in ("a", "b"):
        starts = [record.clock for record in ledger.records("start", name)]
        assert all(later - first > 1 for first, later in pairwise(starts))  # each may begin a little after its claim


def test_a_snooze_of_the_scope_holds_all_its_queues_on_all_nodes_and_uses_no_attempt(nodes, ledger):
    for node in [nodes.start(LedgerQueue, PulseQueue, poll_interval=AN_HOUR) for _ in range(2)]:
        node.wait_for_log("node started")
    job = LedgerQueue.create_job("a", "snooze_once", {"delay": 8, "scope": True})
    (first,) = wait_for_attempts(ledger, 1)
    wait_until(Scope.objects.exclude(snoozed_until=None).exists, PATIENCE)
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{number}", "write", {"seq": 1}) for number in range(5)])
    PulseQueue.create_job("beside them", "noop")

    wait_for_all(PulseQueue)
    assert LedgerQueue.jobs().unfinished().count() == 6
    wait_for_all()

    assert min(record.clock for record in ledger.records("start")) - first.clock > 7
    job.refresh_from_db()
    assert (job.state, job.attempts) == ("done", 1)


@pytest.mark.capability("J2", "H24")
def test_a_scope_of_a_higher_priority_is_served_first(nodes, ledger, tmp_path):
    first = settings(tmp_path, nodes, SCOPES={PulseQueue.scope: {"priority": 5}})
    LedgerQueue.create_jobs([LedgerQueue.job(f"low-{number}", "write", {"seq": 1}) for number in range(40)])
    PulseQueue.create_jobs([PulseQueue.job(f"high-{number}", "write", {"seq": 1}) for number in range(40)])
    nodes.start(LedgerQueue, PulseQueue, processes=1, env=first)

    wait_for_all()
    wait_for_all(PulseQueue)

    order = [record.queue.partition("-")[0] for record in ledger.records("start")]
    assert order[:15] == ["high"] * 15
    assert order[-15:] == ["low"] * 15
