"""Persistent, blocking, per-queue jobs for Django.

The public names load on first use, so that ``import queuetopia`` works before ``django.setup()``.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "Queuetopia": "declaration",
    "Breaker": "breaker",
    "Performer": "performer",
    "action": "performer",
    "Every": "schedules",
    "Cron": "schedules",
    "QueuetopiaError": "exceptions",
    "InvalidJob": "exceptions",
    "QueueFull": "exceptions",
    "Refused": "exceptions",
    "ReadOnlyJob": "exceptions",
    "StaleAttempt": "exceptions",
    "JobTimeout": "exceptions",
    "WorkerDied": "exceptions",
    "NodeDied": "exceptions",
    "NoResult": "exceptions",
    "JobHalted": "exceptions",
    "JobSkipped": "exceptions",
    "JobCancelled": "exceptions",
    "Move": "moving",
    "Deferred": "outside",
    "External": "outside",
    "Retry": "exceptions",
    "Snooze": "exceptions",
    "Halt": "exceptions",
    "Skip": "exceptions",
    "JobFilter": "logs",
    "current_job": "logs",
    "start_node": "node.supervisor",
    "completing": "jobs.completing",
    "once": "jobs.completing",
    "report_progress": "jobs.reporting",
    "wait_many": "monitoring.waiting",
    "await_many": "monitoring.waiting",
    "pause_all": "declaration",
    "resume_all": "declaration",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'queuetopia' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])
