"""What has ended is deleted here, and nowhere else."""

import logging
from datetime import timedelta
from typing import NamedTuple

from django.db import transaction
from django.db.models import Q

from .. import conf
from ..backends import backend_for, breakers, rows
from ..lines import is_own
from ..models import Job, JobEvent, Once, Queue, Scope
from ..registry import registered

logger = logging.getLogger("queuetopia.jobs")


def delete_ended(job_id, *, alias) -> bool:
    """Delete a job of the database ``alias`` that has ended, and its events.

    Returns whether it did: no unfinished job is ever deleted. The job's scope need not be known to this code.
    """
    with transaction.atomic(using=alias):
        jobs = Job.objects.using(alias).ended().filter(pk=job_id)
        own = _own_rows(alias, jobs.values_list("pk", "scope", "queue"))
        deleted, _ = jobs.exclude(pk__in=own.busy).delete()
        rows.remove_own(alias, own.ids)
        if deleted:
            JobEvent.objects.using(alias).filter(job=job_id).delete()
    return bool(deleted)


def prune(queuetopia, *, older_than=None, batch=1_000, alias=None) -> int:
    """Delete up to ``batch`` jobs that ended before the retention (and their events); return how many.

    older_than: seconds or timedelta instead of the option ``retention``; with a retention of None nothing is
    deleted. No unfinished job is ever deleted. Nothing of yours is called or cascaded to, for nodes prune too: a
    foreign key to a job needs ``db_constraint=False``, else the database raises IntegrityError.
    """
    keep = queuetopia.option("retention") if older_than is None else conf.OPTIONS["retention"].clean(older_than)
    if keep is None:
        return 0
    alias = alias or queuetopia.database()
    now = backend_for(alias).now()
    cutoff = now - timedelta(seconds=keep)
    ended = Job.objects.using(alias).filter(scope=queuetopia.scope, done_at__lt=cutoff)
    found = list(ended.order_by("done_at").values_list("pk", "scope", "queue")[:batch])
    if found and queuetopia.option("breaker"):
        breakers.note_successes(alias, queuetopia.scope, now)  # of which nothing else will know
    events = JobEvent.objects.using(alias)
    of_scope = Q(scope=queuetopia.scope)
    with transaction.atomic(using=alias):
        own = _own_rows(alias, found)
        ids = [pk for pk, *_ in found if pk not in own.busy]
        # Plain DELETEs: no signal is sent, no row is fetched.
        events.filter(of_scope, job__in=ids)._raw_delete(alias)
        ended.filter(pk__in=ids)._raw_delete(alias)
        if own.names:
            rows.remove_own(alias, own.ids)
            Once.objects.using(alias).filter(scope=queuetopia.scope, queue__in=own.names)._raw_delete(alias)
    if not ids:
        old = of_scope & Q(at__lt=cutoff) | _old_of_everything(alias, now)
        events.filter(old, job=None)._raw_delete(alias)
    return len(ids)


class _OwnRows(NamedTuple):
    """The rows of the queues of independent jobs that are to be deleted."""

    names: list[str]
    ids: list[int]
    busy: set[int]  # ids of jobs that stay, because their queue is still held, or locked


def _own_rows(alias, jobs) -> _OwnRows:
    """Lock the rows of the independent ones among the jobs (id, scope, name of the row), and return them."""
    own = {(scope, name): pk for pk, scope, name in jobs if is_own(name)}
    if not own:
        return _OwnRows([], [], set())
    names = [name for _, name in own]
    found = Queue.objects.using(alias).filter(scope__in={scope for scope, _ in own}, name__in=names)
    left = {
        pk: own[scope, name] for pk, scope, name in found.values_list("pk", "scope", "name") if (scope, name) in own
    }
    # By their ids: MySQL may search a name by another index, and lock what it passes.
    free = Queue.objects.using(alias).filter(pk__in=left, held_by=None).order_by("id")
    ids = list(free.select_for_update(skip_locked=True).values_list("pk", flat=True))
    return _OwnRows(names, ids, {job for row, job in left.items() if row not in {*ids}})


def _old_of_everything(alias, now):
    """Select pauses of all scopes that the class with the longest retention in the database would not keep."""
    keeps = [known.option("retention") for known in registered() if known.database() == alias]
    is_kept = not keeps or None in keeps
    return Q(pk__in=[]) if is_kept else Q(scope=Scope.EVERYTHING, at__lt=now - timedelta(seconds=max(keeps)))
