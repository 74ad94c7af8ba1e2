"""Schedules with real nodes: each due time gets exactly one job, at its time, whichever node is alive."""

import random
import signal
from datetime import timedelta
from types import SimpleNamespace

import pytest

from queuetopia.models import Job, Schedule
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import environment

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.capability("X10"),
    pytest.mark.timeout(300),  # eight nodes are started, one after the other as others are killed
]

AN_HOUR = 3600  # so that nothing is found by polling
TICKS = SimpleNamespace(scope="tests.ticks")
CODE = """
from queuetopia import Every
from tests.testapp.queues import LedgerQueue

class TickQueue(LedgerQueue):
    scope = "tests.ticks"
    schedules = [
        Every(name, seconds=1, queue=name, action="noop", missed="all", pile_up=True) for name in ("a", "b", "c")
    ]
"""


def done(queue="a"):
    return Job.objects.filter(scope=TICKS.scope, queue=queue, state=Job.State.DONE).count()


def wait_for_done(number):
    wait_until(lambda: done() >= number, 2 * PATIENCE, message=f"fewer than {number} jobs done")


def test_a_lone_node_wakes_at_the_due_times(nodes, tmp_path):
    nodes.start(TICKS, processes=1, poll_interval=AN_HOUR, env=environment(tmp_path, CODE))
    wait_for_done(3)


def test_of_four_nodes_that_are_killed_and_started_each_due_time_gets_exactly_one_job(nodes, tmp_path):
    env = environment(tmp_path, CODE)
    running = [nodes.start(TICKS, processes=1, poll_interval=AN_HOUR, env=env) for _ in range(4)]
    wait_for_done(1)

    for _ in range(4):
        running.pop(random.randrange(len(running))).send_all(signal.SIGKILL)
        seen = Job.objects.filter(scope=TICKS.scope).count()
        wait_until(lambda seen=seen: Job.objects.filter(scope=TICKS.scope).count() > seen, 2 * PATIENCE)
        running.append(nodes.start(TICKS, processes=1, poll_interval=AN_HOUR, env=env))
    for node in running[:-1]:
        node.send_all(signal.SIGKILL)
    wait_for_done(done() + 2)
    running[-1].stop()

    for row in Schedule.objects.filter(scope=TICKS.scope):
        jobs = Job.objects.filter(scope=TICKS.scope, queue=row.name).in_order()
        times = list(jobs.values_list("scheduled_at", flat=True))
        assert times == [times[0] + timedelta(seconds=n) for n in range(len(times))]
        assert (row.created, row.missed, row.last_due_at) == (len(times), 0, times[-1])
    assert Schedule.objects.count() == 3
