"""Independent jobs, ``ordered = False``, in real nodes: side by side under one name, and over a SIGKILL."""

import signal
from collections import Counter

import pytest
from django.conf import settings as project

from queuetopia.jobs import prune
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import settings as node_settings
from tests.processes.waiting import wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True), pytest.mark.capability("X12")]

AN_HOUR = 3600  # so that nothing is found by polling
MOST = 3


@pytest.fixture
def independent(nodes, tmp_path, settings):
    """Make the class's jobs independent, in nodes and here; return the environment of such a node."""

    def declare(**options):
        scopes = {LedgerQueue.scope: {"ordered": False, **options}}
        settings.QUEUETOPIA = {**project.QUEUETOPIA, "SCOPES": scopes}
        return node_settings(tmp_path, nodes, SCOPES=scopes)

    return declare


def create(count, action="write_when_told", **params):
    return LedgerQueue.create_jobs([LedgerQueue.job("pictures", action, {"seq": n, **params}) for n in range(count)])


def test_jobs_of_one_name_run_side_by_side_on_all_workers_of_all_nodes(nodes, ledger, independent):
    env = independent()
    for _ in range(2):
        nodes.start(LedgerQueue, processes=3, poll_interval=AN_HOUR, env=env).wait_for_log("node started")

    jobs = create(6)

    wait_for_attempts(ledger, 6)
    assert not ledger.records("end")
    ledger.go()
    wait_for_all()
    assert Counter(LedgerQueue.jobs().values_list("attempts", flat=True)) == {1: 6}
    assert {job.queue for job in LedgerQueue.jobs()} == {"pictures"}
    wait_until(lambda: not Queue.objects.held().exists(), PATIENCE)
    assert prune(LedgerQueue, older_than=0) == len(jobs)
    assert not Queue.objects.filter(scope=LedgerQueue.scope).exists()


def test_a_failing_one_delays_no_other_and_is_tried_again_alone(nodes, ledger, independent):
    env = independent(max_backoff=AN_HOUR, backoff_base=AN_HOUR)
    failing = LedgerQueue.create_job("pictures", "fail")
    create(20, "write")

    nodes.start(LedgerQueue, processes=2, poll_interval=AN_HOUR, env=env)

    others = LedgerQueue.jobs().unfinished().exclude(pk=failing.pk)
    wait_until(lambda: not others.exists(), PATIENCE)
    wait_for(failing, Job.is_backing_off)
    assert (failing.state, failing.attempts) == ("pending", 1)


def test_what_a_killed_node_ran_another_one_finishes_and_each_job_ends_once(nodes, ledger, independent):
    env = independent()
    create(6)
    first = nodes.start(LedgerQueue, processes=3, env=env)
    wait_for_attempts(ledger, 3)
    nodes.start(LedgerQueue, processes=6, env=env).wait_for_log("node started")
    wait_for_attempts(ledger, 6)

    first.send_all(signal.SIGKILL)

    wait_for_attempts(ledger, 9)
    ledger.go()
    wait_for_all()
    assert sorted(record.number for record in ledger.records("end")) == [0, 1, 2, 3, 4, 5]
    assert Counter(LedgerQueue.jobs().values_list("attempts", flat=True)) == {1: 3, 2: 3}


@pytest.mark.capability("E2")
def test_no_more_of_them_run_than_max_running_on_all_nodes_together(nodes, ledger, independent):
    env = independent(max_running=MOST)
    create(20)
    for _ in range(2):
        nodes.start(LedgerQueue, processes=3, poll_interval=AN_HOUR, env=env).wait_for_log("node started")

    wait_for_attempts(ledger, MOST)
    ledger.go()
    wait_for_all()

    running, most = 0, 0
    for record in ledger.records():
        running += 1 if record.event == "start" else -1
        most = max(most, running)
    assert most == MOST
    assert len(ledger.records("end")) == 20
