"""Wait until jobs have ended, and hand over their results. Reads only.

All waits of a process for jobs of one database share a thread, which polls for the ends of all of them on one
connection while there are any. On PostgreSQL nodes notify it; elsewhere, and where a notification is lost, it polls
soon after a wait has begun, then less and less often, down to once a second.
"""

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections

from ..attempts import current_job
from ..channel import uptime
from ..conf import clean_seconds
from ..exceptions import JobCancelled, JobHalted, JobSkipped, NoResult, Refused
from ..models import Job
from ..registry import by_scope
from ..text import visible
from .follow import Listening

TICK = 0.05  # seconds between two polls at least
EVERY = 1.0  # seconds between two polls at most
SLICE = 0.5  # seconds: a thread that waits is interrupted between two slices only
PAGE = 500  # jobs of one query
ERROR_SHOWN = 500  # characters of a job's last error

Future = concurrent.futures.Future[Any]

_WITHOUT_RESULT: dict[str, tuple[type[NoResult], str]] = {
    Job.State.HALTED: (JobHalted, "was halted"),
    Job.State.SKIPPED: (JobSkipped, "was skipped"),
    Job.State.CANCELLED: (JobCancelled, "was cancelled"),
}


def wait_many(
    jobs: Iterable[Job], timeout: float | timedelta | None = None, *, return_exceptions: bool = False
) -> list[Any]:
    """Wait until all of these jobs have ended; return their stored results, in the order of ``jobs``.

    timeout: seconds (or timedelta) to wait for all of them together; None means for ever, 0 not at all.
    return_exceptions: put what would be raised for a job in its place in the list instead.

    As soon as one job has no result it raises JobHalted, JobSkipped or JobCancelled, whose ``job`` is the job as
    stored, or Job.DoesNotExist if the job was deleted; when time is up, TimeoutError with the job's last error. The
    jobs themselves go on, whatever becomes of the process that waits for them.

    Raises Refused where the wait would never end: inside a transaction on the database of a job that has not ended, and
    in a performer for a job of the queue that it holds.
    """
    jobs, seconds = _checked(jobs), _seconds(timeout)
    try:
        futures = _begun(jobs, seconds)
        with _watched(jobs, futures, seconds):
            _wait_for_all(futures, seconds, return_exceptions)
            return _answers(jobs, futures, seconds, return_exceptions)
    except SynchronousOnlyOperation as exc:
        raise SynchronousOnlyOperation(
            "wait() and wait_many() use the database and block. In async code write: await job.await_result(…), "
            "or await queuetopia.await_many(…)."
        ) from exc


async def await_many(
    jobs: Iterable[Job], timeout: float | timedelta | None = None, *, return_exceptions: bool = False
) -> list[Any]:
    """Do what ``wait_many`` does without blocking the event loop, or a thread for each wait."""
    jobs, seconds = await sync_to_async(_checked)(jobs), _seconds(timeout)  # a QuerySet asks the database
    futures = await sync_to_async(_begun)(jobs, seconds)
    with _watched(jobs, futures, seconds):
        if jobs:
            how = asyncio.ALL_COMPLETED if return_exceptions else asyncio.FIRST_EXCEPTION
            waited, _ = await asyncio.wait(map(asyncio.wrap_future, futures), timeout=seconds, return_when=how)
            for future in waited:
                future.exception()  # asyncio logs what nothing asks for
        return await sync_to_async(_answers)(jobs, futures, seconds, return_exceptions)


def _checked(jobs) -> list[Job]:
    jobs = [jobs] if isinstance(jobs, Job) else list(jobs)
    for job in jobs:
        if not isinstance(job, Job):
            raise TypeError(f"A job to wait for is a Job, as create_job returns it, not {job!r}.")
        if job.pk is None:
            raise ValueError("A job that was not stored cannot be waited for; create it by create_job or create_jobs.")
    return jobs


def _seconds(timeout) -> float | None:
    return None if timeout is None else clean_seconds(timeout, at_least=0)


def _alias(job) -> str:
    queuetopia = by_scope().get(job.scope)
    return job._state.db if queuetopia is None else queuetopia.database()


def _by_database(jobs, futures):
    """Return {alias: [(id, future) of what has not ended]}."""
    found: dict[str, list[tuple[int, Future]]] = {}
    for job, future in zip(jobs, futures, strict=True):
        if not future.done():
            found.setdefault(_alias(job), []).append((job.pk, future))
    return found


def _begun(jobs, seconds) -> list[Future]:
    """Return a future of each job, done for those that have ended. Raises Refused if the others must not be awaited."""
    futures = [Future() for _ in jobs]
    for alias, waits in _by_database(jobs, futures).items():
        ended = _ended(alias, {pk for pk, _ in waits})
        for pk, future in waits:
            if pk in ended:
                _answer(future, pk, ended[pk])
    if seconds != 0:
        for job, future in zip(jobs, futures, strict=True):
            if not future.done():
                _refuse_if_vain(job)
    return futures


def _refuse_if_vain(job):
    connection = connections[alias := _alias(job)]
    if connection.in_atomic_block or not connection.get_autocommit():
        raise Refused(
            f"{_named(job)} has not ended, and this transaction on database {alias!r} is open: what is created in it "
            "starts after its commit. Wait after the transaction, or in transaction.on_commit()."
        )
    running = current_job.get()
    if running is not None and (running.scope, running.row_name) == (job.scope, job.row_name):
        raise Refused(
            f"{_named(job)} stands in the queue that job {running.pk}, which this attempt runs, holds: it cannot end "
            "before. Let the job behind do what needs the result, or create the job in another queue."
        )


