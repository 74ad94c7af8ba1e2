"""Queues that a session leaves out for a while.

Their row cannot be written, because of a constraint or trigger; or their head is of other code, which another node may
have.
"""

import logging

from django.db import DatabaseError

from ..channel import uptime
from ..repeats import Repeats, pause
from ..text import brief
from . import rows

logger = logging.getLogger(__name__)

LONGEST = 30.0  # seconds between two tries to claim such a queue
# A queue whose head this code does not have is left out from so many seconds before it is due again …
BEFORE = 0.1
# … until so many after, or half of the time that it waited: two nodes that look at the same moment are not alike, and
# the quicker one would have it each time.
GIVES_WAY = 1.0
FORGOTTEN = 120.0  # seconds after its time without another refusal: then it was claimed the usual way


class Refusals:
    """The queues that one session leaves out, how often each was refused, and until when (uptime)."""

    def __init__(self, repeats: Repeats):
        self._repeats = repeats
        self._refused: dict[int, tuple[int, float]] = {}
        self._given_way: dict[int, tuple[float, float]] = {}  # from when until when (uptime)

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

    def give_way(self, queue_id: int, seconds: float) -> None:
        """Leave a queue to other nodes at first when it is due again, in so many seconds."""
        due_at = uptime() + seconds
        self._given_way[queue_id] = due_at - BEFORE, due_at + min(seconds / 2, GIVES_WAY)

    def forget(self, queue_id: int) -> None:
        self._refused.pop(queue_id, None)

    def now(self) -> list[int]:
        """Return the ids of the queues that are left out now."""
        now = uptime()
        kept = {key: (times, until) for key, (times, until) in self._refused.items() if now < until + FORGOTTEN}
        self._refused = kept
        self._given_way = {key: (since, until) for key, (since, until) in self._given_way.items() if now < until}
        given_way = [queue_id for queue_id, (since, _) in self._given_way.items() if since <= now]
        return given_way + [queue_id for queue_id, (_, until) in kept.items() if now < until]

    def or_next(self, seconds: float | None) -> float | None:
        """Return ``seconds``, or those until a queue that is left out is tried again, if that is sooner."""
        now = uptime()
        times = [until - now for _, until in self._refused.values() if until > now]
        times += [until - now for since, until in self._given_way.values() if since <= now < until]
        return min(times if seconds is None else [seconds, *times], default=None)
