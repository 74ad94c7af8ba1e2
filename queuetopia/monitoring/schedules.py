"""How schedules stand: what a class declares beside what is stored of it. Reads only; without schedules, nothing."""

from datetime import datetime, timedelta
from typing import Any

from ..models import Schedule
from ..registry import by_scope
from ..schedules import Periodic, listed

LATE = 60.0  # seconds after which a due time that no node has dealt with is late
AHEAD = timedelta(hours=1)  # a row that is dealt with until later than that was so by a clock that was wrong


def of_scope(queuetopia, now: datetime) -> list[dict[str, Any]]:
    """Return the schedules of a class, those that are declared first: ``described`` of each."""
    return of_classes(queuetopia.database(), [queuetopia], now).get(queuetopia.scope, [])


def of_classes(alias: str, queuetopias, now: datetime) -> dict[str, list[dict[str, Any]]]:
    """Return what ``of_scope`` does, by scope, for those of the classes that have schedules; by one query for all."""
    declared = {queuetopia.scope: found for queuetopia in queuetopias if (found := listed(queuetopia))}
    rows: dict[str, dict[str, Schedule]] = {scope: {} for scope in declared}
    for row in Schedule.objects.using(alias).filter(scope__in=declared) if declared else ():
        rows[row.scope][row.name] = row
    return {
        scope: [
            described(name, found.get(name), rows[scope].get(name), now)
            for name in (*found, *sorted(rows[scope].keys() - found.keys()))
        ]
        for scope, found in declared.items()
    }


def scopes(alias: str) -> list[str]:
    """Return the scopes of which schedules are stored, known to this code or not."""
    return sorted(set(Schedule.objects.using(alias).values_list("scope", flat=True)))


def of_row(row: Schedule, now: datetime) -> dict[str, Any]:
    """Return ``described`` of a row."""
    queuetopia = by_scope().get(row.scope)
    declared = listed(queuetopia) if queuetopia and queuetopia.database() == row._state.db else {}
    return described(row.name, declared.get(row.name), row, now)


def described(name: str, schedule: Periodic | None, row: Schedule | None, now: datetime) -> dict[str, Any]:
    """Return what is known of a schedule; of one that no node has served yet there is no row.

    - ``schedule`` (its name), ``times`` (in words), ``queue``, ``action``: None if this code does not declare it
    - ``declared``, ``paused`` (at, by, reason; or None)
    - ``next_at``: the next due time, None if it is paused or not declared; ``late``: for how many seconds that is over
    - ``until``: all due times up to then are dealt with
    - ``last_due_at``, ``last_job``, ``created``, ``missed``, ``held_back``: see ``models.Schedule``
    """
    paused = None
    if row is not None and row.paused_at is not None:
        paused = {"at": row.paused_at, "by": row.paused_by, "reason": row.paused_reason}
    next_at = schedule.after(row.until if row else now) if schedule and not paused else None
    return {
        "schedule": name,
        "times": str(schedule) if schedule else None,
        "queue": schedule.queue if schedule else None,
        "action": schedule.action if schedule else None,
        "declared": schedule is not None,
        "paused": paused,
        "next_at": next_at,
        "late": max(0.0, (now - next_at).total_seconds()) if next_at else 0.0,
        "until": row.until if row else None,
        "last_due_at": row.last_due_at if row else None,
        "last_job": row.last_job if row else None,
        "created": row.created if row else 0,
        "missed": row.missed if row else 0,
        "held_back": row.held_back if row else 0,
    }
