"""A backend for Django's Tasks: ``django.tasks`` from Django 6.0 on, the package ``django-tasks`` before.

Each alias of ``TASKS`` that names it is a Queuetopia of its own, with the scope ``tasks.<alias>``; ``queue_name`` is
the name of the queue, so a queue is a strict line: the task behind waits until the one before it has succeeded or was
given up. The action is the task's ``module_path``, the params are its keyword arguments; positional ones stand under
``*``.

What differs from what Django's Tasks can do:

- ``priority`` is refused: order inside a queue is the promise.
- A task that waits, backs off or is paused is READY; one that is halted, skipped or cancelled is FAILED. A halted one
  can still be retried by an operator.
- ``enqueued_at`` of a task with ``run_after`` is that time, once it is read from the database.
- ``task_finished`` is sent in the worker when a task succeeded or used its last attempt, not when an operator ends it.

Modules are imported while Django starts: no models at the top of this one.
"""

import logging
import os
import sys
from collections.abc import Container
from dataclasses import fields
from datetime import datetime
from socket import gethostname
from typing import TYPE_CHECKING, Any

import django
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.utils import timezone
from django.utils.module_loading import import_string

from .. import conf, registry
from ..attempts import HOOK, describe
from ..declaration import Queuetopia
from ..params import Unreadable
from ..performer import Performer

if TYPE_CHECKING or django.VERSION >= (6, 0):
    from django.tasks import TaskContext, TaskResult, TaskResultStatus
    from django.tasks.backends.base import BaseTaskBackend
    from django.tasks.base import Task, TaskError
    from django.tasks.exceptions import TaskResultDoesNotExist
    from django.tasks.signals import task_enqueued, task_finished, task_started
    from django.utils.json import normalize_json
else:
    from django_tasks import TaskContext, TaskResult, TaskResultStatus
    from django_tasks.backends.base import BaseTaskBackend
    from django_tasks.base import Task, TaskError
    from django_tasks.exceptions import TaskResultDoesNotExist
    from django_tasks.signals import task_enqueued, task_finished, task_started
    from django_tasks.utils import normalize_json

logger = logging.getLogger(__name__)

POSITIONAL = "*"  # the param with the positional arguments; no keyword can be named so
_declared: dict[str, tuple[dict[str, Any], type[Queuetopia]]] = {}  # by alias: the options, and the class


def find_task(path: str) -> Task | None:
    """Return the task of this module path, or None if this code has none.

    Only a module of an installed app is imported for it, or one that is imported already: the name comes from a row.
    """
    module = path.rpartition(".")[0]
    if module not in sys.modules and not any(f"{module}.".startswith(f"{app.name}.") for app in apps.get_app_configs()):
        return None
    try:
        found = import_string(path)
    except ImportError:
        return None
    except Exception as exc:
        logger.warning("module of a task not imported path=%r error=%r", path, exc)
        return None
    return found if isinstance(found, Task) else None


class _AllTasks(Container):
    def __contains__(self, path):
        return find_task(path) is not None

    def __repr__(self):
        return "all tasks"


class TaskPerformer(Performer):
    """Calls the task. ``alias`` is that of the backend."""

    alias: str
    actions = _AllTasks()
    reads_stored_job = False  # task_finished needs no more than the attempt knows

    def perform(self, job):
        task = _task_of(job, self.alias)
        result = self._result_of(job, task, TaskResultStatus.RUNNING)
        task_started.send(QueuetopiaBackend, task_result=result)
        context: list[Any] = [TaskContext(task_result=result)] if task.takes_context else []
        return normalize_json(task.call(*context, *result.args, **result.kwargs))

    def handle_done_job(self, job):
        result = self._result_of(job, _task_of(job, self.alias), TaskResultStatus.SUCCESSFUL)
        _set(result, _return_value=job.result)
        task_finished.send(QueuetopiaBackend, task_result=result)

    def handle_failed_job(self, job, exc):
        if job.state == "pending":  # it is tried again
            return
        result = self._result_of(job, _task_of(job, self.alias), TaskResultStatus.FAILED)
        result.errors.append(_error(describe(exc)))
        try:
            raise exc
        except BaseException:  # so that receivers find it in sys.exc_info(), as Django's own does
            task_finished.send(QueuetopiaBackend, task_result=result)

    def _result_of(self, job, task, status):
        result = _blank_result(job, task, self.alias)
        now, worker = timezone.now(), f"{gethostname()}:{os.getpid()}"
        _set(result, status=status, last_attempted_at=now, worker_ids=[worker] * job.attempts)
        if job.attempts == 1:
            _set(result, started_at=now)
        if status != TaskResultStatus.RUNNING:
            _set(result, finished_at=now)
        return result


