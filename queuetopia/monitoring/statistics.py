"""What was done in a time, how often it failed, and how long it took. Reads only.

Nodes count what they record, in spans of five minutes for each action (``node.tally``), so that reading costs by
spans and actions and not by jobs. Times come from histograms: a percentile is right to within a fifth of itself.
"""

from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from ..backends import backend_for
from ..backends.upkeep import CENSUS
from ..lines import given_name
from ..models import Chore, Job, Statistic
from . import census
from .histogram import SPAN, bin_of, bounds_of

STEPS = {"span": SPAN, "hour": 3_600, "day": 86_400}
BY = ("action", "queue", *STEPS)
LAST_DAY = timedelta(days=1)
MOST_STEPS = 10_000
MOST_JOBS = 20_000  # ended jobs read for the figures of queues

COUNTS, SECONDS = Statistic.COUNTS, Statistic.SECONDS
HISTOGRAMS = {"waits": "wait", "runs": "run", "blocks": "blocked"}
PERCENTILES = (50, 90, 99)


def statistics(
    queuetopia,
    since: datetime | timedelta | None = None,
    until: datetime | None = None,
    by: str = "action",
    action: str | None = None,
) -> dict[str, Any]:
    """Return the figures of a scope from ``since`` (24 hours before ``until``) to ``until`` (now), in ``rows``.

    since: an aware datetime, or a timedelta before ``until``. It is rounded down to a full span of five minutes.
    by: what a row is about: "action", "queue", or a step of time in UTC: "span" (five minutes), "hour" or "day".
    action: count this action only; not for "queue".

    The answer has ``scope``, ``database``, ``at`` (the database's clock), ``since``, ``until``, ``by``, ``step``
    (seconds of a row, None unless it is about time), ``rows`` and ``total``. A row has ``action`` or ``at``, and

    - ``created``, ``started`` (first attempts), ``done``, ``failed`` (attempts), ``halted``, ``skipped``,
      ``cancelled``: by nodes and by operators. What is created or ended in a transaction that stays open for
      more than ten seconds may be missing; a job for later counts when it is created, not at its time
    - ``run_seconds``: the sum of all run times; ``blocked_seconds``: for how long failed jobs that have ended
      since had held their queues
    - ``wait`` (from a job's time until it is first attempted), ``run`` (of an attempt), ``blocked``: in seconds,
      ``count``, ``p50``, ``p90``, ``p99`` and ``max``; None if there is none

    Rows of actions are ordered by their name, rows of time by time, those without a job included.

    by="queue" reads the rows of jobs that ended in this time, the newest 20,000 of them, and as many of those that
    were created last, as long as retention keeps them: ``complete`` says whether that was all. A row has ``queue``,
    ``created`` (here those whose time, ``scheduled_at``, is in this time), ``done``, ``failed``, ``skipped``,
    ``cancelled``, ``blocked_seconds``, ``blocked``, and ``took``: from a job's time until its end. The queues that
    were blocked longest come first.

    Raises ValueError for times that are naive or the wrong way round, more than 10,000 rows, or an unknown ``by``.
    """
    if by not in BY:
        raise ValueError(f"by={by!r} is none of {', '.join(map(repr, BY))}.")
    if by == "queue" and action is not None:
        raise ValueError("action= goes with by='action' or a step of time, not with by='queue'.")
    now = backend_for(queuetopia.database()).now()
    since, until = _period(since, until, now, STEPS.get(by))
    answer = {
        "scope": queuetopia.scope,
        "database": queuetopia.database(),
        "at": now,
        "since": since,
        "until": until,
        "by": by,
        "step": STEPS.get(by),
    }
    if by == "queue":
        return {**answer, **_by_queue(queuetopia, since, until)}
    new = [row for row in _not_yet_counted(queuetopia, now) if action in (None, row["action"])]
    rows = _by_row(queuetopia.database(), [queuetopia.scope], since, until, by, action=action, new=new)
    return {**answer, **rows}


