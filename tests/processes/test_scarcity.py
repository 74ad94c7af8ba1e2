"""What a machine that gives no more costs a node: nothing of what it has."""

import subprocess
import sys

import pytest
from django.db import connection

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running, kill
from tests.processes.scarcity import no_more_descriptors, no_more_memory
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]


@pytest.mark.parametrize("refused", [no_more_descriptors, no_more_memory])
def test_a_worker_that_cannot_be_replaced_costs_no_other_worker_its_job(nodes, ledger, refused):
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 0})
    node = nodes.start(LedgerQueue, processes=2, grace=PATIENCE)
    [first] = wait_for_attempts(ledger, 1)
    [idle] = set(node.workers(2)) - {first.pid}

    with refused(node.scheduler):
        kill(idle)
        node.wait_for_log("worker did not start")
        wait_until(lambda: not is_running(idle), PATIENCE)
        other = LedgerQueue.create_job("b", "noop")
        ledger.go()
        wait_for(other, lambda job: job.done_at)  # by the worker that is left

    assert len(node.workers(2)) == 2
    assert errors_of(job) == []
    assert ledger.attempts() == 1
    assert "no database session" not in node.log()
    assert node.log().count("node started") == 1
    assert node.log().count("worker did not start") == 1


@pytest.mark.parametrize("more", [0, 8])
def test_a_node_with_few_descriptors_serves_with_fewer_workers(nodes, more):
    limit = (20 if connection.vendor == "sqlite" else 15) + more
    command = f"ulimit -n {limit}; exec {sys.executable} -m django run_queuetopia --processes 8 {LedgerQueue.scope}"
    node = nodes.run(["sh", "-c", command])
    LedgerQueue.create_job("a", "noop")

    wait_for_all()

    node.wait_for_log("worker did not start")
    assert node.log().count("node started") == 1
    assert node.log().count("worker did not start") <= 2


def test_a_supervisor_that_cannot_start_a_scheduler_tries_again(nodes):
    node = nodes.start(LedgerQueue, processes=1)
    scheduler = node.scheduler

    with no_more_descriptors(node.supervisor):
        kill(scheduler)
        node.wait_for_log("scheduler did not start")
    LedgerQueue.create_job("a", "noop")

    wait_for_all()


@pytest.fixture
def full_folder(tmp_path):
    """A folder on a file system without any space left."""
    folder = tmp_path / "full"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4k", "none", folder]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a file system")
    (folder / "all").write_bytes(bytes(4096))
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_node_serves_while_its_temporary_folder_is_full(nodes, full_folder):
    LedgerQueue.create_job("a", "noop")
    node = nodes.start(LedgerQueue, env={"TMPDIR": str(full_folder)})

    wait_for_all()

    assert node.stop() == 0
    assert "ERROR" not in node.log()
