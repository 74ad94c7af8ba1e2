"""What has ended is deleted here, and nowhere else."""

import logging
from datetime import timedelta

from django.db import transaction

from .. import conf
from ..backends import backend_for
from ..models import Job, JobEvent

logger = logging.getLogger("queuetopia.jobs")


def delete_ended(job_id, *, alias) -> bool:
    """Delete a job of the database ``alias`` that has ended, and what people did to it.

    Returns whether it did: no unfinished job is ever deleted. The job's scope need not be known to this code.
    """
    with transaction.atomic(using=alias):
        deleted, _ = Job.objects.using(alias).ended().filter(pk=job_id).delete()
        if deleted:
            JobEvent.objects.using(alias).filter(job=job_id).delete()
    return bool(deleted)


def prune(queuetopia, *, older_than=None, batch=1_000, alias=None) -> int:
    """Delete up to ``batch`` jobs that ended before the retention (and what people did to them); return how many.

    older_than: seconds or timedelta instead of the option ``retention``; with a retention of None nothing is
    deleted. No unfinished job is ever deleted. Nothing of yours is called or cascaded to, for nodes prune too: a
    foreign key to a job needs ``db_constraint=False``, else the database raises IntegrityError.
    """
    keep = queuetopia.option("retention") if older_than is None else conf.OPTIONS["retention"].clean(older_than)
    if keep is None:
        return 0
    alias = alias or queuetopia.database()
    cutoff = backend_for(alias).now() - timedelta(seconds=keep)
    ended = Job.objects.using(alias).filter(scope=queuetopia.scope, done_at__lt=cutoff)
    ids = list(ended.order_by("done_at").values_list("pk", flat=True)[:batch])
    events = JobEvent.objects.using(alias).filter(scope=queuetopia.scope)
    with transaction.atomic(using=alias):
        # Plain DELETEs: no signal is sent, no row is fetched.
        events.filter(job__in=ids)._raw_delete(alias)
        ended.filter(pk__in=ids)._raw_delete(alias)
    if not ids:
        events.filter(job=None, at__lt=cutoff)._raw_delete(alias)
    return len(ids)
