"""What no node records: the jobs that are created, and those that operators end. Reads only.

A job's creation is one INSERT, and an operator's verb waits for no other one: neither counts anything. Instead one node
for all reads the new ids every few seconds, and adds them to rows of ``Statistic`` that are no node's. Ids become
visible in another order than that of their numbers, so each reading counts up to the newest one of the reading before.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.db import connections
from django.db.models import Count, Max
from django.db.models.functions import TruncMinute

from ..decisions import DECISIONS
from ..models import Job, JobEvent
from .histogram import SPAN, bin_of
from .search import LARGEST_ID

EVERY = 10.0  # seconds between two readings: what is created or ended in a transaction that stays open longer is missed
MOST_JOBS = 20_000  # of one step
MOST_EVENTS = 1_000

_ENDS = [verb for verb, decision in DECISIONS.items() if decision.ends_job]
_ENDED = {str(state) for state in (Job.State.DONE, Job.State.SKIPPED, Job.State.CANCELLED)}


class Found:
    """Counts of one scope and action in one span, to be added to its row."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.blocks: Counter[int] = Counter()
        self.blocked_seconds = 0.0


def look(alias: str, marks: dict[str, Any], now: datetime):
    """Return what to add, by (scope, action, span), the marks then, and whether that was all.

    marks: the ids up to which jobs and events were counted, up to which the next call may count, and between which
    times these became the newest ones.
    """
    found: dict[tuple[str, str, datetime], Found] = defaultdict(Found)
    ready = marks.get("next_job", 0), marks.get("next_event", 0)
    job, event = map(min, ready, _reach(alias, marks))
    _add(found, alias, marks, job, event, now)
    is_all = (job, event) == ready
    if is_all:
        newest = {"next_job": _newest(alias, Job), "next_event": _newest(alias, JobEvent)}
        marks = {**marks, **newest, "from": marks.get("to"), "to": now.isoformat()}
    return found, {**marks, "job": job, "event": event}, is_all


def ahead(alias: str, marks: dict[str, Any], now: datetime) -> dict:
    """Return what the next calls of ``look`` will add, as far as one reading reaches."""
    found: dict[tuple[str, str, datetime], Found] = defaultdict(Found)
    job, event = _reach(alias, marks)
    _add(found, alias, marks, job, event, now)
    return found


def _reach(alias, marks):
    """Return the ids up to which one step reads: as far as so many rows go, whatever gaps their numbers have."""
    return (
        _last(alias, Job, marks.get("job", 0), MOST_JOBS),
        _last(alias, JobEvent, marks.get("event", 0), MOST_EVENTS),
    )


def _last(alias, model, after, most):
    beyond = model.objects.using(alias).filter(id__gt=after).order_by("id").values_list("id", flat=True)
    return beyond[most - 1 : most].first() or LARGEST_ID


def _newest(alias, model):
    return model.objects.using(alias).aggregate(newest=Max("id"))["newest"] or 0


def _add(found, alias, marks, job, event, now):
    first = datetime.fromisoformat(marks["from"]) if marks.get("from") else None
    for scope, action, minute, number in _created(alias, marks.get("job", 0), job):
        # A job for later is created now, and so is one whose time was given and is long gone.
        at = min(max(minute, first or minute), now)
        found[scope, action, _span(at)].counts["created"] += number
    for scope, action, at, state, blocked in _ended(alias, marks.get("event", 0), event):
        row = found[scope, action, _span(at)]
        row.counts[state] += 1
        if blocked is not None:
            row.blocks[bin_of(blocked)] += 1
            row.blocked_seconds += blocked


def _created(alias, after, up_to):
    if up_to <= after:
        return []
    # In the connection's own time zone: in another one MySQL would need its tables of time zones.
    minute = TruncMinute("scheduled_at", tzinfo=connections[alias].timezone)
    new = Job.objects.using(alias).filter(id__gt=after, id__lte=up_to).order_by().annotate(minute=minute)
    return new.values_list("scope", "action", "minute").annotate(number=Count("id"))


def _ended(alias, after, up_to) -> Iterator[tuple[str, str, datetime, str, float | None]]:
    if up_to <= after:
        return
    ended = JobEvent.objects.using(alias).filter(id__gt=after, id__lte=up_to, verb__in=_ENDS, job__isnull=False)
    events = [
        (scope, job, at, state["state"])
        for scope, job, at, state in ended.values_list("scope", "job", "at", "after")
        if state.get("state") in _ENDED
    ]
    columns = ("pk", "action", "failed_at", "done_at")
    rows = Job.objects.using(alias).filter(pk__in=[job for _, job, *_ in events]).values_list(*columns)
    jobs = {pk: (action, failed_at, done_at) for pk, action, failed_at, done_at in rows} if events else {}
    for scope, job, at, state in events:
        action, failed_at, done_at = jobs.get(job, ("", None, None))  # deleted since
        blocked = max(0.0, (done_at - failed_at).total_seconds()) if failed_at and done_at else None
        yield scope, action, at, state, blocked


def _span(at):
    return datetime.fromtimestamp(int(at.timestamp()) // SPAN * SPAN, UTC)
