"""Statements on the rows of one queue, written with the ORM: what all databases share of claiming and recording.

Each takes the alias of a connection and leaves the transaction to its caller.
"""

from functools import partial
from itertools import takewhile

from django.db import connections, models
from django.db.models import F, Q
from django.db.models.functions import Cast

from .. import conf
from ..attempts import MEANING, Claim, Verdict, memory_of
from ..lines import is_own
from ..models import Job, JobEvent, Queue, Scope
from .columns import DatabaseNow
from .values import HEAD_COLUMNS, as_done, claim_of, history, ids_of, job_values, next_attempt, result_of


def note_problem(alias: str, queue_id: int, text: str) -> None:
    """Show on the queue why it does not go on."""
    text = text.encode("ascii", "backslashreplace").decode()[:500]
    Queue.objects.using(alias).filter(pk=queue_id).update(problem=text)


def held_queue(alias, claim):
    """Return the queue's row, locked; None if the claim is stale, or if another transaction has the row locked.

    An operator's transaction may stay open for long: a scheduler that waited for it would hold up every other queue.
    """
    return _held_by(alias, [claim]).select_for_update(skip_locked=True).first()


def locks_job(alias, ending) -> bool:
    """Lock the job's row if it will be written; False if another transaction has it locked."""
    if ending.outcome.verdict == Verdict.RETURN or not connections[alias].features.has_select_for_update:
        return True
    ids = ids_of(ending)
    rows = Job.objects.using(alias).filter(pk__in=ids).values_list("pk")
    return (locked := len(rows.select_for_update(skip_locked=True))) == len(ids) or locked == rows.count()


def still_held(alias, claims: list[Claim]) -> set[int]:
    """Return the ids of the queues that are held under the fence of one of these claims."""
    return set(_held_by(alias, claims).values_list("pk", flat=True))


def holds_on(alias, claim) -> bool:
    """Lock the queue's row until the transaction ends, if it is held under the claim's fence; return whether it is.

    By an UPDATE that changes nothing, because not every database can lock a row otherwise.
    """
    return bool(_held_by(alias, [claim]).update(fence=claim.fence))


def holder_of(alias, claim):
    """Return the id of the node that holds the queue under the claim's fence, or None."""
    return _held_by(alias, [claim]).values_list("held_by", flat=True).first()


def with_what_is_known(alias, ending):
    """Return an ending that is no success as one if its job is done all the same.

    Its own attempt has written it so (``Job.completing``), or that was reported from outside before the attempt ended
    (``jobs.deferring``): then a deferral has nothing to wait for.
    """
    found = Job.objects.using(alias).filter(pk=ending.claim.job_id).values_list("state", "outside").first()
    state, outside = found or (None, None)
    if state == Job.State.DONE:
        return as_done(ending)
    if outside and "result" in outside and ending.outcome.verdict != Verdict.CANCEL:
        return as_done(ending, outside["result"])
    if outside and "error" in outside and ending.outcome.verdict == Verdict.DEFER:
        return ending._replace(outcome=ending.outcome._replace(delay=0.0))
    return ending


def _held_by(alias, claims):
    ours = Q()
    for claim in claims:
        ours |= Q(pk=claim.queue_id, fence=claim.fence, current_job=claim.job_id)
    held = Queue.objects.using(alias).filter(held_by__isnull=False)
    return held.filter(ours) if claims else held.none()


def write_job(alias, ending, node, now, was_run) -> None:
    """Write to the job how its attempt ended."""
    claim, outcome = ending.claim, ending.outcome
    if outcome.verdict == Verdict.RETURN:
        return
    job = Job.objects.using(alias).filter(pk=claim.job_id, done_at=None)
    errors = history(job.values_list("errors", flat=True).first()) if outcome.error else []
    values = job_values(claim, outcome, node, now, errors)
    if outcome.verdict == Verdict.DEFER:
        reported = job.values_list("outside", flat=True).first() or {}  # before the attempt has ended
        values["outside"] = {**values["outside"], **reported}
    if not was_run:  # cancelled before it began: there was no attempt
        values = {name: values[name] for name in ("state", "done_at", "next_attempt_at")}
    if job.update(**values) and outcome.verdict == Verdict.MOVE:
        _note_move(alias, claim, outcome)


