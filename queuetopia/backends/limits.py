"""What lets jobs of a scope start: ``max_running``, ``rate``, ``spacing``, its breaker. The same on every database.

Only the claim of a limited scope comes here, or of one whose breaker is not closed. It locks the scope's row until the
heads are marked, so that nodes count one after the other; nothing that records, gives back or takes over has to know of
limits.
"""

import math
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import OperationalError, transaction
from django.db.models import F

from ..breaker import Breaker
from ..channel import uptime
from ..conf import DAY
from ..models import Queue, Scope
from . import breakers

# Seconds after which a scope that is tried again is counted again, whoever has let go of its queues.
RECOUNT = 1.0
# A share of the span of ``rate``: a start may come so much before its turn, to make up for one that came late …
EARLY = 0.02
# … and this much after its claim, without more starts than may be in any span.
LATE = 0.02


class Limits(NamedTuple):
    """The limits of one scope.

    max_running: so many of its queues are held at once, by all nodes together.
    rate: (number, seconds): so many of its jobs start in any span of so many seconds.
    spacing: seconds from one start in a queue to the next in that queue.
    breaker: what makes it rest in an outage; none of these while that is closed.
    """

    max_running: int | None = None
    rate: tuple[int, float] | None = None
    spacing: float = 0.0
    breaker: Breaker | None = None

    @classmethod
    def of(cls, queuetopia) -> "Limits":
        return cls(*map(queuetopia.option, cls._fields))

    @property
    def hold_always(self) -> bool:
        """True if they bound what starts, whatever the breaker says."""
        return bool(self.max_running or self.counts_starts)

    @property
    def longest_wait(self) -> float:
        """Return for how many seconds at most nothing is tried in an outage."""
        return self.breaker.max_backoff if self.breaker else DAY

    @property
    def counts_starts(self) -> bool:
        """True if a queue may not go straight on with its next job, because a limit is about starts."""
        return bool(self.rate or self.spacing)


class Rate:
    """The generic cell rate algorithm: one time says how many starts are due.

    That time is the next start's turn if they came evenly, ``interval`` seconds apart. A start may come ``early``
    seconds before its turn. In any span of T seconds there are then at most (T + early) / interval + 1, rounded down;
    the interval is a little longer than seconds / number, so that this is the number. The algorithm is that of ITU-T
    I.371, as rate limiters have it.
    """

    def __init__(self, number: int, seconds: float):
        self.interval = seconds * (1 + EARLY + LATE) / number
        self.early = seconds * EARLY

    def due(self, turn: datetime | None, now: datetime) -> int:
        """Return how many starts may come now."""
        return max(0, math.floor((self.early - self._ahead(turn, now)) / self.interval) + 1)

    def after(self, turn: datetime | None, now: datetime, starts: int) -> datetime:
        """Return the next turn after so many starts."""
        return now + timedelta(seconds=self._ahead(turn, now) + starts * self.interval)

    def wait(self, turn: datetime | None, now: datetime) -> float:
        """Return the seconds until a start is due; for many a second, until several are."""
        return max(self._ahead(turn, now) - self.early, self.early / 2)

    def _ahead(self, turn, now) -> float:
        """Return the seconds until the turn, or 0 if it is over.

        Also if it is further ahead than starts can bring it: the database's clock was set back, or the rate was slower.
        """
        ahead = (turn - now).total_seconds() if turn else 0.0
        return ahead if 0 < ahead <= 2 * (self.early + self.interval) else 0.0


class Closed:
    """The scopes of which nothing more may start now, as the last claims found, and until which uptime."""

    def __init__(self):
        self._until: dict[str, float] = {}

    def close(self, scope: str, seconds: float = math.inf) -> None:
        """Note that nothing of the scope may start for so long; without end: until a queue of it is let go."""
        self._until[scope] = uptime() + seconds

    def forget(self, scopes: Iterable[str]) -> None:
        for scope in scopes:
            self._until.pop(scope, None)

    def without(self, scopes: Iterable[str]) -> set[str]:
        """Return those of the scopes that are not closed."""
        return set(scopes) - self._until.keys()

    def or_opening(self, scopes: Iterable[str], seconds: float | None) -> float | None:
        """Return the seconds, or those until the first of the scopes opens by time if that is sooner."""
        opens = min((until for scope, until in self._until.items() if scope in scopes), default=float("inf"))
        if opens == float("inf"):
            return seconds
        return min(max(0.0, opens - uptime()), float("inf") if seconds is None else seconds)


class Locked(Exception):
    """Another transaction has locked what a claim needs: claim again later."""


