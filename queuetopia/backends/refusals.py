"""Queues whose row the database refuses to write, because of a constraint or trigger: left out for a while."""

import logging

from django.db import DatabaseError

from ..channel import uptime
from ..repeats import Repeats, pause
from ..text import brief
from . import rows

logger = logging.getLogger(__name__)

LONGEST = 30.0  # seconds between two tries to claim such a queue
FORGOTTEN = 120.0  # seconds after its time without another refusal: then it was claimed the usual way


class Refusals:
    """The queues that one session leaves out, how often each was refused, and until when (uptime)."""

    def __init__(self, repeats: Repeats):
        self._repeats = repeats
        self._refused: dict[int, tuple[int, float]] = {}

    def add(self, alias: str, queue_id: int, exc: Exception) -> None:
        """Leave a queue out, longer each time; from the third refusal on its row says so."""
        times, _ = self._refused.get(queue_id, (0, 0.0))
        seconds = pause(times, 0.1, LONGEST)
        self._refused[queue_id] = times + 1, uptime() + seconds
        self._repeats.log(
            logger, logging.ERROR, "the database refuses to start a queue, left out queue_id=%d cause=%r next_in=%.1fs",
            queue_id, brief(exc), seconds, cause=str(queue_id),
        )  # fmt: skip
        if times >= 2:  # what passes at once is no problem
            try:
                rows.note_problem(alias, queue_id, f"The database refuses to start the next job: {exc}")
            except DatabaseError:
                logger.info("problem not noted queue_id=%d", queue_id)

    def forget(self, queue_id: int) -> None:
        self._refused.pop(queue_id, None)

    def now(self) -> list[int]:
        """Return the ids of the queues that are left out now."""
        now = uptime()
        kept = {key: (times, until) for key, (times, until) in self._refused.items() if now < until + FORGOTTEN}
        self._refused = kept
        return [queue_id for queue_id, (_, until) in kept.items() if now < until]

    def or_next(self, seconds: float | None) -> float | None:
        """Return ``seconds``, or those until a queue that is left out is tried again, if that is sooner."""
        now = uptime()
        times = [until - now for _, until in self._refused.values() if until > now]
        return min(times if seconds is None else [seconds, *times], default=None)
