"""Exactly once: what an attempt writes, and that it was made, are one transaction."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections, transaction

from ..attempts import Claim, Outcome, Verdict, result_texts
from ..backends import backend_for, rows
from ..backends.values import Ending
from ..exceptions import StaleAttempt
from ..models import Job, Node, Once
from ..registry import by_scope
from ..text import visible


class Completion:
    """What ``with job.completing() as done`` hands to the block; ``result`` is stored as the job's."""

    result: Any = None


@contextmanager
def completing(job: Job) -> Iterator[Completion]:
    """See ``Job.completing``.

    The queue's row is checked at the beginning and locked at the end only: were it locked all the while, a frozen
    attempt would keep its queue from the node that takes it over. That one waits for the commit, or finds the fence
    its own, and then this attempt finds it gone.
    """
    claim, alias, done = _claim_of(job, "completing"), _database_of(job), Completion()
    if job._completed is not None:
        raise RuntimeError(f"Job {job.pk} has been completed by an earlier block of this attempt.")
    with transaction.atomic(using=alias, durable=True):
        if _is_rehearsed(claim):
            yield done
            return
        # Where rows cannot be locked, the first write locks all: one that came later would be refused.
        has_row_locks = connections[alias].features.has_select_for_update
        _refuse_stale(job, rows.still_held(alias, [claim]) if has_row_locks else rows.holds_on(alias, claim))
        yield done
        _refuse_stale(job, rows.holds_on(alias, claim))
        text, chunk = result_texts(job, done.result)
        outcome = Outcome(claim.job_id, claim.fence, Verdict.DONE, result=text, chunk=chunk)
        ending, node, now = Ending(claim, outcome), _node_of(alias, claim), backend_for(alias).now()
        rows.write_job(alias, ending, node, now, True)
        if chunk:
            rows.write_chunk(alias, ending, node, now)
        if (memory := job.changed_memory()) is not None:
            rows.remember(alias, claim, memory)
    job._note_completion(done)


@contextmanager
def once(job: Job, using: str | None = None, step: str = "") -> Iterator[bool]:
    """See ``Job.once``."""
    claim, alias = _claim_of(job, "once"), using or _database_of(job)
    if job.chunk is not None:
        raise RuntimeError(f"Action {job.action!r} has a chunk: once() is for an action that does one job at a time.")
    with transaction.atomic(using=alias, durable=True):
        if _is_rehearsed(claim):
            yield True
            return
        row = _locked_row(alias, job)
        _refuse_stale(job, row.fence <= claim.fence)
        steps = row.steps if row.job == claim.job_id else []
        is_new = step not in steps
        yield is_new
        if is_new:
            mine = {"job": claim.job_id, "fence": claim.fence, "steps": [*steps, step]}
            Once.objects.using(alias).filter(pk=row.pk).update(**mine)


def _claim_of(job, method) -> Claim:
    if job._claim is None:
        raise RuntimeError(
            f"Job {job.pk} runs nowhere here: {method}() is for the job that a performer is handed, inside its attempt."
        )
    if job._head is not None:
        raise RuntimeError(f"Job {job.pk} is done together with others: call {method}() of the first of them, jobs[0].")
    return job._claim


def _database_of(job):
    return by_scope()[job.scope].database()


def _is_rehearsed(claim):
    """True in ``testing.perform_job``, which claims nothing and writes nothing."""
    return claim.queue_id == 0


def _refuse_stale(job, is_ours):
    if not is_ours:
        raise StaleAttempt(
            f"Attempt {job.attempts} of job {job.pk} under fence {job.fence} has lost its queue {job.queue!r}: "
            "another attempt may run. What this block wrote is rolled back."
        )


def _node_of(alias, claim) -> str:
    """Return what ``attempted_by`` says: the node that runs this attempt, or this process."""
    holder = rows.holder_of(alias, claim)
    node = Node.objects.using(alias).filter(pk=holder).first()
    return str(node) if node else visible(f"{socket.gethostname()}:{os.getpid()}")


def _locked_row(alias, job) -> Once:
    names = {"scope": job.scope, "queue": job.queue}
    found = Once.objects.using(alias).filter(**names)
    Once.objects.using(alias).bulk_create([Once(**names)], ignore_conflicts=True)
    return found.select_for_update().get()