def take_limited(backend, scope: str, limits: Limits, room: int, holder, now, only, passed) -> tuple[list, list, list]:
    """Take what the limits let; return as ``Backend.take`` does. Raise Locked while another node counts.

    A scope of which nothing may start now is noted as closed in the backend, for as long as that is known to last.
    """
    places = Queue.objects.using(backend.alias).filter(scope=scope, has_place=True)
    row = Scope.objects.using(backend.alias).filter(name=scope)
    if _is_closed(backend, scope, limits, places, row, now):  # which costs no lock
        return [], [], []
    held = set(backend.held)
    try:
        if not row.exists():
            Scope.objects.using(backend.alias).bulk_create([Scope(name=scope)], ignore_conflicts=True)
        with transaction.atomic(using=backend.alias):
            found = row.select_for_update(skip_locked=True).first()
            if found is None:
                raise Locked  # another node counts just now
            return _take(backend, found, limits, places, room, holder, now, only, passed)
    except OperationalError as exc:
        if not backend.is_busy(exc):
            raise
        backend.unlock(backend.held - held)  # the transaction is undone, and with it the claims on these
        raise Locked from exc


def _is_closed(backend, scope, limits, places, row, now) -> bool:
    if limits.max_running and places.with_a_place().count() >= limits.max_running:
        backend.closed.close(scope)
        return True
    if limits.rate and (turn := row.values_list("next_start_at", flat=True).first()):
        rate, now = Rate(*limits.rate), now or backend.now()
        if not rate.due(turn, now):
            backend.closed.close(scope, rate.wait(turn, now))
            return True
    if limits.breaker and (found := row.filter(ramp__isnull=False).first()):
        return _close_if_none_may_be_tried(backend, found, places.with_a_place().count(), limits, now or backend.now())
    return False


def _close_if_none_may_be_tried(backend, row, taken, limits, now) -> bool:
    """Return whether the breaker, open or catching up, lets nothing start now; note until when."""
    if taken >= breakers.at_once(row.ramp):
        backend.closed.close(row.name, RECOUNT)
        return True
    if seconds := breakers.wait(row, now, limits.longest_wait):
        backend.closed.close(row.name, seconds)
        return True
    return False


def _take(backend, row, limits, places, room, holder, now, only, passed):
    """Take with the scope's row locked."""
    scope, moment, free, due = row.name, now or backend.now(), room + 1, room + 1
    is_tripped = row.ramp is not None
    if limits.max_running or is_tripped:
        let_go = places.filter(held_by=None)
        unlocked = let_go.select_for_update(skip_locked=True).values_list("pk", flat=True)
        let_go.filter(pk__in=[*unlocked]).update(has_place=False)
        taken_places = places.with_a_place().count()
        if is_tripped and _close_if_none_may_be_tried(backend, row, taken_places, limits, moment):
            return [], [], []
        bounds = [limits.max_running, breakers.at_once(row.ramp) if is_tripped else None]
        free = min(filter(None, bounds)) - taken_places
    if limits.rate:
        rate = Rate(*limits.rate)
        due = rate.due(row.next_start_at, moment)
    if limits.spacing:
        passed = [*passed, *_put_off(backend, scope, limits.spacing, moment)]
    taken: tuple[list, list, list] = ([], [], [])
    if (most := min(room, free, due)) > 0:
        taken = (
            _take_trials(backend, row, most, holder, now, only, passed)
            if is_tripped
            else (backend.take([scope], most, holder, now, only, passed))
        )
    started = [claim.queue_id for claim in taken[1]]
    _mark(backend, started, limits, moment, with_places=bool(limits.max_running or is_tripped))
    if len(started) >= free:
        backend.closed.close(scope, RECOUNT if is_tripped else math.inf)
    if limits.rate and started:
        turn = rate.after(row.next_start_at, moment, len(started))
        Scope.objects.using(backend.alias).filter(pk=row.pk).update(next_start_at=turn)
        if due <= len(started) < free:
            backend.closed.close(scope, rate.wait(turn, moment))
    return taken


def _take_trials(backend, row, most, holder, now, only, passed):
    """Take from a scope of which the usual claim starts nothing.

    For this transaction the breaker is closed: it is the only one that sees that, and no other can change the row.
    """
    scope = Scope.objects.using(backend.alias).filter(pk=row.pk)
    scope.update(ramp=None)
    found, claims, rest = backend.take([row.name], most, holder, now, only, passed)
    scope.update(ramp=row.ramp)
    return found, [claim._replace(trial=True) for claim in claims], rest


def _mark(backend, started, limits, now, *, with_places):
    marks: dict[str, Any] = {}
    if with_places:
        marks["has_place"] = True
    if limits.spacing:
        marks["spaced_until"] = now + timedelta(seconds=limits.spacing)
    if started and marks:
        Queue.objects.using(backend.alias).filter(pk__in=started).update(**marks)


def _put_off(backend, scope, spacing, now) -> list[int]:
    """Make the queues that started something too recently due when they may start the next; return their ids.

    A time further ahead than the spacing is of a clock that was set back since, or of a longer spacing.
    """
    latest = now + timedelta(seconds=spacing)
    early = Queue.objects.using(backend.alias).due(now).filter(scope=scope)
    early = early.filter(spaced_until__gt=now, spaced_until__lte=latest)
    ids = list(early.values_list("pk", flat=True))
    if ids:
        unlocked = early.filter(pk__in=ids).select_for_update(skip_locked=True).values_list("pk", flat=True)
        early.filter(pk__in=[*unlocked]).update(due_at=F("spaced_until"))
    return ids
