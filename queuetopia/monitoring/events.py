"""What happens to jobs, as a stream for Python: what ``manage.py queuetopia tail`` prints. Reads only."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple

from asgiref.sync import sync_to_async
from django.utils import timezone

from ..channel import uptime
from .follow import PAUSE, UNNOTIFIED, Follower, wait_for_news

EVERY = 1.0  # seconds between two polls, where the database does not notify


class Event(NamedTuple):
    """Something that has happened to a job or a queue.

    event: "started", "progress", "failed", "halted", "done", "skipped" or "cancelled"; or an operator's verb: "retry",
    "skip", "cancel", "mark_done", "edit", "move_to_end", "move", "reschedule", "run_now", "pause", "resume".
    queue: None for a pause of the whole scope. job, action, attempt, error, node: None where there is none.
    by, reason: of an operator's verb.
    progress: what ``Job.report_progress`` has reported: ``fraction``, ``text``, ``at``; the last in a second.
    """

    at: datetime
    event: str
    scope: str
    queue: str | None
    job: int | None
    action: str | None
    attempt: int | None
    error: str | None
    node: str | None
    by: str | None
    reason: str | None
    progress: dict | None = None


class Events:
    """The events of some scopes of one database, oldest first, for ``for`` and for ``async for``.

    Each loop follows on its own, in any process, and gets the events of all processes. It goes on until it is left, or
    until nothing has happened for ``timeout``. Nothing is stored for it: it polls the tables each second, on PostgreSQL
    also when a node notifies it, so that a loop costs nothing to jobs.

    since: an aware datetime; the loop begins there, as far back as the tables reach: ended jobs and operators' verbs
        until their retention, failed attempts in the last 20 of a job. To resume, hand in the ``at`` of the last event
        that was handled; events of that very moment come again.
    timeout: seconds to wait for the next event, None: for ever.

    A job is reported as started only if it runs at a heartbeat of its node, so short jobs only end. Events may come
    some seconds late, and so out of order, when their transaction was. Where the database goes away, its error comes
    through: begin again with ``since``. Inside a transaction a loop may see nothing new (REPEATABLE READ).
    """

    def __init__(
        self, alias: str, scopes: Iterable[str], *, since: datetime | None = None, timeout: float | None = None
    ):
        if since is not None and (not isinstance(since, datetime) or timezone.is_naive(since)):
            raise ValueError(f"since must be an aware datetime, such as the `at` of an event, not {since!r}.")
        self._alias, self._scopes = alias, list(scopes)
        self._since, self._timeout = since, timeout

    def __iter__(self) -> Iterator[Event]:
        return self._iterate(self._follow())

    def _follow(self):
        return Follower(self._alias, self._scopes, self._since)

    def _iterate(self, follower):
        try:
            quiet_since = uptime()
            while True:
                began = uptime()
                for event in follower.poll():
                    yield Event(**event)
                    quiet_since = uptime()
                if (left := self._left(quiet_since)) <= 0:
                    return
                wait_for_news([follower], EVERY, pause=min(_pause(began), left), longest=left)
        finally:
            follower.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        follower = await sync_to_async(self._follow)()
        try:
            quiet_since = uptime()
            while True:
                began = uptime()
                for event in await sync_to_async(follower.poll)():
                    yield Event(**event)
                    quiet_since = uptime()
                if (left := self._left(quiet_since)) <= 0:
                    return
                await _news(follower, _pause(began), left)
        finally:
            await sync_to_async(follower.close)()

    def _left(self, quiet_since):
        return float("inf") if self._timeout is None else quiet_since + self._timeout - uptime()


def _pause(began):
    """Return the seconds until the next poll: twice as long as the last one took, and its events' use."""
    return max(PAUSE, min(2 * (uptime() - began), EVERY))


async def _news(follower, pause, longest):
    """Wait as ``wait_for_news`` does, without holding up the event loop or a thread."""
    await sync_to_async(follower.listen)()
    await asyncio.sleep(min(pause, longest))
    until = uptime() + min(UNNOTIFIED if follower.is_notified() else EVERY, longest)
    while uptime() < until and not await sync_to_async(follower.has_news)():
        await asyncio.sleep(min(PAUSE, max(0.0, until - uptime())))
