"""What happens to jobs, as a stream that any process can follow. Reads only.

A follower polls the tables: it reads ends by the index of ended jobs, operators' decisions by the newest ``JobEvent``
rows, failures by the rows of blocked queues, and starts by the nodes' heartbeats. On PostgreSQL nodes notify followers
that ask for it; elsewhere they poll every second.
No statement of a job does anything for followers, and without followers no process does.

Rows become visible in another order than that of their times: the first transaction to write may commit last. So a
poll goes back ``RECENT`` seconds, and every few seconds ``WINDOW``, further than a node takes to record a result;
events that were reported are left out.
"""

import logging
import select
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from django.db import DatabaseError, InterfaceError
from django.db.models import Q

from ..backends import backend_for
from ..backends.values import attempts_of
from ..channel import uptime
from ..lines import given_name
from ..models import Job, JobEvent, Node, Queue, Scope
from ..text import brief
from .status import MOST_NODES, progress_of

logger = logging.getLogger(__name__)

RECENT, WINDOW = 1.0, 15.0  # seconds
UNNOTIFIED = 5.0  # seconds until a poll without a notification, and between two polls that reach far back
PAUSE = 0.1  # seconds between two polls at least, and twice as long as a poll takes
ASK = 1.0  # seconds between two requests for notifications
PAGE = 1_000  # rows of one query
MOST_BLOCKED = 1_000  # blocked queues of one scope whose failures are followed
MOST_LATE = 200  # numbers by which a JobEvent may become visible later than a newer one

_LIGHT = (
    "id",
    "scope",
    "queue",
    "action",
    "state",
    "attempts",
    "attempted_at",
    "attempted_by",
    "done_at",
    "error",
    "failed_at",
    "outside",
)


