"""The pages of the admin, and the figures for Prometheus, in the worst case.

That is beside a million jobs in 100,000 queues, every one of them blocked, and a month of statistics of two nodes.
"""

import uuid
from datetime import timedelta
from statistics import median
from time import perf_counter

from django.core.cache import cache
from django.db import connection
from django.test.client import Client
from django.test.utils import CaptureQueriesContext, setup_test_environment
from django.utils import timezone

from queuetopia.models import Job, Node, Queue, Statistic

from .figures import Figure
from .fresh import create_blocked_queues, fresh_database, multiply, tidy_up
from .queues import BenchmarkQueue

QUEUES = 100_000
MOST_QUERIES, MOST_MS = 10, 300.0
FIGURES = "figures for Prometheus"
MOST_QUERIES_OF_FIGURES, MOST_MS_OF_FIGURES = 12, 500.0
REQUESTS = 5
ADMIN = "/admin/queuetopia"


def measure(size):
    queues = QUEUES if size.many_jobs >= QUEUES else QUEUES // 10
    with fresh_database():
        create_rows(queues)
        tidy_up()
        client = logged_in()
        return [figure for name, path in pages(queues).items() for figure in measured(client, name, path)]


def create_rows(queues):
    """Write a blocked head, four waiting and five ended jobs for each queue; one queue has a very long line."""
    create_blocked_queues(queues)
    now = timezone.now()
    ended = {"state": "done", "attempts": 1, "attempted_at": now, "done_at": now}
    for values, number in (({}, 3), (ended, 5)):
        for _ in range(number):
            multiply(queues, **values)
    Job.objects.filter(pk__in=list(Job.objects.order_by("-pk").values_list("pk", flat=True)[: queues // 10])).update(
        queue="7", state="pending", done_at=None, attempted_at=None
    )
    node = Node.objects.create(host="web1", pid=1, scopes=[BenchmarkQueue.scope])
    held = list(Queue.objects.order_by("-pk").values_list("pk", flat=True)[:16])
    Queue.objects.filter(pk__in=held).update(held_by=node.pk, held_since=now)
    span = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0)
    counted = {"started": 900, "done": 880, "failed": 20, "waits": {"9": 900}, "runs": {"7": 900}, "blocks": {"30": 9}}
    spans = 8_640 if queues >= QUEUES else 288  # a month's, or a day's
    kinds = [(step, action, node) for step in range(spans) for action in range(10) for node in (1, 2)]
    Statistic.objects.bulk_create(
        (
            Statistic(
                scope=BenchmarkQueue.scope, at=span - timedelta(minutes=5 * step), action=f"a{action}",
                node=uuid.UUID(int=node), **counted,
            )
            for step, action, node in kinds
        ),
        batch_size=5_000,
    )  # fmt: skip


def logged_in():
    from django.contrib.auth.models import User

    setup_test_environment()
    client = Client()
    client.force_login(User.objects.create(username="boss", is_staff=True, is_superuser=True))
    return client


def pages(queues):
    line = Queue.objects.get(name="7")
    head, last = Job.objects.get(pk=line.current_job), Job.objects.filter(queue="7").latest("pk")
    middle = str(queues // 2)
    return {
        "overview": f"{ADMIN}/scope/",
        "jobs": f"{ADMIN}/job/",
        "jobs, waiting": f"{ADMIN}/job/?state=waiting",
        "jobs, backing off": f"{ADMIN}/job/?state=backing+off",
        "jobs, halted": f"{ADMIN}/job/?state=halted",
        "jobs, running": f"{ADMIN}/job/?state=running",
        "jobs, done": f"{ADMIN}/job/?state=done",
        "jobs, cancelled": f"{ADMIN}/job/?state=cancelled",
        "jobs of a queue": f"{ADMIN}/job/?scope={BenchmarkQueue.scope}&queue={middle}",
        "jobs, a queue searched": f"{ADMIN}/job/?q={middle}",
        "jobs, nothing found": f"{ADMIN}/job/?q=nothing+like+it",
        "a job": f"{ADMIN}/job/{head.pk}/change/",
        "a job at the end of a long line": f"{ADMIN}/job/{last.pk}/change/",
        "queues": f"{ADMIN}/queue/",
        "queues, page 10": f"{ADMIN}/queue/?p=10",
        "queues, blocked": f"{ADMIN}/queue/?state=blocked",
        "queues, running": f"{ADMIN}/queue/?state=running",
        "queues, searched": f"{ADMIN}/queue/?q={middle}",
        "queues, nothing found": f"{ADMIN}/queue/?q=nothing",
        "a queue": f"{ADMIN}/queue/{line.pk}/change/",
        FIGURES: "/metrics",
    }


def measured(client, name, path):
    """Ask for the page some times, each time with nothing kept; return its time and its queries."""
    times = []
    for _ in range(REQUESTS + 1):
        cache.clear()
        with CaptureQueriesContext(connection) as queries:
            began = perf_counter()
            answer = client.get(path)
            times.append(1000 * (perf_counter() - began))
        assert answer.status_code == 200, (path, answer.status_code)
    # The first one imports and compiles templates.
    is_page = name != FIGURES
    yield Figure(name, "ms", median(times[1:]), goal=MOST_MS if is_page else MOST_MS_OF_FIGURES)
    yield Figure(name, "queries", len(queries), goal=MOST_QUERIES - 1 if is_page else MOST_QUERIES_OF_FIGURES)
