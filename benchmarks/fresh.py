"""A new database for each measurement, and the jobs in it."""

import os
from contextlib import contextmanager
from datetime import timedelta

from django.apps import apps
from django.db import connection
from django.utils import timezone

from queuetopia.models import Job, Queue
from tests.database import url_of_database

from .queues import BenchmarkQueue


@contextmanager
def fresh_database():
    """Make a new, empty database; this process and all it starts use it inside the ``with``."""
    url, name = os.environ["DATABASE_URL"], connection.settings_dict["NAME"]
    new_name = connection.creation.create_test_db(verbosity=0, autoclobber=True)
    os.environ["DATABASE_URL"] = url_of_database(url, new_name)
    try:
        yield
    finally:
        os.environ["DATABASE_URL"] = url
        connection.creation.destroy_test_db(name, verbosity=0)


def create_jobs(count, queues, kind="queue", queuetopia=BenchmarkQueue, action="do_nothing"):
    """Create ``count`` jobs that do nothing, one for each queue in turns."""
    queuetopia.create_jobs(queuetopia.job(f"{kind}-{number % queues}", action) for number in range(count))


def crowd(size):
    """Write what stands in the tables beside the jobs that are measured."""
    create_blocked_queues(size.blocked, size.behind)
    create_done_jobs(size.done)


def create_blocked_queues(count, behind=1):
    """Write queues whose head failed and backs off until tomorrow, with jobs waiting behind it."""
    if not count:
        return
    now = timezone.now()
    multiply(
        count, attempts=1, attempted_at=now, next_attempt_at=now + timedelta(days=1), error="OSError: full"
    )  # fmt: skip
    for _ in range(behind):
        multiply(count)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Queue._meta.db_table} (scope, name, due_at, current_job, fence)"  # noqa: S608
            f" SELECT scope, queue, next_attempt_at, id, 1 FROM {Job._meta.db_table} WHERE next_attempt_at IS NOT NULL"
        )


def create_done_jobs(count):
    """Write jobs that were done an hour ago."""
    if count:
        then = timezone.now() - timedelta(hours=1)
        multiply(count, state=Job.State.DONE, attempts=1, attempted_at=then, done_at=then)


def create_waiting_jobs(count, queues):
    """Write jobs into the same queues as ``create_jobs``, behind what waits there."""
    rounds = range(0, count, queues)
    for name in {f"queue-{number}" for number in range(queues)} if count else ():
        multiply(len(rounds), name)


def multiply(count, queue=None, **values):
    """Write a job into each of the queues 0, 1, 2 … with the one SQL that every database understands.

    queue: the one they all go to instead.
    """
    template = BenchmarkQueue.job(queue or "template", "do_nothing")
    for name, value in values.items():
        setattr(template, name, value)
    template.save()
    table = Job._meta.db_table
    columns = [field.column for field in Job._meta.concrete_fields if field.column not in ("id", "queue")]
    digits = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
    places = range(len(str(count - 1)))
    number = " + ".join(f"n{place}.d * {10**place}" for place in places)
    numbers = " CROSS JOIN ".join(f"({digits}) n{place}" for place in places)
    goes_to = "t.queue" if queue else f"CAST({number} AS CHAR(9))"
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} (queue, {', '.join(columns)})"  # noqa: S608
            f" SELECT {goes_to}, {', '.join(f't.{column}' for column in columns)}"
            f" FROM {table} t CROSS JOIN {numbers} WHERE t.id = %s AND {number} < {count}",
            [template.pk],
        )
    template.delete()


def tidy_up():
    """Do what autovacuum, or MySQL's own statistics, would do during a run."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
    elif connection.vendor == "mysql":
        with connection.cursor() as cursor:
            for model in apps.get_app_config("queuetopia").get_models():
                cursor.execute(f"ANALYZE TABLE {model._meta.db_table}")