class QueuetopiaBackend(BaseTaskBackend):
    """``{"BACKEND": "queuetopia.contrib.django_tasks.QueuetopiaBackend", "QUEUES": [], "OPTIONS": {"timeout": 60}}``.

    QUEUES: the names of queues that are allowed; empty, the default here: any name.
    OPTIONS: options of a Queuetopia.

    Raises ImproperlyConfigured for an option that there is not.
    """

    is_queuetopia = True
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = False

    def __init__(self, alias: str, params: dict[str, Any]):
        super().__init__(alias, {**params, "QUEUES": params.get("QUEUES", [])})
        self.queuetopia = _declare(alias, self.options)

    def enqueue(self, task, args, kwargs):
        """Create the job, in the caller's transaction. Raises InvalidJob for what cannot be stored or run."""
        self.validate_task(task)
        if POSITIONAL in kwargs:
            raise TypeError(
                f"{task.name}() cannot take a keyword argument {POSITIONAL!r}: positional ones stand there."
            )
        params = normalize_json({POSITIONAL: args, **kwargs} if args else kwargs)
        job = self.queuetopia.create_job(task.queue_name, task.module_path, params, scheduled_at=task.run_after)
        result = _blank_result(job, task, self.alias)
        if task.run_after is not None:
            _set(result, enqueued_at=timezone.now())
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id):
        """Return how the task stands. Raises TaskResultDoesNotExist also if this code does not have its task."""
        from ..monitoring.status import job_and_state  # models, which are not there yet at the top

        job, state, since = job_and_state(self.queuetopia, result_id)
        if job is None or find_task(job.action) is None:
            raise TaskResultDoesNotExist(result_id)
        result = _blank_result(job, _task_of(job, self.alias), self.alias)
        attempts = [entry for entry in job.errors if entry.get("kind") != HOOK]
        workers = [entry.get("by", "") for entry in attempts if entry.get("counted", True)]
        workers += [job.attempted_by] * (job.attempts - len(workers))
        _set(
            result,
            status=_STATUS.get(str(state), TaskResultStatus.READY),
            errors=[_error(entry) for entry in attempts],
            worker_ids=workers[: job.attempts],
            started_at=since or _first_end(attempts) or job.attempted_at,
            last_attempted_at=since or job.attempted_at,
            finished_at=job.attempted_at if state == "halted" else job.done_at,
            _return_value=job.result,
        )
        return result


_STATUS = {
    "done": TaskResultStatus.SUCCESSFUL, "halted": TaskResultStatus.FAILED, "skipped": TaskResultStatus.FAILED,
    "cancelled": TaskResultStatus.FAILED, "running": TaskResultStatus.RUNNING, "outside": TaskResultStatus.RUNNING,
}  # fmt: skip


def _declare(alias, options):
    """Return the Queuetopia of an alias: a backend is made anew in each thread, its class only once."""
    if unknown := sorted(set(options) - set(conf.OPTIONS)):
        known = ", ".join(conf.OPTIONS)
        raise ImproperlyConfigured(f"TASKS[{alias!r}]['OPTIONS'] has {', '.join(unknown)}; the options are: {known}.")
    if _declared.get(alias, (None,))[0] != options:
        performer = type("TaskPerformer", (TaskPerformer,), {"alias": alias})
        body = {"performer": performer, "scope": f"tasks.{alias}", **options, "__module__": __name__}
        _declared[alias] = options, type(f"Tasks_{alias}", (Queuetopia,), body)
    queuetopia = _declared[alias][1]
    if queuetopia not in registry.registered():
        registry.register(queuetopia)
    return queuetopia


def _task_of(job, alias) -> Task:
    """Return the task as it was enqueued, without validating it again: what is allowed may have changed."""
    task = find_task(job.action)
    if task is None:
        raise LookupError(f"This code has no task {job.action!r}.")
    run_after = job.scheduled_at if job.scheduled_at > timezone.now() else None
    given = {"queue_name": job.queue, "backend": alias, "run_after": run_after}
    copy = object.__new__(type(task))
    for field in fields(task):
        object.__setattr__(copy, field.name, given.get(field.name, getattr(task, field.name)))
    return copy


def _blank_result(job, task, alias) -> TaskResult:
    params = {} if isinstance(job.params, Unreadable) else dict(job.params)
    return TaskResult(
        task=task, id=str(job.pk), status=TaskResultStatus.READY, enqueued_at=job.scheduled_at, started_at=None,
        finished_at=None, last_attempted_at=None, args=params.pop(POSITIONAL, []), kwargs=params, backend=alias,
        errors=[], worker_ids=[],
    )  # fmt: skip


def _first_end(attempts):
    return datetime.fromisoformat(attempts[0]["at"]) if attempts else None


def _error(described):
    path = described.get("class") or f"builtins.{described.get('type')}"
    return TaskError(exception_class_path=path, traceback=described.get("traceback", ""))


def _set(frozen, **values):
    for name, value in values.items():
        object.__setattr__(frozen, name, value)
