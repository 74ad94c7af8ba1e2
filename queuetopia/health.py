"""What a monitor is to be told: problems that need a person, each in one line. Reads only."""

from typing import Any

from django.db import DatabaseError

from .backends import backend_for
from .models import Job, Node, Queue, Scope
from .status import MOST_NODES, databases, is_alive, span, unknown_scopes
from .verbs import refused_by_database

MOST_HALTED = 1_000  # queues counted; of more it is said that there are more
OLDEST = 600.0  # seconds for which a due job may wait for a worker


def problems(queuetopias, *, oldest: float = OLDEST, is_all: bool = True) -> list[dict[str, Any]]:
    """Return what is wrong with these classes' scopes, as ``problem`` (a name), ``database``, ``scope``, ``message``.

    oldest: seconds for which a due job at the head of its queue may wait for a worker.
    is_all: look for jobs in scopes that no class has, too.

    - ``unreachable``: a database does not answer
    - ``no node``: a scope has unfinished jobs, and no live node serves it
    - ``late``: a job is due for longer than ``oldest``, and no worker takes it. Paused scopes and queues are not late
    - ``halted``: queues wait for a person
    - ``unknown scope``: jobs wait that no class of this code serves
    """
    found: list[dict[str, Any]] = []
    aliases = databases() if is_all else sorted({queuetopia.database() for queuetopia in queuetopias})
    for alias in aliases:
        here = [queuetopia for queuetopia in queuetopias if queuetopia.database() == alias]
        try:
            found += _problems_in(alias, here, oldest, is_all)
        except DatabaseError as exc:
            message = f"database {alias} does not answer: {refused_by_database(exc)}"
            found.append({"problem": "unreachable", "database": alias, "scope": None, "message": message})
    return found


def _problems_in(alias, queuetopias, oldest, is_all):
    now = backend_for(alias).now()
    nodes = [node for node in Node.objects.using(alias).defer("workers")[:MOST_NODES] if is_alive(node, now)]
    for queuetopia in queuetopias:
        scope = queuetopia.scope
        served = any(scope in node.scopes for node in nodes)
        checks = {
            "no node": None if served else _unserved(alias, scope),
            "late": _late(alias, scope, now, oldest),
            "halted": _halted(alias, scope),
        }
        for problem, message in checks.items():
            if message:
                yield {"problem": problem, "database": alias, "scope": scope, "message": f"{scope}: {message}"}
    for found in unknown_scopes(alias) if is_all else ():
        message = f"{found['scope']}: unfinished jobs: {found['unfinished']}, untouched, for {found['problem']}"
        yield {"problem": "unknown scope", "database": alias, "scope": found["scope"], "message": message}


def _unserved(alias, scope):
    if Job.objects.using(alias).unfinished().filter(scope=scope).exists():
        return "there are unfinished jobs, and no live node serves them"
    return None


def _late(alias, scope, now, oldest):
    if Scope.objects.using(alias).filter(name=scope, paused_at__isnull=False).exists():
        return None
    due = Queue.objects.using(alias).due(now).filter(scope=scope, problem="").order_by("due_at")
    first = due.first()
    if first is None:
        return None
    # A queue that has just got its first job is due a little before it: that is its place in the line of queues.
    jobs = Job.objects.using(alias).unfinished().in_queue(scope, first.name).in_order()
    since = max(first.due_at, jobs.values_list("scheduled_at", flat=True).first() or first.due_at)
    if (waits := (now - since).total_seconds()) <= oldest:
        return None
    return f"a job of queue {first.name} is due for {span(waits)}, longer than {span(oldest)}, and no worker takes it"


def _halted(alias, scope):
    halted = Queue.objects.using(alias).blocked().filter(scope=scope, due_at=None).count_to(MOST_HALTED)
    if not halted:
        return None
    number = f"more than {MOST_HALTED}" if halted > MOST_HALTED else halted
    return f"queues halted, waiting for a person: {number}"
