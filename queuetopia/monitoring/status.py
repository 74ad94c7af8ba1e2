"""How things stand: what runs where, what is blocked and why. Reads only.

Every function costs a fixed number of queries, whatever the number of queues: counting is the database's
work, and what is listed has a LIMIT. The parts are read one after the other, so that a busy system's numbers
may differ by the jobs that ended in between. Texts are as stored: ``text.visible`` makes them fit for a terminal.
"""

import math
from collections import Counter
from datetime import datetime
from enum import StrEnum
from typing import Any

from django.db import router
from django.db.models import BigIntegerField, Case, Count, ExpressionWrapper, F, Min, OuterRef, Q, Subquery, When

from .. import conf
from ..backends import backend_for, breakers
from ..backends.columns import DatabaseNow
from ..backends.limits import Limits
from ..exceptions import Refused
from ..lines import given_name
from ..models import Job, Node, Queue, QueueIs, Scope, given_of, has_name
from ..registry import by_scope, registered
from ..times import local
from . import schedules

MOST_QUEUES = 1_000  # queues listed of one scope
MOST_NODES = 200  # nodes listed of one database
MOST_RUNNING = 1_000  # running jobs listed of one database
MOST_UNKNOWN = 100  # unknown scopes listed of one database


class QueueState(StrEnum):
    """What a queue does now, in the order in which queues are listed."""

    HALTED = "halted"
    BACKING_OFF = "backing off"
    OUTSIDE = "outside"
    RUNNING = "running"
    PAUSED = "paused"
    READY = "ready"
    SCHEDULED = "scheduled"
    EMPTY = "empty"


class JobState(StrEnum):
    """What a job does now: the stored state, and for a pending one what its attempts and its queue's row say."""

    RUNNING = "running"
    OUTSIDE = "outside"  # its attempt goes on elsewhere: a performer returned ``Deferred``
    BACKING_OFF = "backing off"
    HALTED = "halted"
    WAITING = "waiting"
    DONE = "done"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


_LISTED_AT = {state: position for position, state in enumerate(QueueState)}
_IDS = 10**15  # more than a table has ids


def queue_state(queue: Queue, current: Job | None, now: datetime, *, scope_is_paused: bool = False) -> QueueState:
    """Return what the queue does; ``current`` is the row of its current job, if it has one.

    A paused queue that runs or is blocked is shown as that: the pause shows beside it.
    """
    if queue.held_by is not None:
        return QueueState.RUNNING
    if current is not None and not current.is_ended():
        if current.is_outside():
            return QueueState.OUTSIDE
        return QueueState.HALTED if current.state == Job.State.HALTED else QueueState.BACKING_OFF
    if queue.paused_at is not None:
        return QueueState.PAUSED
    if queue.due_at is None:
        return QueueState.EMPTY
    if scope_is_paused:
        return QueueState.PAUSED
    return QueueState.READY if queue.due_at <= now else QueueState.SCHEDULED


def job_state(job: Job, queue: Queue | None) -> JobState:
    """Return what the job does; ``queue`` is its queue's row, None if it has none."""
    if job.is_ended() or job.state == Job.State.HALTED:
        return JobState(job.state)
    if queue is not None and queue.runs(job.pk):
        return JobState.RUNNING
    if job.is_outside():
        return JobState.OUTSIDE
    is_head = queue is None or queue.current_job in (None, job.pk)  # else it was moved here, and waits for its turn
    return JobState.BACKING_OFF if job.is_backing_off() and is_head else JobState.WAITING


def job_and_state(queuetopia, pk) -> tuple[Job | None, JobState | None, datetime | None]:
    """Return a job of the class, what it does, and since when if it runs; nothing but None if there is no such job."""
    try:
        job = queuetopia.jobs().filter(pk=int(pk)).first()
    except (TypeError, ValueError):
        job = None
    if job is None:
        return None, None, None
    held = Queue.objects.using(queuetopia.database()).held()
    queue = None if job.is_ended() else held.filter(scope=job.scope, name=job.queue, current_job=job.pk).first()
    return job, job_state(job, queue), queue and queue.held_since


