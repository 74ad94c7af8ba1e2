"""What nodes do beside running jobs: the sweep, alerts, chores, statistics. The same on every database.

Each function takes the Backend whose session, or connection, it goes through.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.db import DatabaseError, transaction
from django.db.models import F, Q

from .. import conf
from ..attempts import Claim
from ..models import Chore, Job, Queue, QueueIs, Statistic
from ..text import brief
from . import rows
from .columns import DatabaseNow
from .values import Alert, claim_of, is_due_by

logger = logging.getLogger(__name__)

CENSUS = "census"  # a chore
JOBS_READ = 3  # jobs that a step of the sweep reads for each queue at most


def sweep(backend, scope: str, after: str, limit: int = 100) -> tuple[int, str | None]:
    """Make idle queues due that have unfinished jobs, ``limit`` queues of the scope from name ``after`` on.

    Repairs wake-ups lost by a crash between a commit and its wake. Returns how many queues were repaired and
    the name to go on after, None at the end of the scope.
    """
    firsts, is_all = _first_times(backend, scope, after, limit)
    queues = Queue.objects.using(backend.alias).filter(scope=scope, name__in=firsts)
    repaired = _unblock_from_vanished(backend, queues)
    now = backend.now()
    well = {
        queue.name
        for queue in queues
        if queue.held_by or queue.current_job or queue.problem or is_due_by(queue, max(now, firsts[queue.name]))
    }
    idle = [(scope, name, first) for name, first in firsts.items() if name not in well]
    refused = _wake_what_can_be(backend, idle) if idle else 0
    # The last name in the database's order, which need not be Python's.
    return repaired + len(idle) - refused, None if is_all else [*firsts][-1]


def _first_times(backend, scope, after, limit) -> tuple[dict[str, datetime], bool]:
    """Return {queue: when its first unfinished job is due} of the next queues, and whether these are the last.

    It reads a bounded number of jobs, however many wait in one queue.
    """
    jobs = Job.objects.using(backend.alias).unfinished().filter(scope=scope, queue__gt=after)
    most = limit * JOBS_READ
    found = list(jobs.order_by("queue", "scheduled_at", "id").values_list("queue", "scheduled_at")[:most])
    firsts: dict[str, datetime] = {}
    for name, scheduled_at in found:
        if len(firsts) == limit and name not in firsts:
            return firsts, False
        firsts.setdefault(name, scheduled_at)
    return firsts, len(found) < most


def _wake_what_can_be(backend, wakes) -> int:
    """Wake queues; if the database refuses that, each alone. Return how many it refused."""
    try:
        backend.wake(wakes)
        return 0
    except DatabaseError as exc:
        if not backend.in_session or not backend.is_alive():
            raise
        cause, refused = exc, 0
    for wake in wakes:
        try:
            backend.wake([wake])
        except DatabaseError as exc:
            if not backend.is_alive():
                raise
            cause, refused = exc, refused + 1
    backend.repeats.log(
        logger, logging.ERROR, "sweep could not wake queues, trying again later number=%d cause=%r remedy=%r",
        refused, brief(cause), backend.remedy(cause), cause=type(cause).__name__,
    )  # fmt: skip
    return refused


def _unblock_from_vanished(backend, queues) -> int:
    """Make due the blocked queues whose head was deleted by hand; a halted one would stay blocked for ever."""
    blocked = dict(queues.blocked().values_list("current_job", "pk"))
    heads = Job.objects.using(backend.alias).unfinished().filter(pk__in=blocked)
    vanished = set(blocked) - set(heads.values_list("pk", flat=True)) if blocked else set()
    for current_job in vanished:
        still = queues.blocked().filter(pk=blocked[current_job], current_job=current_job)
        still.update(current_job=None, due_at=DatabaseNow())
    return len(vanished)


def forget_problems(backend, scopes: list[str]) -> None:
    """Make queues with a problem due: this node's code may know what the last one's did not."""
    queues = Queue.objects.using(backend.alias).filter(scope__in=scopes, held_by=None).exclude(problem="")
    with transaction.atomic(using=backend.alias):
        free = [queue.pk for queue in queues.select_for_update(skip_locked=True).order_by("id")]
        queues.filter(pk__in=free).update(problem="", due_at=DatabaseNow())


def stop_requests(backend, claims: list[Claim]) -> set[int]:
    """Return the ids of the running jobs among ``claims`` that an operator asked to stop."""
    asked = Queue.objects.using(backend.alias).filter(
        pk__in=[claim.queue_id for claim in claims], held_by__isnull=False, stop_requested=True
    )
    return {job_id for job_id in asked.values_list("current_job", flat=True) if job_id is not None}


def due_alerts(backend, scopes: list[str], limit: int = 100) -> list[Alert]:
    """Return the queues that have been blocked for longer than one threshold more: each to one caller only.

    Of a queue that goes on by now the row is put right, and nothing is returned.
    """
    due = Queue.objects.using(backend.alias).filter(alert_at__lte=DatabaseNow(), scope__in=scopes)
    if not due.exists():
        return []
    now, alerts = backend.now(), []
    with transaction.atomic(using=backend.alias):
        queues = list(due.order_by("alert_at").select_for_update(skip_locked=True)[:limit])
        current = [queue.current_job for queue in queues if queue.current_job is not None]
        heads = {job["id"]: job for job in rows.head_rows(backend.alias).filter(pk__in=current, done_at=None)}
        for queue in queues:
            head = heads.get(queue.current_job)
            queue.alert_at = None
            if head and head["failed_at"]:
                alerts += _alerts_of(backend, queue, head, now)
        Queue.objects.using(backend.alias).bulk_update(queues, ["alert_at"])
    return alerts


def _alerts_of(backend, queue, head, now):
    """Return the alert that is due, if one is, and set when the next one will be."""
    duration = (now - head["failed_at"]).total_seconds()
    thresholds = conf.alert_after()
    later = [after for after in thresholds if after > duration]
    queue.alert_at = head["failed_at"] + timedelta(seconds=later[0]) if later else None
    claim = claim_of(queue, head)._replace(attempt=head["attempts"])
    return [Alert(claim, duration, max(passed))] if (passed := set(thresholds) - set(later)) else []


def was_done(backend, chore: str, every: float) -> bool:
    """True if a node has done the chore within ``every`` seconds."""
    since = backend.now() - timedelta(seconds=every)
    return Chore.objects.using(backend.alias).filter(name=chore, done_at__gt=since).exists()


def is_turn(backend, chore: str, every: float) -> bool:
    """True for the first caller in the cluster since ``every`` seconds: it is to do the chore now."""
    Chore.objects.using(backend.alias).bulk_create([Chore(name=chore)], ignore_conflicts=True)
    now = backend.now()
    due = Q(done_at=None) | Q(done_at__lte=now - timedelta(seconds=every))
    return bool(Chore.objects.using(backend.alias).filter(due, name=chore).update(done_at=now))


def save_statistics(backend, node_id: UUID, rows: list[dict[str, Any]]) -> None:
    """Write the node's own rows, over those of the same span: writing them again changes nothing."""
    keys = ["scope", "at", "action", "node"]
    has_target = backend.connection.features.supports_update_conflicts_with_target
    Statistic.objects.using(backend.alias).bulk_create(
        [Statistic(node=node_id, **row) for row in rows],
        update_conflicts=True,
        unique_fields=keys if has_target else None,
        update_fields=[field.name for field in Statistic._meta.fields if field.name not in ("id", *keys)],
    )


