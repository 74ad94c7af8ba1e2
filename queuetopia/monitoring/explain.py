"""Why a queue runs, waits or is blocked: one sentence for an operator, and the facts behind it.

Reads only. It takes a handful of queries, each a look-up in an index with a LIMIT, however many queues and jobs
there are. The parts are read one after the other: in a busy queue they may differ by a job that ended in between.
Params are never shown; errors are as stored, with sensitive params masked. Texts are as stored too: ``visible``
makes them fit for a terminal.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cached_property
from typing import Any

from django.db.models import Sum

from .. import conf
from ..backends import backend_for
from ..backends.limits import Limits, Rate
from ..backends.values import attempts_of
from ..lines import given_name, is_own, row_name
from ..models import Job, Queue, Scope, Statistic, has_name
from ..params import Unreadable
from ..performer import known_actions
from ..registry import by_scope
from ..times import local
from . import schedules
from .status import (
    QueueState,
    breaker_of,
    first_of_name,
    is_alive,
    most_attempts,
    node_rows,
    pause_of,
    pauses,
    progress_of,
    progress_text,
    queue_state,
    span,
    why_unknown,
)

MOST_COUNTED = 1_000  # jobs or queues counted; beyond, the text says "more than"
RECENT = timedelta(hours=1)  # whose statistics say how fast a line goes
LONGEST_ERROR = 300  # characters of an error in the sentence


class Cause(StrEnum):
    """What a queue's state comes from. Several may hold at once: paused and halted, say."""

    RUNNING = "running"
    CLAIMED = "claimed"  # not begun yet: less than a second ago a node took it, and no worker is known to run it
    NODE_SILENT = "node silent"  # the node that holds it has missed heartbeats; its lease runs out
    NODE_DEAD = "node dead"  # … has run out, or the node is gone
    HALTED = "halted"
    BACKING_OFF = "backing off"
    OUTSIDE = "outside"  # its head's attempt goes on elsewhere: a performer returned ``Deferred``
    CORRUPT = "corrupt"  # its rows contradict each other, or the head's params cannot be read
    PROBLEM = "problem"  # a node gave its head back: unknown action, a setup() that failed
    UNKNOWN_SCOPE = "unknown scope"
    UNKNOWN_ACTION = "unknown action"
    PAUSED = "paused"
    SCOPE_PAUSED = "scope paused"
    ALL_PAUSED = "all paused"
    NO_SCHEDULER = "no scheduler"
    NOT_WOKEN = "not woken"  # a job waits that no node was notified of
    NO_PLACE = "no place"  # as many queues of the scope run as may: its ``max_running``
    RATE = "rate"  # as many jobs of the scope have started as may: its ``rate``
    SPACING = "spacing"  # a job of the queue has started less than its scope's ``spacing`` ago
    OUTAGE = "outage"  # the breaker of its scope is open: so many have failed in a row
    CATCHING_UP = "catching up"  # as many queues of its scope are tried as may at once, after an outage
    SCOPE_SNOOZED = "scope snoozed"  # a performer raised ``Snooze(…, scope=True)``
    READY = "ready"
    SCHEDULED = "scheduled"
    EMPTY = "empty"


