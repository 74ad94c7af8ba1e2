"""The same as drain, but strictly in turn: each job is a claim of its own."""

from django.db import connection

from .drain import drain_by_nodes, drain_in_one_process
from .figures import Figure
from .fresh import fresh_database

GOAL = 4_000


def measure(size):
    with fresh_database():
        reference = drain_in_one_process(size, keep=False)
    with fresh_database():
        value = drain_by_nodes(size, slice=1)
    goal = GOAL if connection.vendor == "postgresql" else None
    return [Figure("drain in turn", "jobs/s", value, reference, goal, more_is_better=True)]
