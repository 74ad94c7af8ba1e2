"""What a scheduler counts of the attempts it has recorded, until it is written to the database.

Counted in memory, in spans of five minutes for each scope and action, and written every few seconds: a scheduler
that is killed loses what it counted since. Durations are kept as histograms whose bins have fixed bounds, so that
those of different nodes and spans can be added up.
"""

import time
from bisect import bisect_right
from collections.abc import Iterable
from datetime import UTC, datetime

from ..attempts import FREEING, MEANING, Verdict
from ..monitoring.histogram import BOUNDS, LAST_BIN, SPAN

MOST_ACTIONS = 500  # rows of one span; what more names there are is counted without a name

_DONE = str(Verdict.DONE)
_COUNTERS = {verdict: meaning.counters for verdict, meaning in MEANING.items() if meaning.counters}
_HAS_RUN = {verdict for verdict, meaning in MEANING.items() if meaning.is_own_end}


class _Row:
    def __init__(self):
        self.started = self.done = self.failed = self.halted = self.skipped = self.cancelled = 0
        self.run_seconds = self.blocked_seconds = 0.0
        self.waits, self.runs, self.blocks = ([0] * (LAST_BIN + 1) for _ in range(3))

    def columns(self):
        return {
            name: {number: count for number, count in enumerate(value) if count} if isinstance(value, list) else value
            for name, value in vars(self).items()
        }


class Tally:
    """The counts of one database's scopes."""

    def __init__(self):
        self.ahead = 0.0  # seconds by which the database's clock is ahead of ours
        self._rows: dict[tuple[int, str, str], _Row] = {}
        self._unsaved: set[tuple[int, str, str]] = set()

    def set_clock(self, now: datetime) -> None:
        """Take the database's clock, which jobs' times come from."""
        self.ahead = now.timestamp() - time.time()

    def add(self, endings: Iterable) -> None:
        """Count attempts that are recorded. Called for each batch of results, so it has to be quick."""
        now = time.time() + self.ahead
        span = int(now // SPAN)
        rows: dict[tuple[str, str], _Row] = {}
        scheduled_at, due = "", 0.0
        for claim, outcome, *_ in endings:
            verdict, duration = outcome.verdict, outcome.duration
            if verdict not in _COUNTERS:
                continue
            if (row := rows.get(key := (claim.scope, claim.action))) is None:
                row = rows[key] = self._row((span, *key))
            if claim.attempt == 1 and not claim.attempted:
                if claim.scheduled_at != scheduled_at:  # those of jobs that were created together are the same
                    scheduled_at = claim.scheduled_at
                    due = _seconds(scheduled_at)
                row.started += 1
                row.waits[bisect_right(BOUNDS, now - duration - due)] += 1
            if verdict == _DONE:
                row.done += 1
            else:
                for counter in _COUNTERS[verdict]:
                    setattr(row, counter, getattr(row, counter) + 1)
            if verdict in _HAS_RUN:
                row.run_seconds += duration
                row.runs[bisect_right(BOUNDS, duration)] += 1
            if claim.failed_at and verdict in FREEING:
                blocked = max(0.0, now - _seconds(claim.failed_at))
                row.blocks[bisect_right(BOUNDS, blocked)] += 1
                row.blocked_seconds += blocked

    def _row(self, key):
        row = self._rows.get(key)
        if row is None:
            if len(self._rows) >= MOST_ACTIONS:
                key = (*key[:2], "")  # a performer may take any text for an action
            row = self._rows.setdefault(key, _Row())
        self._unsaved.add(key)
        return row

    def unsaved(self) -> list[dict]:
        """Return the columns of each row that has changed since the last ``saved()``, whole: to be written over."""
        return [
            {
                "scope": scope,
                "action": action,
                "at": datetime.fromtimestamp(span * SPAN, UTC),
                **self._rows[span, scope, action].columns(),
            }
            for span, scope, action in sorted(self._unsaved)
        ]

    def saved(self) -> None:
        """Note that what ``unsaved()`` returned is written; forget the spans that are over."""
        self._unsaved.clear()
        span = int((time.time() + self.ahead) // SPAN)
        self._rows = {key: row for key, row in self._rows.items() if key[0] >= span}


def _seconds(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()