def take_census(backend, look: Callable[..., Any], every: float) -> bool:
    """Add what ``look`` finds since the last time to the rows of ``Statistic`` that are no node's.

    One caller in the cluster does so, every so many seconds; what it adds and how far it has come is one
    transaction. Returns whether something is left for another call.
    """
    chores = Chore.objects.using(backend.alias)
    now = backend.now()
    due = Q(done_at=None) | Q(done_at__lte=now - timedelta(seconds=every))
    if not chores.filter(due, name=CENSUS).exists():
        if chores.filter(name=CENSUS).exists():
            return False
        chores.bulk_create([Chore(name=CENSUS)], ignore_conflicts=True)
    with transaction.atomic(using=backend.alias):
        passes_over = backend.connection.features.has_select_for_update_skip_locked
        chore = chores.select_for_update(skip_locked=passes_over).filter(due, name=CENSUS).first()
        if chore is None:
            return False
        found, marks, is_all = look(backend.alias, chore.marks, now)
        for (scope, action, at), more in found.items():
            _add_to_statistic(backend, scope, action, at, more)
        done_at = now if is_all else chore.done_at
        chores.filter(pk=chore.pk).update(marks=marks, done_at=done_at)
    return not is_all


def _add_to_statistic(backend, scope, action, at, more):
    # Only the transaction that has the chore's row locked writes these.
    key = {"scope": scope, "action": action, "at": at, "node": Statistic.NOBODY}
    row = Statistic.objects.using(backend.alias).filter(**key).first() or Statistic(**key)
    for name, number in more.counts.items():
        setattr(row, name, getattr(row, name) + number)
    for number, count in more.blocks.items():
        row.blocks[str(number)] = row.blocks.get(str(number), 0) + count
    row.blocked_seconds += more.blocked_seconds
    statistics = Statistic.objects.using(backend.alias)
    if row._state.adding:
        statistics.bulk_create([row])
    else:
        changed = (*more.counts, "blocks", "blocked_seconds")
        statistics.filter(pk=row.pk).update(**{name: getattr(row, name) for name in changed})