def explain(queuetopia, queue: str) -> dict[str, Any]:
    """Return why ``queue`` runs, waits or is blocked. Datetimes are aware; all else is JSON.

    - ``sentence``: for an operator; ``cause``: the ``Cause`` that comes first; ``causes``: all of them
    - ``scope``, ``queue``, ``database``, ``at`` (the database's clock), ``state`` (a ``QueueState``)
    - ``job``, ``action``, ``attempt``, ``max_attempts`` (None: for ever), ``error``, ``failed_at``,
      ``next_attempt_at``, ``blocked_since``: the head of the queue, None if there is none. ``attempt`` is the last
      one, or the one that runs; ``failed_at`` is None unless that one failed; ``blocked_since`` is when it failed first
    - ``progress``: what the attempt that goes on has reported last: fraction, text, at; or None
    - ``waiting``: due jobs that wait in line, ``oldest``: scheduled_at of the first of them, ``halted_behind``: halted
      jobs behind a halted head, which have moved there; ``due_at``: when the head may run
    - ``held_by`` (node), ``since``, ``fence``, ``stop_requested``, ``lease_left`` (seconds until others may take over):
      who runs it; None unless it runs
    - ``paused``, ``scope_paused``, ``all_paused``: at, by, reason; or None. ``problem``: text or None
    - ``nodes``: live nodes that serve the scope; ``workers``, ``busy``: their processes, and those that ran
      something at the last heartbeat; ``ahead``: due queues of the scope whose turn is before this one's
    - ``limit``: what keeps a due head from starting, or None: its ``cause``, ``until`` (None: until a queue of the
      scope is let go), and of ``max_running`` how many queues have places (``taken``) and may (``most``)
    - ``breaker``: None while that of the scope is closed; else as in ``status``
    - ``catches_up_in``: an estimate of the seconds until what waits now has ended, by how long the jobs of the scope
      took in the last hour; a lower bound where more than ``MOST_COUNTED`` wait. None if that is not known, where the
      queue is blocked, paused or held up, and with ``ordered = False``

    With ``ordered = False`` all this is about one of the jobs of that name, the one that is in most trouble, and
    ``jobs`` is how many of them have not ended.

    ``waiting``, ``halted_behind``, ``jobs`` and ``ahead`` count up to ``MOST_COUNTED``; one more means: more than that.
    """
    alias, scope = queuetopia.database(), queuetopia.scope
    if queuetopia.option("ordered") or is_own(row_name(queue)):
        return _with_estimate(queuetopia, explain_queue(scope, given_name(row_name(queue)), alias))
    return _explain_independent(scope, queue, alias)


def _with_estimate(queuetopia, found):
    """Add when the line will have caught up, if it goes on by itself and something is known of its pace."""
    seconds = None
    goes_on = found["cause"] in (Cause.RUNNING, Cause.CLAIMED, Cause.READY) and found["nodes"]
    if found["waiting"] and goes_on and not found["limit"] and (pace := _pace(queuetopia, found["at"])):
        seconds = pace * (found["waiting"] + (found["state"] == QueueState.RUNNING))
        over = "more than " if found["waiting"] > MOST_COUNTED else "about "
        found["sentence"] = f"{found['sentence'][:-1]}; an estimate: it will have caught up in {over}{span(seconds)}."
    return {**found, "catches_up_in": seconds}


def _pace(queuetopia, now) -> float | None:
    """Return the seconds that attempts took for each job that was done, in the last hour; None if none was."""
    recent = Statistic.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, at__gte=now - RECENT)
    sums = recent.aggregate(seconds=Sum("run_seconds"), done=Sum("done"))
    if not sums["done"]:
        return None
    return max(sums["seconds"] / sums["done"], queuetopia.option("spacing"))


def _explain_independent(scope, queue, alias):
    """Explain the jobs that were given this name by the one of them that is in most trouble."""
    jobs = Job.objects.using(alias).unfinished().filter(has_name(queue), scope=scope)
    row = first_of_name(alias, scope, queue, backend_for(alias).now())
    first = None if row else jobs.only("queue").in_order().first()
    name = given_name(row.name) if row else first.queue if first else queue
    found = explain_queue(scope, name, alias)
    count = jobs.count_to(MOST_COUNTED)
    if count > 1:
        number = _counted(count, "job", "jobs")
        found["sentence"] = f"{queue} is the name of {number} that need no order. One of them: {found['sentence']}"
    return {**found, "catches_up_in": None, "jobs": count}


@dataclass
class Seen:
    """Rows of a queue that were read a moment ago, and are not read again; None: not read."""

    row: Queue | None = None
    jobs: Iterable[Job | None] = ()
    scope: Scope | None = None
    first: list[Job] | None = None  # of its unfinished jobs in order, two at least if there are
    nodes: tuple[list[Any], datetime] | None = None  # what ``status.node_rows`` returned


def explain_queue(scope: str, queue: str, alias: str, seen: Seen | None = None) -> dict[str, Any]:
    """Explain a queue in database ``alias``, as ``explain`` does; this code need not know its scope."""
    facts = _Facts(scope, queue, alias, seen or Seen())
    clauses: dict[Cause, str] = {}
    for cause, clause in _clauses(facts):
        clauses.setdefault(cause, clause)
    first, *others = clauses.values()
    return {
        "scope": scope,
        "queue": queue,
        "database": alias,
        "at": facts.now,
        "cause": next(map(str, clauses)),
        "causes": [*map(str, clauses)],
        "sentence": "; ".join([first, *facts.waiting_clause(), *others]) + ".",
        **facts.as_dict(),
    }


