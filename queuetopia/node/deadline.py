"""A kernel timer that kills this process at a deadline.

A scheduler whose lease has run out must not keep its workers, because another node may start the same jobs. Its own
loop cannot guarantee that: Ctrl-Z, a debugger or a call that blocks can hold up the scheduler and the supervisor at
once. The kernel can: it delivers SIGKILL to a stopped process too, and then kills the workers, whose parent has died
(``processes.die_with_parent``). No process of ours has to run for that.
"""

import contextlib
import ctypes
import signal
import sys

from ..channel import BOOT_CLOCK, uptime

_SIGEV_SIGNAL = 0
_TIMER_ABSTIME = 1


class _Event(ctypes.Structure):  # struct sigevent; the kernel's is 64 bytes long
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("unused", ctypes.c_char * 48),
    )


class _Setting(ctypes.Structure):  # struct itimerspec
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


class Deadline:
    """Kill this process at an uptime that can be moved on. Belongs to the process that made it, not to its children."""

    def __init__(self):
        self._timer = _create_timer()

    def set(self, at: float) -> None:
        """Kill this process at the uptime ``at`` unless the deadline is moved or cleared before."""
        if self._timer is None:
            # The default action of SIGALRM ends the process, but not while it is stopped.
            signal.setitimer(signal.ITIMER_REAL, max(0.001, at - uptime()))
            return
        seconds = int(at)
        self._settle(_Setting(0, 0, seconds, int((at - seconds) * 1e9)))

    def clear(self) -> None:
        if self._timer is None:
            signal.setitimer(signal.ITIMER_REAL, 0.0)
        else:
            self._settle(_Setting(0, 0, 0, 0))

    def _settle(self, setting):
        if _libc().timer_settime(self._timer, _TIMER_ABSTIME, ctypes.byref(setting), None):
            raise OSError(ctypes.get_errno(), "timer_settime failed")


def _create_timer():
    """Return the timer's id; None where the system has no such timers."""
    if sys.platform != "linux":
        return None
    event = _Event(signo=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    timer = ctypes.c_void_p()
    with contextlib.suppress(AttributeError, OSError):
        if _libc().timer_create(BOOT_CLOCK, ctypes.byref(event), ctypes.byref(timer)) == 0:
            return timer
    return None


def _libc():
    library = ctypes.CDLL(None, use_errno=True)
    # Before glibc 2.34 the timers were in a library of their own.
    return library if hasattr(library, "timer_create") else ctypes.CDLL("librt.so.1", use_errno=True)
