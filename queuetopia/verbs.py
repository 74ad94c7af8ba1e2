"""What a person can do, and what it did, in words: for the command and the admin.

The verbs themselves are functions of ``jobs.py``; here each gets one sentence for the person who said it.
"""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from django.db import DatabaseError
from django.utils import timezone

from . import status
from .declaration import by_scope
from .exceptions import InvalidJob, Refused
from .models import Job, Queue

VERBS = {
    "retry": "make the next attempt of backing-off or halted jobs now",
    "skip": "give backing-off or halted jobs up; their queues go on",
    "cancel": "cancel jobs that were never attempted, ask running ones to stop",
    "pause": "start nothing new in a queue or a whole scope; running jobs finish",
    "resume": "serve a paused queue or scope again, at once",
}


def tried(act: Callable[[], dict[str, Any]], **about) -> dict[str, Any]:
    """Return a result: what it is ``about``, whether it is ``ok``, and what ``act`` says it did or why it could not."""
    try:
        return {**about, "ok": True, **act()}
    except InvalidJob as exc:
        problems = (f"{name} {problem}" for name, found in exc.message_dict.items() for problem in found)
        return {**about, "ok": False, "message": " ".join(problems)}
    except Refused as exc:
        return {**about, "ok": False, "message": str(exc)}
    except DatabaseError as exc:
        return {**about, "ok": False, "message": refused_by_database(exc)}


def refused_by_database(exc: DatabaseError) -> str:
    return f"The database refused: {str(exc).strip()}. Is it reachable and migrated (manage.py migrate)?"


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


def on_job(verb: str, queuetopia, job_id: int, *, by: str, reason: str) -> dict[str, Any]:
    """Do retry, skip or cancel; return what the job is now, the ``answer`` and a ``message``. Raises Refused."""
    answer, job, message = {"retry": _retry, "skip": _skip, "cancel": _cancel}[verb](
        queuetopia, job_id, {"by": by, "reason": reason}
    )
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
    most = job.max_attempts or queuetopia.option("max_attempts")
    when = "starts when its queue is resumed" if status.is_paused(queuetopia, job.queue) else "is due now"
    return "retried", job, f"is retried: attempt {job.attempts + 1} of {most} {when}"


def _skip(queuetopia, job_id, why):
    job = queuetopia.skip(job_id, **why)
    then = "is paused" if status.is_paused(queuetopia, job.queue) else "goes on"
    return "skipped", job, f"is skipped; its queue {then}"


def _cancel(queuetopia, job_id, why):
    answer = queuetopia.cancel(job_id, **why)
    job = queuetopia.jobs().get(pk=job_id)
    if answer == "finished":
        raise Refused(f"{name_of(job)} cannot be cancelled: it is {job.state} since {local(job.done_at)}.")
    if answer == "running":
        return answer, job, "is running and asked to stop: cancelled, unless it is done before"
    return answer, job, "is cancelled"


def name_of(job: Job) -> str:
    return f"Job {job.pk} ({job.action} of {job.scope}/{job.queue})"


# On a queue, or a whole scope


def on_queue(verb: str, queuetopia, queue: str | None, *, by: str, reason: str) -> dict[str, Any]:
    """Pause or resume a queue (None: the scope); return a ``message``. Raises Refused and InvalidJob."""
    return {"pause": _pause, "resume": _resume}[verb](queuetopia, queue, {"by": by, "reason": reason})


def _pause(queuetopia, queue, why):
    is_new = queue is not None and not _exists(queuetopia, queue)
    queuetopia.pause(queue, **why)
    note = " It has had no job so far: is the name right?" if is_new else ""
    return {"message": f"{_place(queuetopia, queue)} is paused: what runs finishes, nothing new starts.{note}"}


def _resume(queuetopia, queue, why):
    queuetopia.resume(queue, **why)
    is_still = queue is not None and status.is_paused(queuetopia, queue)
    note = f", but all of {queuetopia.scope} is paused" if is_still else ""
    return {"message": f"{_place(queuetopia, queue)} is resumed{note}."}


def _place(queuetopia, queue):
    return queuetopia.scope if queue is None else f"{queuetopia.scope}/{queue}"


def _exists(queuetopia, queue):
    rows = Queue.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, name=queue)
    return rows.exists() or queuetopia.jobs().filter(queue=queue).exists()


def local(moment) -> str:
    return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S")