class _Facts:
    """The facts of one queue at one moment, by its rows."""

    def __init__(self, scope, queue, alias, seen):
        self.scope, self.name, self.alias = scope, queue, alias
        nodes, now = seen.nodes or node_rows(alias)
        self.now: datetime = now
        declared = by_scope().get(scope)
        self.queuetopia = declared if declared and declared.database() == alias else None
        self.unknown = None if self.queuetopia else why_unknown(declared)
        self.row = seen.row or Queue.objects.using(alias).filter(scope=scope, name=queue).first()
        self.line = self.row or Queue(scope=scope, name=queue, attempt=0, fence=0, stop_requested=False, problem="")
        self.paused = pause_of(self.row)
        self.scope_paused: dict[str, Any] | None
        self.all_paused: dict[str, Any] | None
        self.scope_paused, self.all_paused = _pauses(seen.scope) if seen.scope else pauses(alias, scope)
        self._read_nodes(nodes)
        self._read_jobs(seen)
        self.state = queue_state(self.line, self.current, self.now, scope_is_paused=bool(self.whole_pause()))

    def _read_nodes(self, nodes):
        self.nodes = [node for node in nodes if self.scope in node.scopes and is_alive(node, self.now)]
        self.holder = next((node for node in nodes if node.pk == self.line.held_by), None)
        workers = [worker for node in self.nodes for worker in node.workers]
        self.workers, self.busy = len(workers), sum(bool(worker["jobs"]) for worker in workers)

    def _read_jobs(self, seen):
        jobs = Job.objects.using(self.alias).defer("result")
        line = jobs.unfinished().in_queue(self.scope, self.name)
        first = list(line.in_order()[:2]) if seen.first is None else seen.first
        whole = first if seen.first is None else []  # the others' params may not have been read
        known = {job.pk: job for job in (*whole, *seen.jobs) if job}
        head = self.line.current_job or (first[0].pk if first else None)
        self.head: Any = known.get(head or 0) or (jobs.filter(pk=head).first() if head else None)  # a Job
        self.current = self.head if self.line.current_job else None
        self.is_corrupt = bool(self.line.current_job) and (self.current is None or self.current.is_ended())
        times = [job.scheduled_at for job in first if job.pk != self.line.current_job]
        self.oldest = times[0] if times and times[0] <= self.now else None
        waiting = line.filter(scheduled_at__lte=self.now).exclude(pk=self.line.current_job or 0)
        self.waiting = self.halted_behind = 0
        if self.oldest and self.head and self.head.state == Job.State.HALTED:
            self._tell_apart(waiting.exclude(pk=self.head.pk))
        elif self.oldest:
            self.waiting = waiting.count_to(MOST_COUNTED)

    def _tell_apart(self, behind):
        """Count what waits behind a halted head, and what is halted there: jobs that have moved to this queue."""
        seen = list(behind.in_order().values_list("state", "scheduled_at")[: MOST_COUNTED + 1])
        waiting = [at for state, at in seen if state == Job.State.PENDING]
        self.oldest, self.waiting = min(waiting, default=None), len(waiting)
        self.halted_behind = len(seen) - len(waiting)

    # The head

    @property
    def attempt(self):
        if self.state is QueueState.RUNNING:
            return self.line.attempt
        return self.head and self.head.attempts

    @property
    def max_attempts(self):
        if self.head is None:
            return None
        return most_attempts(self.queuetopia, self.head) if self.queuetopia else self.head.max_attempts

    @property
    def failed_at(self):
        """When the last attempt failed; None if it ended otherwise: by Snooze, or by a stop of the node."""
        last = (attempts_of(self.head.errors) or [{}])[-1] if self.head else {}
        is_the_last = self.head and self.head.attempted_at and last.get("at") == self.head.attempted_at.isoformat()
        # What was written by hand has an error and no history.
        is_known = is_the_last and last.get("counted", True) if last else bool(self.head and self.head.error)
        return self.head.attempted_at if is_known and self.state is not QueueState.RUNNING else None

    @property
    def due_at(self):
        """When the head may run; None if it runs, is halted, or there is none."""
        if self.state is QueueState.RUNNING or self.head is None or self.head.state != Job.State.PENDING:
            return None
        return (self.head.next_attempt_at or self.now) if self.current else self.head.scheduled_at

    @property
    def lease_left(self):
        """Seconds until others may take the queue over; None unless a known node holds it."""
        if self.line.held_by is None:
            return None
        if self.holder is None or not is_alive(self.holder, self.now):
            return 0.0
        return conf.lease().takeover - (self.now - self.holder.last_seen).total_seconds()

    def is_claimed(self):
        """True if the job that a node holds may not have begun yet."""
        workers = self.holder.workers if self.holder else []
        is_known_to_run = any(self.line.current_job in worker["jobs"] for worker in workers)
        is_recent = self.line.may_not_have_begun(self.now) and self.lease_left > 0
        return is_recent and not is_known_to_run

    def is_due(self):
        return self.due_at is not None and self.due_at <= self.now

    def is_paused(self):
        return bool(self.paused or self.whole_pause())

    def whole_pause(self):
        """Return the pause that holds more than this queue, the widest one; None if there is none."""
        return self.all_paused or self.scope_paused

    def ahead(self):
        """Return how many due queues of the scope have their turn before this one; None if it waits for no turn."""
        if not self.is_due() or self.is_paused() or self.line.due_at is None or self.line.due_at > self.now:
            return None
        queues = Queue.objects.using(self.alias).due(self.now).filter(scope=self.scope, due_at__lt=self.line.due_at)
        return queues.count_to(MOST_COUNTED)

    @cached_property
    def scope_row(self) -> Scope | None:
        return Scope.objects.using(self.alias).filter(name=self.scope).first()

    @cached_property
    def breaker(self) -> dict[str, Any] | None:
        """The state of the breaker of the scope; None if it is closed, or if there is none."""
        if not self.queuetopia or not self.queuetopia.option("breaker"):
            return None
        return breaker_of(self.scope_row, self.now)

    @cached_property
    def limit(self) -> dict[str, Any] | None:
        """What keeps a due head from starting: a snooze of its scope, or one of its limits."""
        if not self.queuetopia or not self.is_due() or self.is_paused():
            return None
        limits, row = Limits.of(self.queuetopia), self.scope_row
        if row and row.snoozed_until and row.snoozed_until > self.now:
            return {"cause": Cause.SCOPE_SNOOZED, "until": row.snoozed_until}
        if self.breaker and self.breaker["state"] == "open":
            return {"cause": Cause.OUTAGE, "until": self.breaker["next_probe_at"]}
        if self.breaker:
            return {"cause": Cause.CATCHING_UP, "until": None}
        latest = self.now + timedelta(seconds=limits.spacing)
        if self.line.spaced_until and self.now < self.line.spaced_until <= latest:
            return {"cause": Cause.SPACING, "until": self.line.spaced_until}
        if limits.max_running:
            taken = Queue.objects.using(self.alias).with_a_place().filter(scope=self.scope).count()
            if taken >= limits.max_running:
                return {"cause": Cause.NO_PLACE, "until": None, "taken": taken, "most": limits.max_running}
        turn = row and row.next_start_at
        if limits.rate and turn and not (rate := Rate(*limits.rate)).due(turn, self.now):
            return {"cause": Cause.RATE, "until": self.now + timedelta(seconds=rate.wait(turn, self.now))}
        return None

    def waiting_clause(self):
        """Yield the clause about the jobs that wait."""
        if self.halted_behind:
            yield f"{_counted(self.halted_behind, 'more halted job stands', 'more halted jobs stand')} behind it"
        if self.oldest is not None:
            jobs = _counted(self.waiting, "job waits", "jobs wait")
            yield f"{jobs}, the oldest for {span(self.ago(self.oldest))}"

    def as_dict(self):
        head, runs = self.head, self.line.held_by is not None
        return {
            "state": str(self.state),
            "job": self.line.current_job or (head and head.pk),
            "action": head and head.action,
            "attempt": self.attempt,
            "max_attempts": self.max_attempts,
            "error": (head and head.error) or None,
            "failed_at": self.failed_at,
            "next_attempt_at": head and head.next_attempt_at,
            "blocked_since": head and head.failed_at,
            "progress": progress_of(head, self.line),
            "waiting": self.waiting,
            "halted_behind": self.halted_behind,
            "oldest": self.oldest,
            "due_at": self.due_at,
            "held_by": self.node_name() if runs else None,
            "since": self.line.held_since,
            "fence": self.line.fence if runs else None,
            "stop_requested": self.line.stop_requested if runs else None,
            "lease_left": self.lease_left,
            "paused": self.paused,
            "scope_paused": self.scope_paused,
            "all_paused": self.all_paused,
            "problem": self.line.problem or None,
            "nodes": [str(node) for node in self.nodes],
            "workers": self.workers,
            "busy": self.busy,
            "ahead": self.ahead(),
            "limit": self.limit,
            "breaker": self.breaker,
        }

    # Words

    def ago(self, moment):
        return max(0.0, (self.now - moment).total_seconds())

    def node_name(self):
        return str(self.holder) if self.holder else f"unknown node {self.line.held_by}"

    def job_name(self):
        action = f" ({self.head.action})" if self.head else ""
        return f"job {self.line.current_job or self.head.pk}{action}"

    def attempt_name(self):
        return f"attempt {self.attempt}{f' of {self.max_attempts}' if self.max_attempts else ''}"

    def progress(self):
        """Return how far the attempt that goes on has come, as the end of a clause."""
        progress = progress_of(self.head, self.line)
        return f", {progress_text(progress)}, {span(self.ago(progress['at']))} ago" if progress else ""

    def last_attempt(self):
        """Return how the last attempt of the job that holds the queue ended."""
        if self.head.attempted_at is None:
            return "which was never attempted"
        if self.failed_at is None:
            return f"which was put off by its last attempt {span(self.ago(self.head.attempted_at))} ago"
        error = (self.head.error.splitlines() or [""])[0]
        error = error if len(error) <= LONGEST_ERROR else error[: LONGEST_ERROR - 1] + "…"
        return f"{self.attempt_name()} failed {span(self.ago(self.failed_at))} ago with {error or 'no error recorded'}"