def _note_move(alias, claim, outcome):
    """Leave in the job's history where it came from; nobody but its class decided so."""
    places = {"before": {"queue": claim.queue, "scheduled_at": claim.scheduled_at}, "after": {"queue": outcome.to}}
    why = "on_exhausted" if outcome.exhausted else "on_error"
    JobEvent.objects.using(alias).create(
        verb="move", scope=claim.scope, queue=claim.queue, job=claim.job_id, reason=why, **places
    )


def jobs_behind(alias, claim, most, now) -> list[dict]:
    """Return the first due jobs behind the claim's that may be done with it, as far as nothing else stands between.

    That is: another action, options of a job's own, or an earlier attempt.
    """
    line = head_rows(alias).unfinished().in_queue(claim.scope, claim.queue).in_order().exclude(pk=claim.job_id)
    return _closed_to_creators(alias, list(takewhile(partial(_goes_with, claim, now), line[:most])))


def _closed_to_creators(alias, jobs: list[dict]) -> list[dict]:
    """Clear the keys of jobs that coalesce; return the jobs with their last params, up to one that a creator writes."""
    ids = [job["id"] for job in jobs if job["coalesce_key"] is not None]
    if not ids:
        return jobs
    unlocked = head_rows(alias).filter(pk__in=ids).select_for_update(skip_locked=True).order_by("id")
    last = {job["id"]: job for job in jobs if job["coalesce_key"] is None} | {row["id"]: row for row in unlocked}
    closed = [last[job["id"]] for job in takewhile(lambda job: job["id"] in last, jobs)]
    coalescing = [job["id"] for job in closed if job["coalesce_key"] is not None]
    Job.objects.using(alias).filter(pk__in=coalescing).update(coalesce_key=None)
    return closed


def _goes_with(claim, now, job):
    is_fresh = job["state"] == Job.State.PENDING and job["attempted_at"] is None and job["scheduled_at"] <= now
    return is_fresh and job["action"] == claim.action and all(job[name] is None for name in conf.JOB_OPTIONS)


def mark_chunk(alias, claim, jobs: list[int]) -> None:
    """Note on the queue's row, which is locked, that these jobs begin together with the claim's."""
    chunk = {"fence": claim.fence, "jobs": jobs}
    Queue.objects.using(alias).filter(pk=claim.queue_id, fence=claim.fence).update(chunk=chunk)


def of_chunk(alias, queue, ending):
    """Return how an attempt that was not done ends, if it was a chunk's; its jobs run alone then, after a failure.

    Which of them is at fault is not known yet: so its head is neither given up nor halted, but tried alone.
    """
    if not queue.chunk_of(ending.claim.fence):
        return ending
    if not MEANING[Verdict(ending.outcome.verdict)].is_failure:  # they may begin together again
        Queue.objects.using(alias).filter(pk=queue.pk, fence=queue.fence).update(chunk=None)
    elif ending.outcome.verdict != Verdict.RETRY:
        return ending._replace(outcome=ending.outcome._replace(verdict=Verdict.RETRY, delay=0.0, exhausted=False))
    return ending


def write_chunk(alias, ending, node, now) -> None:
    """Write the jobs behind the ending's own, which were done with it."""
    behind = ending.outcome.chunk
    results = {text for *_, text in behind}
    jobs = Job.objects.using(alias).filter(pk__in=[pk for pk, *_ in behind], done_at=None)
    values = job_values(ending.claim, ending.outcome._replace(result=behind[0][2]), node, now, [])
    written = jobs.update(**{**values, "attempts": F("attempts") + 1})
    if len(results) > 1 and written:
        each = [Job(pk=pk, result=result_of(text)) for pk, _, text in behind]
        Job.objects.using(alias).bulk_update(each, ["result"])


def remember(alias, claim, memory: str) -> dict:
    """Store what a successful attempt has left in its queue's memory, and return it. The queue's row is locked."""
    value = memory_of(memory)
    Queue.objects.using(alias).filter(pk=claim.queue_id, fence=claim.fence).update(memory=value)
    return value


def make_due(queues, due_at) -> int:
    """Make those of the queues due then that nothing holds and that are not due before; return how many."""
    return queues.idle().filter(Q(due_at=None) | Q(due_at__gt=due_at)).update(due_at=due_at)


