"""Jobs by the clock: created at the due times of the schedules that classes declare, by whichever node is first.

A schedule's row says up to when all its due times are dealt with. A node moves that and inserts the job in one
transaction, so that each due time is dealt with once, whatever the number of nodes and wherever one is killed.
"""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.db.models import F

from ..backends import backend_for
from ..exceptions import InvalidJob, Refused
from ..models import Job, Schedule
from ..registry import by_scope
from ..schedules import Periodic, Problem, listed
from ..text import storable
from ..times import local
from .creating import build, create, separate
from .deciding import _leave_event, again_after_deadlock

logger = logging.getLogger("queuetopia.jobs")

RESTED = timedelta(seconds=60)  # a row is brought up to date so often between its due times
HINT = "Write a list of Every(…) and Cron(…)."


# What is declared


def declared(queuetopia) -> dict[str, Periodic]:
    """Return {name: schedule} of the class, without those that a system check refuses."""
    wrong = {name for name, _ in schedule_problems(queuetopia)} if queuetopia.schedules else ()
    return {name: schedule for name, schedule in listed(queuetopia).items() if name not in wrong}


def schedule_problems(queuetopia) -> list[tuple[Any, Problem]]:
    """Return what is wrong with the schedules of the class, each with the name of the schedule."""
    all_of_it = queuetopia.schedules
    if not isinstance(all_of_it, list | tuple):
        return [(None, Problem("schedules", f"{all_of_it!r} is no list", HINT))]
    found: list[tuple[Any, Problem]] = []
    names: list[Any] = []
    for each in all_of_it:
        if not isinstance(each, Periodic):
            found.append((None, Problem("schedules", f"{each!r} is neither an Every nor a Cron", HINT)))
            continue
        found += [(each.name, problem) for problem in each.problems()]
        found += [(each.name, problem) for problem in _problems_of_the_job(queuetopia, each)]
        if each.name in names:
            cause = f"there are two schedules {each.name!r}, which would share one row"
            found.append((each.name, Problem("name", cause, "Give each a name of its own.")))
        names.append(each.name)
    return found


def _problems_of_the_job(queuetopia, schedule):
    try:
        _job(queuetopia, schedule, None)
    except InvalidJob as exc:
        for argument, texts in exc.message_dict.items():
            for text in texts:
                cause = text.rstrip(".")
                yield Problem(argument, cause, "Give it what create_job would take: its queue, an action, its params.")
    except ImproperlyConfigured:
        return  # the class has no performer: said elsewhere


def _job(queuetopia, schedule, at) -> Job:
    which = {"queue": schedule.queue, "action": schedule.action, "params": schedule.params}
    return build(queuetopia, **which, scheduled_at=at)


# What a node does


def create_due(backend, found: dict[Any, dict[str, Periodic]], now: datetime | None = None) -> tuple[list[Job], float]:
    """Create the jobs of these schedules, by class and name, that are due; return them, and the seconds until the next.

    Each schedule is a transaction of its own. One whose row another node or an operator has locked is left to them. An
    error of one is raised after the others were served.
    """
    moment = now or backend.now()
    rows = _rows(backend, found, moment)
    jobs: list[Job] = []
    nexts: list[datetime] = []
    failed: Exception | None = None
    for queuetopia, schedules in found.items():
        for name, schedule in schedules.items():
            row = rows[queuetopia.scope, name]
            try:
                jobs += create_due_of(backend, queuetopia, schedule, row, moment)
            except Exception as exc:
                failed = failed or exc
            nexts.append(schedule.after(max(row.until, moment)))
    if failed is not None:
        raise failed
    return jobs, (min(nexts) - (now or backend.now())).total_seconds()


def _rows(backend, found, now) -> dict[tuple[str, str], Schedule]:
    """Return the rows of all schedules, by scope and name. What is new begins now: it has missed nothing."""
    wanted = {(queuetopia.scope, name) for queuetopia, schedules in found.items() for name in schedules}
    rows = Schedule.objects.using(backend.alias).filter(scope__in={scope for scope, _ in wanted})
    known = {(row.scope, row.name): row for row in rows}
    if new := wanted - known.keys():
        added = [Schedule(scope=scope, name=name, until=now) for scope, name in sorted(new)]
        Schedule.objects.using(backend.alias).bulk_create(added, ignore_conflicts=True)
        known = {(row.scope, row.name): row for row in rows.all()}
    return known


def create_due_of(backend, queuetopia, schedule, row, now) -> list[Job]:
    if row.paused_at is not None or row.until >= now:
        return []
    due = schedule.between(row.until, now)
    if not due and now - row.until < RESTED:
        return []
    with transaction.atomic(using=backend.alias):
        if not _takes(backend, row, now):
            return []
        jobs = _create(backend, queuetopia, schedule, row, due, now) if due else []
    if jobs:
        firsts = {job.row_name: job.scheduled_at for job in reversed(jobs)}
        backend.wake([(queuetopia.scope, name, at) for name, at in firsts.items()])
    return jobs


def _takes(backend, row, now) -> bool:
    """Move ``until``; False if another node has done so, or if another transaction has the row locked."""
    this = Schedule.objects.using(backend.alias).filter(pk=row.pk)
    can_pass = connections[backend.alias].features.has_select_for_update_skip_locked
    if can_pass and not this.select_for_update(skip_locked=True).values_list("pk"):
        return False
    return bool(this.filter(until=row.until, paused_at=None).update(until=now))


