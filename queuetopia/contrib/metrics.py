"""Figures for Prometheus: ``pip install 'queuetopia[metrics]'``.

All of them are read from the database when they are asked for, so one process reports on the whole cluster, and none
has to be kept anywhere. Counters come from what nodes have counted (``monitoring.statistics``), and outlive the rows of
jobs and of statistics.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from django.db import Error
from django.db.models import Count, F, Min, Sum
from django.http import HttpRequest, HttpResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ..models import Job, Statistic
from ..monitoring import health, status
from ..registry import registered

GAUGES = {
    "up": ("1 if the database could be read, else 0", ["database"]),
    "nodes": ("Nodes; one that is gone has left its row behind", ["database", "state"]),
    "workers": ("Worker processes of live nodes, as of their last heartbeats", ["database", "state"]),
    "scope_nodes": ("Live nodes that serve the scope", ["database", "scope"]),
    "jobs": ("Unfinished jobs; halted ones wait for an operator", ["database", "scope", "state"]),
    "oldest_job_seconds": ("Since when the oldest unfinished job is due", ["database", "scope"]),
    "queues": ("Queues in a state, of which one may have several", ["database", "scope", "state"]),
    "paused": ("1 while an operator has the whole scope paused, or everything", ["database", "scope"]),
    "schedule_late_seconds": ("Since when a due time of the schedule has no job", ["database", "scope", "schedule"]),
    "snoozed": ("1 while nothing of the scope starts because a performer said so", ["database", "scope"]),
}
# By the column of Statistic.
COUNTERS = {
    "created": ("jobs_created", "Jobs that were created"),
    "started": ("jobs_started", "Jobs whose first attempt began"),
    "done": ("jobs_done", "Jobs that are done"),
    "failed": ("attempts_failed", "Attempts that failed"),
    "halted": ("jobs_halted", "Jobs that were halted, and have blocked their queues"),
    "skipped": ("jobs_skipped", "Jobs that were given up"),
    "cancelled": ("jobs_cancelled", "Jobs that were cancelled"),
    "run_seconds": ("run_seconds", "Seconds for which attempts ran"),
    "blocked_seconds": ("blocked_seconds", "Seconds for which failed jobs that have ended had blocked their queues"),
}
# States of queues, by what ``health.read`` counts.
QUEUES = {
    "running": "running", "outside": "outside", "backing_off": "backing_off", "halted": "halted",
    "paused": "paused_queues", "problem": "problems", "late": "late",
}  # fmt: skip


class QueuetopiaCollector(Collector):
    """Collects the figures of all databases in which this code keeps jobs, in ten queries each.

    For a registry of prometheus_client: ``REGISTRY.register(QueuetopiaCollector())``. A database that cannot be read
    has ``queuetopia_up`` 0, and none of the other figures.
    """

    def describe(self) -> Iterable[Metric]:
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        families = _families()
        for alias in status.databases():
            try:
                figures = list(_figures(alias))
            except Error:
                families["up"].add_metric([alias], 0)
                continue
            families["up"].add_metric([alias], 1)
            for name, labels, value in figures:
                families[name].add_metric([alias, *labels], value)
        return families.values()


@never_cache
@require_safe
def view(request: HttpRequest) -> HttpResponse:
    """Answer with the figures, as Prometheus reads them. Who may see them is for the project to decide."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(QueuetopiaCollector())
    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry), content_type=content_type)


def _families() -> dict[str, Any]:
    families: dict[str, Any] = {
        name: GaugeMetricFamily(f"queuetopia_{name}", text, labels=labels) for name, (text, labels) in GAUGES.items()
    }
    for column, (name, text) in COUNTERS.items():
        families[column] = CounterMetricFamily(f"queuetopia_{name}", text, labels=["database", "scope", "action"])
    return families


def _figures(alias: str) -> Iterator[tuple[str, list[str], float]]:
    """Yield the name of a figure, its labels after the database, and its value."""
    declared = {queuetopia.scope for queuetopia in registered() if queuetopia.database() == alias}
    facts = health.read(alias, sorted(declared), in_depth=False)
    unfinished = list(_unfinished(alias))
    yield from _of_nodes(facts)
    for scope in sorted({*declared, *facts.counts, *(row["scope"] for row in unfinished)}):
        counts = facts.counts.get(scope, {})
        serving = sum(scope in node.scopes for node in facts.nodes if status.is_alive(node, facts.now))
        yield "scope_nodes", [scope], serving
        yield "paused", [scope], facts.is_paused(scope)
        yield "snoozed", [scope], scope in facts.snoozes
        for state, count in QUEUES.items():
            yield "queues", [scope, state], counts.get(count, 0)
    for scope, schedules in facts.schedules.items():
        for schedule in schedules:
            yield "schedule_late_seconds", [scope, schedule["schedule"]], schedule["late"]
    oldest: dict[str, float] = {}
    for row in unfinished:
        yield "jobs", [row["scope"], row["state"]], row["number"]
        waits = max(0.0, (facts.now - row["first"]).total_seconds())
        oldest[row["scope"]] = max(waits, oldest.get(row["scope"], 0.0))
    for scope, seconds in oldest.items():
        yield "oldest_job_seconds", [scope], seconds
    for row in _counted(alias):
        for column in COUNTERS:
            yield column, [row["scope"], row["action"]], row[f"all_{column}"]


def _of_nodes(facts):
    alive = [node for node in facts.nodes if status.is_alive(node, facts.now)]
    workers = [worker for node in alive for worker in node.workers]
    busy = sum(bool(worker["jobs"]) for worker in workers)
    yield "nodes", ["alive"], len(alive)
    yield "nodes", ["gone"], len(facts.nodes) - len(alive)
    yield "workers", ["busy"], busy
    yield "workers", ["idle"], len(workers) - busy


def _unfinished(alias):
    jobs = Job.objects.using(alias).unfinished().order_by()
    return jobs.values("scope", "state").annotate(number=Count("id"), first=Min("scheduled_at"))


def _counted(alias):
    sums = {f"all_{column}": Sum(F(column)) for column in COUNTERS}
    return Statistic.objects.using(alias).order_by("scope", "action").values("scope", "action").annotate(**sums)
