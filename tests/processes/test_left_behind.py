"""What a performer starts holds nothing of its worker's and does not outlive it; what a worker's clean end includes."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, is_running, kill
from tests.processes.waiting import environment, wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def start_program(nodes, folder, how, *, values=(None,), processes=1, timeout=None):
    """Start a node whose performer starts a program; return the node and the program's pid."""
    code = (
        "import os, subprocess\n"
        "from tests.testapp.queues import LedgerPerformer, pause\n"
        "from queuetopia import action\n"
        "def run(self, job, value=None):\n"
        f"    path = {str(folder / 'program')!r}\n"
        f"    if not os.path.exists(path):\n        {how}\n        pause()\n"
        "LedgerPerformer.give_answer = action('answer')(run)\n"
    )
    for number, value in enumerate(values):
        LedgerQueue.create_job(f"queue-{number}", "answer", {"value": value}, timeout=timeout)
    node = nodes.start(LedgerQueue, processes=processes, env=environment(folder, code))
    path = folder / "program"
    wait_until(lambda: path.exists() and path.read_text().strip(), PATIENCE, message="no program")
    return node, int(path.read_text())


def test_a_program_started_by_a_shell_holds_no_lock_of_its_node(nodes, tmp_path):
    _, pid = start_program(nodes, tmp_path, "os.system(f'sleep 3600 & echo $! > {path}')")

    held = [str(file.readlink()) for file in Path(f"/proc/{pid}/fd").iterdir() if int(file.name) > 2]

    assert held == []


STARTS = {
    "with an empty environment": "start(['sleep', '3600'], env={})",
    "in a session of its own": "start(['sleep', '3600'], env={}, start_new_session=True)",
    "as a daemon": "subprocess.run(['sh', '-c', f'setsid sleep 3600 & echo $! > {path}'], env={'PATH': os.defpath})",
}
ENDS = {
    "its worker is killed": lambda node: kill(node.workers(1)[0]),
    "its scheduler is killed": lambda node: kill(node.scheduler),
    "its job is cancelled": lambda node: LedgerQueue.cancel(LedgerQueue.jobs().get()),
    "its job outlives its timeout": lambda node: None,
    "its node stops": lambda node: node.stop(),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("start", STARTS)
def test_a_program_dies_with_what_started_it_wherever_it_went(nodes, tmp_path, start, end):
    how = f"start = lambda *a, **k: open(path, 'w').write(str(subprocess.Popen(*a, **k).pid)); {STARTS[start]}"
    node, pid = start_program(nodes, tmp_path, how, timeout=3 if "timeout" in end else None)
    try:
        ENDS[end](node)
        wait_until(lambda: not is_running(pid), PATIENCE, message="the program still runs")
    finally:
        if is_running(pid):
            kill(pid)


def test_the_end_of_a_worker_costs_no_other_workers_programs(nodes, tmp_path):
    how = (
        "value == 2 and subprocess.run(['sh', '-c', 'setsid sleep 3600 & echo $! > ' + path], env={'PATH': os.defpath})"
    )
    node, pid = start_program(nodes, tmp_path, how, values=[1, 2], processes=2)
    ours = psutil.Process(pid).parent().pid  # the worker, as it is the parent of its orphans
    try:
        [other] = set(node.workers(2)) - {ours}
        kill(other)
        node.wait_for_log("worker died")
        node.workers(2)
        assert is_running(pid)
    finally:
        kill(pid)


def test_a_worker_keeps_few_dead_orphans():
    code = (
        "import os, psutil, subprocess, time\n"
        "from queuetopia.processes import adopt_orphans, reap_orphans\n"
        "adopt_orphans()\n"
        "own = subprocess.Popen(['false'])\n"
        "for _ in range(9):\n    subprocess.run(['sh', '-c', 'true &'])\n"
        "dead = lambda: [c for c in psutil.Process().children() if c.status() == 'zombie']\n"
        "while len(dead()) < 10:\n    time.sleep(0.01)\n"
        "reap_orphans(10)\n"
        "assert own.wait() == 1\n"
        "reap_orphans(5)\n"
        "print(len(dead()))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).stdout == b"5\n"


def test_a_worker_calls_what_is_registered_with_atexit_for_a_bounded_time_and_needs_no_stdout(nodes, tmp_path):
    flushed = tmp_path / "flushed"
    code = (
        "import atexit, pathlib, sys, time\n"
        "if 'worker' in sys.argv:\n"
        "    sys.stdout = None\n"
        "    atexit.register(time.sleep, 3600)\n"
        f"    atexit.register(pathlib.Path({str(flushed)!r}).touch)\n"
    )
    LedgerQueue.create_job("a", "noop")
    node = nodes.start(LedgerQueue, processes=1, grace=PATIENCE, env=environment(tmp_path, code))
    wait_for_all()

    assert node.stop() == 0

    assert flushed.exists()
    assert "worker died" not in node.log()