def _clauses(facts: _Facts) -> Iterator[tuple[Cause, str]]:
    """Yield each cause with its clause, the most important one first; a cause that comes again adds nothing."""
    yield _main(facts)
    if facts.head is not None and isinstance(facts.head.params, Unreadable):
        yield Cause.CORRUPT, f"the stored params of {facts.job_name()} cannot be read, so each attempt fails"
    if facts.paused:
        yield Cause.PAUSED, f"the queue is {_paused(facts, facts.paused)}"
    if facts.all_paused:
        yield Cause.ALL_PAUSED, f"everything is {_paused(facts, facts.all_paused)}"
    if facts.scope_paused:
        yield Cause.SCOPE_PAUSED, f"all of {facts.scope} is {_paused(facts, facts.scope_paused)}"
    if facts.line.problem:
        yield Cause.PROBLEM, f"a node gave its head back: {facts.line.problem.rstrip('.')}"
    if facts.unknown:
        yield Cause.UNKNOWN_SCOPE, facts.unknown
    elif _is_unknown_action(facts):
        yield Cause.UNKNOWN_ACTION, f"this code has no action {facts.head.action!r}"
    if facts.limit and facts.state is QueueState.BACKING_OFF:
        yield facts.limit["cause"], _limit(facts)
    if not facts.nodes and facts.due_at is not None:
        yield Cause.NO_SCHEDULER, _no_node(facts)


