"""Find jobs by a text: the same for ``list_jobs(search=…)`` and for the admin. Reads only.

Whatever the number of jobs, a search costs a few index look-ups (a job's number, the beginning of a queue's name)
and one pass over the newest ``MOST_SEARCHED`` rows of the jobs' table, for what no index knows.
"""

import json
from collections.abc import Collection
from functools import reduce
from operator import or_
from typing import Any

from django.db.models import Q, TextField
from django.db.models.functions import Cast

from ..conf import ON_EXHAUSTED, is_step
from ..models import Job, Queue
from ..registry import by_scope

MOST_SEARCHED = 20_000  # of the newest jobs, for what no index knows
MOST_QUEUES = 100  # whose names begin like what is searched
MOST_FOUND = 1_000  # jobs found in each of the two ways
LARGEST_ID = 2**63 - 1


def refuse_impossible(scope: str, filters: dict[str, Any]) -> None:
    """Raise ValueError for a filter of a scope's jobs with a value that none of them can have, as a misspelt state."""
    allowed: dict[str, list[Any]] = {"scope": [scope], "state": Job.State.values, "on_exhausted": [None, *ON_EXHAUSTED]}
    for name, value in filters.items():
        field, _, lookup = name.partition("__")
        for one in _values(lookup, value) if field in allowed else ():
            if field == "on_exhausted" and is_step(one):
                continue
            if one not in allowed[field] and not hasattr(one, "resolve_expression"):  # an F(…), a QuerySet
                raise ValueError(
                    f"{name}={value!r} matches no job: {one!r} is none of {', '.join(map(repr, allowed[field]))}."
                    f"{' A running, waiting or backing-off job is pending.' if field == 'state' else ''}"
                )


def _values(lookup, value):
    """Return the values of which a look-up wants a row to have one; none if it wants something else."""
    if lookup == "in":
        return value if isinstance(value, Collection) else ()  # an iterator could be read only once
    return [value] if lookup in ("", "exact") else ()


def matching(jobs: Any, text: str, *, in_params: bool = True) -> Any:
    """Return those of ``jobs`` (a QuerySet of one database) that the text finds; all of them if it is blank.

    It finds a job's number; the beginning of a queue's name; and among the newest 20,000 jobs of the database the
    beginning of an action, something in the last error, and something in the params. Upper and lower case differ in
    names (not on SQLite), and do not in errors and params. No character is a wildcard. Of jobs without an end
    all are found by their queue's name, of 100 queues at most; of those that ended only the newest.

    in_params: search params, too. Those of a class with ``sensitive_params`` never are: searching is reading.
    """
    if not text.strip():
        return jobs
    ids = _ids_of_newest(jobs, text, in_params) | _ids_waiting(jobs, text)
    if (number := id_in(text.strip())) is not None:
        ids.add(number)
    return jobs.filter(pk__in=ids)


def _ids_of_newest(jobs, text, in_params):
    last = jobs.model._default_manager.using(jobs.db).order_by("-pk").values_list("pk", flat=True).first() or 0
    found = Q(queue__startswith=text) | Q(action__startswith=text) | Q(error__icontains=text)
    if in_params:
        clear = [scope for scope, known in by_scope().items() if not known.option("sensitive_params")]
        jobs = jobs.alias(params_text=Cast("params", TextField()))
        for as_stored in {text, json.dumps(text)[1:-1]}:  # some databases keep é as \u00e9
            found |= Q(scope__in=clear, params_text__icontains=as_stored)
    newest = jobs.filter(found, pk__gt=last - MOST_SEARCHED).order_by("-pk")
    return set(newest.values_list("pk", flat=True)[: MOST_FOUND + 1])


def _ids_waiting(jobs, text):
    lines = Queue.objects.using(jobs.db).filter(name__startswith=text).values_list("scope", "name")[:MOST_QUEUES]
    named = reduce(or_, (Q(scope=scope, queue=name) for scope, name in lines), Q())
    return set(jobs.filter(named, done_at=None).values_list("pk", flat=True)[: MOST_FOUND + 1]) if named else set()


def id_in(text: str) -> int | None:
    """Return the text as a row's id, None if it cannot be one on any database."""
    # Nineteen digits: Python refuses to read numbers that are much longer.
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 19 and int(text) <= LARGEST_ID else None
