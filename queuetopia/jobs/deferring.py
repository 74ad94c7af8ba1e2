"""The end of an attempt that was deferred: reported from outside, or by its deadline.

What is reported is kept in the job's row (``outside``), and its queue made due. A node claims it as any other, and
records that end instead of running the job: so all that follows an end is done where it always is.
"""

import json
from contextlib import contextmanager
from functools import partial

from django.db import transaction
from django.db.models import F

from .. import exceptions
from ..attempts import Claim, Outcome, Verdict, result_text
from ..backends import backend_for
from ..exceptions import InvalidJob, Refused
from ..models import Job, Queue
from ..outside import read_token
from ..registry import by_scope
from ..text import storable
from ..times import local
from .deciding import again_after_deadlock
from .failing import failed
from .reporting import progress_value

LONGEST_TEXT = 2_000  # characters of an error from outside


def complete(queuetopia, token: str, result=None) -> None:
    """Report the success of a deferred attempt: its job is done, with this result, as soon as a node has recorded it.

    token: ``job.token`` of the attempt. result: JSON, or one of the other types of params.

    Raises Refused for a wrong token, for an attempt that was completed or failed before, has ended otherwise (its
    deadline, a verb of an operator) or was replaced by a later one; InvalidJob for a result that is no JSON.
    """
    text = result_text(result)
    if text is None and result is not None:
        raise InvalidJob({"result": [f"is no JSON that can be stored: {type(result).__name__}."]})
    _report(queuetopia, token, {"result": text})


def fail(queuetopia, token: str, error: str = "") -> None:
    """Report the failure of a deferred attempt: what follows is what follows any failed attempt of the job.

    error: text that says why. Raises Refused as ``complete`` does.
    """
    _report(queuetopia, token, {"error": storable(str(error), LONGEST_TEXT) or "failed outside, without a reason"})


def report_outside(queuetopia, token: str, fraction: float, text: str = "") -> None:
    """Report how far a deferred attempt has come, where ``Job.report_progress`` cannot be called. Each call writes.

    Raises Refused as ``complete`` does, ValueError as ``Job.report_progress`` does.
    """
    job_id, fence = read_token(queuetopia.scope, token)
    params = queuetopia.jobs().filter(pk=job_id).values_list("params", flat=True).first()
    progress = progress_value(queuetopia, params, fence, fraction, text)
    again_after_deadlock(queuetopia.database(), partial(_keep_progress, queuetopia, job_id, fence, progress))


def settled(claim: Claim) -> Outcome:
    """Return how the deferred attempt of a claim has ended, which carries what was reported of it."""
    outside, queuetopia = json.loads(claim.outside or "{}"), by_scope()[claim.scope]
    if "result" in outside:
        done = Outcome(claim.job_id, claim.fence, Verdict.DONE, result=outside["result"])
        return done._replace(memory=outside.get("memory"))
    if "error" in outside:
        return failed(queuetopia, claim, exceptions.FailedOutside(outside["error"]))
    return failed(queuetopia, claim, exceptions.JobTimeout("nothing was reported from outside before the deadline"))


def _report(queuetopia, token, outside):
    job_id, fence = read_token(queuetopia.scope, token)
    again_after_deadlock(queuetopia.database(), partial(_keep, queuetopia, job_id, fence, outside))


def _keep(queuetopia, job_id, fence, outside):
    alias = queuetopia.database()
    with _open_attempt(queuetopia, job_id, fence) as (job, queue):
        now, outside = backend_for(alias).now(), {**(job.outside or {}), **outside}
        kept = {"outside": outside} if queue.held_by else {"outside": outside, "next_attempt_at": now}
        Job.objects.using(alias).filter(pk=job_id).update(**kept)
        if queue.held_by is None:  # else the attempt is about to return, and its end is recorded with this
            Queue.objects.using(alias).filter(pk=queue.pk).update(due_at=now, rev=F("rev") + 1)
        transaction.on_commit(backend_for(alias).notify, using=alias, robust=True)


def _keep_progress(queuetopia, job_id, fence, progress):
    with _open_attempt(queuetopia, job_id, fence):
        Job.objects.using(queuetopia.database()).filter(pk=job_id).update(progress=progress)


@contextmanager
def _open_attempt(queuetopia, job_id, fence):
    """Lock the rows of an attempt; yield its job and its queue. Raises Refused if it is over, or was reported so."""
    alias = queuetopia.database()
    name = queuetopia.jobs().filter(pk=job_id).values_list("queue", flat=True).first()
    if name is None:
        raise Refused(f"There is no job {job_id} in {queuetopia.scope}: it was deleted.")
    with transaction.atomic(using=alias):
        found = Queue.objects.using(alias).filter(scope=queuetopia.scope, name=name)
        queue = found.select_for_update().first() or Queue()
        job = queuetopia.jobs().select_for_update().defer("params", "errors").get(pk=job_id)
        _refuse_unless_open(job, queue, fence)
        yield job, queue


def _refuse_unless_open(job, queue, fence):
    cannot = f"Nothing can be reported of job {job.pk} from outside"
    if job.is_ended():
        raise Refused(f"{cannot}: it is {job.state} since {local(job.done_at)}.")
    if job.is_reported():
        raise Refused(f"{cannot}: that was reported before.")
    if queue.current_job != job.pk or queue.fence != fence:
        raise Refused(f"{cannot}: this attempt is over, by its deadline or an operator, and a later one has its queue.")
    if queue.held_by is None and job.outside is None:
        raise Refused(f"{cannot}: this attempt has ended, and the job waits for its next one or for an operator.")
