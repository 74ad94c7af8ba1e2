"""``run_queuetopia --reload``: a node for developers."""

import os
import signal

import pytest

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running
from tests.processes.waiting import wait_for
from tests.testapp.queues import CODE, LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

ANSWERS = """
from queuetopia import action
from tests.testapp.queues import LedgerPerformer
LedgerPerformer.noop = action("noop")(lambda self, job: {answer!r})
"""


@pytest.fixture
def code(tmp_path, nodes):
    """A module of the project, and in the environment of its nodes."""
    path = tmp_path / "changing_code.py"
    path.write_text(ANSWERS.format(answer="old"))
    python_path = os.pathsep.join([str(tmp_path), nodes.environment["PYTHONPATH"]])
    # Compiled code is not looked at anew when its source is as old and as long as before.
    nodes.environment |= {CODE: "changing_code", "PYTHONPATH": python_path, "PYTHONDONTWRITEBYTECODE": "1"}
    return path


def test_changed_code_is_run_by_a_node_started_anew(nodes, code):
    node = nodes.start(LedgerQueue, processes=1, reload=True)
    wait_for(LedgerQueue.create_job("a", "noop"), lambda job: job.result == "old")
    scheduler, (worker,) = node.scheduler, node.workers(1)

    code.write_text(ANSWERS.format(answer="new"))
    os.utime(code, (2**31 - 1, 2**31 - 1))
    wait_until(lambda: not is_running(scheduler) and not is_running(worker), PATIENCE)

    wait_for(LedgerQueue.create_job("a", "noop"), lambda job: job.result == "new")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_ends_all_of_it(nodes, number):
    node = nodes.start(LedgerQueue, processes=1, reload=True)
    wait_for(LedgerQueue.create_job("a", "noop"), lambda job: job.done_at)

    node.send_all(number) if number == signal.SIGINT else node.send(number)  # a terminal sends Ctrl-C to all

    assert node.wait() in (0, -number, 130)
    wait_until(node.is_gone, PATIENCE)
