"""What a scheduler counts of the attempts it has recorded, until it is written to the database.

Counted in memory, in spans of five minutes for each scope and action, and written every few seconds: a scheduler
that is killed loses what it counted since. Durations are kept as histograms whose bins have fixed bounds, so that
those of different nodes and spans can be added up.
"""

import math
import time
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from .attempts import ENDINGS, FAILURES, Verdict
from .channel import uptime

SPAN = 300  # seconds of one row
FLUSH = 10.0  # seconds between two writes
MOST_ACTIONS = 500  # rows of one span; what more names there are is counted without a name

SHORTEST = 0.001  # seconds: all that is shorter is in bin 0
BINS_PER_OCTAVE = 4
LAST_BIN = 140  # from 1.1 years on

_COUNTERS = {
    Verdict.DONE: ("done",),
    Verdict.RETRY: ("failed",),
    Verdict.HALT: ("failed", "halted"),
    Verdict.SKIP: ("failed", "skipped"),
    Verdict.CANCEL: ("cancelled",),
}
_HAS_RUN = {Verdict.DONE, *FAILURES}


def bin_of(seconds: float) -> int:
    """Return the number of the bin of a duration; its upper bound is 2 ** (1 / 4) = 1.19 times its lower one."""
    if seconds < SHORTEST:
        return 0
    return min(LAST_BIN, 1 + int(BINS_PER_OCTAVE * math.log2(seconds / SHORTEST)))


def bounds_of(number: int) -> tuple[float, float]:
    """Return from how many seconds to how many a bin goes."""
    if number <= 0:
        return 0.0, SHORTEST
    return tuple(SHORTEST * 2 ** (edge / BINS_PER_OCTAVE) for edge in (number - 1, number))  # type: ignore[return-value]


class _Row:
    def __init__(self):
        self.counts = dict.fromkeys(("started", "done", "failed", "halted", "skipped", "cancelled"), 0)
        self.seconds = {"run_seconds": 0.0, "blocked_seconds": 0.0}
        self.waits: dict[int, int] = defaultdict(int)
        self.runs: dict[int, int] = defaultdict(int)
        self.blocks: dict[int, int] = defaultdict(int)

    def columns(self):
        histograms = {"waits": self.waits, "runs": self.runs, "blocks": self.blocks}
        return {**self.counts, **self.seconds, **{name: dict(bins) for name, bins in histograms.items()}}


class Tally:
    """The counts of one database's scopes."""

    def __init__(self):
        self.ahead = 0.0  # seconds by which the database's clock is ahead of ours
        self.flush_at = uptime() + FLUSH
        self._rows: dict[tuple[int, str, str], _Row] = {}
        self._unsaved: set[tuple[int, str, str]] = set()

    def set_clock(self, now: datetime) -> None:
        """Take the database's clock: jobs' times are told by it."""
        self.ahead = now.timestamp() - time.time()

    def add(self, endings: Iterable) -> None:
        """Count attempts that are recorded. Called for each batch of results: it has to be quick."""
        now = time.time() + self.ahead
        span = int(now // SPAN)
        for claim, outcome, *_ in endings:
            counters = _COUNTERS.get(outcome.verdict)
            if counters is None:
                continue
            row = self._row((span, claim.scope, claim.action))
            for counter in counters:
                row.counts[counter] += 1
            duration = outcome.duration
            if claim.attempt == 1 and not claim.attempted:
                row.counts["started"] += 1
                row.waits[bin_of(now - duration - _seconds(claim.scheduled_at))] += 1
            if outcome.verdict in _HAS_RUN:
                row.runs[bin_of(duration)] += 1
                row.seconds["run_seconds"] += duration
            if claim.failed_at and outcome.verdict in ENDINGS:
                blocked = max(0.0, now - _seconds(claim.failed_at))
                row.blocks[bin_of(blocked)] += 1
                row.seconds["blocked_seconds"] += blocked

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