def head_rows(alias):
    """Return a QuerySet of jobs as dicts that ``claim_of`` takes."""
    text = Cast("params", models.TextField())
    return Job.objects.using(alias).annotate(params_text=text).values("params_text", *HEAD_COLUMNS)


def resting_scopes(alias, scopes, now=None) -> set[str]:
    """Return which of the scopes are paused or snoozed; all of them while everything is."""
    resting = Scope.objects.using(alias).resting(now or DatabaseNow()).filter(name__in=[*scopes, Scope.EVERYTHING])
    found = set(resting.values_list("name", flat=True))
    return set(scopes) if Scope.EVERYTHING in found else found


def starting_none(alias, scopes, now) -> set[str]:
    """Return the scopes of which the usual claim starts nothing: resting, or with a breaker that is not closed."""
    rows = Scope.objects.using(alias).starting_none(now).filter(name__in=[*scopes, Scope.EVERYTHING])
    found = set(rows.values_list("name", flat=True))
    return set(scopes) if Scope.EVERYTHING in found else found


def snooze_scope(alias, scope, until) -> None:
    """Have nothing of the scope start until then, or until later if that was said before."""
    Scope.objects.using(alias).bulk_create([Scope(name=scope)], ignore_conflicts=True)
    earlier = Q(snoozed_until=None) | Q(snoozed_until__lt=until)
    Scope.objects.using(alias).filter(earlier, name=scope).update(snoozed_until=until)


def end_of_snooze(alias, scopes, now):
    """Return when the first of the snoozed scopes goes on, or None. One that is paused as well does not."""
    snoozed = Scope.objects.using(alias).filter(name__in=scopes, paused_at=None, snoozed_until__gt=now)
    return snoozed.order_by("snoozed_until").values_list("snoozed_until", flat=True).first()


def next_head(alias, queue, now):
    """Return (the job to start or None, the job that is the head already or None, when the head is due)."""
    current = queue.current_job and head_rows(alias).filter(pk=queue.current_job, done_at=None).first()
    if current:
        if current["state"] == Job.State.HALTED:
            return None, queue.current_job, None
        due_at = current["next_attempt_at"] or now
        return (current if due_at <= now else None), queue.current_job, due_at
    head = head_rows(alias).unfinished().in_queue(queue.scope, queue.name).in_order().first()
    if head is None:
        return None, None, None
    if head["state"] == Job.State.HALTED:
        return None, head["id"], None
    return (head if head["scheduled_at"] <= now else None), None, head["scheduled_at"]


def mark_started(backend, queue, head, holder, now) -> Claim:
    """Mark the head as running, under a new fence; return its claim."""
    queue.fence = max(queue.fence, backend.fences_above) + 1
    Queue.objects.using(backend.alias).filter(pk=queue.pk).update(
        fence=queue.fence,
        current_job=head["id"],
        attempt=next_attempt(head["attempts"]),
        held_by=holder,
        held_since=now,
        stop_requested=False,
        problem="",
    )
    return claim_of(queue, head)


def remove_own(alias, queue_ids) -> None:
    """Delete the rows of independent jobs whose job has ended and that nothing holds; no other is ever deleted.

    Nothing is claimed under their names again, so their fences do not begin anew. The caller has locked them.
    """
    if not queue_ids:
        return
    job = Job.objects.unfinished().in_queue(models.OuterRef("scope"), models.OuterRef("name"))
    rows = Queue.objects.using(alias).filter(pk__in=queue_ids, held_by=None)
    # Not in one statement: MySQL would lock the jobs that the condition reads, and hold up who creates some.
    ended = [queue.pk for queue in rows.filter(~models.Exists(job)).only("name") if is_own(queue.name)]
    rows.filter(pk__in=ended)._raw_delete(alias)


def let_go(alias, queue, due_at, current_job, problem="", **alert) -> None:
    """Release the queue; ``problem`` says why this code cannot serve its head, ``alert`` when to check again."""
    held = Queue.objects.using(alias).filter(pk=queue.pk, fence=queue.fence, held_by=queue.held_by)
    held.update(
        due_at=due_at,
        current_job=current_job,
        attempt=0,
        held_by=None,
        held_since=None,
        stop_requested=False,
        problem=problem,
        **alert,
    )
