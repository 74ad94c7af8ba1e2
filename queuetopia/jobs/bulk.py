"""Decisions about many jobs at once: in batches, each one transaction with a fixed number of statements."""

import logging
from functools import partial

from django.db import connections, transaction
from django.db.models import F, Q, Value
from django.db.models.functions import Coalesce

from .. import signals
from ..backends import backend_for, breakers
from ..exceptions import Refused
from ..models import Job, JobEvent, Queue
from ..text import storable
from .carrying import move_batch, why_not_moved
from .deciding import persons_verb, recheck_all, why_not_at_rest, why_not_blocked
from .sending import send, send_unblocked

logger = logging.getLogger("queuetopia.jobs")

BATCH = 500  # jobs that one transaction decides about


def retry_all(queuetopia, queue=None, *, error=None, gently=False, by="", reason="") -> int:
    """Retry all jobs that hold queues and are not due yet, and all that are halted; return how many.

    queue: only this one. error: only jobs whose last error contains this text, in upper or lower case.
    gently: as after an outage, 1, 2, 4, 8 … queues of the scope at a time, new jobs included, until nothing waits any
    more; needs a ``breaker`` of the class, and what fails by its kind uses no attempt meanwhile.

    Batches of ``BATCH`` jobs, each a transaction of its own and with an event for each job: what has been done stays
    done if a later batch fails, and a second call goes on. Jobs that run or end meanwhile, or that another transaction
    has locked, are left alone.
    """
    if gently:
        begin_ramp(queuetopia)
    return _decide_about_all(queuetopia, "retry", queue, error, by, reason)


def begin_ramp(queuetopia) -> None:
    """Let 1, 2, 4, 8 … queues of the scope start at a time, until nothing waits. Raise Refused without a breaker."""
    if queuetopia.option("breaker") is None:
        raise Refused(
            f"{queuetopia.__name__} has no breaker, by which nodes know how many have succeeded: declare one, "
            "breaker = Breaker(ConnectionError), or retry without gently."
        )
    alias = queuetopia.database()
    with transaction.atomic(using=alias):
        breakers.begin_ramp(alias, queuetopia.scope)


def skip_all(queuetopia, queue=None, *, error=None, by="", reason="") -> int:
    """Skip all jobs that hold queues or are halted; return how many. As ``retry_all`` otherwise."""
    return _decide_about_all(queuetopia, "skip", queue, error, by, reason)


def _decide_about_all(queuetopia, verb, queue, error, by, reason):
    ids = blocking(queuetopia, verb, queue, error)
    return sum(len(done) for _, done in batches(queuetopia, verb, ids, by=by, reason=reason))


def blocking(queuetopia, verb, queue=None, error=None) -> list[int]:
    """Return the ids, in order, of the jobs to which ``verb`` (retry or skip) can be done.

    These are the heads that hold queues, and halted jobs behind them: they have moved there.
    """
    alias = queuetopia.database()
    blocked = Queue.objects.using(alias).blocked().filter(scope=queuetopia.scope)
    jobs = queuetopia.jobs().unfinished().filter(attempted_at__isnull=False)
    if queue is not None:
        jobs = jobs.filter(queue=queue)
    if error is not None:
        jobs = jobs.filter(error__icontains=error)
    heads = jobs.filter(pk__in=blocked.values("current_job"))
    if verb == "retry":
        heads = heads.kept_from_running(backend_for(alias).now())
    places = {pk: (at, pk) for rows in (heads, jobs.halted()) for pk, at in rows.values_list("pk", "scheduled_at")}
    return sorted(places, key=places.__getitem__)


def batches(queuetopia, verb, ids, *, by="", reason=""):
    """Retry or skip jobs, batch by batch; yield the ids of each batch, and of the jobs that it changed."""
    for first in range(0, len(ids), BATCH):
        batch = ids[first : first + BATCH]
        yield batch, decide(queuetopia, verb, batch, by=by, reason=reason)


def decide(queuetopia, verb, ids, *, by="", reason="", to="") -> list[int]:
    """Retry, skip or move (to queue ``to``) those of the jobs that can be, in one transaction; return their ids."""
    if verb == "move":
        return move_batch(queuetopia, ids, to, by=by, reason=reason)
    return _decide(queuetopia, verb, ids, by=by, reason=reason)