def progress_of(job: Job | None, queue: Queue | None) -> dict[str, Any] | None:
    """Return what the attempt that goes on has reported last: ``fraction``, ``text``, ``at``; None if nothing."""
    if job is None or queue is None or queue.current_job != job.pk:
        return None
    goes_on = queue.held_by is not None or job.is_outside()
    return _progress(job.progress, queue.fence) if goes_on else None


def _progress(reported, fence):
    try:
        if reported["fence"] != fence:  # of an earlier attempt
            return None
        at = datetime.fromisoformat(reported["at"])
        return {"fraction": float(reported["fraction"]), "text": str(reported["text"]), "at": at}
    except (TypeError, KeyError, ValueError):  # nothing, or what was not written by us
        return None


def progress_text(progress: dict[str, Any] | None) -> str:
    """Return a report of progress in words: "40 %: page 12 of 30"; an empty text for None."""
    if progress is None:
        return ""
    percent = f"{math.floor(100 * progress['fraction'] + 1e-9)} %"  # never 100 before it is all
    return f"{percent}: {progress['text']}" if progress["text"] else percent


def outside_text(since: object, until: object) -> str:
    """Return why a queue waits whose head's attempt goes on elsewhere."""
    return f"waits for outside completion since {since}, until {until}"


def scope_status(queuetopia, queues: int = 20) -> dict[str, Any]:
    """Return how a scope does now. Datetimes are aware; all else is JSON.

    queues: how many queues to list, blocked ones first; empty ones never are. Independent jobs (``ordered = False``)
    are listed under the names they were given: ``depth`` and ``oldest`` are about all of a name, the other keys about
    the one that is in most trouble.

    - ``scope``, ``class``, ``database``, ``at`` (the database's clock), ``paused`` (at, by, reason; or None),
      ``all_paused``: the same of the pause of all scopes
    - ``enabled``: whether nodes with these settings serve it (``QUEUETOPIA["ENABLED"]``)
    - ``max_running``, ``rate`` (number, seconds), ``spacing``: its limits; None: no limit. ``limits``: in words
    - ``priority``; ``ordered``: whether the jobs of a queue run one after the other, in order
    - ``snoozed_until``: before that nothing of it starts, because a performer said so; or None
    - ``schedules``: ``schedules.described`` of each, none if the class declares none
    - ``breaker``: None while it is closed, or there is none; else its ``state`` ("open" or "catching up"), ``since``
      (opened at; None after ``retry_all(gently=True)``), ``next_probe_at``, ``failures`` (in a row, of its kind),
      ``failure`` (the last one), ``at_once`` (how many queues may be tried at once), and ``sentence``
    - ``nodes``: those that serve the scope: node, alive
    - ``jobs``: unfinished, waiting, running, outside (their attempts go on elsewhere), backing_off, halted, oldest
      (scheduled_at of the oldest unfinished)
    - ``queue_counts``: not_empty, blocked (backing_off and halted), backing_off, halted, outside, running, paused,
      problem
    - ``queues``: queue, state, problem, paused, depth (unfinished jobs), oldest, job, action, attempt,
      max_attempts, error, next_attempt_at, blocked_since, progress (fraction, text, at), due_at, held_by, since,
      fence. The keys from ``job`` to ``progress`` are about the job that runs or blocks the queue, None if there is
      none.
    """
    alias, scope = queuetopia.database(), queuetopia.scope
    now = backend_for(alias).now()
    paused, all_paused = pauses(alias, scope)
    all_nodes = list(Node.objects.using(alias).defer("workers").order_by("started_at", "id")[:MOST_NODES])
    jobs = _job_counts(alias, scope)
    queue_counts = _queue_counts(alias, scope)
    held = {name: queue_counts[name] for name in ("running", "outside", "backing_off")}
    waiting = max(0, jobs.pop("pending") - sum(held.values()))
    first = _first_queues if queuetopia.option("ordered") else _first_of_names
    rows = first(alias, scope, now, max(0, min(queues, MOST_QUEUES)))
    described = _described(queuetopia, alias, rows, now, scope_is_paused=bool(paused or all_paused))
    names = {node.pk: str(node) for node in all_nodes}
    for queue in described:
        if (holder := queue["held_by"]) is not None:
            queue["held_by"] = names.get(holder, f"unknown node {holder}")
    return {
        "scope": scope,
        "class": queuetopia.label,
        "database": alias,
        "at": now,
        "paused": paused,
        "all_paused": all_paused,
        "enabled": conf.is_enabled(scope),
        "max_running": queuetopia.option("max_running"),
        "rate": queuetopia.option("rate"),
        "spacing": queuetopia.option("spacing") or None,
        "limits": limits_in_words(scope),
        "priority": queuetopia.option("priority"),
        "ordered": queuetopia.option("ordered"),
        "snoozed_until": snoozed_until(alias, scope, now),
        "schedules": schedules.of_scope(queuetopia, now),
        "breaker": breaker_of(Scope.objects.using(alias).filter(name=scope, ramp__isnull=False).first(), now),
        "nodes": [{"node": str(node), "alive": is_alive(node, now)} for node in all_nodes if scope in node.scopes],
        "jobs": {**jobs, "waiting": waiting, **held},
        "queue_counts": queue_counts,
        "queues": described,
    }


