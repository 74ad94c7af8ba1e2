"""Why a queue does what it does now, or does nothing: one sentence for a person, and the facts it is made of.

Reads only. It takes a handful of queries, each a look-up in an index with a LIMIT, however many queues and jobs
there are. The parts are read one after the other: in a busy queue they may differ by a job that ended in between.
Params are never shown; errors are as stored, with sensitive params masked. Texts are as stored too: ``visible``
makes them fit for a terminal.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from .. import conf
from ..backends.values import attempts_of
from ..models import Job, Queue, Scope
from ..params import Unreadable
from ..performer import known_actions
from ..registry import by_scope
from .status import QueueState, is_alive, most_attempts, node_rows, pause_of, pauses, queue_state, span, why_unknown

MOST_COUNTED = 1_000  # jobs or queues counted; of more it is said that there are more
LONGEST_ERROR = 300  # characters of an error in the sentence


class Cause(StrEnum):
    """What a queue's state comes from. Several may hold at once: paused and halted, say."""

    RUNNING = "running"
    CLAIMED = "claimed"  # not begun yet: less than a second ago a node took it, and no worker is known to run it
    NODE_SILENT = "node silent"  # the node that holds it has missed heartbeats; its lease runs out
    NODE_DEAD = "node dead"  # … has run out, or the node is gone
    HALTED = "halted"
    BACKING_OFF = "backing off"
    CORRUPT = "corrupt"  # its rows contradict each other, or the head's params cannot be read
    PROBLEM = "problem"  # a node gave its head back: unknown action, a setup() that failed
    UNKNOWN_SCOPE = "unknown scope"
    UNKNOWN_ACTION = "unknown action"
    PAUSED = "paused"
    SCOPE_PAUSED = "scope paused"
    ALL_PAUSED = "all paused"
    NO_SCHEDULER = "no scheduler"
    NOT_WOKEN = "not woken"  # a job waits that no node was told of
    READY = "ready"
    SCHEDULED = "scheduled"
    EMPTY = "empty"


def explain(queuetopia, queue: str) -> dict[str, Any]:
    """Say why ``queue`` does what it does now. Datetimes are aware; all else is JSON.

    - ``sentence``: for a person; ``cause``: the ``Cause`` that comes first; ``causes``: all of them
    - ``scope``, ``queue``, ``database``, ``at`` (the database's clock), ``state`` (a ``QueueState``)
    - ``job``, ``action``, ``attempt``, ``max_attempts`` (None: for ever), ``error``, ``failed_at``,
      ``next_attempt_at``, ``blocked_since``: the head of the queue, None if there is none. ``attempt`` is the last
      one, or the one that runs; ``failed_at`` is None unless that one failed; ``blocked_since`` is when it failed first
    - ``waiting``: due jobs that were never attempted, ``oldest``: scheduled_at of the first of them,
      ``due_at``: when the head may run
    - ``held_by`` (node), ``since``, ``fence``, ``stop_requested``, ``lease_left`` (seconds until others may take over):
      who runs it; None unless it runs
    - ``paused``, ``scope_paused``, ``all_paused``: at, by, reason; or None. ``problem``: text or None
    - ``nodes``: live nodes that serve the scope; ``workers``, ``busy``: their processes, and those that ran
      something at the last heartbeat; ``ahead``: due queues of the scope whose turn is before this one's

    ``waiting`` and ``ahead`` count up to ``MOST_COUNTED``; one more means: more than that.
    """
    return explain_queue(queuetopia.scope, queue, queuetopia.database())


@dataclass
class Seen:
    """What of a queue was read a moment ago and is not read again; None: it was not read."""

    row: Queue | None = None
    jobs: Iterable[Job | None] = ()
    scope: Scope | None = None
    first: list[Job] | None = None  # of its unfinished jobs in order, two at least if there are
    nodes: tuple[list[Any], datetime] | None = None  # what ``status.node_rows`` returned


def explain_queue(scope: str, queue: str, alias: str, seen: Seen | None = None) -> dict[str, Any]:
    """Do what ``explain`` does for a queue in database ``alias``, whose scope this code need not know."""
    sight = _Sight(scope, queue, alias, seen or Seen())
    told: dict[Cause, str] = {}
    for cause, clause in _told(sight):
        told.setdefault(cause, clause)
    first, *others = told.values()
    return {
        "scope": scope,
        "queue": queue,
        "database": alias,
        "at": sight.now,
        "cause": next(map(str, told)),
        "causes": [*map(str, told)],
        "sentence": "; ".join([first, *sight.told_of_line(), *others]) + ".",
        **sight.facts(),
    }


