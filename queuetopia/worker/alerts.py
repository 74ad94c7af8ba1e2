"""Alerts about blocked queues: signals, and mail to ADMINS. Runs in workers.

A mail holds no text of users in its subject, and escaped text in its body, so that those who may create jobs or
fail in them can put no header and no control character into it. Params are never in it.
"""

from datetime import timedelta

from django.core import mail

from .. import conf, signals
from ..backends import backend_for, upkeep
from ..jobs import number_waiting, send
from ..models import Job, Queue
from ..monitoring.explain import explain_queue
from ..registry import registered
from ..text import visible

MAIL = "mail"  # the chore
MOST_MAILED = 20  # queues that a mail explains …
MOST_LOOKED_AT = 5_000  # … and that are read in each scope


def notify_blocked(queuetopia, job, exc) -> None:
    """Send queue_blocked for a job that has failed for the first time."""
    if signals.queue_blocked.has_listeners(queuetopia):
        waiting = number_waiting(queuetopia, job.queue, backend_for(queuetopia.database()).now())
        send(signals.queue_blocked, queuetopia, job=job, queue=job.queue, exc=exc, waiting=waiting)


def send_still_blocked(queuetopia, job, duration: float, threshold: float) -> None:
    """Send queue_still_blocked, unless the job has ended meanwhile."""
    if not signals.queue_still_blocked.has_listeners(queuetopia):
        return
    if not queuetopia.jobs().unfinished().filter(pk=job.pk).exists():
        return
    waiting = number_waiting(queuetopia, job.queue, backend_for(queuetopia.database()).now())
    send(
        signals.queue_still_blocked,
        queuetopia,
        job=job,
        queue=job.queue,
        duration=duration,
        threshold=threshold,
        waiting=waiting,
    )


# Mail


def mail_admins(alias: str, every: float) -> None:
    """Mail ADMINS about the queues in this database that have been blocked for long, if there are any.

    Not within ``every`` seconds of the last mail, of whatever node.
    """
    backend = backend_for(alias)
    if upkeep.was_done(backend, MAIL, every):
        return
    found = {queuetopia.scope: long_blocked(queuetopia.scope, alias) for queuetopia in _serving(alias)}
    blocked = [(failed_at, scope, queue) for scope, jobs in found.items() for queue, failed_at in jobs]
    if not blocked or not upkeep.is_turn(backend, MAIL, every):
        return
    lines = [
        f"{visible(scope)}: {visible(explain_queue(scope, queue, alias)['sentence'])}"
        for _, scope, queue in sorted(blocked)[:MOST_MAILED]
    ]
    if more := len(blocked) - len(lines):
        lines.append(f"and {more} more: manage.py queuetopia status")
    count = "1 queue is" if len(blocked) == 1 else f"{len(blocked)} queues are"
    mail.mail_admins(f"Queuetopia: {count} blocked", "\n\n".join(lines) + "\n")


def _serving(alias):
    return [queuetopia for queuetopia in registered() if queuetopia.database() == alias]


def long_blocked(scope: str, alias: str) -> list:
    """Return (queue, when its head failed first) for queues that have been blocked for the first of ALERT_AFTER."""
    after = min(conf.alert_after(), default=0.0)
    failed_before = backend_for(alias).now() - timedelta(seconds=after)
    current = Queue.objects.using(alias).blocked().filter(scope=scope).values_list("current_job", flat=True)
    jobs = Job.objects.using(alias).unfinished().filter(failed_at__lte=failed_before)
    return list(jobs.filter(pk__in=list(current[:MOST_LOOKED_AT])).values_list("queue", "failed_at"))
