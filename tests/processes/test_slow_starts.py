"""Workers that take long to start: as many at once as there are CPUs, and longer limits where they are needed."""

import pytest

from queuetopia.node.cpus import usable_cpus
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

SLOW = """
import sys, time
import queuetopia.node.worker_process
queuetopia.node.worker_process.BOOT_DEADLINE = {deadline}
if "worker" in sys.argv:
    with open({path!r}, "ab", buffering=0) as file:
        file.write(b"+")
        time.sleep({seconds})
        file.write(b"-")
"""


def most_at_once(signs):
    """Return how many were between their ``+`` and their ``-`` at once."""
    at_once = [signs[:end].count("+") - signs[:end].count("-") for end in range(len(signs) + 1)]
    return max(at_once)


def test_no_more_workers_start_at_once_than_there_are_cpus(nodes, tmp_path):
    path = tmp_path / "starts"
    code = SLOW.format(deadline=30.0, path=str(path), seconds=0.5)
    LedgerQueue.create_job("a", "noop")
    node = nodes.start(LedgerQueue, processes=12, env=environment(tmp_path, code))

    wait_for_all()
    assert path.read_text().count("+") <= 1 + 2 * usable_cpus()  # the job did not wait for all
    wait_until(lambda: path.read_text().count("-") == 12, PATIENCE, message="not all started")

    assert most_at_once(path.read_text()) <= usable_cpus()
    assert "worker did not start" not in node.log()


def test_workers_that_are_not_ready_in_time_get_more_of_it(nodes, tmp_path):
    code = SLOW.format(deadline=0.5, path=str(tmp_path / "starts"), seconds=2.0)
    LedgerQueue.create_job("a", "noop")
    node = nodes.start(LedgerQueue, processes=2, env=environment(tmp_path, code))

    wait_for_all()

    assert "cause=not ready within 0.5 s" in node.log()
    starts = (tmp_path / "starts").read_text()
    assert starts.count("+") - starts.count("-") <= 6
