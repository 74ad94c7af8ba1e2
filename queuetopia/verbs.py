"""The verbs of operators and their results, in words: for the command and the admin.

The verbs themselves, listed in ``decisions``, are functions of ``jobs``; here the operator gets one
sentence for each.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from django.db import Error

from . import jobs
from .backends.trouble import database_trouble
from .exceptions import InvalidJob, Refused
from .models import Job, Queue
from .monitoring import status
from .registry import by_scope
from .text import MASK
from .times import local


def tried(act: Callable[[], dict[str, Any]], **about) -> dict[str, Any]:
    """Return a result: what it is ``about``, whether it is ``ok``, and what ``act`` says it did or why it could not."""
    try:
        return {**about, "ok": True, **act()}
    except InvalidJob as exc:
        return {**about, "ok": False, "message": " ".join(exc.sentences())}
    except Refused as exc:
        return {**about, "ok": False, "message": str(exc)}
    except Error as exc:
        return {**about, "ok": False, "message": database_trouble(exc).message}


def known(scope: str):
    """Return the Queuetopia of the scope, or raise Refused with the scopes that are known."""
    scopes = by_scope()
    if scope in scopes:
        return scopes[scope]
    close = get_close_matches(scope, scopes, n=3)
    hint = f"Did you mean {' or '.join(close)}?" if close else f"Known are: {', '.join(sorted(scopes)) or 'none'}."
    raise Refused(f"No class of this code has the scope {scope!r}. {hint}")


def serving(scope: str, alias: str, what: str):
    """Return the Queuetopia that serves ``what`` of the scope in this database, or raise Refused."""
    queuetopia = known(scope)
    if queuetopia.database() != alias:
        raise Refused(
            f"{what} of {scope} is in database {alias}, where nothing serves it: "
            f"{queuetopia.__name__} keeps its jobs in {queuetopia.database()}."
        )
    return queuetopia


# On a job


def on_job(verb: str, queuetopia, job_id: int, *, by: str, reason: str, **more) -> dict[str, Any]:
    """Apply a verb to a job; return what the job is now, the ``answer`` and a ``message``.

    more: for ``edit`` the new ``params``, and what they ``was``; for ``move`` the other queue, ``to``; for
    ``reschedule`` the time, ``at``.

    Raises Refused, and InvalidJob for params that the job's action would not take.
    """
    answer, job, message = _DONE_TO_A_JOB[verb](queuetopia, job_id, {"by": by, "reason": reason, **more})
    return {
        "scope": job.scope,
        "queue": job.queue,
        "action": job.action,
        "state": job.state,
        "attempts": job.attempts,
        "answer": answer,
        "message": f"{name_of(job)} {message}.",
    }


def _retry(queuetopia, job_id, why):
    job = queuetopia.retry(job_id, **why)
    return "retried", job, f"is retried: {_next_attempt(queuetopia, job)}"


def _next_attempt(queuetopia, job):
    most = job.max_attempts or queuetopia.option("max_attempts")
    when = "starts when its queue is resumed" if status.is_paused(queuetopia, job.queue) else "is due now"
    return f"attempt {job.attempts + 1} of {most} {when}"


def _skip(queuetopia, job_id, why):
    job = queuetopia.skip(job_id, **why)
    return "skipped", job, f"is skipped; its queue {_then(queuetopia, job)}"


def _then(queuetopia, job):
    return "is paused" if status.is_paused(queuetopia, job.queue) else "goes on"


def _mark_done(queuetopia, job_id, why):
    job = queuetopia.mark_done(job_id, **why)
    held = job.attempted_at is not None  # what waited in line may have had a blocked head before it
    return "marked done", job, f"is marked as done{f'; its queue {_then(queuetopia, job)}' if held else ''}"


def _edit(queuetopia, job_id, why):
    job = queuetopia.edit(job_id, why.pop("params"), **why)
    if job.attempted_at is None:
        return "edited", job, "has new params, and keeps its place in line"
    return "edited", job, f"has new params and is retried: {_next_attempt(queuetopia, job)}"


def _move_to_end(queuetopia, job_id, why):
    last = queuetopia.move_to_end(job_id, **why)
    if last.pk == job_id:
        return "moved", last, "is moved to the end of its queue"
    job = queuetopia.jobs().get(pk=job_id)
    then = _then(queuetopia, job)
    return "moved", job, f"is skipped, and job {last.pk}, its copy, waits at the end of its queue, which {then}"


def _run_now(queuetopia, job_id, why):
    job = queuetopia.run_now(job_id, **why)
    when = (
        "starts when its queue is resumed" if status.is_paused(queuetopia, job.queue) else "starts when it is its turn"
    )
    return "due now", job, f"is due now, and {when}"


def _move(queuetopia, job_id, why):
    to = why.pop("to")
    queuetopia.move(job_id, to, **why)
    note = "" if queuetopia.jobs().filter(queue=to).exclude(pk=job_id).exists() else _NEW_QUEUE
    return "moved", queuetopia.jobs().get(pk=job_id), f"is moved to the end of queue {to}{note}"


_NEW_QUEUE = " (it has had no other job so far: is the name right?)"


def _reschedule(queuetopia, job_id, why):
    job = queuetopia.reschedule(job_id, why.pop("at"), **why)
    return "rescheduled", job, f"is scheduled for {local(job.scheduled_at)}"


def unmasked(params, old, sensitive) -> Any:
    """Return ``params`` with the old values of the sensitive ones that are still masked."""
    if not isinstance(params, dict) or not isinstance(old, dict):
        return params
    kept = {name: old[name] for name in sensitive if params.get(name) == MASK and name in old}
    return {**params, **kept}


def _cancel(queuetopia, job_id, why):
    answer = queuetopia.cancel(job_id, **why)
    job = queuetopia.jobs().get(pk=job_id)
    if answer == "finished":
        raise Refused(f"{name_of(job)} cannot be cancelled: it is {job.state} since {local(job.done_at)}.")
    if answer == "running":
        return answer, job, "is running and asked to stop: cancelled, unless it is done before"
    return answer, job, "is cancelled"


_DONE_TO_A_JOB = {
    "retry": _retry, "skip": _skip, "cancel": _cancel, "mark_done": _mark_done, "edit": _edit,
    "move_to_end": _move_to_end, "run_now": _run_now, "move": _move, "reschedule": _reschedule,
}  # fmt: skip


def name_of(job: Job) -> str:
    return f"Job {job.pk} ({job.action} of {job.scope}/{job.queue})"


# On a queue, a whole scope, or everything


def on_everything(verb: str, alias: str, *, by: str, reason: str) -> dict[str, Any]:
    """Pause or resume all scopes of a database; return a ``message``. Raises Refused."""
    {"pause": jobs.pause_all, "resume": jobs.resume_all}[verb](alias, by=by, reason=reason)
    done = "is paused: what runs finishes, nothing new starts" if verb == "pause" else "is resumed"
    return {"message": f"Everything in database {alias} {done}."}


def on_queue(verb: str, queuetopia, queue: str | None, *, by: str, reason: str, **more) -> dict[str, Any]:
    """Apply a verb to a queue (None: the scope); return a ``message``. Raises Refused and InvalidJob.

    more: for ``prioritize`` the ``seconds``; for ``edit_memory`` the ``memory``, and what it ``was``.
    """
    act = {"pause": _pause, "resume": _resume, "prioritize": _prioritize, "edit_memory": _edit_memory}[verb]
    return act(queuetopia, queue, {"by": by, "reason": reason, **more})


def _pause(queuetopia, queue, why):
    is_new = queue is not None and not _exists(queuetopia, queue)
    queuetopia.pause(queue, **why)
    note = " It has had no job so far: is the name right?" if is_new else ""
    return {"message": f"{_place(queuetopia, queue)} is paused: what runs finishes, nothing new starts.{note}"}


def _resume(queuetopia, queue, why):
    queuetopia.resume(queue, **why)
    scope_paused, all_paused = status.pauses(queuetopia.database(), queuetopia.scope)
    still = f"all of {queuetopia.scope}" if scope_paused else "everything" if all_paused else ""
    note = f", but {still} is paused" if still else ""
    return {"message": f"{_place(queuetopia, queue)} is resumed{note}."}


def _prioritize(queuetopia, queue, why):
    queuetopia.prioritize(queue, **why)
    return {"message": f"{_place(queuetopia, queue)} has a head start of {status.span(why['seconds'])} in line."}


def _edit_memory(queuetopia, queue, why):
    is_new = not _exists(queuetopia, queue)
    queuetopia.edit_memory(queue, why.pop("memory"), **why)
    note = " It has had no job so far: is the name right?" if is_new else ""
    return {"message": f"{_place(queuetopia, queue)} has another memory, for its next attempt.{note}"}


def _place(queuetopia, queue):
    return queuetopia.scope if queue is None else f"{queuetopia.scope}/{queue}"


def _exists(queuetopia, queue):
    rows = Queue.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, name=queue)
    return rows.exists() or queuetopia.jobs().filter(queue=queue).exists()


# On a schedule


def on_schedule(verb: str, queuetopia, name: str, *, by: str, reason: str) -> dict[str, Any]:
    """Pause, resume or run (``run_now``) a schedule; return a ``message``. Raises Refused."""
    place = f"Schedule {name} of {queuetopia.scope}"
    if verb == "run_now":
        job = queuetopia.run_schedule(name, by=by, reason=reason)
        return {"job": job.pk, "message": f"{place} is run now, as job {job.pk} of queue {job.queue}."}
    if verb == "pause":
        queuetopia.pause_schedule(name, by=by, reason=reason)
        return {"message": f"{place} is paused: no job is created until it is resumed."}
    queuetopia.resume_schedule(name, by=by, reason=reason)
    return {"message": f"{place} is resumed: its next due time gets a job."}


def pruned_schedules(alias: str, scope: str, name: str | None = None) -> dict[str, Any]:
    """Forget schedules that this code does not declare; return a ``message``. Raises Refused."""
    names = jobs.prune_schedules(alias, scope, name)
    return {"pruned": names, "message": f"{scope}: schedules forgotten: {', '.join(names) or 'none'}."}
