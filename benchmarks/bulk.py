"""Jobs created by create_jobs, a thousand queues at once."""

import time

from django.db import connection

from .figures import Figure
from .fresh import create_jobs, fresh_database

GOAL = 20_000


def measure(size):
    with fresh_database():
        began = time.monotonic()
        create_jobs(size.jobs, size.queues)
        seconds = time.monotonic() - began
    goal = GOAL if connection.vendor == "postgresql" else None
    return [Figure("create_jobs", "jobs/s", size.jobs / seconds, None, goal, more_is_better=True)]