class _Sight:
    """What the rows say of one queue at one moment."""

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
        self._look_at_nodes(nodes)
        self._look_at_jobs(seen)
        self.state = queue_state(self.line, self.current, self.now, scope_is_paused=bool(self.whole_pause()))

    def _look_at_nodes(self, nodes):
        self.nodes = [node for node in nodes if self.scope in node.scopes and is_alive(node, self.now)]
        self.holder = next((node for node in nodes if node.pk == self.line.held_by), None)
        workers = [worker for node in self.nodes for worker in node.workers]
        self.workers, self.busy = len(workers), sum(bool(worker["jobs"]) for worker in workers)

    def _look_at_jobs(self, seen):
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
        self.waiting = waiting.count_to(MOST_COUNTED) if self.oldest else 0

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
        is_told = is_the_last and last.get("counted", True) if last else bool(self.head and self.head.error)
        return self.head.attempted_at if is_told and self.state is not QueueState.RUNNING else None

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

    def told_of_line(self):
        """Yield what is said of the jobs that wait."""
        if self.oldest is not None:
            jobs = _counted(self.waiting, "job waits", "jobs wait")
            yield f"{jobs}, the oldest for {span(self.ago(self.oldest))}"

    def facts(self):
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
            "waiting": self.waiting,
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

    def last_attempt(self):
        """Say how the last attempt of the job that holds the queue ended."""
        if self.head.attempted_at is None:
            return "which was never attempted"
        if self.failed_at is None:
            return f"which was put off by its last attempt {span(self.ago(self.head.attempted_at))} ago"
        error = (self.head.error.splitlines() or [""])[0]
        error = error if len(error) <= LONGEST_ERROR else error[: LONGEST_ERROR - 1] + "…"
        return f"{self.attempt_name()} failed {span(self.ago(self.failed_at))} ago with {error or 'no error told'}"


def _told(sight: _Sight) -> Iterator[tuple[Cause, str]]:
    """Yield each cause with its clause, the one a person wants to know first; what comes again says nothing new."""
    yield _main(sight)
    if sight.head is not None and isinstance(sight.head.params, Unreadable):
        yield Cause.CORRUPT, f"the stored params of {sight.job_name()} cannot be read, so each attempt fails"
    if sight.paused:
        yield Cause.PAUSED, f"the queue is {_paused(sight, sight.paused)}"
    if sight.all_paused:
        yield Cause.ALL_PAUSED, f"everything is {_paused(sight, sight.all_paused)}"
    if sight.scope_paused:
        yield Cause.SCOPE_PAUSED, f"all of {sight.scope} is {_paused(sight, sight.scope_paused)}"
    if sight.line.problem:
        yield Cause.PROBLEM, f"a node gave its head back: {sight.line.problem.rstrip('.')}"
    if sight.unknown:
        yield Cause.UNKNOWN_SCOPE, sight.unknown
    elif _is_unknown_action(sight):
        yield Cause.UNKNOWN_ACTION, f"this code has no action {sight.head.action!r}"
    if not sight.nodes and sight.due_at is not None:
        yield Cause.NO_SCHEDULER, _no_node(sight)


def _no_node(sight):
    none = f"no live node serves {sight.scope}"
    if not conf.is_enabled(sight.scope):
        return f"{none}: QUEUETOPIA['ENABLED'] is False for it here"
    return f"{none}: start one with manage.py run_queuetopia"


def _main(sight):
    name = sight.name
    if sight.state is QueueState.RUNNING:
        return _running(sight)
    if sight.is_corrupt:
        what = "has ended" if sight.current else "does not exist"
        return Cause.CORRUPT, f"{name} names as its head {sight.job_name()}, which {what}: a node's sweep mends it"
    if sight.state is QueueState.HALTED:
        held = f"{name} is held by {sight.job_name()}, halted: {sight.last_attempt()}"
        return Cause.HALTED, f"{held}; a person has to retry or skip it"
    if sight.state is QueueState.BACKING_OFF:
        return Cause.BACKING_OFF, f"{name} is held by {sight.job_name()}, {sight.last_attempt()}; {_next_try(sight)}"
    if sight.head is None:
        return _empty(sight)
    return _waiting(sight)


