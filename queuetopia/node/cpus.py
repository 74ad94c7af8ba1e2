"""How many CPUs this process may use: its affinity and a container's limit count, not the machine."""

import contextlib
import math
import os
from pathlib import Path


def usable_cpus(root: str = "/") -> int:
    """Return how many CPUs this process may use, at least 1; a container's share is rounded up.

    root: the folder in which ``proc`` and ``sys`` are mounted.
    """
    cpus = _scheduled_on()
    return max(1, math.ceil(min([cpus, *_quotas(Path(root))])))


def _scheduled_on():
    if hasattr(os, "process_cpu_count"):  # Python 3.13
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quotas(root):
    """Return the CPUs that each control group around this process allows."""
    quotas = []
    mounts = root / "sys/fs/cgroup"
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                quotas += [_quota(*_words(folder / "cpu.max")) for folder in _around(mounts, path)]
            elif "cpu" in controllers.split(","):
                quotas += [
                    _quota(*_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us"))
                    for folder in _around(mounts / "cpu", path)
                ]
    return quotas


def _around(mount, path):
    """Return the folder of a control group and those it is in. A container may see only the outermost."""
    folder = mount / path.lstrip("/")
    return [folder, *(parent for parent in folder.parents if parent.is_relative_to(mount))]


def _words(path):
    try:
        return path.read_text().split()
    except OSError:
        return []


def _quota(*words):
    """Return the CPUs of a limit, a number of microseconds in each period; infinite if there is none."""
    try:
        quota, period = map(float, words)
    except ValueError:  # "max", or nothing
        return float("inf")
    return quota / period if quota > 0 < period else float("inf")
