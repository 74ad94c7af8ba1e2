"""The ledger: what performers really did, written by themselves to a file outside the database, and its checker.

A line is ``event queue number fence clock pid``. The events are ``start``, ``alive`` (again and again while an
attempt lasts, so that the ledger shows also of a killed one how long it lived), ``end`` and ``attempt`` (of actions
that only fail); the clock is CLOCK_MONOTONIC, the same for all processes of this host.
"""

import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from tests.testapp.queues import LEDGER


class Record(NamedTuple):
    event: str
    queue: str
    number: int
    fence: int
    clock: float
    pid: int


class Ledger:
    def __init__(self, path: Path):
        self.path = path
        self.environment = {LEDGER: str(path)}

    def records(self, event: str | None = None, queue: str | None = None) -> list[Record]:
        """Return what was written so far, in order of the clock."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        records = sorted(map(_record, lines), key=lambda record: record.clock)
        return [found for found in records if event in (None, found.event) and queue in (None, found.queue)]

    def attempts(self, queue: str | None = None) -> int:
        """Return how many attempts have begun."""
        return len([record for record in self.records(queue=queue) if record.event in ("start", "attempt")])

    def told(self) -> dict[str, list[dict]]:
        """Return what hooks and signals of HookQueue were told, by their names."""
        told = defaultdict(list)
        path = Path(f"{self.path}.told")
        for line in path.read_text().splitlines() if path.exists() else []:
            entry = json.loads(line)
            told[entry["what"]].append(entry)
        return dict(told)

    def go(self) -> None:
        """Let the performers go on that wait to be told."""
        Path(f"{self.path}.go").touch()


def now() -> float:
    """Return the time on the ledger's clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _record(line):
    event, queue, number, fence, clock, pid = line.split()
    return Record(event, queue, int(number), int(fence), float(clock), int(pid))


class Findings(NamedTuple):
    """What the checker found: sentences of what must never be, and how many jobs ended more than once."""

    wrong: list[str]
    duplicates: int


def check(records: list[Record], created: dict[str, list[int]]) -> Findings:
    """Check a finished ledger; ``created`` lists the numbers of each queue's jobs in the order they have to run."""
    queues = defaultdict(list)
    for record in sorted(records, key=lambda record: record.clock):
        queues[record.queue].append(record)
    wrong = [f"{queue}: nobody created it" for queue in queues.keys() - created.keys()]
    duplicates = 0
    for queue, numbers in created.items():
        ends = Counter(record.number for record in queues[queue] if record.event == "end")
        duplicates += sum(count > 1 for count in ends.values())
        wrong += [f"{queue}: job {number} is lost" for number in numbers if not ends[number]]
        wrong += [f"{queue}: {sentence}" for sentence in _disorder(queues[queue], numbers)]
        wrong += [f"{queue}: {sentence}" for sentence in _overlaps(queues[queue])]
    return Findings(wrong, duplicates)


def _disorder(records, numbers):
    """Yield each start of a job before the end of one ahead of it, or after the start of one behind it."""
    place = {number: index for index, number in enumerate(numbers)}
    ended, furthest = set(), -1
    for record in records:
        here = place[record.number]
        if record.event == "start":
            if here < furthest:
                yield f"job {record.number} started after job {numbers[furthest]}"
            if here > 0 and numbers[here - 1] not in ended:
                yield f"job {record.number} started before the end of job {numbers[here - 1]}"
            furthest = max(furthest, here)
        elif record.event == "end":
            ended.add(record.number)


def _overlaps(records):
    """Yield each attempt that began before the last sign of life of another, and each fence that did not rise."""
    attempts = defaultdict(list)
    for record in records:
        attempts[record.fence, record.pid].append(record)
    last, fence = None, 0
    for signs in sorted(attempts.values(), key=lambda signs: signs[0].clock):
        first = signs[0]
        if last is not None and first.clock < last.clock:
            yield f"attempt {first.fence} of job {first.number} began in attempt {last.fence} of job {last.number}"
        if first.fence <= fence:
            yield f"attempt {first.fence} of job {first.number} began after attempt {fence}"
        last = max(signs[-1], last or signs[-1], key=lambda record: record.clock)
        fence = max(fence, first.fence)
