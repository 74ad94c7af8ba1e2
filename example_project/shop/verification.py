"""Proves, from the database and the mail files alone, what the demo has shown."""

from datetime import datetime
from itertools import pairwise
from typing import NamedTuple

from .mailbox import mails_to
from .orders import MAILS
from .queues import MailQueue, message_id


class Finding(NamedTuple):
    is_true: bool
    text: str


def verify(customers, down, *, orders_each, failures):
    """Return the findings about the customers, of whom ``down`` had its mail server down.

    orders_each: how many orders each of them placed. failures: how many failed attempts were seen at least.
    """
    lines = {customer: list(MailQueue.list_jobs(queue=customer.queue)) for customer in customers}
    blocker = max(lines[down], key=lambda job: job.attempts)
    return [
        _all_are_done(lines, orders_each * len(MAILS)),
        _only_one_failed(lines, blocker, failures),
        _in_order(lines),
        _nothing_passed(lines[down], blocker),
        _nobody_waited([job for customer in customers if customer != down for job in lines[customer]], blocker),
        *(_mails_are_right(customer, jobs) for customer, jobs in lines.items()),
    ]


def _all_are_done(lines, jobs_each):
    done = sum(job.state == job.State.DONE for jobs in lines.values() for job in jobs)
    expected = jobs_each * len(lines)
    complete = all(len(jobs) == jobs_each for jobs in lines.values())
    return Finding(complete and done == expected, f"{done} of {expected} jobs are done.")


def _only_one_failed(lines, blocker, failures):
    errors = [entry["type"] for entry in blocker.errors]
    others = [job.pk for jobs in lines.values() for job in jobs if job != blocker and (job.attempts > 1 or job.errors)]
    wrong = [f"job {pk} failed too" for pk in others]
    if len(errors) < failures or blocker.attempts != len(errors) + 1 or set(errors) != {"ConnectionRefusedError"}:
        wrong.append(f"{failures} refused connections were seen, and its errors are {errors}")
    text = f"Job {blocker.pk} of {blocker.queue} failed {len(errors)} times and was done at attempt {blocker.attempts}"
    return Finding(not wrong, text + _but(wrong))


def _in_order(lines):
    wrong = [
        f"job {later.pk} started before job {job.pk} was done"
        for jobs in lines.values()
        for job, later in pairwise(jobs)
        if not _started_after(later, job)
    ]
    return Finding(not wrong, "In every queue, each job started after the one before it was done" + _but(wrong))


def _nothing_passed(jobs, blocker):
    behind = jobs[jobs.index(blocker) + 1 :]
    wrong = [f"job {job.pk} did not" for job in behind if not _started_after(job, blocker)]
    text = f"All {len(behind)} jobs behind job {blocker.pk} started after it was done" + _but(wrong)
    return Finding(bool(behind) and not wrong, text)


def _nobody_waited(jobs, blocker):
    """Every job of the other queues was done before the blocker, and some of them began after it had failed."""
    late = [job for job in jobs if not (job.done_at and blocker.done_at and job.done_at < blocker.done_at)]
    wrong = [f"job {job.pk} was not" for job in late]
    began = [datetime.fromisoformat(entry["at"]) for entry in blocker.errors[:1]]
    meanwhile = [job for job in jobs if began and job.attempted_at and job.attempted_at > began[0]]
    text = f"{len(meanwhile)} jobs of the other queues began and ended while {blocker.queue} was blocked"
    return Finding(bool(meanwhile) and not wrong, text + _but(wrong))


def _mails_are_right(customer, jobs):
    arrived = [mail["Message-ID"] for mail in mails_to(customer.email)]
    expected = [message_id(job) for job in jobs]
    wrong = [] if arrived == expected else [f"expected {expected}, arrived {arrived}"]
    return Finding(not wrong, f"{customer.queue} got exactly its {len(expected)} mails, in order" + _but(wrong))


def _started_after(later, job):
    return later.attempted_at is not None and job.done_at is not None and later.attempted_at >= job.done_at


def _but(wrong):
    return f", but {'; '.join(wrong)}." if wrong else "."