def _job_counts(alias, scope):
    unfinished = Job.objects.using(alias).unfinished().filter(scope=scope)
    states = unfinished.values_list("state").annotate(Count("id"), Min("scheduled_at"))
    counts = {state: count for state, count, _ in states}
    return {
        "unfinished": sum(counts.values()),
        "pending": counts.get(Job.State.PENDING, 0),
        "halted": counts.get(Job.State.HALTED, 0),
        "oldest": min((oldest for *_, oldest in states), default=None),
    }


_NOT_EMPTY = QueueIs.HELD | QueueIs.BLOCKED | QueueIs.PAUSED | Q(due_at__isnull=False) | QueueIs.WITH_A_PROBLEM


def _queue_counts(alias, scope):
    counts = (
        Queue.objects.using(alias)
        .filter(scope=scope)
        .aggregate(
            not_empty=Count("id", filter=_NOT_EMPTY),
            blocked=Count("id", filter=QueueIs.BLOCKED),
            halted=Count("id", filter=QueueIs.HALTED),
            running=Count("id", filter=QueueIs.HELD),
            paused=Count("id", filter=QueueIs.PAUSED),
            problem=Count("id", filter=QueueIs.WITH_A_PROBLEM),
        )
    )
    outside = _outside(alias, scope)
    blocked = max(counts["halted"], counts["blocked"] - outside)
    return {**counts, "blocked": blocked, "outside": outside, "backing_off": blocked - counts["halted"]}


def _outside(alias, scope):
    """Return how many jobs of the scope wait for their completion from outside."""
    heads = Queue.objects.using(alias).backing_off().filter(scope=scope).values("current_job")
    return Job.objects.using(alias).unfinished().filter(pk__in=heads, outside__isnull=False).count()


def _first_queues(alias, scope, now, limit):
    """Return the rows to list."""
    queues = Queue.objects.using(alias).filter(_NOT_EMPTY, scope=scope)
    return list(queues.order_by(_rank(now), "due_at", "id")[:limit])


def _first_of_names(alias, scope, now, limit):
    """Return one row for each name that jobs were given: the one that would be listed first."""
    queues = Queue.objects.using(alias).filter(_NOT_EMPTY, scope=scope)
    place = ExpressionWrapper(_rank(now) * _IDS + F("id"), BigIntegerField())
    names = queues.values(given=given_of("name")).annotate(first=Min(place)).order_by("first")
    ids = [place % _IDS for place in names.values_list("first", flat=True)[:limit]]
    rows = Queue.objects.using(alias).in_bulk(ids)
    return [rows[pk] for pk in ids if pk in rows]


def first_of_name(alias, scope, queue, now) -> Queue | None:
    """Return the row of those independent jobs' queues that is to be listed first, None if there is none."""
    queues = Queue.objects.using(alias).filter(_NOT_EMPTY, has_name(queue, "name"), scope=scope)
    return queues.order_by(_rank(now), "due_at", "id").first()


