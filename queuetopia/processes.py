"""Parent and child processes: nothing outlives its parent, nothing a worker started outlives the worker."""

import contextlib
import ctypes
import json
import logging
import os
import re
import resource
import select
import signal
import subprocess
import sys
from datetime import datetime

MB = 2**20  # bytes
MARK = "QUEUETOPIA_WORKER"  # environment variable by which a worker's descendants are known, wherever they moved
USERS_PYTHONPATH = "QUEUETOPIA_PYTHONPATH"  # on its way to a child, which has our sys.path in PYTHONPATH at first
_WITH_PATH = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "runpy.run_module('queuetopia', run_name='__main__', alter_sys=True)"
)
# Signals that end a process by default, and that say nothing about a job of this node: a closed terminal, a log
# rotation that was meant for something else, a limit of the whole session.
DEADLY = tuple(
    getattr(signal, name)
    for name in ("SIGHUP", "SIGPWR", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGABRT")
    if hasattr(signal, name)
)
_OF_A_SESSION = 4  # descriptors
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def start_child(
    role: str, options: dict, *, descriptors=(), session=False, mark: str | None = None
) -> subprocess.Popen:
    """Start ``python -m queuetopia <role>`` as a new program: no connection, thread or lock of ours is in it.

    Call it from the main thread: the kernel's death signal follows the thread that started the child.
    """
    environment = dict(os.environ)
    environment.pop("RUN_MAIN", None)  # django.utils.autoreload's, of run_queuetopia --reload
    if mark:
        environment[MARK] = mark
    flags, arguments = (
        _interpreter_flags(),
        [role, json.dumps({**options, "parent": os.getpid(), "inherited": [*descriptors]})],
    )
    if sys.flags.ignore_environment:  # -E or -I
        command = [*flags, "-c", _WITH_PATH, *arguments, json.dumps(sys.path)]
    else:
        environment[USERS_PYTHONPATH] = environment.get("PYTHONPATH", "")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        command = [*flags, "-m", "queuetopia", *arguments]
    return subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
        [sys.executable, *command],
        env=environment,
        pass_fds=descriptors,
        start_new_session=session,
        # A scheduler's own is that already, and to open another one takes a descriptor that may be the last.
        stdin=None if role == "worker" else subprocess.DEVNULL,
    )


def _interpreter_flags():
    """Return the options that this interpreter was started with, as -O or -X dev."""
    flags, words = [], iter(sys.orig_argv[1:])
    for word in words:
        if word in ("-W", "-X"):
            flags += [word, next(words, "")]
        elif word.startswith(("-W", "-X")):
            flags.append(word)
        elif match := re.match("-[bBEIOPqRsSuv]+", word):  # -um is -u and -m
            flags.append(match[0])
            if match[0] != word:
                break
        else:
            break
    return flags


def restore_environment() -> None:
    """Undo what ``start_child`` did to the environment: what a performer starts may be another Python."""
    users = os.environ.pop(USERS_PYTHONPATH, None)
    if users:
        os.environ["PYTHONPATH"] = users
    elif users is not None:
        del os.environ["PYTHONPATH"]


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies (Linux). First thing a child does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # the parent died before the line above


def disregard_signals(role: str) -> None:
    """Ignore, in a scheduler or worker, the signals whose meaning the supervisor decides.

    Called before the project's code is loaded, which may want some of them. A handler, because ignored signals would
    be ignored in a performer's programs too.
    """
    numbers = {signal.SIGQUIT, *DEADLY}
    if role == "scheduler":
        numbers.add(signal.SIGTSTP)
    else:
        numbers -= {signal.SIGABRT, signal.SIGXCPU}  # of a worker these are its job's fault
        for number in (signal.SIGTTIN, signal.SIGTTOU):
            signal.signal(number, signal.SIG_DFL)  # the supervisor ignores them
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


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
            kill_tree(pid)
        for pid in children:  # only these: an orphan that became our child meanwhile is not killed yet
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)


