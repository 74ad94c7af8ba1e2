"""Move: unfinished jobs carried to the end of another queue of their scope, in their order.

In batches, each one transaction with a fixed number of statements. While there are more than one, the queues that the
jobs leave are paused: else a job of the second batch would start there while those of the first wait in the new place.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import partial

from django.db import transaction
from django.db.models import F

from ..backends import backend_for
from ..exceptions import InvalidJob, Refused
from ..models import Job, JobEvent, Queue
from ..moving import name_problem
from ..text import storable
from .deciding import pause, persons_verb, pk_of, recheck_all, resume, why_not_at_rest
from .sending import send_unblocked

BATCH = 500  # jobs that one transaction moves
APART = timedelta(microseconds=1)
SOON = timedelta(seconds=1)  # what is scheduled within it stands in line already
LIGHT = ("params", "errors", "result")  # columns that are not needed


def move(queuetopia, queue_or_jobs, to: str, *, by="", reason="") -> int:
    """Carry unfinished jobs to the end of queue ``to`` of the same scope, in their order; return how many.

    queue_or_jobs: the name of a queue: all its unfinished jobs as of now; or a Job, an id, or several of them.

    Jobs that are due stand behind all that are due there; one that is scheduled for later keeps its time. A job that
    was attempted keeps its state, attempts and errors: halted, it holds the new queue from its turn on; backing off,
    its next attempt is made when its turn comes. The queue that it held goes on at once.

    A job that runs, or whose attempt goes on elsewhere, is left where it is (``why_not_moved``). Batches of ``BATCH``
    jobs, each a transaction of its own and with an event for each job. Between them the queues that the jobs leave are
    paused; after a kill they stay so, and the same call goes on.

    Raises InvalidJob for a wrong name, Refused if jobs were named and none of them could be moved.
    """
    ids = movable(queuetopia, queue_or_jobs, to)
    number = sum(len(moved) for _, moved in moves(queuetopia, ids, to, by=by, reason=reason))
    if ids and not number and not isinstance(queue_or_jobs, str):
        raise Refused(next(iter(why_not_moved(queuetopia, ids, to).values())))
    return number


def movable(queuetopia, queue_or_jobs, to: str) -> list[int]:
    """Return the ids of the jobs to move, in order; for a queue those that can be. Raises InvalidJob, Refused."""
    problems = {"to": [f"{problem}."]} if (problem := name_problem(to)) else {}
    if isinstance(queue_or_jobs, str) and (problem := name_problem(queue_or_jobs)):
        problems["queue"] = [f"{problem}."]
    if problems:
        raise InvalidJob(problems)
    if not queuetopia.option("ordered"):
        raise Refused(f"The jobs of {queuetopia.scope} are independent: each is a line of its own, and none moves.")
    if queue_or_jobs == to:
        raise Refused(f"The jobs of {queuetopia.scope}/{to} are there already: name another queue to move them to.")
    jobs = queuetopia.jobs()
    if isinstance(queue_or_jobs, str):
        row = Queue.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, name=queue_or_jobs).first()
        heads = [] if row is None or row.current_job is None else [row.current_job]
        chosen = jobs.unfinished().filter(queue=queue_or_jobs)
        if row is not None and row.held_by is not None:
            chosen = chosen.exclude(pk__in=[*heads, *row.chunk_of(row.fence)])
    else:
        several = isinstance(queue_or_jobs, Iterable)
        named = {pk_of(job) for job in (queue_or_jobs if several else [queue_or_jobs])}
        chosen = jobs.filter(pk__in=named)
        held = Queue.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, current_job__in=named)
        heads = [row.current_job for row in held if row.current_job is not None]
        if missing := named.difference(chosen.values_list("pk", flat=True)):
            raise Refused(f"There is no job {min(missing)} in {queuetopia.scope}.")
    # A head was attempted: it goes first, whatever its time.
    line = list(chosen.in_order().values_list("pk", flat=True))
    return sorted(line, key=lambda pk: pk not in heads) if heads else line


def moves(queuetopia, ids: Sequence[int], to: str, *, by="", reason="") -> Iterator[tuple[Sequence[int], list[int]]]:
    """Move jobs, batch by batch; yield the ids of each batch, and of the jobs that it moved."""
    left = _names_of(queuetopia, ids) - {to}
    why = f"its jobs are being moved to {to!r}"
    if len(ids) > BATCH:
        for name in sorted(left - set(_paused(queuetopia, left))):
            pause(queuetopia, name, by=by, reason=f"{why}: {reason}" if reason else why)
    for first in range(0, len(ids), BATCH):
        batch = ids[first : first + BATCH]
        yield batch, move_batch(queuetopia, batch, to, by=by, reason=reason)
    for name, paused_reason in _paused(queuetopia, left).items():
        if paused_reason.startswith(storable(why, 500)):  # by this call, or by one that was killed
            resume(queuetopia, name, by=by, reason=reason)


def _names_of(queuetopia, ids) -> set[str]:
    """Return the queues in which these jobs are."""
    names: set[str] = set()
    for first in range(0, len(ids), BATCH):
        jobs = queuetopia.jobs().filter(pk__in=ids[first : first + BATCH])
        names.update(jobs.order_by().values_list("queue", flat=True).distinct())
    return names


def _paused(queuetopia, names) -> dict[str, str]:
    """Return {name: why} of those of the queues that are paused."""
    rows = Queue.objects.using(queuetopia.database()).paused().filter(scope=queuetopia.scope)
    return {name: reason for name, reason in rows.values_list("name", "paused_reason") if name in names}


@persons_verb
def move_batch(queuetopia, ids, to, *, by="", reason="") -> list[int]:
    """Move those of the jobs that can be, in this order and in one transaction; return their ids."""
    alias, scope = queuetopia.database(), queuetopia.scope
    with transaction.atomic(using=alias):
        lines = _locked_lines(alias, scope, {*_names_of(queuetopia, ids), to})
        rows = queuetopia.jobs().unfinished().filter(pk__in=ids, queue__in=lines).defer(*LIGHT)
        locked = {job.pk: job for job in rows.order_by("id").select_for_update()}
        jobs = [job for pk in ids if (job := locked.get(pk)) and not _why_left(job, lines[job.row_name], to)]
        now = backend_for(alias).now()
        _leave_events(alias, jobs, to, by, reason)
        _free(queuetopia, jobs, lines, now)
        _put_in_line(alias, scope, jobs, to, now)
        ids_of_lines = [line.pk for line in lines.values()]
        transaction.on_commit(partial(recheck_all, alias, ids_of_lines), using=alias, robust=True)
    return [job.pk for job in jobs]


def _locked_lines(alias, scope, names) -> dict[str, Queue]:
    """Return the queues' rows by name, locked until the transaction ends, their ``rev`` raised."""
    backend = backend_for(alias)
    rows = Queue.objects.using(alias).filter(pk__in=[backend.queue_id(scope, name) for name in sorted(names)])
    locked = {row.name: row for row in rows.order_by("id").select_for_update()}
    rows.update(rev=F("rev") + 1)
    return locked


