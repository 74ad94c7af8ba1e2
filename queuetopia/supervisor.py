"""The top of the process tree: keeps one scheduler alive, takes signals, leaves nothing behind.

supervisor -> scheduler -> workers. The supervisor is tiny and opens no database connection. The scheduler writes a
byte for each heartbeat; when none comes for the fence time it is killed with all below it, frozen or not, and
started anew.
"""

import contextlib
import logging
import os
import select
import signal
import subprocess
from dataclasses import asdict

from . import conf
from .channel import uptime
from .processes import Signals, adopt_orphans, kill_descendants, start_child
from .repeats import pause

logger = logging.getLogger(__name__)

# What tells the scheduler to stop. SIGTERM is not it: many an init system sends that to every process of a service.
STOP = signal.SIGUSR1

BEAT, LAST_BEAT = b".", b"!"  # what a scheduler writes: that it lives, that it has done everything and ends

REFUSED = 3  # the scheduler's exit code when starting it again would not help
CRASHED = 70  # its exit code after an error of its own
ENDS = (0, 1, REFUSED)
STOPPED_AT_BOOT = (-STOP, -signal.SIGTERM, -signal.SIGINT)  # it was told to stop before it listened to signals

BOOT_TIME = 30.0  # seconds until a new scheduler's first heartbeat
KILL_MARGIN = 10.0  # seconds beyond the grace time, or its last heartbeat, that a scheduler has to end itself
STEADY = 10.0  # seconds a scheduler must live for its restarts to be immediate again
LONGEST_DELAY = 10.0  # seconds between two starts of one that dies at once: it may leave a traceback each time


