"""How far an attempt has come: reported by its performer, kept in the job's row beside the attempt's fence.

Whatever shows it compares that fence with the queue's, so nothing has to be cleared when an attempt ends. In a worker
a thread with a connection of its own writes: a performer may be in a transaction or in an event loop, and must neither
wait for the database nor fail with it.
"""

import asyncio
import logging
import threading
import time
from typing import Any

from django.db import connections
from django.db.models import Exists
from django.utils import timezone

from ..attempts import Claim
from ..models import Job, Queue
from ..registry import by_scope
from ..repeats import Repeats
from ..text import masked_start, secrets_of

logger = logging.getLogger(__name__)

LONGEST_TEXT = 200  # characters
EVERY = 1.0  # seconds between two writes
IDLE = 10.0  # seconds without a report after which the thread ends, and with it its connections


def report_progress(job: Job, fraction: float, text: str = "") -> None:
    """See ``Job.report_progress``."""
    claim = job._claim
    if claim is None:
        raise RuntimeError(
            f"Job {job.pk} runs nowhere here: report_progress() is for the job that a performer is handed. Where its "
            "attempt goes on elsewhere, call report_progress(token, …) of its Queuetopia."
        )
    progress = progress_value(by_scope()[job.scope], job.params, claim.fence, fraction, text)
    if claim.queue_id:  # else it is a rehearsal: ``testing.perform_job``
        _reports.put(claim, progress)


def progress_value(queuetopia, params, fence: int, fraction, text) -> dict[str, Any]:
    """Return what is stored of a report, without secrets. Raises ValueError for what is none."""
    is_number = isinstance(fraction, int | float) and not isinstance(fraction, bool)
    if not is_number or not 0 <= fraction <= 1:  # NaN is neither
        raise ValueError(f"fraction must be a number from 0 to 1, not {fraction!r}; 0.4 is 40 %.")
    if not isinstance(text, str):
        raise ValueError(f"text must be a str, not {type(text).__name__}; leave it out if there is nothing to say.")
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"text has {len(text)} characters, and at most {LONGEST_TEXT} are kept: say it shorter.")
    secrets = secrets_of(params, queuetopia.option("sensitive_params"))
    shown = masked_start(text, LONGEST_TEXT, secrets)
    return {"fence": fence, "fraction": float(fraction), "text": shown, "at": timezone.now().isoformat()}


def write(claim: Claim, progress: dict[str, Any]) -> bool:
    """Store a report; return False if the attempt has lost its queue, or its job has ended."""
    alias = by_scope()[claim.scope].database()
    line = Queue.objects.using(alias).filter(pk=claim.queue_id, fence=claim.fence, current_job=claim.job_id)
    job = Job.objects.using(alias).unfinished().filter(Exists(line), pk=claim.job_id)
    return bool(job.update(progress=progress))


def report_in_background() -> None:
    """Have a thread write the reports of this process from now on."""
    _reports.write_in_background()


def write_reports() -> None:
    """Write what could not be written at once where no thread does: reports of async code."""
    _reports.write_all()


class Reports:
    """The last report of each job that is not written yet."""

    def __init__(self):
        self._changed = threading.Condition()
        self._unwritten: dict[int, tuple[Claim, dict[str, Any]]] = {}  # by job
        self._in_background = False
        self._thread: threading.Thread | None = None
        self._repeats = Repeats()

    def write_in_background(self):
        self._in_background = True

    def put(self, claim, progress):
        with self._changed:
            self._unwritten[claim.job_id] = claim, progress
            if self._in_background:
                self._wake()
        if not self._in_background and not _has_event_loop():
            self.write_all()

    def write_all(self):
        """Write what there is now. What cannot be written is kept for the next time, unless a newer one has come."""
        with self._changed:
            reports, self._unwritten = self._unwritten, {}
        while reports:
            try:
                write(*next(iter(reports.values())))
            except Exception:
                with self._changed:
                    self._unwritten = {**reports, **self._unwritten}
                raise
            reports.pop(next(iter(reports)))

    def _wake(self):
        """Have the thread write. The lock is held."""
        self._changed.notify()
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="queuetopia-progress", daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:  # no thread can be started: the next report tries again
                self._log(exc)
            else:
                self._thread = thread

    def _run(self):
        while self._has_some():
            try:
                self.write_all()
            except Exception as exc:
                self._log(exc)
                connections.close_all()  # those of this thread
            time.sleep(EVERY)
        connections.close_all()

    def _has_some(self):
        """Wait for a report; False if there was none for long: then the thread ends."""
        with self._changed:
            if not self._unwritten and not self._changed.wait_for(lambda: self._unwritten, IDLE):
                self._thread = None
                return False
        return True

    def _log(self, exc):
        self._repeats.log(logger, logging.WARNING, "progress not written error=%r", exc, cause=type(exc).__name__)


def _has_event_loop():
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


_reports = Reports()
