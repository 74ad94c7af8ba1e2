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

from django.core.exceptions import ImproperlyConfigured

from .. import conf
from ..channel import uptime
from ..processes import DEADLY, Signals, adopt_orphans, kill_descendants, start_child
from ..registry import by_scope, disabled
from ..repeats import pause
from .cpus import usable_cpus
from .log_queue import LogQueue, leave_at_exit
from .protocol import CRASHED, LAST_BEAT, REFUSED, SLICE, STOP, STOP_AT_ONCE, Options

logger = logging.getLogger(__name__)

STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)  # to us: each one stops more firmly than the one before

ENDS = (0, 1, REFUSED)
STOPPED_AT_BOOT = (-STOP, -STOP_AT_ONCE, -signal.SIGTERM, -signal.SIGINT)  # before it listened

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
        # A signal that the parent process ignores, as nohup does, stays ignored.
        once = [number for number in DEADLY if signal.getsignal(number) != signal.SIG_IGN]
        others = (signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)
        self._signals = Signals(*STOPS, *once, *others, ignored=(signal.SIGTTIN, signal.SIGTTOU))
        self._parent = stop_when_closed
        self._scheduler: subprocess.Popen
        self._dead_at = 0.0  # uptime at which a silent scheduler is taken for dead
        self._has_served = False  # a scheduler of this node has lived
        self._end_at = float("inf")  # uptime by which it has to end after a stop
        self._stops = 0
        self._is_suspending = False
        self._is_continued = False  # SIGCONT came after SIGTSTP, before we had stopped

    def run(self) -> int:
        """Keep a scheduler running until it ends or is stopped; return its exit code."""
        log_queue = LogQueue()  # a log handler that blocks must not keep us from killing
        code = 1
        try:
            code = self._run()
        finally:
            if not log_queue.close():
                leave_at_exit(code)
        return code

    def _run(self):
        adopt_orphans()
        failures = 0
        try:
            while True:
                began = uptime()
                code = self._run_scheduler()
                kill_descendants()
                if self._is_suspending and not self._stops:
                    self._suspend()
                    continue
                if self._stops == 1 and code in STOPPED_AT_BOOT:
                    return 0
                if self._stops or (code in ENDS and not self._is_refused_for_a_while(code)):
                    return code if code in (0, 1) else 1
                failures = failures + 1 if uptime() - began < STEADY else 0
                delay = 0.0 if failures < 2 else pause(failures, 0.1, LONGEST_DELAY)
                logger.error("scheduler died code=%d; starting it again in %.1f s", code, delay)
                if delay and self._is_stopped_within(delay):
                    return 1
        finally:
            kill_descendants()
            self._signals.restore()

    def _is_refused_for_a_while(self, code):
        """True if the database served an earlier scheduler: a failover is under way, its name leads to a standby."""
        return code == REFUSED and self._has_served

    def request_stop(self) -> None:
        """Do what SIGTERM does; callable from any thread."""
        self._signals.send(signal.SIGTERM)

    def _run_scheduler(self) -> int:
        try:
            heartbeat = self._start_scheduler()
        except OSError as exc:  # no descriptor, process or memory is left
            logger.error("scheduler did not start cause=%r", exc)
            return CRASHED
        with heartbeat:
            return self._watch(heartbeat)

    def _start_scheduler(self):
        """Start a scheduler; return the file from which its heartbeats are read."""
        ours, theirs = os.pipe()
        heartbeat = open(ours, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
        try:
            os.set_blocking(ours, False)
            options = {**asdict(self._options), "heartbeat": theirs}
            self._scheduler = start_child("scheduler", options, descriptors=[theirs])
        except OSError:
            heartbeat.close()
            raise
        finally:
            os.close(theirs)
        self._dead_at = uptime() + BOOT_TIME
        return heartbeat

    def _watch(self, heartbeat):
        sources = [self._signals, heartbeat] + ([self._parent] if self._parent is not None else [])
        while True:
            ready, _, _ = select.select(sources, [], [], max(0.0, min(self._dead_at, self._end_at) - uptime()))
            if self._parent in ready:
                sources.remove(self._parent)
                self._stop()
            if heartbeat in ready:
                if beats := heartbeat.read(4096):
                    self._has_served = True
                    self._dead_at = uptime() + (KILL_MARGIN if beats.endswith(LAST_BEAT) else self._fence)
                else:
                    sources.remove(heartbeat)
            for number in self._signals.received():
                self._obey(number)
            if (code := self._reap()) is not None:
                return code
            if uptime() >= min(self._dead_at, self._end_at):
                is_silent = uptime() >= self._dead_at
                kill_descendants()
                if is_silent:
                    logger.error(
                        "scheduler silent for the fence time, killed it and its workers pid=%d", self._scheduler.pid
                    )
                return -signal.SIGKILL

    def _obey(self, number):
        if number in STOPS or (number in DEADLY and not self._stops):  # systemd may send SIGHUP right after SIGTERM
            self._stop()
        elif number == signal.SIGTSTP and not self._stops and not self._is_suspending:
            self._is_suspending, self._is_continued = True, False
            self._end_at = uptime() + KILL_MARGIN
            os.kill(self._scheduler.pid, STOP_AT_ONCE)
        elif number == signal.SIGCONT:
            self._is_continued = True

    def _suspend(self):
        """Stop, as Ctrl-Z wants it, until SIGCONT: no job runs meanwhile, because no supervisor would watch it."""
        self._is_suspending, self._end_at = False, float("inf")
        if self._is_continued:
            return
        logger.warning("suspended; jobs run again after SIGCONT")
        signal.raise_signal(signal.SIGSTOP)  # to this thread: nothing follows before the SIGCONT

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

    def _is_stopped_within(self, seconds):
        until = uptime() + seconds
        while (left := until - uptime()) > 0:
            numbers = self._signals.wait(left)
            if {*STOPS, *DEADLY} & set(numbers):
                return True
            if signal.SIGTSTP in numbers:
                self._is_continued = signal.SIGCONT in numbers
                self._suspend()
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


def require_settings_module() -> None:
    """Raise ImproperlyConfigured if the processes of a node could not find the settings."""
    if "DJANGO_SETTINGS_MODULE" not in os.environ:
        raise ImproperlyConfigured(
            "A node starts new programs, which find your settings by DJANGO_SETTINGS_MODULE only: set it, "
            "settings.configure() is not enough."
        )


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
    max_jobs_per_worker: int | None = None,
    max_memory_per_worker: int | None = None,
) -> NodeHandle:
    """Start a node, as ``run_queuetopia`` does, as a child of this process, and return at once.

    queuetopias: the classes to serve; none means all. slice: jobs a queue may go straight on with while others wait.
    max_memory_per_worker: resident MB. Raises ValueError for a number that is none or not positive.
    The node ends when this process does, and at once with code 0
    while ``QUEUETOPIA["ENABLED"]`` is False, or False for all of its scopes.
    Needs a settings module (DJANGO_SETTINGS_MODULE), because its processes are new programs.
    """
    require_settings_module()
    options = Options(
        scopes=[queuetopia.scope for queuetopia in queuetopias],
        processes=processes or usable_cpus(),
        concurrency=concurrency,
        poll_interval=poll_interval,
        grace=grace,
        until_empty=until_empty,
        standby=standby,
        slice=slice or SLICE,
        verbosity=verbosity,
        max_jobs_per_worker=max_jobs_per_worker,
        max_memory_per_worker=max_memory_per_worker,
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
    lifeline = options.pop("lifeline")
    if off := disabled(options["scopes"]):
        logger.warning("not serving, because QUEUETOPIA['ENABLED'] is False for: %s", ", ".join(off))
        if len(off) == len(options["scopes"] or by_scope()):
            return 0
    return Supervisor(Options(**options), stop_when_closed=lifeline).run()
