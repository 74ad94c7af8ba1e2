"""Code that is missing, broken, or back: jobs wait for it untouched, and then run."""

import textwrap
import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from queuetopia import start_node
from queuetopia.models import Job, Node, Queue, Statistic
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, errors_of, wait_for, wait_for_all
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

NEW_QUEUE = """
from tests.testapp.queues import LedgerQueue

class NewQueue(LedgerQueue):
    scope = "tests.new"
"""

NEEDS_A_FILE = """
from tests.testapp.queues import LedgerPerformer

def setup(self):
    open({path!r}).close()

LedgerPerformer.setup = setup
"""


RECEIVERS_THAT_RAISE = """
import logging, sys
from django.core import signals as core
from django.db.backends.signals import connection_created
from django.db.models import signals as models

def audit(sender, **kwargs):
    if {"scheduler", "supervisor"} & set(sys.argv):  # a performer's own queries send signals
        raise RuntimeError(f"a receiver was called for {sender}")

for signal in [models.pre_init, models.post_init, models.pre_save, models.post_save, models.pre_delete,
               models.post_delete, models.m2m_changed, core.request_started, core.request_finished]:
    signal.connect(audit)

def shape(sender, connection, **kwargs):
    if "scheduler" in sys.argv:
        print("shaped", connection.alias, file=sys.stderr, flush=True)
        raise RuntimeError("no such alias")

connection_created.connect(shape)

class Picky(logging.Filter):
    def filter(self, record):
        raise RuntimeError("a filter was called")

logging.getLogger("queuetopia.node.scheduler").addFilter(Picky())
logging.getLogger("queuetopia.node.supervisor").addFilter(Picky())
"""


def test_receivers_and_log_filters_of_the_project_cost_a_node_nothing(nodes, tmp_path):
    long_ago = timezone.now() - timedelta(days=400)
    old = Statistic.objects.create(scope=LedgerQueue.scope, at=long_ago, action="x", node=uuid.uuid4())
    job = LedgerQueue.create_job("a", "noop")
    node = nodes.start(LedgerQueue, env=environment(tmp_path, RECEIVERS_THAT_RAISE))
    wait_for(job, lambda job: job.done_at)
    wait_until(lambda: Statistic.objects.filter(node=Statistic.NOBODY, created__gte=1).exists(), PATIENCE)
    wait_until(lambda: Statistic.objects.filter(done=1).exists(), PATIENCE)
    assert not Statistic.objects.filter(pk=old.pk).exists()

    assert node.stop() == 0

    assert not Node.objects.exists()
    assert "a receiver was called" not in node.log()
    assert "shaped default+queuetopia" in node.log()
    assert "a receiver of connection_created failed alias=default+queuetopia" in node.log()
    assert node.log().count("node started") == 1


@pytest.mark.capability("E30")
def test_a_scope_that_no_code_knows_waits_and_runs_when_the_code_is_back(nodes, tmp_path):
    job = Job.objects.create(scope="tests.new", queue="a", action="noop")
    old = nodes.start()
    wait_for(LedgerQueue.create_job("a", "noop"), lambda job: job.done_at)
    job.refresh_from_db()
    assert (job.state, job.attempts, job.attempted_at) == (Job.State.PENDING, 0, None)
    old.stop()

    nodes.start(env=environment(tmp_path, NEW_QUEUE))

    wait_for(job, lambda job: job.state == Job.State.DONE)


@pytest.mark.capability("E30")
def test_a_scope_that_only_the_scheduler_knows_waits_and_costs_no_attempt(nodes, tmp_path):
    """The code was exchanged under a running node: new workers have the new one."""
    job = Job.objects.create(scope="tests.new", queue="a", action="noop")
    code = "import sys\nif 'worker' not in sys.argv:\n" + textwrap.indent(NEW_QUEUE, "    ")

    node = nodes.start(env=environment(tmp_path, code))
    problem = Queue.objects.exclude(problem="")
    wait_until(problem.exists, PATIENCE, message="no problem told")
    wait_for(LedgerQueue.create_job("a", "noop"), lambda job: job.done_at)

    assert "no scope 'tests.new'" in problem.get().problem
    node.stop()
    job.refresh_from_db()
    assert (job.state, job.attempts, job.errors) == (Job.State.PENDING, 0, [])


@pytest.mark.capability("W5", "J18", "H10")
@pytest.mark.parametrize("slots", [1, 3])
def test_a_job_that_kills_its_worker_before_it_begins_is_counted_and_halts(nodes, tmp_path, slots):
    code = "import os, queuetopia.worker.process as w\nw.is_async = lambda claim: claim.queue == 'bad' and os._exit(9)"
    bad = SlowRetryQueue.create_job("bad", "noop", max_backoff=0)
    nodes.start(SlowRetryQueue, processes=1, concurrency=slots, env=environment(tmp_path, code))

    wait_for(bad, lambda job: job.state == Job.State.HALTED)
    good = SlowRetryQueue.create_job("good", "noop")
    wait_for(good, lambda job: job.done_at)

    assert [error[0] for error in errors_of(bad)] == ["WorkerDied"] * 3
    assert good.attempts == 1


@pytest.mark.capability("Q9", "E30")
@pytest.mark.parametrize("code", [None, "setup", "attempted"])
def test_until_empty_says_that_it_left_jobs_that_this_code_cannot_run(nodes, tmp_path, code):
    if code == "attempted":  # its action was there then
        job = Job.objects.create(scope=LedgerQueue.scope, queue="a", action="gone", attempted_at=timezone.now())
        Queue.objects.create(scope=job.scope, name=job.queue, current_job=job.pk, due_at=job.scheduled_at)
        code = None
    elif code:
        LedgerQueue.create_job("a", "noop")
        code = environment(tmp_path, NEEDS_A_FILE.format(path=str(tmp_path / "missing" / "licence")))
    else:
        Job.objects.create(scope=LedgerQueue.scope, queue="a", action="gone")
    other = LedgerQueue.create_job("b", "noop") if not code else None

    assert nodes.start(LedgerQueue, until_empty=True, env=code).wait() == 1

    assert LedgerQueue.jobs().unfinished().count() == 1
    assert other is None or LedgerQueue.jobs().get(pk=other.pk).done_at


@pytest.mark.capability("H2", "H10")
def test_a_job_whose_setup_fails_runs_when_it_does_not_fail_any_more(nodes, tmp_path):
    path = tmp_path / "licence"
    job = LedgerQueue.create_job("a", "noop")
    nodes.start(LedgerQueue, env=environment(tmp_path, NEEDS_A_FILE.format(path=str(path))))
    problem = Queue.objects.exclude(problem="")
    wait_until(problem.exists, PATIENCE, message="no problem told")
    assert "FileNotFoundError" in problem.get().problem

    path.touch()
    wait_for_all()

    job.refresh_from_db()
    assert (job.attempts, job.errors) == (1, [])
    assert not problem.exists()


@pytest.mark.capability("Q24")
def test_start_node_runs_nothing_while_disabled(nodes, monkeypatch):
    job = LedgerQueue.create_job("a", "noop")
    monkeypatch.setenv("QUEUETOPIA_TEST_ENABLED", "false")

    assert start_node(LedgerQueue).wait(PATIENCE) == 0

    job.refresh_from_db()
    assert job.state == Job.State.PENDING