def of_scopes(alias: str, scopes: list[str], since: timedelta, now: datetime) -> list[dict[str, Any]]:
    """Return the figures of several scopes of a database together, a row for each span up to ``now``."""
    start, until = _period(since, now, now, SPAN)
    return _by_row(alias, scopes, start, until, "span")["rows"]


def _not_yet_counted(queuetopia, now):
    """Return, like rows of Statistic, what the next census will add to them."""
    alias = queuetopia.database()
    chore = Chore.objects.using(alias).filter(name=CENSUS).first() or Chore()
    found = census.ahead(alias, chore.marks, now)
    for (scope, name, at), more in found.items():
        if scope == queuetopia.scope:
            row = Statistic(action=name, at=at, blocks=more.blocks, blocked_seconds=more.blocked_seconds, **more.counts)
            yield {name: getattr(row, name) for name in ("action", "at", *COUNTS, *SECONDS, *HISTOGRAMS)}


def _period(since, until, now, step):
    until = now if until is None else until
    since = LAST_DAY if since is None else since
    for name, moment in (("since", since), ("until", until)):
        if isinstance(moment, datetime) and timezone.is_naive(moment):
            raise ValueError(f"{name} is a naive datetime; use django.utils.timezone.now() or make_aware().")
    since = until - since if isinstance(since, timedelta) else since
    since = floor(since, SPAN)
    if since >= until:
        raise ValueError(f"since ({since}) is not before until ({until}).")
    if step and (until - since).total_seconds() / step > MOST_STEPS:
        raise ValueError(f"From {since} to {until} are more than {MOST_STEPS} steps of {step} s; take longer ones.")
    return since, until


# From what the nodes have counted


class Sum:
    """Rows added up."""

    def __init__(self):
        self.counts = dict.fromkeys(COUNTS, 0)
        self.seconds = dict.fromkeys(SECONDS, 0.0)
        self.bins: dict[str, dict[int, int]] = {name: defaultdict(int) for name in HISTOGRAMS}

    def add(self, row):
        for name in COUNTS:
            self.counts[name] += row[name]
        for name in SECONDS:
            self.seconds[name] += row[name]
        for name in HISTOGRAMS:
            for number, count in row[name].items():
                self.bins[name][int(number)] += count

    def add_columns(self, numbers):
        """Add sums of the columns of ``COUNTS`` and ``SECONDS``."""
        for name, number in zip(COUNTS, numbers, strict=False):
            self.counts[name] += int(number)
        for name, number in zip(SECONDS, numbers[len(COUNTS) :], strict=True):
            self.seconds[name] += float(number)

    def add_sum(self, other):
        for name, number in other.counts.items():
            self.counts[name] += number
        for name, number in other.seconds.items():
            self.seconds[name] += number
        for name, bins in other.bins.items():
            for number, count in bins.items():
                self.bins[name][number] += count

    def as_dict(self):
        times = {key: _times(self.bins[name]) for name, key in HISTOGRAMS.items()}
        return {**self.counts, **{name: round(seconds, 3) for name, seconds in self.seconds.items()}, **times}


def _by_row(alias, scopes, since, until, by, *, action=None, new=()):
    """Return rows of the sums of what is stored of this time, and of what is ``new`` to it."""
    step = STEPS.get(by)
    sums: dict[Any, Sum] = {} if step is None else {at: Sum() for at in steps_of(since, until, step)}
    if scopes:
        _add_stored(sums, alias, scopes=scopes, since=since, until=until, step=step, action=action)
    for row in new:
        if since <= row["at"] < until:
            sums.setdefault(row["action"] if step is None else floor(row["at"], step), Sum()).add(row)
    total = Sum()
    for part in sums.values():
        total.add_sum(part)
    name = "action" if step is None else "at"
    return {"rows": [{name: key, **sums[key].as_dict()} for key in sorted(sums)], "total": total.as_dict()}