def _no_node(facts):
    none = f"no live node serves {facts.scope}"
    if not conf.is_enabled(facts.scope):
        return f"{none}: QUEUETOPIA['ENABLED'] is False for it here"
    return f"{none}: start one with manage.py run_queuetopia"


def _main(facts):
    name = facts.name
    if facts.state is QueueState.RUNNING:
        return _running(facts)
    if facts.is_corrupt:
        what = "has ended" if facts.current else "does not exist"
        return Cause.CORRUPT, f"{name} names as its head {facts.job_name()}, which {what}: a node's sweep mends it"
    if facts.state is QueueState.HALTED:
        held = f"{name} is held by {facts.job_name()}, halted: {facts.last_attempt()}"
        return Cause.HALTED, f"{held}; an operator must retry or skip it"
    if facts.state is QueueState.OUTSIDE:
        return Cause.OUTSIDE, _outside(facts)
    if facts.state is QueueState.BACKING_OFF:
        return Cause.BACKING_OFF, f"{name} is held by {facts.job_name()}, {facts.last_attempt()}; {_next_try(facts)}"
    if facts.head is None:
        return _empty(facts)
    return _waiting(facts)


def _outside(facts):
    """Return for what a deferred attempt waits."""
    held = f"{facts.name} is held by {facts.job_name()}, attempt {facts.head.attempts + 1}"
    if facts.head.is_reported():
        return f"{held}, whose end was reported from outside: a node is to record it"
    since = span(facts.ago(facts.head.attempted_at))
    if facts.is_due():
        return f"{held}, which waited {since} for its completion from outside; its deadline is over"
    left = _in(facts, facts.due_at)
    waits = f"{held}, which has waited {since} for its completion from outside, and does so for another {left}"
    return f"{waits}{facts.progress()}"


