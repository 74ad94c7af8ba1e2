"""Proves, from the database, the mail files and the provider's bookings, what the demo has shown."""

from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from example_project.provider.models import Booking

from .billing import idempotency_key
from .mailbox import mails_to
from .models import Order
from .orders import STEPS
from .queues import OrderQueue, message_id

BOOKINGS = {"register_invoice": Booking.Kind.INVOICE, "charge_payment": Booking.Kind.PAYMENT}


class Finding(NamedTuple):
    is_true: bool
    text: str


def verify(held, others, *, orders_each, failures):
    """Return the findings about customers: those ``held`` while the provider was off, and those it was no matter to.

    orders_each: how many orders each of them placed. failures: how many failed attempts of each held one were counted.
    """
    lines = {customer: list(OrderQueue.list_jobs(queue=customer.queue)) for customer in [*held, *others]}
    blockers = {customer: max(lines[customer], key=lambda job: job.attempts) for customer in held}
    return [
        _all_are_done(lines, orders_each),
        *(_failed_until_it_was_done(blockers[customer], failures) for customer in held),
        _nothing_else_failed(lines, blockers.values()),
        _in_order(lines),
        *(_nothing_passed(lines[customer], blockers[customer]) for customer in held),
        _nobody_waited([job for customer in others for job in lines[customer]], blockers.values()),
        *(_mails_are_right(customer, jobs) for customer, jobs in lines.items()),
        *(_bookings_are_right(customer, jobs) for customer, jobs in lines.items()),
    ]


def _all_are_done(lines, orders_each):
    orders = Order.objects.filter(customer__in=lines)
    expected = sum(len(STEPS[order.payment]) for order in orders)
    done = sum(job.state == job.State.DONE for jobs in lines.values() for job in jobs)
    there = sum(len(jobs) for jobs in lines.values())
    text = f"{len(orders)} of {orders_each * len(lines)} orders are placed, {done} of their {expected} jobs are done"
    return Finding(len(orders) == orders_each * len(lines) and there == done == expected, f"{text}.")


def _failed_until_it_was_done(blocker, failures):
    errors = [f"{entry['type']}: {entry['message']}" for entry in blocker.errors]
    wrong = []
    if len(errors) < failures or blocker.attempts != len(errors) + 1 or not all("503" in text for text in errors):
        wrong = [f"the provider was off for {failures} attempts at least, and its errors are {errors}"]
    text = f"Job {blocker.pk} of {blocker.queue} failed {len(errors)} times and was done at attempt {blocker.attempts}"
    return Finding(not wrong, text + _but(wrong))


def _nothing_else_failed(lines, blockers):
    others = [job for jobs in lines.values() for job in jobs if job not in blockers]
    wrong = [f"job {job.pk} failed too" for job in others if job.attempts > 1 or job.errors]
    return Finding(not wrong, f"The {len(others)} other jobs were done at their first attempt" + _but(wrong))


def _in_order(lines):
    wrong = [
        f"job {later.pk} was done before job {job.pk}"
        for jobs in lines.values()
        for job, later in pairwise(jobs)
        if not _was_done_before(job, later)
    ]
    return Finding(not wrong, "In every queue, each job was done after the one before it" + _but(wrong))


def _nothing_passed(jobs, blocker):
    behind = jobs[jobs.index(blocker) + 1 :]
    wrong = [f"job {job.pk} was not" for job in behind if not _was_done_before(blocker, job)]
    text = f"All {len(behind)} jobs behind job {blocker.pk} were done after it" + _but(wrong)
    return Finding(bool(behind) and not wrong, text)


def _nobody_waited(jobs, blockers):
    """Every job of the other queues was done before any blocker, and some of them after all these had failed."""
    late = [job for job in jobs if not all(_was_done_before(job, blocker) for blocker in blockers)]
    wrong = [f"job {job.pk} was not" for job in late]
    began = [datetime.fromisoformat(blocker.errors[0]["at"]) if blocker.errors else None for blocker in blockers]
    meanwhile = [job for job in jobs if None not in began and job.done_at and job.done_at > max(began)]
    text = f"{len(meanwhile)} jobs of the other queues were done while these were blocked"
    return Finding(bool(meanwhile) and not wrong, text + _but(wrong))


def _mails_are_right(customer, jobs):
    arrived = [mail["Message-ID"] for mail in mails_to(customer.email)]
    expected = [message_id(job) for job in jobs if job.action not in BOOKINGS]
    wrong = [] if arrived == expected else [f"expected {expected}, arrived {arrived}"]
    return Finding(not wrong, f"{customer.queue} got exactly its {len(expected)} mails, in order" + _but(wrong))


def _bookings_are_right(customer, jobs):
    orders = Order.objects.in_bulk()
    expected = [
        (idempotency_key(job), BOOKINGS[job.action], job.params["order_id"], orders[job.params["order_id"]].amount)
        for job in jobs
        if job.action in BOOKINGS
    ]
    bookings = Booking.objects.filter(customer=customer.email).order_by("pk")
    booked = list(bookings.values_list("key", "kind", "order", "amount"))
    wrong = [] if booked == expected else [f"expected {expected}, booked are {booked}"]
    text = f"The provider has exactly {len(expected)} bookings for {customer.queue}, in order"
    return Finding(not wrong, text + _but(wrong))


def _was_done_before(job, other):
    return job.done_at is not None and other.done_at is not None and job.done_at < other.done_at


def _but(wrong):
    return f", but {'; '.join(wrong)}." if wrong else "."
