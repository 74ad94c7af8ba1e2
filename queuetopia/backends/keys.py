"""Jobs with a key that one unfinished job of a queue can have: ``unique``, ``coalesce``. The same on all databases.

A unique index sees to it that there is one. A job that coalesces gets the params of later creations until it is
claimed: they lock its row, not its queue's, so a claim clears the key first, and takes the params that are stored then.
"""

from django.db import OperationalError, models, transaction

from ..attempts import Claim, Outcome, Verdict
from ..models import Job
from . import rows
from .columns import is_live
from .values import Ending

TRIES = 5  # to let such a job go; what then still is held without a claim is found by the node
LOCKED_BY_CREATOR = 0.1  # seconds until a job is claimed again to which a creator's open transaction has given params


def insert_keyed(backend, job: Job) -> Job:
    """INSERT a new job with a key, unless an unfinished one has that key: see ``Backend.insert_keyed``."""
    with transaction.atomic(using=backend.alias):
        if found := take_up(backend, job):
            return found
        # Creators who all wait for the index would deadlock on MySQL when the first one of them rolls back.
        backend.lock_order(job.scope, {job.queue})
        found = take_up(backend, job)
        if found is None:
            backend.insert([job])
        return found or job


def take_up(backend, job: Job) -> Job | None:
    """Return the unfinished job that has the new one's key, or None; give it the new params if they coalesce."""
    if job.unique_key is not None:
        return _with_key(backend, "unique_key", job).first()
    # By its id, so that no lock but that of the row is taken: see ``Backend.queue_id``.
    while pk := _with_key(backend, "coalesce_key", job).values_list("pk", flat=True).first():
        found = Job.objects.using(backend.alias).filter(pk=pk)
        if found.filter(coalesce_key=job.coalesce_key, done_at=None).update(params=job.params):
            return found.get()
    return None


def is_taken(backend, job: Job) -> bool:
    """True if an unfinished job has the key of this new one, which has one."""
    return _with_key(backend, "coalesce_key" if job.unique_key is None else "unique_key", job).exists()


def _with_key(backend, column, job) -> models.QuerySet:
    """Return the unfinished jobs, one at most, that have the key of ``job``."""
    jobs = Job.objects.using(backend.alias).unfinished().in_queue(job.scope, job.queue)
    if column == "coalesce_key":
        jobs = jobs.filter(action=job.action)
    return jobs.filter(is_live(backend.connection, column, getattr(job, column)))


def close_to_creators(backend, claims: list[Claim], holder) -> list[Claim]:
    """Clear the keys of claimed jobs that coalesce, and put their last params into the claims. After their commit.

    A job to which a creator's open transaction has just given params is let go, and due again soon.
    """
    ids = [claim.job_id for claim in claims if claim.coalesces]
    if not ids:
        return claims
    params = _closed(backend, ids)
    wait = Outcome(0, 0, Verdict.RETURN, LOCKED_BY_CREATOR)
    let_go = [
        Ending(claim, wait._replace(job_id=claim.job_id, fence=claim.fence))
        for claim in claims
        if claim.coalesces and claim.job_id not in params
    ]
    for _ in range(TRIES):
        if not let_go:
            break
        let_go = backend.record(let_go, holder, "", lambda claim: False).locked
    last = (claim._replace(params=params.get(claim.job_id, claim.params)) for claim in claims)
    return [claim for claim in last if not claim.coalesces or claim.job_id in params]


def _closed(backend, ids) -> dict[int, str]:
    """Clear the keys of those of the jobs that are not locked; return {id: the params that are stored}.

    What has been committed before must not be lost by an error of the moment: then all are taken for locked.
    """
    try:
        with transaction.atomic(using=backend.alias):
            found = rows.head_rows(backend.alias).filter(pk__in=ids).order_by("id")
            params = {row["id"]: row["params_text"] for row in found.select_for_update(skip_locked=True)}
            Job.objects.using(backend.alias).filter(pk__in=params).update(coalesce_key=None)
            return params
    except OperationalError as exc:
        if not backend.is_busy(exc):
            raise
        return {}