def _rank(now):
    """Return where rows are listed. That a blocked queue's job is halted shows in its row: nothing is due."""
    return Case(
        When(QueueIs.HELD, then=_LISTED_AT[QueueState.RUNNING]),
        When(QueueIs.HALTED, then=_LISTED_AT[QueueState.HALTED]),
        When(QueueIs.BLOCKED | QueueIs.WITH_A_PROBLEM, then=_LISTED_AT[QueueState.BACKING_OFF]),
        When(QueueIs.PAUSED, then=_LISTED_AT[QueueState.PAUSED]),
        When(due_at__lte=now, then=_LISTED_AT[QueueState.READY]),
        default=_LISTED_AT[QueueState.SCHEDULED],
    )


def _described(queuetopia, alias, rows, now, *, scope_is_paused):
    shown = str if queuetopia.option("ordered") else given_name
    names = {shown(row.name) for row in rows}
    unfinished = Job.objects.using(alias).unfinished().filter(scope=queuetopia.scope)
    if shown is given_name:
        line = unfinished.annotate(given=given_of("queue")).filter(given__in=names).values_list("given")
    else:
        line = unfinished.filter(queue__in=names).values_list("queue")
    lines = {
        name: {"depth": depth, "oldest": oldest}
        for name, depth, oldest in line.annotate(Count("id"), Min("scheduled_at"))
    }
    light = Job.objects.using(alias).defer("params", "errors", "result")
    heads = light.in_bulk([row.current_job for row in rows if row.current_job is not None])
    described = []
    for row in rows:
        job = heads.get(row.current_job)
        state = queue_state(row, job, now, scope_is_paused=scope_is_paused)
        described.append(
            {
                "queue": shown(row.name),
                "state": str(state),
                "problem": row.problem or None,
                "paused": pause_of(row),
                **lines.get(shown(row.name), {"depth": 0, "oldest": None}),
                **_job_keys(queuetopia, row, job),
                "due_at": row.due_at,
                "held_by": row.held_by,
                "since": _since(row, job, state),
                "fence": row.fence,
            }
        )
    return sorted(described, key=_place)


def _place(queue):
    place = _LISTED_AT[QueueState(queue["state"])]
    return min(place, _LISTED_AT[QueueState.BACKING_OFF]) if queue["problem"] else place


def _job_keys(queuetopia, row, job):
    if job is None:
        names = ("job", "action", "attempt", "max_attempts", "error", "next_attempt_at", "blocked_since", "progress")
        return dict.fromkeys(names)
    return {
        "job": job.pk,
        "action": job.action,
        "attempt": job.attempts if row.held_by is None else row.attempt,
        "max_attempts": most_attempts(queuetopia, job),
        "error": job.error or None,
        "next_attempt_at": job.next_attempt_at,
        "blocked_since": job.failed_at,
        "progress": progress_of(job, row),
    }


def most_attempts(queuetopia, job):
    """Return after how many failed attempts the job gives up or halts; None if it goes on for ever."""
    if (job.on_exhausted or queuetopia.option("on_exhausted")) == "retry":
        return None
    return job.max_attempts or queuetopia.option("max_attempts")


def _since(row, job, state):
    if state is QueueState.RUNNING:
        return row.held_since
    if state in (QueueState.HALTED, QueueState.BACKING_OFF, QueueState.OUTSIDE):
        return job.attempted_at
    return row.paused_at if state is QueueState.PAUSED else None


def pause_of(row: Queue | Scope | None) -> dict[str, Any] | None:
    if row is None or row.paused_at is None:
        return None
    return {"at": row.paused_at, "by": row.paused_by, "reason": row.paused_reason}


def pauses(alias: str, scope: str) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """Return the pause of the scope, and the pause of all scopes; None for what is not paused."""
    rows = {row.name: row for row in Scope.objects.using(alias).filter(name__in=[scope, Scope.EVERYTHING])}
    return pause_of(rows.get(scope)), pause_of(rows.get(Scope.EVERYTHING))


