"""Parent and child processes: nothing outlives its parent, nothing a worker started outlives the worker."""

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys

MARK = "QUEUETOPIA_WORKER"  # environment variable by which a worker's descendants are known, wherever they moved
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def start_child(
    role: str, options: dict, *, descriptors=(), session=False, mark: str | None = None
) -> subprocess.Popen:
    """Start ``python -m queuetopia <role>`` as a new program: no connection, thread or lock of ours is in it.

    Call it from the main thread: the kernel's death signal follows the thread that started the child.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if mark:
        environment[MARK] = mark
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, "-m", "queuetopia", role, json.dumps({**options, "parent": os.getpid()})],
        env=environment,
        pass_fds=descriptors,
        start_new_session=session,
        stdin=subprocess.DEVNULL,
    )


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies (Linux). First thing a child does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the line above


def adopt_orphans() -> None:
    """Become the parent of all descendants whose own parent dies (Linux), so that they can be found and killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_marked(mark: str) -> int:
    """SIGKILL every process whose worker's mark, in its environment, has ``mark`` in it; return how many were found.

    Finds what left the worker's process group and session too (a double fork with setsid). Linux only.
    """
    killed: set[int] = set()
    while found := _marked(mark) - killed:  # again, because one of them may have started another meanwhile
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        killed |= found
    return len(killed)


def _marked(mark):
    name, wanted = f"{MARK}=".encode(), mark.encode()
    found = set()
    for pid in _pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if any(line.startswith(name) and wanted in line for line in file.read().split(b"\0")):
                found.add(pid)
    return found


def kill_descendants() -> None:
    """SIGKILL all descendants until none is left, and reap them (Linux: those of dead children too)."""
    while children := _children(os.getpid()):
        for pid in children:
            _kill_tree(pid)
        for pid in children:  # only these: an orphan that became our child meanwhile is not killed yet
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _kill_tree(pid):
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it cannot start another one meanwhile
    for child in _children(pid):
        _kill_tree(child)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def _pids():
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return []


def _children(parent):
    children = []
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/stat") as file:
            # The name in parentheses may hold anything; the fields behind it are state, ppid, …
            if int(file.read().rpartition(")")[2].split()[1]) == parent:
                children.append(pid)
    return children


def log_to_stderr(verbosity: int) -> None:
    """Show our log on standard error if the project's LOGGING takes it nowhere."""
    logger = logging.getLogger("queuetopia")
    if not logger.hasHandlers() and verbosity > 0:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


class Signals:
    """Signals as something a selector can wait for: ``fileno()`` is readable when one of them has come."""

    def __init__(self, *numbers):
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._previous_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self):
        return self._read

    def received(self) -> list[int]:
        """Return the signals that came since the last call, in order."""
        try:
            return list(os.read(self._read, 4096))
        except BlockingIOError:
            return []

    def send(self, number: int) -> None:
        """Do as if the signal had come; callable from any thread."""
        os.write(self._write, bytes([number]))

    def wait(self, timeout: float) -> list[int]:
        select.select([self._read], [], [], timeout)
        return self.received()

    def restore(self):
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)
