"""The ledger: what performers really did, written by themselves to a file outside the database, and its checker.

A line is ``event queue number fence clock pid``. The events are ``start``, ``alive`` (again and again while an
attempt lasts, so that the ledger shows also of a killed one how long it lived), ``end``, ``failed`` and ``attempt``
(of actions that only fail); those who create jobs write ``created``. The clock is CLOCK_MONOTONIC, the same for all
processes of this host.
"""

import json
import re
import time
from collections import Counter, defaultdict
from itertools import pairwise
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


_LINE = re.compile(r"([a-z]+) (\S+) (\d+) (\d+) (\d+\.\d+) (\d+)$")
SIGNS = {"start", "alive", "failed", "end"}  # of an attempt
KILL_TIME = 1.0  # seconds after a thaw in which what was frozen is killed


class Thaw(NamedTuple):
    """Processes that were frozen, and when."""

    pids: frozenset[int]
    frozen_at: float
    thawed_at: float


class Ledger:
    def __init__(self, path: Path):
        self.path = path
        self.environment = {LEDGER: str(path)}

    def records(self, event: str | None = None, queue: str | None = None) -> list[Record]:
        """Return what was written so far, in order of the clock."""
        lines = _lines(self.path)
        records = sorted(filter(None, map(_record, lines)), key=lambda record: record.clock)
        return [found for found in records if event in (None, found.event) and queue in (None, found.queue)]

    def attempts(self, queue: str | None = None) -> int:
        """Return how many attempts have begun."""
        return len([record for record in self.records(queue=queue) if record.event in ("start", "attempt")])

    def told(self) -> dict[str, list[dict]]:
        """Return the calls of HookQueue's hooks and signals, by their names."""
        told = defaultdict(list)
        for line in _lines(Path(f"{self.path}.told")):
            entry = json.loads(line)
            told[entry["what"]].append(entry)
        return dict(told)

    def go(self) -> None:
        """Let the waiting performers go on."""
        Path(f"{self.path}.go").touch()


def now() -> float:
    """Return the time on the ledger's clock."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def _lines(path):
    """Return the whole lines of a file: the last one may still be written."""
    return path.read_text().split("\n")[:-1] if path.exists() else []


def _record(line):
    """Return what a line says; None if its writer was killed over it, in the middle of a page of the file.

    The next writer's record then stands on the same line.
    """
    if (found := _LINE.search(line)) is None:
        return None
    event, queue, number, fence, clock, pid = found.groups()
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


def set_aside_late(records: list[Record], thaws: list[Thaw]) -> tuple[list[Record], list[Record]]:
    """Return the records without those of frozen processes that woke up when others had taken over, and those.

    A machine that stood still gets some instructions further before its processes are killed. Only that is set
    aside: an attempt that began before the freeze, whose queue has a higher fence since, for the time a kill takes.
    """
    began = {(record.queue, record.fence, record.pid): record.clock for record in records if record.event == "start"}
    taken_over = defaultdict(list)
    for record in records:
        if record.event == "start":
            taken_over[record.queue].append((record.clock, record.fence))

    def is_late(record):
        start = began.get((record.queue, record.fence, record.pid), record.clock)
        return any(
            record.pid in thaw.pids and start <= thaw.frozen_at and 0 <= record.clock - thaw.thawed_at <= KILL_TIME
            for thaw in thaws
        ) and any(clock < record.clock and fence > record.fence for clock, fence in taken_over[record.queue])

    late = [record for record in records if is_late(record)]
    return [record for record in records if record not in set(late)], late


class Takeover(NamedTuple):
    """An attempt that was cut short: its last sign of life, and how long it took until the queue's next began."""

    last: Record
    seconds: float


def takeovers(records: list[Record]) -> list[Takeover]:
    """Return what came of each attempt that neither ended nor failed."""
    queues = defaultdict(lambda: defaultdict(list))
    for record in records:
        queues[record.queue][record.fence].append(record)
    found = []
    for attempts in queues.values():
        fences = sorted(attempts)
        for fence, following in pairwise(fences):
            last = max(attempts[fence], key=lambda record: record.clock)
            if last.event in ("start", "alive"):
                found.append(Takeover(last, min(record.clock for record in attempts[following]) - last.clock))
    return found
