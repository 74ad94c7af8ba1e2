"""Whether this code can run the jobs that wait: for a deploy, before it. Reads only, in steps of bounded memory."""

from collections.abc import Iterator
from typing import Any

from django.db.models import Count, F

from ..models import Job
from ..performer import param_problems
from ..registry import by_scope
from .creating import check_action

STEP = 2_000  # jobs read at once
EXAMPLES = 3  # jobs named for each problem


class _Found:
    """What was found so far, by cause: with the number of jobs and the first of them."""

    def __init__(self, alias):
        self._alias = alias
        self._found: dict[tuple[str, str, str, str], dict[str, Any]] = {}

    def add(self, problem, scope, action, cause, number=1, examples=()) -> None:
        key = (problem, scope, action, cause)
        names = {"problem": problem, "database": self._alias, "scope": scope, "action": action, "cause": cause}
        known = self._found.setdefault(key, {**names, "jobs": 0, "examples": []})
        known["jobs"] += number
        known["examples"] = [*known["examples"], *examples][:EXAMPLES]

    def all(self) -> list[dict[str, Any]]:
        return sorted(self._found.values(), key=lambda found: -found["jobs"])


def pending_problems(alias: str, scopes: list[str] | None = None) -> tuple[int, list[dict[str, Any]]]:
    """Return how many unfinished jobs a database has, and which of them this code cannot run, by cause.

    scopes: only these; None means all, those included that this code does not know.

    Each cause is a dict: ``problem`` ("scope", "action" or "params"), ``database``, ``scope``, ``action``, ``cause``,
    ``jobs`` (how many), ``examples`` (job and queue of the first ones).
    """
    found, number = _Found(alias), 0
    unfinished = Job.objects.using(alias).unfinished().order_by()
    if scopes is not None:
        unfinished = unfinished.filter(scope__in=scopes)
    for scope, action, count in unfinished.values_list("scope", "action").annotate(Count("id")):
        number += count
        jobs = unfinished.filter(scope=scope, action=action)
        if problem := _of_all(alias, scope, action):
            found.add(problem[0], scope, action, problem[1], count, _examples(jobs))
        else:
            _check_each(by_scope()[scope], action, jobs, found)
    return number, found.all()


def _of_all(alias, scope, action) -> tuple[str, str] | None:
    """Return what keeps all jobs of a scope with an action from being run, or None."""
    queuetopia = by_scope().get(scope)
    if queuetopia is None:
        return "scope", "no class of this code has the scope"
    if queuetopia.database() != alias:
        return "scope", f"{queuetopia.__name__} keeps its jobs in database {queuetopia.database()}"
    problems: dict[str, list[str]] = {}
    check_action(queuetopia, action, problems)
    return ("action", " ".join(problems["action"])) if problems else None


def _check_each(queuetopia, action, jobs, found) -> None:
    for pk, queue, params in _in_steps(jobs):
        for cause in _problems_of(queuetopia, action, params):
            found.add("params", queuetopia.scope, action, cause, 1, [{"job": pk, "queue": queue}])


def _problems_of(queuetopia, action, params) -> list[str]:
    if not isinstance(params, dict):
        return ["its params cannot be read"]
    return [f"{cause}." for cause in param_problems(queuetopia.performer, action, params)]


def _in_steps(jobs) -> Iterator[tuple[int, str, Any]]:
    after = 0
    while step := list(jobs.filter(pk__gt=after).order_by("pk").values_list("pk", "queue", "params")[:STEP]):
        yield from step
        after = step[-1][0]


def _examples(jobs) -> list[dict[str, Any]]:
    return list(jobs.order_by("pk").values("queue", job=F("pk"))[:EXAMPLES])
