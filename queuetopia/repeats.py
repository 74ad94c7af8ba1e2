"""Repeated failures: wait longer each time, log each cause once a minute."""

import threading
from collections import defaultdict
from typing import Any

from .channel import uptime

EVERY = 60.0  # seconds between two records of the same event with the same cause
MOST = 20  # causes of one event that are logged in that time


def pause(failures: int, first: float, longest: float) -> float:
    """Return the seconds to wait after so many failures in a row: ``first``, doubled by each, up to ``longest``."""
    return min(first * 2.0 ** min(failures, 100), longest)


class Repeats:
    """Logs an event if the last minute had no record of it with this cause; else it is counted for the next record."""

    def __init__(self):
        self._logged: dict[str, dict[str, tuple[float, int]]] = defaultdict(dict)  # (uptime, times left out since)
        self._lock = threading.Lock()  # the slots of a worker are threads

    def log(
        self, logger, level: int, event: str, *args,
        cause: str = "", now: float | None = None, extra: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Log ``event % args``; how often it was left out before stands at the end of the record's first line."""
        with self._lock:
            left_out = self._left_out(event, cause, uptime() if now is None else now)
        if left_out is not None:
            first, newline, rest = event.partition("\n")
            repeated = f" repeated={left_out}" if left_out else ""
            logger.log(level, f"{first}{repeated}{newline}{rest}", *args, extra=extra)

    def _left_out(self, event, cause, now) -> int | None:
        """Return how often it was left out since its last record; None to leave it out now too."""
        causes = self._logged[event]
        logged_at, left_out = causes.get(cause, (float("-inf"), 0))
        if now < logged_at + EVERY:
            causes[cause] = logged_at, left_out + 1
            return None
        for known in [known for known, (at, _) in causes.items() if now >= at + EVERY]:
            del causes[known]
        if len(causes) >= MOST:
            return None
        causes[cause] = now, 0
        return left_out
