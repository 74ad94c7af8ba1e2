"""The breaker of a scope: what an outage makes of failures, and how many queues are tried at once after it.

The state is on the scope's row, and its lock makes nodes decide one after the other:

=============  ============================================================================================
``ramp``       what holds
=============  ============================================================================================
NULL           closed. ``failures`` of the breaker's kind came in a row, the last one at ``failed_at``
0              open since ``opened_at``: such failures are not counted, one queue is tried from ``probe_at`` on
1 and more     catching up: so many have succeeded since; as many queues may be held at once as the largest
               power of two up to this says: 1, 2, 4, 8 …
=============  ============================================================================================

While ``ramp`` is set, the scope rests for the usual claim. Only that of ``limits.take_limited`` takes from it, and
marks its claims as trials, which have places as those of ``max_running`` have: the place of a dead node's trial is free
when the node is taken over. A success in a closed scope writes nothing: whether one came in between is looked up by the
next failure, in the index of ended jobs.
"""

from datetime import datetime, timedelta

from ..attempts import FAILURES, Verdict
from ..breaker import Terms
from ..models import Job, Queue, Scope
from ..text import storable
from .values import Ending

ENOUGH = 1_024  # successes after which the scope is closed, if not for want of work before
OPENED, CLOSED = "opened", "closed"
AT_REST = {"failures": 0, "failed_at": None, "failure": "", "opened_at": None, "probe_at": None, "ramp": None}


def at_once(ramp: int) -> int:
    """Return how many queues of a scope that is open or catching up may be held at once."""
    return 1 << max(0, ramp.bit_length() - 1)


def wait(row: Scope, now: datetime, longest: float) -> float:
    """Return the seconds until the next try, 0 if it may come now; also if it is further ahead than it can be.

    Then the database's clock was set back, or the class's ``max_backoff`` was longer.
    """
    seconds = (row.probe_at - now).total_seconds() if row.ramp == 0 and row.probe_at else 0.0
    return seconds if 0 < seconds <= longest else 0.0


def tripped(alias: str, scopes) -> set[str]:
    """Return which of the scopes are open or catching up."""
    rows = Scope.objects.using(alias).filter(name__in=scopes, ramp__isnull=False)
    return set(rows.values_list("name", flat=True))


class Breakers:
    """What the endings of one transaction make of the breakers of their scopes, whose rows it locks."""

    def __init__(self, alias: str, now: datetime):
        self._alias, self._now = alias, now
        self._rows: dict[str, Scope] = {}

    def judge(self, ending: Ending) -> Ending:
        """Return the ending as it counts: a failure in an outage as one that uses no attempt."""
        claim, outcome = ending.claim, ending.outcome
        if outcome.breaker and outcome.verdict in FAILURES:
            is_counted, change = self._failed(claim, outcome)
            if not is_counted:
                outcome = outcome._replace(verdict=Verdict.OUTAGE, delay=0.0, exhausted=False, to="")
        elif claim.trial and outcome.verdict == Verdict.DONE:
            change = self._succeeded(claim)
        else:
            return ending
        return ending._replace(outcome=outcome._replace(outage=change))

    def save(self) -> None:
        for row in self._rows.values():
            changed = {name: getattr(row, name) for name in AT_REST}
            Scope.objects.using(self._alias).filter(pk=row.pk).update(**changed)

    def _row(self, scope):
        if scope not in self._rows:
            self._rows[scope] = _locked(self._alias, scope)
        return self._rows[scope]

    def _failed(self, claim, outcome) -> tuple[bool, tuple[str, str] | None]:
        """Return whether the failure counts as an attempt, and whether it has opened the scope."""
        row, now, terms = self._row(claim.scope), self._now, Terms(*outcome.breaker)
        if row.ramp is not None and row.ramp > 0 and not claim.trial:
            return False, None  # it was started before the outage, or early in it
        was_closed = row.ramp is None
        row.failures = 1 if was_closed and _has_succeeded(self._alias, row, self._now) else (row.failures or 0) + 1
        row.failed_at = now
        row.failure = storable(f"{outcome.error['type']}: {outcome.error['message']}", 500)
        if row.failures < (terms.after if was_closed else at_once(row.ramp)):
            return was_closed, None
        is_new = row.opened_at is None
        row.opened_at = row.opened_at or now
        if claim.trial or row.ramp != 0:
            lasted = (now - row.opened_at).total_seconds()
            row.probe_at = now + timedelta(seconds=min(max(lasted, terms.backoff_base), terms.max_backoff))
        row.ramp = 0
        return was_closed, (OPENED, now.isoformat()) if is_new else None

    def _succeeded(self, claim) -> tuple[str, str] | None:
        """Return whether the success has closed the scope."""
        row = self._row(claim.scope)
        if row.ramp is None:
            return None
        row.ramp, row.failures = row.ramp + 1, 0
        if row.ramp < ENOUGH and self._is_anything_left(claim):
            return None
        since = row.opened_at
        for name, value in AT_REST.items():
            setattr(row, name, value)
        return CLOSED, since.isoformat() if since else ""

    def _is_anything_left(self, claim):
        """True while another queue of the scope waits to be tried, or is."""
        others = Queue.objects.using(self._alias).filter(scope=claim.scope).exclude(pk=claim.queue_id)
        return others.due(self._now).exists() or others.with_a_place().exists()


def _has_succeeded(alias, row, now) -> bool:
    """True if a job of the scope was done since its last failure, or is in this transaction."""
    if row.failed_at is None:
        return True
    since = min(now, row.failed_at + timedelta(microseconds=1))
    return Job.objects.using(alias).filter(scope=row.name, done_at__gte=since, state=Job.State.DONE).exists()


def note_successes(alias: str, scope: str, now: datetime) -> None:
    """Begin the row of failures anew if jobs were done since the last one, before these are deleted."""
    closed = Scope.objects.using(alias).filter(name=scope, ramp=None, failures__gt=0)
    for row in closed:
        if _has_succeeded(alias, row, now):
            closed.filter(failed_at=row.failed_at).update(failures=0)


def _locked(alias, scope) -> Scope:
    """Return the scope's row, locked; make it if there is none, and only then: MySQL would lock one that is there."""
    row = Scope.objects.using(alias).select_for_update().filter(name=scope)
    if (found := row.first()) is None:
        Scope.objects.using(alias).bulk_create([Scope(name=scope)], ignore_conflicts=True)
        found = row.get()
    return found


def begin_ramp(alias: str, scope: str) -> None:
    """Have no more queues of the scope start at once than in catching up after an outage, in a transaction.

    If its breaker is not closed, that stays so.
    """
    row = _locked(alias, scope)
    Scope.objects.using(alias).filter(pk=row.pk, ramp=None).update(ramp=1, failures=0)


def close(alias: str, scopes) -> int:
    """Close the breakers of these scopes; return how many were open or catching up."""
    return Scope.objects.using(alias).filter(name__in=scopes, ramp__isnull=False).update(**AT_REST)