def _why_left(job, line, to) -> str | None:
    """Return why a job cannot be moved; ``line`` is the row of its queue, None if it has none."""
    runs = line is not None and line.runs(job.pk)
    if why := why_not_at_rest(job, line if runs else None):
        return why
    if job.is_outside():
        return "its attempt goes on elsewhere. Wait for its end, or cancel it first."
    return f"it is in queue {to} already." if job.queue == to else None


def why_not_moved(queuetopia, ids, to: str) -> dict[int, str]:
    """Return {id: the sentence} of those of the jobs that cannot be moved, in two queries."""
    jobs = list(queuetopia.jobs().filter(pk__in=ids).defer(*LIGHT))
    held = Queue.objects.using(queuetopia.database()).held()
    running = {row.name: row for row in held.filter(scope=queuetopia.scope, name__in={job.queue for job in jobs})}
    reasons = {job.pk: _why_left(job, running.get(job.queue), to) for job in jobs}
    return {pk: f"Job {pk} cannot be moved: {why}" for pk, why in reasons.items() if why}


def _free(queuetopia, jobs, lines, now) -> None:
    """Let the queues go on that were held by one of these jobs."""
    alias = queuetopia.database()
    freed = [job for job in jobs if lines[job.row_name].current_job == job.pk]
    ids = [lines[job.row_name].pk for job in freed]
    # Due, not cleared: the next claim finds the new head or empties the queue, and checks again.
    Queue.objects.using(alias).filter(pk__in=ids).update(current_job=None, due_at=now)
    for job in freed:
        if job.error:
            since = job.failed_at or job.attempted_at
            unblocked = partial(send_unblocked, queuetopia, job, since, job.queue)
            transaction.on_commit(unblocked, using=alias, robust=True)


def _put_in_line(alias, scope, jobs, to, now) -> None:
    """Write the jobs' new queue and times: one after the other, behind what is due there."""
    line = Job.objects.using(alias).unfinished().in_queue(scope, to).filter(scheduled_at__lte=now + SOON)
    last = line.in_order().values_list("scheduled_at", flat=True).last()
    place = now if last is None else max(now, last + APART)
    for job in jobs:
        job.queue, job.next_attempt_at = to, None
        job.unique_key = job.coalesce_key = None  # of the queue it leaves; in the other one they may be taken
        if job.scheduled_at <= now or job.attempted_at is not None:
            job.scheduled_at, place = place, place + APART
    Job.objects.using(alias).bulk_update(
        jobs, ["queue", "scheduled_at", "next_attempt_at", "unique_key", "coalesce_key"]
    )


def _leave_events(alias, jobs, to, by, reason) -> None:
    JobEvent.objects.using(alias).bulk_create(
        JobEvent(
            verb="move", scope=job.scope, queue=job.queue, job=job.pk,
            by=storable(by, 255), reason=storable(reason, 500),
            before={"state": job.state, "queue": job.queue, "scheduled_at": job.scheduled_at.isoformat()},
            after={"state": job.state, "queue": to},
        )
        for job in jobs
    )  # fmt: skip