def _waiting(sight):
    """Say why a queue does not run that has jobs, none of them attempted."""
    name, job = sight.name, sight.job_name()
    if sight.paused:
        return Cause.PAUSED, f"{name} is {_paused(sight, sight.paused)}"
    if sight.all_paused:
        return Cause.ALL_PAUSED, f"{name} waits, for everything is {_paused(sight, sight.all_paused)}"
    if sight.scope_paused:
        return Cause.SCOPE_PAUSED, f"{name} waits, for all of {sight.scope} is {_paused(sight, sight.scope_paused)}"
    if sight.head.state == Job.State.HALTED:
        return Cause.HALTED, f"{name} has at its head {job}, which is halted; a person has to retry or skip it"
    if not sight.is_due():
        return Cause.SCHEDULED, f"{name} has nothing to do before {job}, which is due in {_in(sight, sight.due_at)}"
    if sight.unknown:
        return Cause.UNKNOWN_SCOPE, f"{name} waits with {job}: {sight.unknown}"
    if _is_unknown_action(sight):
        return Cause.UNKNOWN_ACTION, f"{name} waits with {job}: this code has no action {sight.head.action!r}"
    if not sight.nodes:
        return Cause.NO_SCHEDULER, f"{name} is ready to run {job}, but {_no_node(sight)}"
    if sight.line.due_at is not None and sight.line.due_at <= sight.now:
        return Cause.READY, f"{name} is ready to run {job}{_turn(sight)}"
    if sight.line.problem:
        again = _in(sight, sight.line.due_at or sight.now)
        problem = sight.line.problem.rstrip(".")
        return Cause.PROBLEM, f"{name} waits with {job}, which a node gave back: {problem}; next try in {again}"
    return Cause.NOT_WOKEN, f"{name} is ready to run {job}, but no node was told of it: {_swept(sight)}"


def _running(sight):
    ago = span(sight.ago(sight.line.held_since or sight.now))
    job, fence = f"{sight.job_name()}, {sight.attempt_name()}", f"fence {sight.line.fence}"
    runs = f"{sight.name} runs {job}, on {sight.node_name()} for {ago}, {fence}"
    if sight.is_claimed():
        runs = f"{sight.name} is claimed for {job}, by {sight.node_name()} {ago} ago, {fence}: not begun, or only just"
    if sight.line.stop_requested:
        runs += "; a stop was requested"
    if sight.lease_left is None or sight.lease_left <= 0:
        seen = f"not seen for {span(sight.ago(sight.holder.last_seen))}" if sight.holder else "gone"
        return Cause.NODE_DEAD, f"{runs}; that node is {seen}: the next live one takes the job over"
    if sight.ago(sight.holder.last_seen) > 2 * conf.lease().heartbeat:
        silent = span(sight.ago(sight.holder.last_seen))
        takeover = f"others may take the job over in {sight.lease_left:.0f} s"
        return Cause.NODE_SILENT, f"{runs}; that node has been silent for {silent}, {takeover}"
    return Cause.CLAIMED if sight.is_claimed() else Cause.RUNNING, runs


def _empty(sight):
    if sight.row is None:
        return Cause.EMPTY, f"{sight.name} is empty: no job of {sight.scope} was ever created in it"
    causes = {
        Cause.PAUSED: sight.paused, Cause.ALL_PAUSED: sight.all_paused, Cause.SCOPE_PAUSED: sight.scope_paused,
    }  # fmt: skip
    cause, pause = next(((cause, pause) for cause, pause in causes.items() if pause), (Cause.EMPTY, None))
    also = f", and {_paused(sight, pause)}" if pause else ""
    return cause, f"{sight.name} is empty{also}: it has no unfinished job"


def _next_try(sight):
    due_at = sight.due_at
    if sight.line.problem and sight.line.due_at is not None:
        due_at = sight.line.due_at  # when a node looks again, though the job has been due for long
    if due_at <= sight.now:
        return f"its next try is due{_turn(sight)}"
    earliest = "" if sight.nodes and not sight.is_paused() else " at the earliest"
    return f"next try in {_in(sight, due_at)}{earliest}"


def _turn(sight):
    """Say what else waits for a worker."""
    if (ahead := sight.ahead()) is None or not sight.nodes:
        return ""
    before = f", after {_counted(ahead, 'other queue', 'other queues')}" if ahead else ", as the next one"
    busy = f"; {sight.busy} of {sight.workers} workers were busy at the last heartbeat" if sight.workers else ""
    return f"{before}{busy}"


def _in(sight, moment):
    return span((moment - sight.now).total_seconds())


def _swept(sight):
    if not sight.queuetopia:
        return "a node's sweep finds it"
    return f"a node's sweep finds it within {span(sight.queuetopia.option('poll_interval'))}"


def _paused(sight, pause):
    by = f" by {pause['by']}" if pause["by"] else ""
    reason = f" ({pause['reason']})" if pause["reason"] else ""
    return f"paused for {span(sight.ago(pause['at']))}{by}{reason}"


def _is_unknown_action(sight):
    if sight.head is None or sight.queuetopia is None:
        return False
    known = known_actions(sight.queuetopia.performer)
    return known is not None and sight.head.action not in known


def _pauses(scope):
    """Return the pause of a scope and that of all scopes, of which ``scope`` is the one that was read."""
    return (None, pause_of(scope)) if scope.name == Scope.EVERYTHING else (pause_of(scope), None)


def _counted(number, one, many):
    if number > MOST_COUNTED:
        return f"more than {MOST_COUNTED} {many}"
    return f"{number} {one if number == 1 else many}"
