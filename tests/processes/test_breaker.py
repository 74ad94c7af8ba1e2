"""A class with a ``breaker`` and real nodes: a provider is down, nodes are killed meanwhile, and it comes back."""

import os
import signal
from pathlib import Path

import pytest

from queuetopia.backends.breakers import at_once
from queuetopia.models import Queue, Scope
from queuetopia.testing import wait_until
from tests.faults.ledger import now
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for_all
from tests.testapp.queues import LedgerQueue, ProviderQueue

pytestmark = [
    pytest.mark.processes,
    pytest.mark.timeout(300),  # three nodes are started, one after the other
    pytest.mark.django_db(transaction=True),
    pytest.mark.capability("X6"),
]

# By hand more: QUEUETOPIA_OUTAGE_QUEUES=2000 QUEUETOPIA_OUTAGE_PROBES=20 and --timeout 320
QUEUES = int(os.environ.get("QUEUETOPIA_OUTAGE_QUEUES", "60"))
PROBES = int(os.environ.get("QUEUETOPIA_OUTAGE_PROBES", "3"))
AN_HOUR = 3600  # so that nothing is found by polling
AFTER = ProviderQueue.breaker.after


@pytest.fixture
def provider(ledger):
    """The file that says that the provider is down."""
    path = Path(f"{ledger.path}.down")
    path.touch()
    return path


def scope():
    return Scope.objects.get(name=ProviderQueue.scope)


def start(nodes):
    node = nodes.start(ProviderQueue, LedgerQueue, processes=2, concurrency=4, poll_interval=AN_HOUR)
    node.wait_for_log("node started")
    return node


def wait_until_open():
    """Wait until what ran when the scope was opened has ended."""
    running = Queue.objects.held().filter(scope=ProviderQueue.scope, has_place=False)
    is_open = lambda: Scope.objects.filter(name=ProviderQueue.scope, ramp=0).exists() and not running.exists()  # noqa: E731
    wait_until(is_open, PATIENCE, message="the breaker did not open")


def wait_for_probes(ledger, since, number):
    begun = lambda: len([each for each in ledger.records("start") if each.clock > since]) >= number  # noqa: E731
    wait_until(begun, PATIENCE, message=f"fewer than {number} probes")


def most_at_once(ledger, since, until, killed):
    """Yield (how many run with this one, how many have succeeded before) for each start between the two times.

    killed: {pid: when it was} of processes whose attempts have no end.
    """
    records = [each for each in ledger.records() if each.clock > since and each.event in ("start", "end", "failed")]
    running, succeeded = {}, 0
    for record in records:
        running = {key: pid for key, pid in running.items() if killed.get(pid, record.clock) >= record.clock}
        if record.event == "start" and record.clock < until:
            running[record.queue, record.fence] = record.pid
            yield len(running), succeeded
        else:
            running.pop((record.queue, record.fence), None)
            succeeded += record.event == "end"


def test_an_outage_costs_no_attempts_and_ends_in_a_ramp_also_when_nodes_are_killed(nodes, ledger, provider):
    jobs = [ProviderQueue.job(f"q{n % QUEUES}", "call", {"seq": n // QUEUES}) for n in range(2 * QUEUES)]
    ProviderQueue.create_jobs(jobs)
    first, second = start(nodes), start(nodes)
    wait_until_open()
    began = now()

    wait_for_probes(ledger, began, PROBES)
    killed = dict.fromkeys((process.pid for process in first.processes()), now())
    first.send_all(signal.SIGKILL)
    wait_for_probes(ledger, now(), PROBES)
    LedgerQueue.create_job("beside them", "write", {"seq": 1})
    wait_for_all(LedgerQueue)
    assert scope().ramp == 0

    came_back = now()
    provider.unlink()
    wait_until(lambda: (scope().ramp or 0) > 4, PATIENCE, message="no ramp")
    third = start(nodes)
    killed |= dict.fromkeys((process.pid for process in second.processes()), now())
    second.send_all(signal.SIGKILL)
    wait_for_all(ProviderQueue)

    counted = [error for job in ProviderQueue.jobs() for error in job.errors if error["counted"]]
    assert len([error for error in counted if error["type"] == "ConnectionError"]) == AFTER
    assert not ProviderQueue.jobs().exclude(state="done").exists()
    assert max(running for running, _ in most_at_once(ledger, began, came_back, killed)) == 1
    ramp = list(most_at_once(ledger, came_back, now(), killed))
    assert all(running <= max(1, at_once(succeeded)) for running, succeeded in ramp)
    assert max(running for running, _ in ramp) > 2
    for name in {job.queue for job in jobs}:
        assert [*dict.fromkeys(record.number for record in ledger.records("end", name))] == [0, 1]
    wait_until(lambda: scope().ramp is None, PATIENCE, message="the breaker did not close")
    opened = sum(node.log().count("breaker open") for node in (first, second, third))
    assert opened == 1


def test_a_probe_whose_worker_is_killed_makes_way_for_another(nodes, ledger, provider):
    ProviderQueue.create_jobs([ProviderQueue.job(f"q{n}", "call", {"seq": 0, "lasts": 0.1}) for n in range(20)])
    node = nodes.start(ProviderQueue, processes=1, poll_interval=AN_HOUR)
    wait_until_open()
    ProviderQueue.create_job("first-in-line", "call", {"seq": 0, "lasts": 3600})
    ProviderQueue.prioritize("first-in-line", AN_HOUR)
    (hanging,) = wait_until(lambda: ledger.records("start", "first-in-line"), PATIENCE)
    os.kill(hanging.pid, signal.SIGKILL)
    provider.unlink()
    wait_until(lambda: ProviderQueue.jobs().filter(state="done").count() == 20, PATIENCE)
    assert node.log().count("breaker open") == 1


def test_a_queue_of_which_only_one_waits_is_probed_and_goes_on(nodes, ledger, provider):
    ProviderQueue.create_jobs([ProviderQueue.job("only", "call", {"seq": seq}) for seq in range(3)])
    Scope.objects.create(name=ProviderQueue.scope, failures=AFTER - 1, failed_at=None)
    Scope.objects.update(failed_at=ProviderQueue.jobs().first().scheduled_at)
    nodes.start(ProviderQueue, processes=1, poll_interval=AN_HOUR)
    wait_until_open()
    wait_for_probes(ledger, now(), 2)
    provider.unlink()
    wait_for_all(ProviderQueue)
    assert scope().ramp is None
    assert [job.attempts for job in ProviderQueue.jobs().order_by("id")] == [2, 1, 1]