def _waiting(facts):
    """Return why a queue with jobs, none of them attempted, does not run."""
    name, job = facts.name, facts.job_name()
    if facts.paused:
        return Cause.PAUSED, f"{name} is {_paused(facts, facts.paused)}"
    if facts.all_paused:
        return Cause.ALL_PAUSED, f"{name} waits, because everything is {_paused(facts, facts.all_paused)}"
    if facts.scope_paused:
        return Cause.SCOPE_PAUSED, f"{name} waits, because all of {facts.scope} is {_paused(facts, facts.scope_paused)}"
    if facts.head.state == Job.State.HALTED:
        return Cause.HALTED, f"{name} has at its head {job}, which is halted; an operator must retry or skip it"
    if not facts.is_due():
        return Cause.SCHEDULED, f"{name} has nothing to do before {job}, which is due in {_in(facts, facts.due_at)}"
    if facts.unknown:
        return Cause.UNKNOWN_SCOPE, f"{name} waits with {job}: {facts.unknown}"
    if _is_unknown_action(facts):
        return Cause.UNKNOWN_ACTION, f"{name} waits with {job}: this code has no action {facts.head.action!r}"
    if not facts.nodes:
        return Cause.NO_SCHEDULER, f"{name} is ready to run {job}, but {_no_node(facts)}"
    if facts.limit:
        return facts.limit["cause"], f"{name} is ready to run {job}{_turn(facts)}; {_limit(facts)}"
    if facts.line.due_at is not None and facts.line.due_at <= facts.now:
        return Cause.READY, f"{name} is ready to run {job}{_turn(facts)}"
    if facts.line.problem:
        again = _in(facts, facts.line.due_at or facts.now)
        problem = facts.line.problem.rstrip(".")
        return Cause.PROBLEM, f"{name} waits with {job}, which a node gave back: {problem}; next try in {again}"
    return Cause.NOT_WOKEN, f"{name} is ready to run {job}, but no node was notified of it: {_swept(facts)}"


def _running(facts):
    ago = span(facts.ago(facts.line.held_since or facts.now))
    others = len(facts.line.chunk_of(facts.line.fence))
    job = f"{facts.job_name()}{f' and {others} behind it' if others else ''}, {facts.attempt_name()}"
    fence = f"fence {facts.line.fence}"
    runs = f"{facts.name} runs {job}, on {facts.node_name()} for {ago}, {fence}{facts.progress()}"
    if facts.is_claimed():
        runs = f"{facts.name} is claimed for {job}, by {facts.node_name()} {ago} ago, {fence}: not begun, or only just"
    if facts.line.stop_requested:
        runs += "; a stop was requested"
    if facts.lease_left is None or facts.lease_left <= 0:
        ago = facts.holder and span(facts.ago(facts.holder.last_seen))
        dead = f"has sent no heartbeat for {ago}" if ago else "is gone"
        return Cause.NODE_DEAD, f"{runs}; that node {dead}: the next live one takes the job over"
    if facts.ago(facts.holder.last_seen) > 2 * conf.lease().heartbeat:
        silent = span(facts.ago(facts.holder.last_seen))
        takeover = f"others may take the job over in {facts.lease_left:.0f} s"
        return Cause.NODE_SILENT, f"{runs}; that node has been silent for {silent}, {takeover}"
    return Cause.CLAIMED if facts.is_claimed() else Cause.RUNNING, runs


