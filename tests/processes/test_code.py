"""Code that is missing, broken, or back: jobs wait for it untouched, and then run."""

import os

import pytest

from queuetopia import start_node
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for, wait_for_all
from tests.testapp.queues import CODE, LedgerQueue

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


def environment(folder, code):
    """Return the environment of a node whose project has this code too."""
    (folder / "more_code.py").write_text(code)
    return {CODE: "more_code", "PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])}


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