def _create(backend, queuetopia, schedule, row, due, now) -> list[Job]:
    """Insert the jobs of these due times, with the row locked, and count what gets none."""
    this = Schedule.objects.using(backend.alias).filter(pk=row.pk)
    wanted, held_back = schedule.wanted(due, now), 0
    if wanted and not schedule.pile_up and _last_job_goes_on(backend.alias, this):
        wanted, held_back = [], len(wanted)
    missed = len(due) - len(wanted) - held_back
    counts: dict[str, Any] = {"missed": F("missed") + missed, "held_back": F("held_back") + held_back}
    jobs = [_job(queuetopia, schedule, at) for at in wanted]
    if jobs:
        if queuetopia.option("commit_ordered"):
            backend.lock_order(queuetopia.scope, {schedule.queue})
        separate(queuetopia, jobs)
        backend.insert(jobs)
        counts |= {"created": F("created") + len(jobs), "last_due_at": wanted[-1], "last_job": jobs[-1].pk}
    this.update(**counts)
    return jobs


def _last_job_goes_on(alias, schedule) -> int | None:
    """Return the schedule's last job if it has not ended."""
    last = schedule.values_list("last_job", flat=True).get()
    going_on = Job.objects.using(alias).unfinished().filter(pk=last)
    return last if last is not None and going_on.exists() else None


# What operators can do


def pause_schedule(queuetopia, name, *, by="", reason="") -> None:
    """Create no jobs of the schedule until it is resumed. What is created already runs.

    Pausing again replaces who and why. Raises Refused if there is no such schedule.
    """

    def pause(alias, row, now):
        row.paused_at, row.paused_by, row.paused_reason = now, storable(by, 255), storable(reason, 500)

    _decide(queuetopia, name, "pause_schedule", pause, by, reason)


def resume_schedule(queuetopia, name, *, by="", reason="") -> None:
    """Create jobs of a paused schedule again, from its next due time on; those of the pause get none.

    Raises Refused if it is not paused, or if there is no such schedule.
    """

    def resume(alias, row, now):
        if row.paused_at is None:
            raise Refused(f"Schedule {name} of {queuetopia.scope} is not paused.")
        row.paused_at, row.paused_by, row.paused_reason, row.until = None, "", "", now

    _decide(queuetopia, name, "resume_schedule", resume, by, reason)


def run_schedule(queuetopia, name, *, by="", reason="") -> Job:
    """Create a job of the schedule now, besides those of its due times; return it. A paused one stays so.

    Raises Refused if its last job has not ended, unless it has ``pile_up``, and if this code declares no such schedule.
    """
    schedule = declared(queuetopia).get(name)
    if schedule is None:
        raise Refused(f"This code declares no schedule {name!r} of {queuetopia.scope}.{_known(queuetopia)}")
    created: list[Job] = []

    def run(alias, row, now):
        this = Schedule.objects.using(alias).filter(pk=row.pk)
        if not schedule.pile_up and (last := _last_job_goes_on(alias, this)):
            raise Refused(f"Schedule {name} of {queuetopia.scope} is not run: its last job, {last}, has not ended.")
        created[:] = create(queuetopia, [_job(queuetopia, schedule, None)])
        row.last_job = created[0].pk

    _decide(queuetopia, name, "run_schedule", run, by, reason)
    return created[0]


def _decide(queuetopia, name, verb, act: Callable[[Any, Schedule, datetime], None], by, reason) -> None:
    alias = queuetopia.database()
    again_after_deadlock(alias, partial(_decide_once, queuetopia, alias, name, verb, act, by, reason))


def _decide_once(queuetopia, alias, name, verb, act, by, reason):
    schedule = declared(queuetopia).get(name)
    rows = Schedule.objects.using(alias).filter(scope=queuetopia.scope, name=name)
    with transaction.atomic(using=alias):
        now = backend_for(alias).now()
        if schedule is not None:
            new = Schedule(scope=queuetopia.scope, name=name, until=now)
            Schedule.objects.using(alias).bulk_create([new], ignore_conflicts=True)
        row = rows.select_for_update().first()
        if row is None:
            raise Refused(f"There is no schedule {name!r} of {queuetopia.scope}.{_known(queuetopia)}")
        before = _state(row)
        act(alias, row, now)
        row.save(using=alias, update_fields=["until", "last_job", "paused_at", "paused_by", "paused_reason"])
        queue = schedule.queue if schedule else ""
        after = {"schedule": name, **_state(row)}
        _leave_event(alias, verb, by, reason, queuetopia.scope, queue, None, {"schedule": name, **before}, after)


def _state(row):
    return {"paused": row.paused_at is not None, "until": local(row.until), "last_job": row.last_job}


def _known(queuetopia):
    names = ", ".join(declared(queuetopia))
    return f" It has: {names}." if names else ""


def prune_schedules(alias, scope, name=None) -> list[str]:
    """Delete what is stored of schedules that this code does not declare any more; return their names.

    name: of one of them; None means all of the scope, which this code need not know either. A node whose code still
    declares one begins it anew.

    Raises Refused for a name that is still declared.
    """
    queuetopia = by_scope().get(scope)
    names = [each.name for each in getattr(queuetopia, "schedules", ()) if isinstance(each, Periodic)]
    if name is not None and name in names:
        raise Refused(f"Schedule {name} of {scope} is declared by this code: remove it there first, or pause it.")
    rows = Schedule.objects.using(alias).filter(scope=scope).exclude(name__in=names)
    gone = sorted(rows.values_list("name", flat=True)) if name is None else [name]
    rows.filter(name__in=gone).delete()
    return gone


def log_wrong(queuetopia) -> None:
    """Log which schedules of the class are left out, for a node whose system checks were skipped."""
    for name, problem in schedule_problems(queuetopia):
        logger.error(
            "schedule cannot be used scope=%s schedule=%r argument=%s cause=%r remedy=%r",
            queuetopia.scope, name, problem.argument, problem.cause, problem.remedy,
        )  # fmt: skip