def _ended(alias, ids) -> dict[int, Job | None]:
    """Return those of these jobs that will not run by themselves: as stored, None for what is not there."""
    found: dict[int, Job | None] = {}
    ids = sorted(ids)
    jobs = Job.objects.using(alias)
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        states = dict(jobs.filter(pk__in=page).values_list("pk", "state"))
        ended = [pk for pk in page if states.get(pk) != Job.State.PENDING]
        rows = jobs.in_bulk([pk for pk in ended if pk in states])
        found |= {pk: rows.get(pk) for pk in ended}
    # An operator may have retried it in between.
    return {pk: job for pk, job in found.items() if job is None or job.state != Job.State.PENDING}


def _answer(future, job_id, job) -> None:
    """Set what a wait for this job returns, or raises."""
    with suppress(concurrent.futures.InvalidStateError):  # that wait was cancelled
        if job is None:
            future.set_exception(Job.DoesNotExist(f"Job {job_id} is not there: it was rolled back, or deleted."))
        elif job.state == Job.State.DONE:
            future.set_result(job.result)
        else:
            kind, what = _WITHOUT_RESULT[job.state]
            future.set_exception(kind(f"{_named(job)} {what}{_last_error(job)}", job))


def _named(job):
    return f"J{str(job)[1:]}"


def _last_error(job):
    return f": {visible(job.error[:ERROR_SHOWN])}" if job.error else ""


def _wait_for_all(futures, seconds, return_exceptions) -> None:
    until = float("inf") if seconds is None else uptime() + seconds
    how = concurrent.futures.ALL_COMPLETED if return_exceptions else concurrent.futures.FIRST_EXCEPTION
    while not all(future.done() for future in futures) and (left := until - uptime()) > 0:
        concurrent.futures.wait(futures, min(left, SLICE), how)
        if not return_exceptions and any(future.done() and future.exception() for future in futures):
            return


def _answers(jobs, futures, seconds, return_exceptions) -> list[Any]:
    failures = {index: future.exception() for index, future in enumerate(futures) if future.done()}
    if not return_exceptions:
        for failure in filter(None, failures.values()):
            raise failure
    late = {index: _timed_out(jobs[index], seconds) for index in range(len(jobs)) if index not in failures}
    if late and not return_exceptions:
        raise next(iter(late.values()))
    return [late.get(index) or failures[index] or future.result() for index, future in enumerate(futures)]


def _timed_out(job, seconds):
    stored = Job.objects.using(_alias(job)).filter(pk=job.pk).first() or job
    tried = f", and has been tried {stored.attempts} times" if stored.attempts else ""
    return TimeoutError(f"{_named(job)} has not ended within {seconds:g} s{tried}{_last_error(stored)}")


# The thread


class _Watcher:
    """Polls for the ends of those jobs of a database that this process waits for, in a thread while there are any."""

    def __init__(self, alias):
        self._alias = alias
        self._lock = threading.Lock()
        self._waits: dict[int, list[Future]] = {}
        self._thread: threading.Thread | None = None
        self._newest = 0.0  # uptime at which the last wait began

    def add(self, waits) -> None:
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=f"queuetopia-wait-{self._alias}", daemon=True)
                thread.start()  # it waits for the lock
                self._thread = thread
            for job_id, future in waits:
                self._waits.setdefault(job_id, []).append(future)
            self._newest = uptime()

    def remove(self, waits) -> None:
        with self._lock:
            for job_id, future in waits:
                futures = self._waits.get(job_id, [])
                if future in futures:
                    futures.remove(future)
                if not futures:
                    self._waits.pop(job_id, None)

    def _run(self):
        listening = Listening(self._alias)
        try:
            while not self._has_ended():
                polled_at = uptime()
                self._poll()
                self._rest(listening, polled_at)
        except Exception as exc:
            self._fail(exc)
        finally:
            listening.close()
            connections.close_all()

    def _has_ended(self):
        with self._lock:
            if not self._waits:
                self._thread = None
            return not self._waits

    def _poll(self):
        with self._lock:
            ids = set(self._waits)
        for job_id, job in _ended(self._alias, ids).items():
            for future in self._taken(job_id):
                _answer(future, job_id, job)

    def _taken(self, job_id):
        with self._lock:
            return self._waits.pop(job_id, [])

    def _rest(self, listening, polled_at):
        """Sleep until there may be news. A wait that has just begun may be for a short job."""
        if self._waits:
            listening.listen()
        while self._waits:
            time.sleep(TICK)
            pause = min(EVERY, (uptime() - self._newest) / 2)
            if listening.has_news() or uptime() >= polled_at + pause:
                return

    def _fail(self, exc):
        """End all waits with an error of the database."""
        with self._lock:
            waits, self._waits, self._thread = self._waits, {}, None
        for future in (future for futures in waits.values() for future in futures):
            with suppress(concurrent.futures.InvalidStateError):
                future.set_exception(exc)


_watchers: dict[tuple[int, str], _Watcher] = {}  # a forked process has none of its parent's threads


def _watcher(alias) -> _Watcher:
    return _watchers.setdefault((os.getpid(), alias), _Watcher(alias))


@contextmanager
def _watched(jobs, futures, seconds) -> Iterator[None]:
    """Have the futures of what has not ended set while the block lasts."""
    left = _by_database(jobs, futures) if seconds != 0 else {}
    try:
        for alias, waits in left.items():
            _watcher(alias).add(waits)
        yield
    finally:
        for alias, waits in left.items():
            _watcher(alias).remove(waits)