def snoozed_until(alias: str, scope: str, now: datetime) -> datetime | None:
    """Return until when nothing of the scope starts because a performer raised ``Snooze(…, scope=True)``, or None."""
    snoozed = Scope.objects.using(alias).filter(name=scope, snoozed_until__gt=now)
    return snoozed.values_list("snoozed_until", flat=True).first()


def breaker_of(row: Scope | None, now: datetime) -> dict[str, Any] | None:
    """Return the state of a scope's breaker, in figures and in a ``sentence``; None if it is closed."""
    if row is None or row.ramp is None:
        return None
    is_open, at_once = row.ramp == 0, breakers.at_once(row.ramp)
    state = {
        "state": "open" if is_open else "catching up",
        "since": row.opened_at,
        "next_probe_at": row.probe_at if is_open else None,
        "failures": row.failures or 0,
        "failure": row.failure,
        "at_once": at_once,
    }
    return {**state, "sentence": _breaker_in_words(state, now)}


def _breaker_in_words(breaker, now):
    since = f" since {local(breaker['since'])}" if breaker["since"] else ""
    if breaker["state"] == "catching up":
        after = f", after it was open{since}" if since else ", as asked for"
        return f"catching up, {breaker['at_once']} at a time{after}"
    wait = (breaker["next_probe_at"] - now).total_seconds() if breaker["next_probe_at"] else 0
    probe = f"next probe in {span(wait)}" if wait > 0 else "a probe is due, or runs"
    failures = breaker["failures"]
    number = "1 such failure" if failures == 1 else f"{failures} such failures"
    return f"open{since}, {probe}, {number} in a row, the last one {(breaker['failure'].splitlines() or [''])[0]}"


def limits_in_words(scope: str) -> list[str]:
    """Return what the class of the scope says about how many of its jobs may run or start."""
    queuetopia = by_scope().get(scope)
    if queuetopia is None:
        return []
    limits, words = Limits.of(queuetopia), []
    if limits.max_running:
        words.append(f"at most {limits.max_running} run at once")
    if limits.rate:
        number, seconds = limits.rate
        words.append(f"at most {number} start in {span(seconds)}")
    if limits.spacing:
        words.append(f"each queue's starts are {span(limits.spacing)} apart")
    return words


def is_paused(queuetopia, queue: str) -> bool:
    """True while nothing new starts in the queue, because the queue, its scope or everything is paused."""
    alias, scope = queuetopia.database(), queuetopia.scope
    return any(pauses(alias, scope)) or Queue.objects.using(alias).paused().filter(scope=scope, name=queue).exists()


def node_rows(alias: str) -> tuple[list[Any], datetime]:
    """Return the rows of nodes, the live ones at least, and the database's clock."""
    rows = list(Node.objects.using(alias).annotate(now=DatabaseNow()).order_by("-last_seen", "id")[:MOST_NODES])
    rows.sort(key=lambda node: (node.started_at, node.pk))
    return rows, rows[0].now if rows else backend_for(alias).now()


def nodes(alias: str) -> list[dict[str, Any]]:
    """Return the nodes of a database, each with its workers and what they run now.

    - ``node`` (host:pid), ``host``, ``pid``, ``database``, ``at`` (the database's clock), ``scopes``, ``started_at``,
      ``last_seen``, ``age`` (seconds since then), ``alive``, ``fenced_at``, ``held`` (how many queues it holds)
    - ``workers``: pid, ``age`` (seconds since its start, at the last heartbeat), ``attempts`` (how many have ended in
      it by then), ``memory`` (MB that it took then), ``max_attempts`` and ``max_memory`` (after which it is replaced;
      None: never), and ``jobs``: job, scope, queue, action, attempt, since, progress (fraction, text, at; or None).
      None what an older node does not report

    Heartbeats report which worker has which job; a job started since the last one is listed under a
    worker whose pid is None. ``alive`` is False once a successor may take the node's queues over.
    """
    return nodes_of(alias, *node_rows(alias))


