"""What it costs a web process to create a job, beside an INSERT of the same row with its own commit."""

import time
from contextlib import contextmanager
from statistics import mean
from unittest.mock import patch

from django.db import connection
from django.db.models.sql import InsertQuery

from queuetopia.backends import backend_for
from queuetopia.models import Job, Queue

from .figures import Figure
from .fresh import fresh_database
from .queues import BenchmarkQueue

GOALS = {
    "INSERT alone": 0.8,
    "with the wake, queue busy": 0.55,
    "with the wake, queue idle": 0.45,
    "with the wake, queue new": None,
}


def measure(size):
    with fresh_database(), timed_wakes() as wakes:
        times = {name: [] for name in ("bare", *GOALS)}
        for number in range(10 * size.samples):
            sample(number, times, wakes)
    bare = 1 / mean(times.pop("bare"))
    is_fast = connection.vendor == "postgresql"
    return [
        Figure(name, "jobs/s", 1 / mean(taken), bare, GOALS[name] if is_fast else None, "ratio", more_is_better=True)
        for name, taken in times.items()
    ]


def sample(number, times, wakes):
    """Create one job in each way, in turns, so that all of them have the same machine."""
    queue, params = f"queue-{number}", {"customer": number, "text": "x" * 100}
    bare = bare_insert(BenchmarkQueue.job(queue, "take", params))
    times["bare"].append(timed(bare))
    times["with the wake, queue new"].append(timed_creation(queue, params))
    # No node runs. The queue is due: another wake changes nothing, as if the queue were busy.
    busy = timed_creation(queue, params)
    times["with the wake, queue busy"].append(busy)
    times["INSERT alone"].append(busy - wakes[-1])
    Queue.objects.filter(name=queue).update(due_at=None)  # as it is left when all its jobs have ended
    times["with the wake, queue idle"].append(timed_creation(queue, params))


def timed_creation(queue, params):
    return timed(lambda: BenchmarkQueue.create_job(queue, "take", params))


def bare_insert(job):
    """Return a function that inserts the row, and does nothing else."""
    query = InsertQuery(Job)
    query.insert_values([field for field in Job._meta.concrete_fields if not field.primary_key], [job])
    ((sql, params),) = query.get_compiler(connection=connection).as_sql()
    cursor = connection.cursor()
    return lambda: cursor.execute(sql, params)


@contextmanager
def timed_wakes():
    """Give the list to which the seconds of each wake-up are added."""
    wakes, kind = [], type(backend_for("default"))
    wake = kind.wake
    with patch.object(kind, "wake", lambda self, queues: wakes.append(timed(lambda: wake(self, queues)))):
        yield wakes


def timed(function):
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
