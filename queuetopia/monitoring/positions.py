"""Where a line stands, and whether it has come so far. Reads only.

A position is the time and id of the last job that was due: the order in which the jobs of a queue run. A queue is
through when its first unfinished job stands behind it. Both are one look-up in the index that claims use.
"""

import json
from datetime import datetime
from typing import NamedTuple

from asgiref.sync import sync_to_async
from django.db.models import Q

from ..backends import backend_for
from ..channel import uptime
from ..conf import clean_seconds
from ..exceptions import InvalidJob, JobHalted
from ..models import Job
from ..moving import name_problem
from ..text import visible
from .explain import explain
from .waiting import await_many, wait_many


class _Position(NamedTuple):
    queue: str
    at: datetime
    job: int


def position(queuetopia, queue: str) -> str:
    """Return where the line of ``queue`` ends now: a short text for ``is_through``, which may be stored or sent.

    It stands for every job of the queue that is committed, due and unfinished. Left out are jobs that are scheduled for
    later, and those that an operator moves or runs now afterwards. A transaction that is open now may still commit a
    job before the position: then the queue is not through until that job has ended, too.

    Raises InvalidJob for a text that is no queue's name.
    """
    if problem := name_problem(queue):
        raise InvalidJob({"queue": [f"{problem}."]})
    now = backend_for(queuetopia.database()).now()
    line = queuetopia.jobs().unfinished().filter(queue=queue, scheduled_at__lte=now)
    last = line.order_by("-scheduled_at", "-id").values_list("scheduled_at", "id").first()
    at, job = last or (now, 0)
    return json.dumps([queuetopia.scope, queue, at.isoformat(), job])


def is_through(queuetopia, position: str) -> bool:
    """Return whether all jobs up to the position have ended: are done, skipped or cancelled.

    Raises ValueError for a text that ``position`` of this class did not return.
    """
    place = _parsed(queuetopia, position)
    first = (
        queuetopia.jobs().unfinished().filter(queue=place.queue).in_order().values_list("scheduled_at", "id").first()
    )
    return first is None or first > (place.at, place.job)


def wait_through(queuetopia, position: str, timeout=None) -> None:
    """Wait until all jobs up to the position have ended.

    timeout: seconds (or timedelta) to wait at most; None means for ever.

    Raises TimeoutError with what ``explain`` says of the queue; JobHalted if the last of the jobs is halted; ValueError
    for a text that ``position`` of this class did not return; and Refused where the wait would never end, as
    ``job.wait`` does: inside a transaction, and in a performer of that queue.
    """
    place, seconds = _parsed(queuetopia, position), _seconds(timeout)
    until = uptime() + seconds
    while last := _last_before(queuetopia, place):
        (answer,) = wait_many([last], _left(until), return_exceptions=True)
        _raise_unless_ended(queuetopia, place, answer, seconds)


async def await_through(queuetopia, position: str, timeout=None) -> None:
    """Do what ``wait_through`` does in async code, without blocking the event loop or a thread."""
    place, seconds = _parsed(queuetopia, position), _seconds(timeout)
    until = uptime() + seconds
    while last := await sync_to_async(_last_before)(queuetopia, place):
        (answer,) = await await_many([last], _left(until), return_exceptions=True)
        await sync_to_async(_raise_unless_ended)(queuetopia, place, answer, seconds)


def _seconds(timeout) -> float:
    return float("inf") if timeout is None else clean_seconds(timeout, at_least=0)


def _left(until) -> float | None:
    return None if until == float("inf") else max(0.0, until - uptime())


def _parsed(queuetopia, position) -> _Position:
    try:
        scope, queue, at, job = json.loads(position)
        place = _Position(queue, datetime.fromisoformat(at), job)
        if not (isinstance(job, int) and place.at.tzinfo and name_problem(queue) is None):
            raise ValueError
    except (ValueError, TypeError):
        raise ValueError(
            f"{str(position)[:100]!r} is no position; {queuetopia.__name__}.position(queue) returns one."
        ) from None
    if scope != queuetopia.scope:
        raise ValueError(f"The position {position[:100]!r} is of {scope!r}, not of {queuetopia.scope!r}.")
    return place


def _last_before(queuetopia, place) -> Job | None:
    """Return the last unfinished job up to the position: if it has ended, the line has as a rule."""
    before = Q(scheduled_at__lt=place.at) | Q(scheduled_at=place.at, pk__lte=place.job)
    line = queuetopia.jobs().unfinished().filter(before, queue=place.queue, scheduled_at__lte=place.at)
    return line.order_by("-scheduled_at", "-id").first()


def _raise_unless_ended(queuetopia, place, answer, seconds) -> None:
    if isinstance(answer, TimeoutError):
        why = explain(queuetopia, place.queue)["sentence"]
        raise TimeoutError(f"Not through after {seconds:g} s: {visible(why)}") from None
    if isinstance(answer, JobHalted):
        raise answer
