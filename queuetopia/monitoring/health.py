"""What a monitor and the overview report: problems that need an operator, each in one line. Reads only.

``read`` reads a database in a fixed number of queries, whatever the number of its scopes, queues and jobs; ``judge``
says what is wrong with what was read.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import Error
from django.db.models import BooleanField, Count, Exists, ExpressionWrapper, Max, Min, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce, Substr
from django.utils import timezone

from .. import conf
from ..backends import backend_for
from ..backends.base import RESET_SEQUENCES
from ..backends.nodes import DEATHS, STANDBY
from ..backends.trouble import database_trouble
from ..models import Chore, Job, Queue, QueueIs, Scope
from ..registry import by_scope
from . import schedules
from .status import breaker_of, databases, is_alive, limits_in_words, node_rows, span, unknown_scopes

OLDEST = 600.0  # seconds for which a due job may wait for a worker
BLOCKED = 3600.0  # seconds for which a queue may be blocked
PAUSED = conf.DAY  # seconds for which a queue or scope may be paused
CYCLE = 600.0  # seconds in which …
AT_ONCE = 5.0  # seconds in which deaths of a host count as one
DEATHS_OF_A_CYCLE = 3  # … so many nodes of one host that died make a cycle
CLOCKS_APART = 5.0  # seconds between the database's clock and this machine's
MOST_ERRORS = 20_000  # different errors of blocked queues that are counted, the most frequent ones first
MOST_STANDBYS = 100
MOST_NEWEST = 20_000  # jobs that are searched for queues without a row
MOST_PROBLEMS = 100  # different problems of queues that are read
ERROR_READ = 300  # characters of an error by which blocked queues are put together


@dataclass(frozen=True)
class Limits:
    """For how long, in seconds, something may last until it is a problem."""

    oldest: float = OLDEST
    blocked: float = BLOCKED
    paused: float = PAUSED


@dataclass
class Facts:
    """The rows of one database, read at one moment."""

    alias: str
    now: datetime
    nodes: list[Any]
    pauses: dict[str, Scope]
    snoozes: dict[str, datetime]  # of scopes: until when
    breakers: dict[str, dict[str, Any]]  # of scopes, those that are not closed: see ``status.breaker_of``
    counts: dict[str, dict[str, Any]]  # by scope: numbers of queues
    errors: list[dict[str, Any]]  # of blocked queues: scope, error, number, since, long, one, other
    problems: list[dict[str, Any]]  # of queues: scope, problem, number, queue
    deaths: Counter[str] = field(default_factory=Counter)  # of nodes lately, by host
    standbys: list[dict[str, Any]] = field(default_factory=list)  # nodes that wait for their turn: node, scopes
    not_woken: dict[str, dict[str, Any]] = field(default_factory=dict)  # by scope: number of queues, queue
    unserved: set[str] = field(default_factory=set)  # scopes with unfinished jobs that no live node serves
    schedules: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # by scope: ``schedules.of_scope``
    clock: float = 0.0  # seconds that the database's clock is ahead of this machine's

    def serves(self, scope: str) -> bool:
        """True if a live node serves the scope."""
        return any(scope in node.scopes for node in self.nodes if is_alive(node, self.now))

    def is_paused(self, scope: str) -> bool:
        return scope in self.pauses or Scope.EVERYTHING in self.pauses


def problems(queuetopias, *, limits: Limits | None = None, is_all: bool = True) -> list[dict[str, Any]]:
    """Return what is wrong with these classes' scopes, as ``problem`` (a name), ``database``, ``scope``, ``message``.

    is_all: also find jobs in scopes that no class has.

    - ``unreachable``, ``not migrated``, ``no rights``, ``refused``: a database cannot be read, and why
    - ``no node``: a scope has unfinished jobs, and no live node serves it
    - ``cycling``: nodes of one host die again and again
    - ``standby``: the only nodes of a scope without jobs wait for their turn, because they serve other scopes, too
    - ``not woken``: jobs are due for longer than ``oldest``, and no node was notified of it
    - ``late``: a job is due for longer than ``oldest``, and no worker takes it. Paused scopes and queues are not late
    - ``problem``: nodes give jobs back: an unknown action, a ``setup()`` that fails, a row the database refuses
    - ``outage``: the breaker of a scope is open: the jobs that it would try fail, one after the other
    - ``halted``: queues wait for an operator
    - ``blocked``: queues have been blocked for longer than ``blocked``
    - ``paused``: everything, a scope or queues have been paused for longer than ``paused``
    - ``schedule``: a due time is over for longer than ``oldest``, and no node has dealt with it; or due times far ahead
      are taken for dealt with, because a clock was wrong
    - ``sequence``: a table's next ids are taken already, so that no new rows can be written
    - ``clock``: the clocks of the database and of this machine are apart
    - ``unknown scope``: jobs wait that no class of this code serves
    """
    found: list[dict[str, Any]] = []
    aliases = databases() if is_all else sorted({queuetopia.database() for queuetopia in queuetopias})
    for alias in aliases:
        scopes = sorted(queuetopia.scope for queuetopia in queuetopias if queuetopia.database() == alias)
        try:
            facts = read(alias, scopes, limits)
            found += judge(facts, scopes, limits or Limits(), is_all=is_all)
            found += _sequences(alias)
        except Error as exc:
            found.append(unusable(alias, exc))
    return found


def unusable(alias: str, exc: Error) -> dict[str, Any]:
    trouble = database_trouble(exc)
    return _problem(str(trouble.kind), alias, None, f"database {alias}: {trouble.message}")


def _problem(problem, alias, scope, message):
    return {"problem": problem, "database": alias, "scope": scope, "message": message}


# What is read


def read(alias: str, scopes: list[str], limits: Limits | None = None, *, in_depth: bool = True) -> Facts:
    """Read the state of the scopes of a database.

    in_depth: also read which nodes died, which ones wait for their turn, and which queues were not woken: a few more
    queries.
    """
    limits = limits or Limits()
    asked_at = timezone.now()
    nodes, now = node_rows(alias)
    ahead, behind = (now - timezone.now()).total_seconds(), (asked_at - now).total_seconds()
    resting = list(Scope.objects.using(alias).starting_none(now))
    pauses = {scope.name: scope for scope in resting if scope.paused_at}
    snoozes = {scope.name: scope.snoozed_until for scope in resting if (scope.snoozed_until or now) > now}
    tripped = {scope.name: breaker for scope in resting if (breaker := breaker_of(scope, now))}
    counts = {row["of"]: {**row, "outside": 0} for row in _counts(alias, now, limits)}
    has_problem = any(row["problems"] for row in counts.values())
    is_blocked = any(row["halted"] or row["backing_off"] for row in counts.values())
    errors = list(_errors(alias, now, limits)) if is_blocked else []
    for row in errors:
        if row["is_outside"] and (count := counts.get(row["scope"])):
            count["outside"] += row["number"]
            count["backing_off"] = max(0, count["backing_off"] - row["number"])
    facts = Facts(
        alias, now, nodes, pauses, snoozes, tripped, counts,
        errors=[row for row in errors if not row["is_outside"]],
        problems=list(_problems_of_queues(alias)) if has_problem else [],
        clock=max(0.0, ahead) - max(0.0, behind),
    )  # fmt: skip
    facts.unserved = _unserved(facts, scopes)
    classes = [queuetopia for scope in scopes if (queuetopia := by_scope().get(scope))]
    facts.schedules = schedules.of_classes(alias, classes, now)
    if in_depth:
        facts.deaths, facts.standbys = _deaths(facts), _standbys(facts)
        facts.not_woken = _not_woken(alias, now - timedelta(seconds=limits.oldest))
    return facts


def _counts(alias, now, limits):
    free = Q(held_by=None, paused_at=None, problem="")
    return (
        Queue.objects.using(alias)
        .order_by()
        # An expression: with the plain column two databases go through the index of names, one row after the other.
        .values(of=Coalesce("scope", Value("")))
        .annotate(
            queues=Count("id"),
            running=Count("id", filter=QueueIs.HELD),
            halted=Count("id", filter=QueueIs.HALTED),
            backing_off=Count("id", filter=QueueIs.BACKING_OFF),
            paused_queues=Count("id", filter=QueueIs.PAUSED),
            long_paused=Count("id", filter=Q(paused_at__lt=now - timedelta(seconds=limits.paused))),
            problems=Count("id", filter=QueueIs.WITH_A_PROBLEM),
            late=Count("id", filter=free & Q(due_at__lt=now - timedelta(seconds=limits.oldest))),
            busy=Count("id", filter=QueueIs.HELD | QueueIs.BLOCKED | Q(due_at__isnull=False)),
        )
    )


def _errors(alias, now, limits):
    """Yield the errors that block queues, the most frequent first, with the number of queues.

    ``is_outside``: these wait for no operator, but for an attempt that goes on elsewhere.
    """
    current = Queue.objects.using(alias).blocked().values("current_job")
    long = Q(state=Job.State.PENDING, failed_at__lt=now - timedelta(seconds=limits.blocked))
    heads = Job.objects.using(alias).unfinished().filter(pk__in=current).order_by()
    is_outside = ExpressionWrapper(Q(outside__isnull=False), output_field=BooleanField())
    rows = heads.values("scope", is_outside=is_outside, text=Substr("error", 1, ERROR_READ)).annotate(
        number=Count("id"),
        long=Count("id", filter=long),
        since=Min("failed_at"),
        one=Min("queue"),
        other=Max("queue"),
    )
    return rows.order_by("-number", "scope", "text")[:MOST_ERRORS]


def _problems_of_queues(alias):
    queues = Queue.objects.using(alias).exclude(problem="").order_by()
    rows = queues.values("scope", "problem").annotate(number=Count("id"), queue=Min("name"))
    return rows.order_by("-number", "scope", "problem")[:MOST_PROBLEMS]


def _deaths(facts):
    """Return how many nodes of each host died lately."""
    since = facts.now - timedelta(seconds=CYCLE)
    chore = Chore.objects.using(facts.alias).filter(name=DEATHS).first()
    deaths = chore.marks.get("deaths", []) if chore else []
    lately = [(datetime.fromisoformat(at), host) for at, host in deaths]
    # And those whose rows are not removed yet.
    lately += [(node.last_seen, node.host) for node in facts.nodes if not is_alive(node, facts.now)]
    # One restart of the database, or one deploy, may end many nodes of a host at once.
    moments = {(int(at.timestamp() // AT_ONCE), host) for at, host in lately if at > since}
    return Counter(host for _, host in moments)


def _standbys(facts):
    since = facts.now - timedelta(seconds=conf.lease().takeover)
    rows = Chore.objects.using(facts.alias).filter(name__startswith=STANDBY, done_at__gt=since).order_by("name")
    return list(rows.values_list("marks", flat=True)[:MOST_STANDBYS])


def _not_woken(alias, before):
    """Return {scope: how many queues have jobs that are due since ``before``, and are not due themselves; one}.

    Queues without a row are searched among the newest jobs only.
    """
    jobs = Job.objects.using(alias).unfinished().filter(scheduled_at__lt=before, attempted_at=None).order_by()
    line = jobs.filter(scope=OuterRef("scope"), queue=OuterRef("name"))
    idle = Queue.objects.using(alias).idle().filter(due_at=None, paused_at=None, problem="")
    rows = list(idle.filter(Exists(line)).order_by().values("scope").annotate(number=Count("id"), queue=Min("name")))
    newest = Job.objects.using(alias).order_by("-id").values_list("id", flat=True).first() or 0
    row = Queue.objects.using(alias).filter(scope=OuterRef("scope"), name=OuterRef("queue"))
    lost = jobs.filter(~Exists(row), pk__gt=newest - MOST_NEWEST)
    rows += lost.values("scope").annotate(number=Count("queue", distinct=True), one=Min("queue"))
    found: dict[str, dict[str, Any]] = {}
    for each in rows:
        known = found.setdefault(each["scope"], {"number": 0, "queue": each.get("queue", each.get("one"))})
        known["number"] += each["number"]
    return found


def _unserved(facts, scopes):
    lonely = {scope for scope in scopes if not facts.serves(scope)}
    busy = {scope for scope in lonely if facts.counts.get(scope, {}).get("busy")}
    if idle := lonely - busy:  # a wake-up of theirs may have been lost
        jobs = Job.objects.using(facts.alias).unfinished().filter(scope__in=idle).order_by()
        return busy | set(jobs.values_list("scope", flat=True).distinct())
    return busy


# What is wrong


def judge(
    facts: Facts, scopes: list[str], limits: Limits | None = None, *, is_all: bool = True
) -> list[dict[str, Any]]:
    """Return what is wrong with these scopes of a database, as ``problems`` does."""
    limits = limits or Limits()
    found = [_problem(problem, facts.alias, None, message) for problem, message in _of_the_database(facts, limits)]
    for scope in scopes:
        found += [
            _problem(problem, facts.alias, scope, f"{scope}: {message}")
            for problem, message in _of_the_scope(facts, scope, limits)
        ]
    for stray in unknown_scopes(facts.alias) if is_all else ():
        message = f"{stray['scope']}: unfinished jobs: {stray['unfinished']}, untouched, because {stray['problem']}"
        found.append(_problem("unknown scope", facts.alias, stray["scope"], message))
    return found


def _of_the_database(facts, limits):
    if long := _long_pause(facts, facts.pauses.get(Scope.EVERYTHING), limits):
        yield "paused", f"database {facts.alias}: everything is {long}"
    for host, deaths in facts.deaths.items():
        if deaths >= DEATHS_OF_A_CYCLE:
            yield "cycling", f"database {facts.alias}: nodes of {host} died {deaths} times within {span(CYCLE)}"
    if abs(facts.clock) > CLOCKS_APART:
        ahead = "ahead of" if facts.clock > 0 else "behind"
        yield "clock", f"database {facts.alias}: its clock is {span(abs(facts.clock))} {ahead} this machine's"


def _long_pause(facts, pause, limits):
    """Return for how long, by which operator and why something is paused; None unless that is too long."""
    if pause and (waits := (facts.now - pause.paused_at).total_seconds()) > limits.paused:
        return f"paused for {span(waits)}, longer than {span(limits.paused)}{_by(pause)}"
    return None


def _of_the_scope(facts, scope, limits):
    counts = facts.counts.get(scope, {})
    if scope in facts.unserved:
        why = "" if conf.is_enabled(scope) else "; QUEUETOPIA['ENABLED'] is False for the scope here"
        yield "no node", f"there are unfinished jobs, and no live node serves them{why}{_waiting_for(facts, scope)}"
    elif not facts.serves(scope) and (waiting := _waiting_for(facts, scope)):
        yield "standby", f"no live node serves it{waiting}"
    if scope not in facts.unserved and not facts.is_paused(scope) and (lost := facts.not_woken.get(scope)):
        yield (
            "not woken",
            (
                f"queues with jobs due for longer than {span(limits.oldest)} that no node was notified of: "
                f"{lost['number']} ({lost['queue']}, …): a wake-up was lost, and no sweep has come by"
            ),
        )
    if (breaker := facts.breakers.get(scope)) and breaker["state"] == "open":
        yield "outage", f"its breaker is {breaker['sentence']}"
    rests = facts.is_paused(scope) or scope in facts.snoozes or scope in facts.breakers
    if counts.get("late") and not rests and (late := _late(facts, scope, limits.oldest)):
        yield "late", late
    for row in facts.problems:
        if row["scope"] == scope:
            yield "problem", f"queues given back by nodes: {row['number']} ({row['queue']}, …): {row['problem']}"
    if halted := counts.get("halted"):
        yield "halted", f"queues halted, waiting for an operator: {halted}"
    errors = [row for row in facts.errors if row["scope"] == scope]
    if long := sum(row["long"] for row in errors):
        since = min(row["since"] for row in errors if row["long"])
        waits = span((facts.now - since).total_seconds())
        yield "blocked", f"queues blocked for longer than {span(limits.blocked)}: {long}, the first for {waits}"
    yield from _of_schedules(facts, scope, limits)
    if pause := facts.pauses.get(scope):
        if long := _long_pause(facts, pause, limits):
            yield "paused", long
    elif long := counts.get("long_paused"):
        yield "paused", f"queues paused for longer than {span(limits.paused)}: {long}"


def _of_schedules(facts, scope, limits):
    for each in facts.schedules.get(scope, ()):
        if each["late"] > limits.oldest:
            yield (
                "schedule",
                f"schedule {each['schedule']} is due for {span(each['late'])}, and no node has created its job",
            )
        elif each["until"] and each["until"] - facts.now > schedules.AHEAD and not each["paused"]:
            ahead = span((each["until"] - facts.now).total_seconds())
            yield (
                "schedule",
                (
                    f"schedule {each['schedule']} is dealt with for {ahead} ahead, because the database's clock was "
                    "put forward: pause and resume it"
                ),
            )


def _waiting_for(facts, scope):
    """Return which nodes would serve the scope if it were their turn, as text."""
    waiting = sorted(standby["node"] for standby in facts.standbys if scope in standby["scopes"])
    if not waiting:
        return ""
    return f"; started with --standby, and waiting while other nodes serve some of their scopes: {', '.join(waiting)}"


def _by(pause):
    by = f", by {pause.paused_by}" if pause.paused_by else ""
    return f"{by}: {pause.paused_reason}" if pause.paused_reason else by


def _late(facts, scope, oldest):
    """Return which queue waits for a worker for longest, as text; None if none does.

    A queue that has just got its first job is due a little before it: that is its place in the line of queues.
    """
    due = Queue.objects.using(facts.alias).due(facts.now - timedelta(seconds=oldest)).filter(scope=scope, problem="")
    jobs = Job.objects.using(facts.alias).unfinished().in_queue(scope, OuterRef("name")).in_order()
    first_due = due.annotate(first=Subquery(jobs.values("scheduled_at")[:1])).filter(
        first__lt=facts.now - timedelta(seconds=oldest)
    )
    row = first_due.order_by("due_at").values("name", "due_at", "first").first()
    if row is None:
        return None
    waits = span((facts.now - max(row["due_at"], row["first"])).total_seconds())
    words = ", ".join(limits_in_words(scope))
    limits = f" ({words})" if words else ""
    late = f"a job of queue {row['name']} is due for {waits}, longer than {span(oldest)}"
    return f"{late}, and no worker takes it{limits}"


def _sequences(alias):
    for table in backend_for(alias).behind_their_tables():
        message = f"database {alias}: new rows of {table} get ids that are taken. Run: {RESET_SEQUENCES}"
        yield _problem("sequence", alias, None, message)
