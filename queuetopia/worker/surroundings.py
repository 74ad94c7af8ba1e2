"""What an attempt may change for its whole process, put back afterwards: the next job may be of another queue.

Only what is cheap to compare is put back, and only while no other attempt of the process runs, which may rely on it.
If something changed that cannot be put back, the worker is replaced before it begins another job.
What each thread or task has for itself (context variables, the decimal context, the language, the time zone) needs no
list: an attempt has a context of its own.
"""

import builtins
import datetime
import gc
import locale
import logging
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from copy import copy
from operator import itemgetter
from typing import Any

logger = logging.getLogger(__name__)

_root = logging.getLogger()
_kept: dict[str, Any] | None = None  # as it was when the worker started; None outside of workers
_spare = -1  # a descriptor of the worker's, to try whether there is another
_told: set[tuple[str, str]] = set()  # (action, what) that has been logged
_LIMITS = [
    getattr(resource, f"RLIMIT_{name}")
    for name in ("AS", "CPU", "DATA", "FSIZE", "NOFILE", "NPROC")
    if hasattr(resource, f"RLIMIT_{name}")
]
_BUILTINS = tuple(vars(builtins))
_all_builtins = itemgetter(*_BUILTINS)
_MODULES = ("sys", "builtins", "os", "time", "threading", "json", "django", "django.db", __name__)
_TIMES = (
    "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "clock_gettime", "sleep",
    "gmtime", "localtime", "strftime",
)  # fmt: skip


def _umask():
    mask = os.umask(0o77)
    os.umask(mask)
    return mask


def _working_directory():
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _change_directory(path):
    if path is not None:
        os.chdir(path)


def _environment():
    return os.environ._data  # type: ignore[attr-defined]  # comparing os.environ itself decodes it: 50 us


def _set_environment(wanted):
    zone = os.environ.get("TZ")
    environ = os.environb if os.supports_bytes_environ else os.environ
    for name in environ.keys() - wanted.keys():
        del environ[name]
    for name, value in wanted.items():
        if environ.get(name) != value:
            environ[name] = value
    if os.environ.get("TZ") != zone and hasattr(time, "tzset"):
        time.tzset()


def _set_streams(streams):
    sys.stdin, sys.stdout, sys.stderr = streams


def _set_garbage_collection(enabled):
    (gc.enable if enabled else gc.disable)()


def _set_log_levels(levels):
    _root.manager.disable, level = levels
    _root.setLevel(level)


def _limits():
    return tuple(map(resource.getrlimit, _LIMITS))


def _set_limits(limits):
    for number, limit in zip(_LIMITS, limits, strict=True):
        if resource.getrlimit(number) != limit:
            resource.setrlimit(number, limit)  # ValueError if a hard limit was lowered, unless we are root


def _builtins():
    try:
        return _all_builtins(vars(builtins))
    except KeyError:
        return None  # one is gone


def _set_builtins(wanted):
    vars(builtins).update(zip(_BUILTINS, wanted, strict=True))


def _times():
    return (*(getattr(time, name, None) for name in _TIMES), datetime.datetime, datetime.date)


def _modules():
    return [name in sys.modules for name in _MODULES]


def _user():
    return os.geteuid(), os.getegid()


def _can_open():
    """Return whether a descriptor can be had, and whether it is that of a standard stream, which is closed then."""
    try:
        descriptor = os.dup(_spare)  # a third of what open() takes
    except OSError:
        return False, False
    os.close(descriptor)
    return True, descriptor in _STANDARD


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


_STANDARD = tuple(filter(_is_open, (0, 1, 2)))  # a node may be started without some of them


# What is put back: how to read it, and how to set it.
_RESTORED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the builtins": (_builtins, _set_builtins),  # first, like the limits: the others need both
    "the limits of resources": (_limits, _set_limits),
    "the working directory": (_working_directory, _change_directory),
    "the umask": (_umask, os.umask),
    "os.environ": (_environment, _set_environment),
    "the default timeout of sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "the locale": (lambda: locale.setlocale(locale.LC_ALL), lambda name: locale.setlocale(locale.LC_ALL, name)),
    "sys.stdin, sys.stdout or sys.stderr": (lambda: (sys.stdin, sys.stdout, sys.stderr), _set_streams),
    "the level of logging": (lambda: (_root.manager.disable, _root.level), _set_log_levels),
    "the garbage collection": (gc.isenabled, _set_garbage_collection),
    "the recursion limit": (sys.getrecursionlimit, sys.setrecursionlimit),
}

# What cannot be put back: modules may have copies of it, or nothing of it is left.
_JUDGED: dict[str, Callable[[], Any]] = {
    "the functions of time": _times,
    "sys.modules": _modules,
    "the user or group of its process": _user,
    "its process's descriptors (none is left, or that of a standard stream is closed)": _can_open,
}

_READERS = {what: read for what, (read, _) in _RESTORED.items()} | _JUDGED


def keep() -> None:
    """Take how things are now for how each attempt finds them; called when a worker starts."""
    global _kept, _spare
    _spare = os.open(os.devnull, os.O_RDONLY)
    _kept = _snapshot()


@contextmanager
def lasting():
    """What changes inside, as in a performer's setup(), is meant to last."""
    if _kept is None:
        yield
        return
    before = _snapshot()
    yield
    after = _snapshot()
    _kept.update({what: value for what, value in after.items() if value != before[what]})


def restore(action: str) -> str:
    """Put back what an attempt of this action has changed; a WARNING names each thing once for each action.

    Return what it has changed that could not be put back, "" if there is no such thing.
    """
    if _kept is None:
        return ""
    has_timer = signal.alarm(0)  # also one of setitimer(): its signal would kill the worker amid another job
    if not has_timer and _is_all_as_kept():
        return ""
    again = [what for what in _RESTORED if _put_back(action, what)]
    # What failed before the limits were put back, as for want of memory, may succeed now.
    spoilt = [f"{what} ({why})" for what in again if (why := _put_back(action, what))]
    if has_timer:
        _tell(action, "a timer (signal.alarm)")
    spoilt += [what for what, read in _JUDGED.items() if read() != _kept[what]]
    return ", ".join(spoilt)


def _is_all_as_kept() -> bool:
    """Return whether nothing has changed: the usual case, checked in one go after each job."""
    try:
        return all(read() == (_kept or {})[what] for what, read in _READERS.items())
    except Exception:  # builtins are gone
        return False


def _put_back(action, what) -> str:
    """Put back one thing; return why that failed, "" if it did not."""
    (read, write), wanted = _RESTORED[what], (_kept or {})[what]
    try:
        if read() != wanted:
            write(wanted)
            _tell(action, what)  # only now: with a limit of 0 nothing can be logged
    except Exception as exc:  # the directory is gone, say
        return f"{type(exc).__name__}: {exc}"
    return ""


def _snapshot():
    return {what: copy(read()) for what, read in _READERS.items()}


def _tell(action, what):
    if (action, what) not in _told:
        _told.add((action, what))
        logger.warning("action %r changed %s; it was put back for the next job. Change it in setup()", action, what)
