"""Chunks: the due jobs of one action that stand right behind each other, done by one attempt."""

import logging

from django.db import OperationalError, transaction

from .. import conf
from ..attempts import Claim
from ..backends import backend_for, rows
from ..models import Queue
from ..registry import by_scope
from ..text import brief

logger = logging.getLogger("queuetopia.jobs")


def jobs_with(claim: Claim, most: int) -> list[Claim]:
    """Return the claims of the jobs that are done together with this one, behind it; note them on the queue's row.

    There are none if the job failed before, stood in a chunk that did, tries whether an outage is over, or has options
    of its own: so what is at fault is found, and its error is its own. All in a transaction that locks the queue's row:
    a verb finds these jobs running, or has changed them before they are read.
    """
    if claim.queue_id == 0 or claim.failed_at or claim.trial:
        return []
    if any(getattr(claim, name) is not None for name in conf.JOB_OPTIONS):
        return []
    alias = by_scope()[claim.scope].database()
    try:
        with transaction.atomic(using=alias):
            return _mark(alias, claim, most)
    except OperationalError as exc:
        if not backend_for(alias).is_busy(exc):
            raise
        logger.info("chunk not begun, its head runs alone job=%d cause=%r", claim.job_id, brief(exc))
        return []


def _mark(alias, claim, most):
    if not rows.holds_on(alias, claim):
        return []  # what comes of it is refused
    before = Queue.objects.using(alias).values_list("chunk", flat=True).get(pk=claim.queue_id)
    if isinstance(before, dict) and claim.job_id in before.get("jobs", ()):
        return []
    found = rows.jobs_behind(alias, claim, most - 1, backend_for(alias).now())
    if found:
        rows.mark_chunk(alias, claim, [job["id"] for job in found])
    return [_claim_of(claim, job) for job in found]


def _claim_of(claim, job):
    return claim._replace(
        job_id=job["id"],
        params=job["params_text"],
        attempt=job["attempts"] + 1,
        scheduled_at=job["scheduled_at"].isoformat(),
        attempted=False,
        coalesces=False,
    )