def _empty(facts):
    if facts.row is None:
        return Cause.EMPTY, f"{facts.name} is empty: no job of {facts.scope} was ever created in it{_scheduled(facts)}"
    causes = {
        Cause.PAUSED: facts.paused, Cause.ALL_PAUSED: facts.all_paused, Cause.SCOPE_PAUSED: facts.scope_paused,
    }  # fmt: skip
    cause, pause = next(((cause, pause) for cause, pause in causes.items() if pause), (Cause.EMPTY, None))
    also = f", and {_paused(facts, pause)}" if pause else ""
    return cause, f"{facts.name} is empty{also}: it has no unfinished job{_scheduled(facts)}"


def _scheduled(facts) -> str:
    """Return which schedules create jobs in the queue, and when, as text."""
    found = schedules.of_scope(facts.queuetopia, facts.now) if facts.queuetopia else []
    clauses = [
        f"schedule {each['schedule']} {f'creates its next at {local(at)}' if (at := each['next_at']) else 'is paused'}"
        for each in found
        if each["queue"] == facts.name
    ]
    return "".join(f"; {clause}" for clause in clauses)


def _next_try(facts):
    due_at = facts.due_at
    if facts.line.problem and facts.line.due_at is not None:
        due_at = facts.line.due_at  # when a node tries again, though the job has been due for long
    if due_at <= facts.now:
        return f"its next try is due{_turn(facts)}"
    earliest = "" if facts.nodes and not facts.is_paused() else " at the earliest"
    return f"next try in {_in(facts, due_at)}{earliest}"


def _turn(facts):
    """Return what else waits for a worker."""
    if (ahead := facts.ahead()) is None or not facts.nodes:
        return ""
    before = f", after {_counted(ahead, 'other queue', 'other queues')}" if ahead else ", as the next one"
    if facts.limit:
        return before
    busy = f"; {facts.busy} of {facts.workers} workers were busy at the last heartbeat" if facts.workers else ""
    return f"{before}{busy}"


def _limit(facts):
    """Return what keeps a due head from starting."""
    limit, scope = facts.limit, facts.scope
    if limit["cause"] is Cause.NO_PLACE:
        return f"it waits for a place: {limit['taken']} of {limit['most']} queues of {scope} run (max_running)"
    if limit["cause"] in (Cause.OUTAGE, Cause.CATCHING_UP):
        return f"the breaker of {scope} is {facts.breaker['sentence']}"
    until = _in(facts, limit["until"])
    if limit["cause"] is Cause.SCOPE_SNOOZED:
        return f"all of {scope} is snoozed for another {until}, by one of its jobs"
    if limit["cause"] is Cause.SPACING:
        return f"its next start may come in {until} (spacing)"
    number, seconds = facts.queuetopia.option("rate")
    return f"{_counted(number, 'job', 'jobs')} of {scope} may start in {span(seconds)}, the next one in {until} (rate)"


def _in(facts, moment):
    return span((moment - facts.now).total_seconds())


def _swept(facts):
    if not facts.queuetopia:
        return "a node's sweep finds it"
    return f"a node's sweep finds it within {span(facts.queuetopia.option('poll_interval'))}"


def _paused(facts, pause):
    by = f" by {pause['by']}" if pause["by"] else ""
    reason = f" ({pause['reason']})" if pause["reason"] else ""
    return f"paused for {span(facts.ago(pause['at']))}{by}{reason}"


def _is_unknown_action(facts):
    if facts.head is None or facts.queuetopia is None:
        return False
    known = known_actions(facts.queuetopia.performer)
    return known is not None and facts.head.action not in known


def _pauses(scope):
    """Return the pause of a scope and that of all scopes; ``scope`` is the row that was read."""
    return (None, pause_of(scope)) if scope.name == Scope.EVERYTHING else (pause_of(scope), None)


def _counted(number, one, many):
    if number > MOST_COUNTED:
        return f"more than {MOST_COUNTED} {many}"
    return f"{number} {one if number == 1 else many}"
