"""A move of many jobs that is killed in the middle: nothing is lost or overtakes, and the same command goes on."""

import subprocess
import sys

import pytest

from queuetopia.models import JobEvent, Queue
from queuetopia.testing import wait_until
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

JOBS = 3_000


def start_move(nodes, log):
    words = ["queuetopia", "move", "--scope", LedgerQueue.scope, "--queue", "a", "--to", "b", "--by", "ann"]
    with log.open("ab") as output:
        command = [sys.executable, "-m", "django", *words]
        return subprocess.Popen(command, env=nodes.environment, stdout=output, stderr=output)


@pytest.mark.capability("X5")
def test_a_move_that_is_killed_is_gone_on_with_by_the_same_command(nodes, ledger, tmp_path):
    jobs = LedgerQueue.create_jobs([LedgerQueue.job("a", "noop") for _ in range(JOBS)])
    log = tmp_path / "move"
    first = start_move(nodes, log)
    moved = LedgerQueue.jobs().filter(queue="b")
    wait_until(lambda: moved.exists() or first.poll() is not None, timeout=60)
    first.kill()
    first.wait()
    number = moved.count()
    assert 0 < number < JOBS, log.read_text()
    assert [line.name for line in Queue.objects.paused()] == ["a"]
    assert JobEvent.objects.filter(verb="move").count() == number
    assert start_move(nodes, log).wait(120) == 0, log.read_text()
    assert list(moved.in_order().values_list("pk", flat=True)) == [job.pk for job in jobs]
    assert JobEvent.objects.filter(verb="move", by="ann").count() == JOBS
    assert not Queue.objects.paused().exists()
