"""One queue: each job starts only after the commit of the one before it."""

import time
from dataclasses import replace

from django.db import connection

from queuetopia.models import Job

from .drain import drain_by_nodes
from .figures import Figure
from .fresh import create_jobs, fresh_database, tidy_up

GOAL = 0.8  # of a bare commit for each job


def measure(size):
    with fresh_database():
        reference = bare_commits(size.line)
    with fresh_database():
        value = drain_by_nodes(replace(size, jobs=size.line, queues=1))
    goal = GOAL if connection.vendor == "postgresql" else None
    return [Figure("one queue", "jobs/s", value, reference, goal, "ratio", more_is_better=True)]


def bare_commits(count):
    """Return jobs/s of one UPDATE each that marks a job as done and commits: the least that a result costs."""
    create_jobs(count, 1)
    tidy_up()
    ids = list(Job.objects.order_by("id").values_list("id", flat=True))
    sql = f"UPDATE {Job._meta.db_table} SET state = 'done', done_at = scheduled_at WHERE id = %s"  # noqa: S608
    with connection.cursor() as cursor:
        began = time.monotonic()
        for job_id in ids:
            cursor.execute(sql, [job_id])
        return count / (time.monotonic() - began)