class Supervisor:
    """Runs one node. Make it in the main thread, where signals arrive; ``run`` may be called in another."""

    def __init__(self, options, *, stop_when_closed: int | None = None):
        """stop_when_closed: descriptor whose end means: stop."""
        self._options = options
        self._fence = conf.lease().fence
        self._signals = Signals(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        self._parent = stop_when_closed
        self._scheduler: subprocess.Popen
        self._heartbeat = -1
        self._dead_at = 0.0  # uptime at which a silent scheduler is taken for dead
        self._end_at = float("inf")  # uptime by which it has to end, because it was told to stop
        self._stops = 0

    def run(self) -> int:
        """Keep a scheduler running until it ends by itself or is told to; return its exit code."""
        adopt_orphans()
        failures = 0
        try:
            while True:
                began = uptime()
                code = self._run_scheduler()
                kill_descendants()
                if self._stops == 1 and code in STOPPED_AT_BOOT:
                    return 0
                if code in ENDS or self._stops:
                    return code if code in (0, 1) else 1
                failures = failures + 1 if uptime() - began < STEADY else 0
                delay = 0.0 if failures < 2 else pause(failures, 0.1, LONGEST_DELAY)
                logger.error("scheduler died code=%d; starting it again in %.1f s", code, delay)
                if delay and self._is_told_to_stop(delay):
                    return 1
        finally:
            kill_descendants()
            self._signals.restore()

    def request_stop(self) -> None:
        """Do what SIGTERM does; callable from any thread."""
        self._signals.send(signal.SIGTERM)

    def _run_scheduler(self) -> int:
        self._heartbeat, theirs = os.pipe()
        try:
            options = {**asdict(self._options), "heartbeat": theirs}
            self._scheduler = start_child("scheduler", options, descriptors=[theirs])
        finally:
            os.close(theirs)
        self._dead_at = uptime() + BOOT_TIME
        with contextlib.closing(os.fdopen(self._heartbeat, "rb", buffering=0)) as heartbeat:
            os.set_blocking(heartbeat.fileno(), False)
            return self._watch(heartbeat)

    def _watch(self, heartbeat):
        sources = [self._signals, heartbeat] + ([self._parent] if self._parent is not None else [])
        while True:
            ready, _, _ = select.select(sources, [], [], max(0.0, min(self._dead_at, self._end_at) - uptime()))
            if self._parent in ready:
                sources.remove(self._parent)
                self._stop()
            if heartbeat in ready:
                if beats := heartbeat.read(4096):
                    self._dead_at = uptime() + (KILL_MARGIN if beats.endswith(LAST_BEAT) else self._fence)
                else:
                    sources.remove(heartbeat)
            for number in self._signals.received():
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._stop()
            if (code := self._reap()) is not None:
                return code
            if uptime() >= self._dead_at:
                logger.error(
                    "scheduler silent for the fence time, killing it and its workers pid=%d", self._scheduler.pid
                )
            if uptime() >= min(self._dead_at, self._end_at):
                kill_descendants()
                return -signal.SIGKILL

    def _stop(self):
        """Pass a stop on to the scheduler: the first is graceful, the second at once, the third kills."""
        self._stops += 1
        grace = self._options.grace if self._stops == 1 else 0.0
        self._end_at = uptime() + (grace + KILL_MARGIN if self._stops <= 2 else 0.0)
        os.kill(self._scheduler.pid, STOP)

    def _reap(self):
        """Collect every ended child, adopted ones too; return the scheduler's exit code when it is among them."""
        code = None
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                if pid == self._scheduler.pid:
                    code = self._scheduler.returncode = os.waitstatus_to_exitcode(status)
        return code

    def _is_told_to_stop(self, seconds):
        until = uptime() + seconds
        while (left := until - uptime()) > 0:
            if {signal.SIGTERM, signal.SIGINT} & set(self._signals.wait(left)):
                return True
        return False


class NodeHandle:
    """A node running as a child of this process; ``with`` stops it at the end."""

    def __init__(self, process: subprocess.Popen, lifeline: int):
        self._process, self._lifeline = process, lifeline

    @property
    def pid(self) -> int:
        """The supervisor's process id."""
        return self._process.pid

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code once the node has ended; subprocess.TimeoutExpired after ``timeout`` seconds."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """Stop the node: running jobs have the grace time. Returns the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        code = self._process.wait()
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        return code

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.stop()


def start_node(
    *queuetopias,
    processes: int | None = None,
    concurrency: int = 1,
    poll_interval: float | None = None,
    grace: float = 30.0,
    until_empty: bool = False,
    standby: bool = False,
    slice: int | None = None,
    verbosity: int = 1,
) -> NodeHandle:
    """Start a node, as ``run_queuetopia`` does, as a child of this process, and return at once.

    queuetopias: the classes to serve; none means all. slice: jobs a queue may go straight on with while others wait.
    The node ends when this process does, and at once with code 0
    while ``QUEUETOPIA["ENABLED"]`` is False.
    Needs a settings module (DJANGO_SETTINGS_MODULE), because its processes are new programs.
    """
    from .scheduler import SLICE, Options

    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        from django.core.exceptions import ImproperlyConfigured

        raise ImproperlyConfigured(
            "start_node() starts new programs, which find your settings by DJANGO_SETTINGS_MODULE only: set it, "
            "settings.configure() is not enough."
        )
    options = Options(
        scopes=[queuetopia.scope for queuetopia in queuetopias],
        processes=processes or os.cpu_count() or 1,
        concurrency=concurrency,
        poll_interval=poll_interval,
        grace=grace,
        until_empty=until_empty,
        standby=standby,
        slice=slice or SLICE,
        verbosity=verbosity,
    )
    theirs, lifeline = os.pipe()
    try:
        process = start_child("supervisor", {**asdict(options), "lifeline": theirs}, descriptors=[theirs])
    except BaseException:
        os.close(lifeline)
        raise
    finally:
        os.close(theirs)
    return NodeHandle(process, lifeline)


def main(options: dict) -> int:
    """Run a supervisor in this process; return its exit code."""
    from .scheduler import Options

    lifeline = options.pop("lifeline")
    if not conf.setting("ENABLED"):
        logger.warning("not running: QUEUETOPIA['ENABLED'] is False")
        return 0
    return Supervisor(Options(**options), stop_when_closed=lifeline).run()