class Listening:
    """Receives notifications, where the database has them, that something may have happened to its jobs."""

    def __init__(self, alias: str):
        self.alias = alias
        self._listener: Any = None
        self._listen_at = 0.0  # uptime at which to try it again

    def listen(self, now: float | None = None) -> None:
        """Ask for notifications, where the database has them; try again if that has failed before."""
        now = uptime() if now is None else now
        if now < self._listen_at:
            return
        self._listen_at = now + ASK
        try:
            self._listener = self._listener or backend_for(self.alias).listener()
            if self._listener:
                self._listener.ask()
        except (DatabaseError, InterfaceError) as exc:
            self._stop_listening(exc)

    def _stop_listening(self, exc):
        logger.info("cannot listen, polling alias=%s cause=%r", self.alias, brief(exc))
        self.close()
        self._listen_at = uptime() + UNNOTIFIED

    def is_notified(self) -> bool:
        """True while nodes notify: the last request was received."""
        return self._listener is not None and self._listener.is_heard

    def has_news(self) -> bool:
        try:
            return self._listener is not None and self._listener.has_news()
        except (DatabaseError, InterfaceError) as exc:
            self._stop_listening(exc)
            return True

    def fileno(self) -> int | None:
        """Return a descriptor that may become readable with news."""
        return None if self._listener is None else self._listener.fileno()

    def close(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None


class Follower(Listening):
    """Follows the scopes of one database from now on; each ``poll()`` returns the events since the last one.

    since: an aware datetime to begin at instead, as far back as the tables reach.
    """

    def __init__(self, alias: str, scopes: Iterable[str], since: datetime | None = None):
        super().__init__(alias)
        self.scopes = list(scopes)
        self._since = since
        now = since or backend_for(alias).now()
        self._from = dict.fromkeys(self.scopes, now)  # by scope: where the next poll begins
        self._began = now
        self._far_at = 0.0  # uptime of the next poll far back
        self.ends: dict[str, dict[int, datetime]] = {scope: {} for scope in self.scopes}  # reported lately, by job
        self._running: set[tuple[int, int]] = set()  # (job, attempt) reported as started
        self._reported: dict[int, Any] = {}  # by job that goes on: what it has reported of its progress
        self._outside: set[int] = set()  # jobs whose attempts go on elsewhere
        self._failed: dict[int, int] = {}  # by job: the last failed attempt that was reported
        self._event = self._newest_event(since)
        self._events: set[int] = set()
        self._begin(since)

    def _newest_event(self, since):
        # SQLite compares times as text, in which its own clock's milliseconds come before as many microseconds.
        before = {"at__lt": since - timedelta(milliseconds=1)} if since else {}
        events = JobEvent.objects.using(self.alias).filter(**before)
        return events.order_by("-id").values_list("id", flat=True).first() or 0

    def _begin(self, since):
        """Leave out what happened before; with ``since``, the times in the rows decide."""
        jobs = list(self._blocked_jobs())
        self._outside = {job.pk for job in jobs if job.is_outside()}
        if since is None:
            self._failed = {job.pk: job.attempts for job in jobs}
        self._running = {(job, attempt) for job, attempt, at, _ in self._running_jobs() if not since or at < since}
        if since is None:
            list(self._progressed())
        late = JobEvent.objects.using(self.alias).filter(id__gt=self._event - MOST_LATE, id__lte=self._event)
        self._events = set(late.values_list("id", flat=True))

    def poll(self, now: float | None = None) -> list[dict[str, Any]]:
        """Return the events since the last poll, oldest first, as dicts.

        ``at``, ``event`` (started, progress, failed, halted, done, skipped, cancelled; retry, skip, cancel, pause,
        resume by an operator), ``scope``, ``queue``, ``job``, ``action``, ``attempt``, ``error``, ``node``, ``by``,
        ``reason``, ``progress`` (fraction, text, at).

        An end is reported once, whatever recorded it. A job is reported as started only if a heartbeat of its node saw
        it run; failures are those of a job's last 20, in up to 1,000 blocked queues of a scope.

        now: this process's ``uptime()``.
        """
        now = uptime() if now is None else now
        back = RECENT
        if now >= self._far_at:
            back, self._far_at = WINDOW, now + UNNOTIFIED
        started = list(self._started())
        failed = list(self._failures())
        ended = [event for scope in self.scopes for event in self._ends(scope, back)]
        progressed = list(self._progressed())
        return sorted([*self._verbs(), *started, *failed, *progressed, *ended], key=lambda event: event["at"])

    # What has ended

    def _ends(self, scope, back) -> Iterator[dict[str, Any]]:
        after, first = self._from[scope] - timedelta(seconds=back), 0
        jobs = Job.objects.using(self.alias).ended().filter(scope=scope).order_by("done_at", "id")
        reported = self.ends[scope]
        while page := list(jobs.filter(_beyond(after, first)).only(*_LIGHT)[:PAGE]):
            errors = self._errors_of(page)
            for job in page:
                if job.pk not in reported and job.done_at >= self._began:
                    reported[job.pk] = job.done_at
                    yield from self._failures_of(job, errors.get(job.pk))
                    self._failed.pop(job.pk, None)
                    yield _event(job, job.done_at, job.state)
            after, first = page[-1].done_at, page[-1].pk
            if len(page) < PAGE:
                break
        self._from[scope] = max(self._from[scope], after)
        oldest = self._from[scope] - timedelta(seconds=2 * WINDOW)
        self.ends[scope] = {job: at for job, at in reported.items() if at >= oldest}

    # What fails

    def _failures(self):
        jobs = list(self._blocked_jobs())
        self._outside = {job.pk for job in jobs if job.is_outside()}
        errors = self._errors_of(jobs)
        for job in jobs:
            yield from self._failures_of(job, errors.get(job.pk))

    def _blocked_jobs(self):
        for scope in self.scopes:
            blocked = Queue.objects.using(self.alias).blocked().filter(scope=scope).order_by("id")
            current = list(blocked.values_list("current_job", flat=True)[:MOST_BLOCKED])
            yield from Job.objects.using(self.alias).filter(pk__in=current).only(*_LIGHT)

    def _errors_of(self, jobs):
        """Return the histories of the jobs that may have failed since the last poll; they are long."""
        changed = [
            job.pk for job in jobs if (job.error or job.failed_at) and job.attempts > self._failed.get(job.pk, 0)
        ]
        return dict(Job.objects.using(self.alias).filter(pk__in=changed).values_list("pk", "errors")) if changed else {}

    def _failures_of(self, job, errors):
        """Yield the failed attempts of a job that were not reported yet."""
        known = self._failed.get(job.pk, 0)
        for entry in attempts_of(errors):
            at = _moment(entry.get("at"))
            attempt = entry.get("attempt", 0)
            if at is None or at < self._began or attempt <= known or not entry.get("counted", True):
                continue
            is_last = attempt == job.attempts
            event = "halted" if is_last and job.state == Job.State.HALTED else "failed"
            error = f"{entry.get('type', '')}: {entry.get('message', '')}"
            yield {**_event(job, at, event), "attempt": attempt, "error": error, "node": entry.get("by")}
        self._failed[job.pk] = max(known, job.attempts)

    # What runs

    def _started(self):
        running = self._running_jobs()
        new = [(job, attempt) for job, attempt, *_ in running if (job, attempt) not in self._running]
        jobs = Job.objects.using(self.alias).only(*_LIGHT).in_bulk([job for job, _ in new])
        for job_id, attempt, since, node in running:
            if (job_id, attempt) in new and job_id in jobs:
                yield {**_event(jobs[job_id], since, "started"), "attempt": attempt, "error": None, "node": node}
        self._running = {(job, attempt) for job, attempt, *_ in running}

    def _running_jobs(self):
        """Return (job, attempt, since, node) of what ran at the nodes' last heartbeats and still does."""
        nodes = Node.objects.using(self.alias).order_by("id")[:MOST_NODES]
        ids = {job: str(node) for node in nodes for worker in node.workers for job in worker["jobs"]}
        names = Job.objects.using(self.alias).filter(pk__in=list(ids), scope__in=self.scopes)
        lines = [Q(scope=scope, name=queue) for scope, queue in names.values_list("scope", "queue")]
        if not lines:
            return []
        wanted = Q.create([*lines], connector=Q.OR)
        held = Queue.objects.using(self.alias).held().filter(wanted)
        rows = held.values_list("current_job", "attempt", "held_since")
        return [(job, attempt, since, ids[job]) for job, attempt, since in rows if job in ids]

    def _progressed(self):
        """Yield what attempts that go on, here or outside, have reported of their progress since the last poll."""
        ids = {job for job, _ in self._running} | self._outside
        jobs = Job.objects.using(self.alias).filter(pk__in=ids, scope__in=self.scopes, progress__isnull=False)
        heads = list(jobs.only("progress", *_LIGHT)) if ids else []
        wanted = Q.create([Q(scope=job.scope, name=job.queue) for job in heads], connector=Q.OR)
        lines = {line.current_job: line for line in Queue.objects.using(self.alias).filter(wanted)} if heads else {}
        known, self._reported = self._reported, {}
        for job in heads:
            line: Any = lines.get(job.pk)
            if progress := progress_of(job, line):
                self._reported[job.pk] = progress
                if known.get(job.pk) != progress and (self._since is None or progress["at"] >= self._since):
                    event = _event(job, progress["at"], "progress")
                    attempt = line.attempt or job.attempts + 1
                    yield {**event, "attempt": attempt, "error": None, "node": None, "progress": progress}

    # What operators do

    def _verbs(self):
        events = JobEvent.objects.using(self.alias).filter(id__gt=self._event - MOST_LATE).order_by("id")
        events = events.defer("before", "after")
        for event in events:
            if event.pk in self._events:
                continue
            self._events.add(event.pk)
            self._event = max(self._event, event.pk)
            if event.scope in (*self.scopes, Scope.EVERYTHING) and (self._since is None or event.at >= self._since):
                yield _told(event)
        self._events = {number for number in self._events if number > self._event - MOST_LATE}


def wait_for_news(followers: list[Follower], every: float, pause: float = PAUSE, longest: float = UNNOTIFIED) -> None:
    """Sleep until something may have happened, without notifications for ``every`` seconds at most.

    pause: seconds to sleep in any case, so that a busy node does not make its followers poll all the time.
    longest: seconds to wait after that at most.
    """
    for follower in followers:
        follower.listen()
    time.sleep(pause)
    began = uptime()
    while not any([follower.has_news() for follower in followers]):
        bound = UNNOTIFIED if all(follower.is_notified() for follower in followers) else every
        if (left := began + min(bound, longest) - uptime()) <= 0:
            return
        descriptors = [number for follower in followers if (number := follower.fileno()) is not None]
        select.select(descriptors, [], [], left)


def _beyond(moment, job_id):
    """The rows after this place in the order of (done_at, id)."""
    return Q(done_at__gte=moment) & (Q(done_at__gt=moment) | Q(pk__gt=job_id))


def _event(job, at, name):
    return {
        "at": at,
        "event": str(name),
        "scope": job.scope,
        "queue": job.queue,
        "job": job.pk,
        "action": job.action,
        "attempt": job.attempts,
        "error": (job.error or None) if name != Job.State.DONE else None,
        "node": job.attempted_by or None,
        "by": None,
        "reason": None,
        "progress": None,
    }


def _told(event):
    return {
        "at": event.at,
        "event": event.verb,
        "scope": event.scope,
        "queue": given_name(event.queue) or None,
        "job": event.job,
        "action": None,
        "attempt": None,
        "error": None,
        "node": None,
        "by": event.by or None,
        "reason": event.reason or None,
        "progress": None,
    }


def _moment(text):
    try:
        return datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