def _add_stored(sums, alias, **which):
    """Add what the database sums up."""

    def of(key):
        return sums.setdefault(key if which["step"] is None else datetime.fromtimestamp(int(key), UTC), Sum())

    columns, bins = backend_for(alias).sum_statistics((*COUNTS, *SECONDS), HISTOGRAMS, **which)
    for key, *numbers in columns:
        of(key).add_columns(numbers)
    for name, key, number, times in bins:
        of(key).bins[name][number] += times


def floor(moment, step):
    return datetime.fromtimestamp(int(moment.timestamp()) // step * step, UTC)


def steps_of(since, until, step):
    at = floor(since, step)
    while at < until:
        yield at
        at += timedelta(seconds=step)


def _times(bins) -> dict[str, float] | None:
    """Return the percentiles of a histogram, in seconds."""
    count = sum(bins.values())
    if not count:
        return None
    percentiles = {f"p{percent}": _percentile(bins, count * percent / 100) for percent in PERCENTILES}
    return {"count": count, **percentiles, "max": _rounded(bounds_of(max(bins))[1])}


def _percentile(bins, rank):
    """Return how long the ``rank``-th shortest took, as if those of one bin were spread evenly over it."""
    for number in sorted(bins):
        if rank <= bins[number]:
            low, high = bounds_of(number)
            return _rounded(low + (high - low) * rank / bins[number])
        rank -= bins[number]
    return None


def _rounded(seconds):
    return float(f"{seconds:.3g}")


# From the rows of jobs


def _by_queue(queuetopia, since, until):
    ended = queuetopia.jobs().ended().filter(done_at__gte=since, done_at__lt=until).order_by("-done_at")
    columns = ("queue", "state", "attempts", "scheduled_at", "failed_at", "done_at")
    jobs = list(ended.values_list(*columns)[: MOST_JOBS + 1])
    queues: dict[str, _Line] = defaultdict(_Line)
    total = _Line()
    for queue, *job in jobs[:MOST_JOBS]:
        queues[given_name(queue)].add(*job)
        total.add(*job)
    created, saw_all = _created(queuetopia, since, until)
    for queue, number in created.items():
        queues[queue].counts["created"] = number
        total.counts["created"] += number
    rows = sorted(queues.items(), key=lambda item: (-item[1].blocked_seconds, item[0]))
    return {
        "rows": [{"queue": name, **line.as_dict()} for name, line in rows],
        "total": total.as_dict(),
        "complete": len(jobs) <= MOST_JOBS and saw_all,
    }


def _created(queuetopia, since, until):
    """Return how many jobs were created in each queue, by those with the highest ids, and whether these are all."""
    newest = Job.objects.using(queuetopia.database()).order_by("-pk").values_list("scope", "queue", "scheduled_at")
    rows = list(newest[: MOST_JOBS + 1])
    ours = (given_name(queue) for scope, queue, at in rows if scope == queuetopia.scope and since <= at < until)
    return Counter(ours), len(rows) <= MOST_JOBS or rows[-1][2] < since


class _Line:
    """What came of the jobs of one queue."""

    def __init__(self):
        self.counts = dict.fromkeys(("created", "done", "failed", "skipped", "cancelled"), 0)
        self.blocked_seconds = 0.0
        self.blocked: dict[int, int] = defaultdict(int)
        self.took: dict[int, int] = defaultdict(int)

    def add(self, state, attempts, scheduled_at, failed_at, done_at):
        self.counts[state] += 1
        if failed_at is not None:
            self.counts["failed"] += attempts - (state == Job.State.DONE)
            blocked = max(0.0, (done_at - failed_at).total_seconds())
            self.blocked_seconds += blocked
            self.blocked[bin_of(blocked)] += 1
        self.took[bin_of((done_at - scheduled_at).total_seconds())] += 1

    def as_dict(self):
        return {
            **self.counts,
            "blocked_seconds": round(self.blocked_seconds, 3),
            "blocked": _times(self.blocked),
            "took": _times(self.took),
        }