def nodes_of(alias: str, rows: list[Any], now: datetime) -> list[dict[str, Any]]:
    """Return what ``nodes`` returns, from rows that ``node_rows`` has just read."""
    held = Queue.objects.using(alias).filter(held_by__in=[row.pk for row in rows])
    heads = Job.objects.using(alias).filter(pk=OuterRef("current_job"))
    shown = {"action": Subquery(heads.values("action")), "reported": Subquery(heads.values("progress"))}
    running_first = held.annotate(**shown).order_by("held_since", "id")
    queues = list(running_first[:MOST_RUNNING]) if rows else []
    counts = Counter(queue.held_by for queue in queues)
    if len(queues) == MOST_RUNNING:
        counts = Counter(dict(held.values_list("held_by").annotate(Count("id"))))
    running = _running_jobs(queues)
    return [
        {
            "node": str(row),
            "host": row.host,
            "pid": row.pid,
            "database": alias,
            "at": now,
            "scopes": row.scopes,
            "started_at": row.started_at,
            "last_seen": row.last_seen,
            "age": max(0.0, (now - row.last_seen).total_seconds()),
            "alive": is_alive(row, now),
            "fenced_at": row.fenced_at,
            "held": counts[row.pk],
            "workers": _workers(row, running.get(row.pk, {})),
        }
        for row in rows
    ]


def _running_jobs(queues):
    """Return {node id: {job id: what it is}} of these queues."""
    running: dict[Any, dict[int, dict[str, Any]]] = {}
    for queue in queues:
        running.setdefault(queue.held_by, {})[queue.current_job] = {
            "job": queue.current_job,
            "scope": queue.scope,
            "queue": given_name(queue.name),
            "action": queue.action,
            "attempt": queue.attempt,
            "since": queue.held_since,
            "progress": _progress(queue.reported, queue.fence),
        }
    return running


def _workers(node, running):
    # A job that is not the node's any more has ended since the heartbeat that named it.
    workers = [
        {
            "pid": worker["pid"],
            "age": worker.get("age"),
            "attempts": worker.get("attempts"),
            "memory": worker.get("memory"),
            "max_attempts": worker.get("max_attempts"),
            "max_memory": worker.get("max_memory"),
            "jobs": [running.pop(job) for job in worker["jobs"] if job in running],
        }
        for worker in node.workers
    ]
    names = ("pid", "age", "attempts", "memory", "max_attempts", "max_memory")
    of_none = {**dict.fromkeys(names), "jobs": list(running.values())}
    return [*workers, of_none] if running else workers


def is_alive(node, now):
    return node.fenced_at is None and (now - node.last_seen).total_seconds() < conf.lease().takeover


def unknown_scopes(alias: str) -> list[dict[str, Any]]:
    """Return the scopes with unfinished jobs in this database that no class of this code serves there.

    Each with ``scope``, ``database``, ``unfinished``, ``oldest`` and ``problem``. Their jobs wait untouched.
    """
    known = by_scope()
    here = [scope for scope, queuetopia in known.items() if queuetopia.database() == alias]
    strays = Job.objects.using(alias).unfinished().exclude(scope__in=here).order_by("scope")
    found = strays.values_list("scope").annotate(Count("id"), Min("scheduled_at"))[:MOST_UNKNOWN]
    return [
        {
            "scope": scope,
            "database": alias,
            "unfinished": unfinished,
            "oldest": oldest,
            "problem": why_unknown(known.get(scope)),
        }
        for scope, unfinished, oldest in found
    ]


def why_unknown(queuetopia):
    if queuetopia is None:
        return "no code here knows this scope"
    return f"{queuetopia.__name__} looks for its jobs in database {queuetopia.database()!r}"


def databases() -> list[str]:
    """Return the aliases in which this code keeps jobs."""
    return sorted({router.db_for_write(Job), *(queuetopia.database() for queuetopia in registered())})


def paused_databases() -> list[str]:
    """Return the aliases in which everything is paused. Raises Refused if there is none."""
    found = [alias for alias in databases() if pauses(alias, "")[1]]
    if not found:
        raise Refused("Everything is not paused in any database. Scopes and queues are resumed by their names.")
    return found


def span(seconds: float) -> str:
    """Return a duration in the largest unit of which it has at least two: "90 s", "3 min", "2 h", "5 d"."""
    for unit, size in (("d", conf.DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