def kill_adopted(workers: set[int]) -> int:
    """SIGKILL what dead workers left running, wherever it moved; return how many programs there were (Linux).

    Each worker is the parent of its own orphans while it lives, so ours are those of dead workers. A child in our own
    session is none of theirs: a log handler may have started it.
    """
    seen: set[int] = set()
    killed = 0
    while found := [pid for pid in _children(os.getpid()) if pid not in workers | seen and _is_adopted(pid)]:
        for pid in found:
            seen.add(pid)
            if not _is_reaped(pid):
                kill_tree(pid)
                killed += 1
    for pid in seen:
        _is_reaped(pid)
    return killed


def _is_reaped(pid):
    """Reap a child if it is dead; return whether it is."""
    try:
        return os.waitpid(pid, os.WNOHANG) != (0, 0)
    except ChildProcessError:
        return True


def _is_adopted(pid):
    try:
        return os.getsid(pid) != os.getsid(0)
    except OSError:
        return False


def kill_tree(pid: int) -> None:
    """SIGKILL a process and all its descendants."""
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGSTOP)  # so that it cannot start another one meanwhile
    for child in _children(pid):
        kill_tree(child)
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)


def reap_orphans(most: int) -> None:
    """Reap the oldest dead children beyond ``most``.

    A worker is the parent of its jobs' orphans, and no code waits for those. Nothing distinguishes them from its other
    children, which the code that started them waits for: so the last ones stay.
    """
    if sys.platform != "linux":
        return  # no orphan is adopted
    with contextlib.suppress(ChildProcessError):
        if os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        dead = [pid for pid in _children(os.getpid()) if _stat(pid)[:1] == ["Z"]]
        for pid in sorted(dead, key=_started)[: max(0, len(dead) - most)]:
            os.waitpid(pid, os.WNOHANG)


def _started(pid):
    return int((_stat(pid) or [0] * 20)[19])


def _pids():
    with contextlib.suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]
    return []


def _children(parent):
    """Return the pids of a process's children."""
    try:
        children: list[int] = []
        for thread in os.listdir(f"/proc/{parent}/task"):
            with open(f"/proc/{parent}/task/{thread}/children") as file:
                children += map(int, file.read().split())
        return children
    except OSError:  # it is gone, or this kernel does not report it
        return [pid for pid in _pids() if _stat(pid)[1:2] == [str(parent)]]


def _stat(pid):
    """Return what the kernel reports of a process: state, ppid, …; nothing if it is gone."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()  # the name in parentheses may hold anything
    return []


def memory_of(pid: int | str) -> int | None:
    """Return the bytes of memory that a process takes; None where the system does not say so, or it has ended."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return None


def resident_memory() -> int:
    """Return the bytes of memory that this process takes; on macOS the most that it has ever taken."""
    if (taken := memory_of("self")) is not None:
        return taken
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def refused_descriptor() -> OSError | None:
    """Return the error with which the system refuses the descriptors that a session takes; None if it gives them.

    Drivers of databases hide it: "connection is bad", "unable to open database file".
    """
    with contextlib.ExitStack() as opened:
        try:
            for _ in range(_OF_A_SESSION):
                opened.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        except OSError as exc:
            return exc
    return None


class LogFormatter(logging.Formatter):
    """Writes times with their offset from UTC."""

    def formatTime(self, record, datefmt=None):
        moment = datetime.fromtimestamp(record.created).astimezone()
        return moment.isoformat(sep=" ", timespec="milliseconds")


def log_to_stderr(verbosity: int) -> None:
    """Show our log on standard error if the project's LOGGING takes it nowhere."""
    logger = logging.getLogger("queuetopia")
    if not logger.hasHandlers() and verbosity > 0:
        handler = logging.StreamHandler()
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)-7s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


class Signals:
    """Signals as something a selector can wait for: ``fileno()`` is readable when one of them has come."""

    def __init__(self, *numbers, ignored=()):
        self._read, self._write = os.pipe()
        for descriptor in (self._read, self._write):
            os.set_blocking(descriptor, False)
        self._previous = {number: signal.signal(number, lambda *_: None) for number in numbers}
        self._previous |= {number: signal.signal(number, signal.SIG_IGN) for number in ignored}
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
        """Act as if the signal had come; callable from any thread."""
        os.write(self._write, bytes([number]))

    def wait(self, timeout: float) -> list[int]:
        select.select([self._read], [], [], timeout)
        return self.received()

    def restore(self):
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        os.close(self._read)
        os.close(self._write)
