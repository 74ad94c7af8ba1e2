"""The customers' queues as the page shows them, put together from Queuetopia's status and its jobs."""

from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from queuetopia.models import Job

from .models import Customer, Order
from .queues import OrderQueue

CUSTOMERS = 12  # shown at most
ENDED = 4  # jobs that have ended, shown of each customer
UNFINISHED = 12  # jobs that have not, shown of each customer


@dataclass
class Step:
    """A job in its line, with the word for what it does now."""

    job: Job
    state: str

    @property
    def name(self):
        return self.job.action.replace("_", " ")


@dataclass
class Line:
    """One customer's queue: ``now`` is its entry of the status, None if there is nothing to do."""

    customer: Customer
    now: dict[str, Any] | None
    orders: list[tuple[Order | None, list[Step]]]
    more: int
    since: datetime | None
    at: datetime

    @property
    def state(self):
        return self.now["state"] if self.now else "empty"

    @property
    def is_blocked(self):
        return self.state in ("backing off", "halted")

    @property
    def lasted(self):
        return span(self.at - self.since)

    @property
    def next_attempt_in(self):
        return span(self.now["next_attempt_at"] - self.at)


def current_lines():
    """Return (status, lines): how the scope does, and the lines of those customers where most happens."""
    status = OrderQueue.status(queues=CUSTOMERS)
    now = {queue["queue"]: queue for queue in status["queues"]}
    return status, [_line(customer, now.get(customer.queue), status["at"]) for customer in _customers(now)]


def _customers(queues):
    """Return the customers of these queues and then the latest ones, in the order in which they came."""
    ids = [int(name.removeprefix(Customer.QUEUE)) for name in queues if name.removeprefix(Customer.QUEUE).isdecimal()]
    busy = Customer.objects.filter(pk__in=ids)
    idle = Customer.objects.exclude(pk__in=ids).order_by("-pk")[: CUSTOMERS - len(ids)]
    return sorted([*busy, *idle], key=lambda customer: customer.pk)


def _line(customer, now, at):
    line = OrderQueue.list_jobs(queue=customer.queue)
    unfinished = line.unfinished()
    first = list(unfinished[:UNFINISHED])
    # Read after these: what has ended in between is there twice, instead of nowhere.
    ended = list(reversed(line.ended().order_by("-done_at", "-id")[:ENDED]))
    first = [job for job in first if job not in ended]
    running = now["job"] if now and now["state"] == "running" else None
    steps = [Step(job, _state(job, running)) for job in [*ended, *first]]
    return Line(
        customer=customer,
        now=now,
        orders=_by_order(steps),
        more=max(0, unfinished.count() - len(first)),
        since=_since(now, first),
        at=at,
    )


def _state(job, running):
    if job.pk == running and not job.is_ended():  # it may have since the status was read
        return "running"
    if job.is_outside():
        return "outside"
    if job.is_backing_off():
        return "backing off"
    return "waiting" if job.state == Job.State.PENDING else job.state


def _by_order(steps):
    """Return [(order, its steps)] with the steps in the order of the line."""
    orders = Order.objects.in_bulk({_order_id(step) for step in steps} - {None})
    return [(orders.get(order_id), list(group)) for order_id, group in groupby(steps, _order_id)]


def _order_id(step):
    return step.job.params.get("order_id") if isinstance(step.job.params, dict) else None


def _since(now, jobs):
    """Return since when the line is blocked, which is its job's first failure, or else since when its job runs."""
    is_blocked = now and now["state"] in ("backing off", "halted")
    blockers = [job for job in jobs if is_blocked and job.pk == now["job"] and job.errors]
    return datetime.fromisoformat(blockers[0].errors[0]["at"]) if blockers else now and now["since"]


def span(duration):
    """Return a duration as one would say it: 3 s, 5 min, 2 h."""
    seconds = max(0, round(duration.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