def prune_statistics(backend, scopes: list[str], keep: float, limit: int = 1_000) -> int:
    """Delete up to ``limit`` rows that are older than ``keep`` seconds; return how many.

    Their numbers, but not their histograms, are added to one row of each action: see ``Statistic.BEGINNING``.
    """
    statistics = Statistic.objects.using(backend.alias)
    before = backend.now() - timedelta(seconds=keep)
    old = statistics.filter(scope__in=scopes, at__gt=Statistic.BEGINNING, at__lt=before)
    ids = list(old.values_list("pk", flat=True)[:limit])
    if not ids:
        return 0
    with transaction.atomic(using=backend.alias):
        # Nodes prune the same scopes: each row is counted by the one that has it locked.
        found = list(old.filter(pk__in=ids).select_for_update(skip_locked=True))
        _keep_counts(statistics, found)
        old.filter(pk__in=[row.pk for row in found])._raw_delete(backend.alias)
    return len(found)


def _keep_counts(statistics, found):
    sums: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for row in found:
        counts = {name: getattr(row, name) for name in (*Statistic.COUNTS, *Statistic.SECONDS)}
        sums[row.scope, row.action].update(counts)
    key: dict[str, Any] = {"at": Statistic.BEGINNING, "node": Statistic.NOBODY}
    new = [Statistic(scope=scope, action=action, **key) for scope, action in sums]
    statistics.bulk_create(new, ignore_conflicts=True)
    for scope, action in sorted(sums):  # rows are locked in one order everywhere
        more = {name: F(name) + number for name, number in sums[scope, action].items()}
        statistics.filter(scope=scope, action=action, **key).update(**more)


def has_work(backend, scopes: list[str]) -> bool:
    """True while a served queue runs, is due, or backs off: what --until-empty waits for."""
    now = backend.now()
    served = set(scopes) - rows.resting_scopes(backend.alias, scopes, now)
    queues = Queue.objects.using(backend.alias).filter(scope__in=served)
    is_due = Q(paused_at=None, due_at__lte=now)
    backs_off = QueueIs.BACKING_OFF & Q(paused_at=None, problem="")
    return queues.filter(QueueIs.HELD | is_due | backs_off).exists()