@persons_verb
def _decide(queuetopia, verb, ids, *, by, reason) -> list[int]:
    """Retry or skip those of the jobs that hold their queues, or are halted behind their heads; return their ids.

    What another transaction has locked is left alone. A fixed number of statements, however many jobs there are.
    """
    alias = queuetopia.database()
    passes_over = connections[alias].features.has_select_for_update_skip_locked
    chosen = queuetopia.jobs().unfinished().filter(pk__in=ids, attempted_at__isnull=False)
    with transaction.atomic(using=alias):
        names = list(chosen.order_by().values_list("queue", flat=True).distinct())
        queues = Queue.objects.using(alias).filter(scope=queuetopia.scope, name__in=names)
        # Rows are locked by their ids: see Backend.queue_id.
        rows = Queue.objects.using(alias).filter(pk__in=list(queues.values_list("pk", flat=True))).order_by("id")
        lines = {line.name: line for line in rows.select_for_update(skip_locked=passes_over)}
        locked = chosen.filter(queue__in=lines).select_for_update(skip_locked=passes_over).order_by("id")
        jobs = [job for job in locked if _waits_for_operator(job, lines[job.row_name])]
        done = [job.pk for job in jobs]
        before = [{"state": job.state, "attempts": job.attempts, "running": False} for job in jobs]
        _decide_rows(queuetopia, verb, jobs, [lines[job.row_name].pk for job in jobs])
        JobEvent.objects.using(alias).bulk_create(
            JobEvent(
                verb=verb, scope=job.scope, queue=job.queue, job=job.pk,
                by=storable(by, 255), reason=storable(reason, 500), before=was, after={**was, "state": job.state},
            )
            for job, was in sorted(zip(jobs, before, strict=True), key=lambda pair: (pair[0].scheduled_at, pair[0].pk))
        )  # fmt: skip
        ids_of_lines = [line.pk for line in lines.values()]
        transaction.on_commit(partial(recheck_all, alias, ids_of_lines), using=alias, robust=True)
    return done


def _waits_for_operator(job, line) -> bool:
    """True for the head of a blocked queue, and for a halted job that has moved behind it."""
    if line.current_job == job.pk:
        return line.held_by is None
    return job.state == Job.State.HALTED


def _decide_rows(queuetopia, verb, jobs, queue_ids):
    """Write what the verb makes of these jobs, and of the queues that they hold; all are locked."""
    alias = queuetopia.database()
    now = backend_for(alias).now()
    rows = Job.objects.using(alias).filter(pk__in=[job.pk for job in jobs])
    # What waits behind a head changes nothing of its queue; without one, the queue is checked again.
    heads = Q(current_job__in=[job.pk for job in jobs]) | Q(current_job=None)
    queues = Queue.objects.using(alias).filter(heads, pk__in=queue_ids)
    if verb == "retry":
        most = Coalesce("max_attempts", Value(queuetopia.option("max_attempts")))
        exhausted = rows.annotate(most=most).filter(state=Job.State.HALTED, attempts__gte=F("most"))
        exhausted.update(max_attempts=F("attempts") + 1)
        rows.update(state=Job.State.PENDING, next_attempt_at=now, outside=None)
        queues.update(due_at=now, rev=F("rev") + 1)
        new_state = Job.State.PENDING
    else:
        rows.update(state=Job.State.SKIPPED, done_at=now, next_attempt_at=None, outside=None)
        queues.update(current_job=None, due_at=now, rev=F("rev") + 1)
        new_state = Job.State.SKIPPED
    for job in jobs:
        job.state = new_state
        if verb == "skip":
            job.done_at, job.next_attempt_at = now, None
            transaction.on_commit(partial(_notify_skipped, queuetopia, job), using=alias, robust=True)


def _notify_skipped(queuetopia, job):
    send(signals.job_skipped, queuetopia, job=job, exc=None)
    if job.error:
        send_unblocked(queuetopia, job, job.failed_at or job.attempted_at)


def refusals(queuetopia, verb, ids, to="") -> dict[int, tuple[str, str]]:
    """Return {id: (why in a word or two, the sentence)} of jobs that ``decide`` left alone, in two queries."""
    if verb == "move":
        reasons = why_not_moved(queuetopia, ids, to)
        gone = "Job {} cannot be moved: it is not there any more, or has just changed. Try it again."
        return {pk: ("not movable", reasons.get(pk, gone.format(pk))) for pk in ids}
    held = Queue.objects.using(queuetopia.database()).held()
    running = {queue.current_job: queue for queue in held.filter(scope=queuetopia.scope, current_job__in=ids)}
    jobs = queuetopia.jobs().filter(pk__in=ids).defer("params", "errors", "result").in_bulk()
    participle = "retried" if verb == "retry" else "skipped"
    found = {}
    for pk in ids:
        kind, why = _why_left(jobs[pk], running.get(pk)) if pk in jobs else ("gone", "it is not there any more.")
        found[pk] = kind, f"Job {pk} cannot be {participle}: {why}"
    return found


def _why_left(job, running) -> tuple[str, str]:
    if why := why_not_at_rest(job, running):
        return ("running" if running else job.state), why
    if why := why_not_blocked(job):
        return "waiting in line", why
    return "locked", "another transaction has locked it, or it waits behind the head of its queue. Try it again, alone."
