"""Real nodes for tests: start them, find their processes, show their logs, and see to it that nothing is left.

Every process of a node, and whatever its performers start, carries a mark of its own in the environment: by that
it is found, whatever its parent is by then.
"""

import contextlib
import os
import signal
import subprocess
import sys
import uuid
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from queuetopia.testing import wait_until
from tests.faults.ledger import Ledger

MARK = "QUEUETOPIA_TEST_NODE"
PATIENCE = 60  # seconds until a test that waits for processes gives up: the machine may be busy


class Node:
    """A running ``run_queuetopia``."""

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.mark = uuid.uuid4().hex
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment, MARK: self.mark},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    # Its processes

    @property
    def supervisor(self) -> int:
        return self._process.pid

    @property
    def scheduler(self) -> int:
        """The pid of the scheduler, awaited if there is none yet."""
        return wait_until(lambda: self._with_role("scheduler"), PATIENCE, message="no scheduler")[0]

    def workers(self, count: int) -> list[int]:
        """The pids of its workers, awaited until there are ``count``."""
        workers = lambda: len(found := self._with_role("worker")) == count and found  # noqa: E731
        return wait_until(workers, PATIENCE, message=f"not {count} workers")

    def processes(self) -> list[psutil.Process]:
        """All that is left of it: no zombies, which are dead and wait for their parent only."""
        return [process for process in psutil.process_iter() if _carries(process, self.mark)]

    def _with_role(self, role):
        return sorted(process.pid for process in self.processes() if _role(process) == role)

    def has_ended(self) -> bool:
        """True when the process that was started has; others of the node may be left."""
        return self._process.poll() is not None

    def is_gone(self) -> bool:
        return self.has_ended() and not self.processes()

    # Its end

    def send(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self._process.send_signal(number)

    def send_all(self, number: int) -> None:
        """Send a signal to every process of the node, as an init system or a frozen host does."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def wait(self, timeout: float = PATIENCE) -> int:
        """Return the exit code once it has ended."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the node still runs after {timeout} s") from None

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop it gracefully; return the exit code."""
        self.send(number)
        return self.wait()

    def put_away(self) -> list[str]:
        """End it whatever state it is in; return what was left of it though its supervisor had ended."""
        self.send_all(signal.SIGCONT)
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        try:
            wait_until(self.is_gone, timeout=5)
        except AssertionError:
            left = [f"{process.pid}: {_command(process)}" for process in self.processes()]
            self.send_all(signal.SIGKILL)
            return left
        return []

    # What it says

    def log(self) -> str:
        return self._log.read_text(errors="backslashreplace")

    def wait_for_log(self, text: str, times: int = 1) -> None:
        wait_until(lambda: self.log().count(text) >= times, PATIENCE, message=f"not logged: {text!r}")


class Nodes:
    """Starts nodes for one test."""

    def __init__(self, environment, folder: Path):
        self.environment = dict(environment)
        self._folder = folder
        self._started: list[Node] = []

    def start(self, *scopes, processes=2, concurrency=1, grace=0, env=None, **options) -> Node:
        """Start a node that serves ``scopes`` (classes; none means all); ``until_empty=True``, ``poll_interval=5`` …"""
        command = [sys.executable, "-m", "django", "run_queuetopia", *(queuetopia.scope for queuetopia in scopes)]
        options = {"processes": processes, "concurrency": concurrency, "grace": grace, **options}
        for name, value in options.items():
            option = f"--{name.replace('_', '-')}"
            command += [option] if value is True else [option, str(value)]
        return self.run(command, env=env)

    def run(self, command: list[str], *, env=None) -> Node:
        """Start any other command that becomes, or starts, a node."""
        log = self._folder / f"node-{len(self._started)}.log"
        self._started.append(Node(command, {**self.environment, **(env or {})}, log))
        return self._started[-1]

    def logs(self) -> str:
        return "\n".join(f"node {number}:\n{node.log()}" for number, node in enumerate(self._started))

    def kill(self) -> None:
        """SIGKILL every process of all nodes, whatever they do."""
        for node in self._started:
            node.send_all(signal.SIGKILL)

    def put_away(self) -> None:
        """End all nodes. Raises AssertionError if one of them left processes behind."""
        left = [left for node in reversed(self._started) for left in node.put_away()]
        assert not left, f"processes left behind: {left}"


@pytest.fixture
def ledger(tmp_path):
    """What the performers of this test's nodes do."""
    return Ledger(tmp_path / "ledger")


@pytest.fixture
def nodes(node_environment, ledger, tmp_path, db):
    """Start nodes on the test databases; they are stopped before the test's rows are deleted."""
    nodes = Nodes({**node_environment, **ledger.environment}, tmp_path)
    yield nodes
    nodes.put_away()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and "nodes" in getattr(item, "funcargs", {}):
        report.sections.append(("Log of the nodes", item.funcargs["nodes"].logs()))
    return report


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _carries(process, mark):
    try:
        return process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _role(process):
    words = _command(process)
    for number, (option, module) in enumerate(pairwise(words)):
        if (option, module) == ("-m", "queuetopia"):  # behind the interpreter's own options
            return words[number + 2]
    return None


def _command(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
