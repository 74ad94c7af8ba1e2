"""The verbs of operators: on a job, a queue, a scope, or everything.

Each verb takes the queue's row first (raising its ``rev``), then the job's, in one transaction, and leaves a JobEvent:
so a verb and the running claim never decide on the same thing twice.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import contextmanager
from datetime import timedelta
from functools import partial, wraps
from typing import Any

from django.db import OperationalError, connections, transaction
from django.db.models import F

from .. import conf, signals
from .. import params as params_module
from ..attempts import memory_text
from ..backends import backend_for, breakers
from ..decisions import HEAD_START
from ..exceptions import InvalidJob, InvalidMemory, Refused
from ..lines import is_own, row_name
from ..models import UNBEGUN, Job, JobEvent, Queue, Scope
from ..text import masked, storable
from ..times import local
from .creating import check_params, check_queue, check_scheduled_at, create
from .sending import send, send_unblocked

logger = logging.getLogger("queuetopia.jobs")

LOOK_FOR_CLAIMS = 0.05  # seconds between two checks whether a claim has begun or was given back
DEADLOCKS = 5  # in a row, after which a verb gives up


def again_after_deadlock(alias, act: Callable[[], Any]) -> Any:
    """Run ``act`` in a transaction; retry it after a deadlock or a serialization failure. Return what it returns.

    Raises Refused after ``DEADLOCKS`` such failures in a row. Inside a transaction of the caller's there is no retry:
    what the caller had done in it is gone too, so the database's error comes through.
    """
    for tried in range(DEADLOCKS):
        if tried:  # at once it could be first at the rows again that the other one waits for
            time.sleep(tried * random.uniform(0.02, 0.1))  # noqa: S311
        try:
            return act()
        except OperationalError as exc:
            if connections[alias].in_atomic_block or not backend_for(alias).is_deadlock(exc):
                raise
            deadlock = exc
    raise Refused(
        f"The database aborted this {DEADLOCKS} times because of concurrent transactions (a deadlock, or isolation). "
        "Nothing was changed; try again."
    ) from deadlock


def persons_verb(verb):
    @wraps(verb)
    def retried(queuetopia, *args, **kwargs):
        return again_after_deadlock(queuetopia.database(), partial(verb, queuetopia, *args, **kwargs))

    return retried


def _verb_on_job(verb):
    """Make a verb of a job wait first until a claim of it has begun or was given back."""
    retried = persons_verb(verb)

    @wraps(verb)
    def at_rest(queuetopia, job, *args, **kwargs):
        _wait_for_claims(queuetopia.database(), scope=queuetopia.scope, **_queues_of(job))
        return retried(queuetopia, job, *args, **kwargs)

    return at_rest


def _queues_of(job):
    return {"current_job": pk_of(job)}


def pk_of(job):
    """Return the id of a Job, or the id that was given. Raises Refused for what is neither."""
    if isinstance(job, Job):
        return job.pk
    try:
        return int(job)
    except (TypeError, ValueError):
        raise Refused(f"A job is named by a Job or its id, an int; {job!r} is neither.") from None


def _wait_for_claims(alias, **queues) -> None:
    """Wait until the jobs of these held queues have begun, or their node has given them back: a second at most.

    Not inside a transaction of the caller's, which may not see that, or may have the rows locked.
    """
    if connections[alias].in_atomic_block:
        return
    claimed_after = backend_for(alias).now() - UNBEGUN
    claimed = Queue.objects.using(alias).held().filter(held_since__gt=claimed_after, **queues)
    claims = set(claimed.values_list("pk", "fence"))
    until = time.monotonic() + UNBEGUN.total_seconds()
    while claims and time.monotonic() < until:
        time.sleep(LOOK_FOR_CLAIMS)
        queues = {"pk__in": [pk for pk, _ in claims]}
        held = Queue.objects.using(alias).held().filter(**queues)
        claims &= set(held.values_list("pk", "fence"))


@_verb_on_job
def retry(queuetopia, job, *, by="", reason="") -> Job:
    """Make the next attempt of a backing-off or halted job now; a halted job gets one attempt more.

    ``job`` is a Job or its id. Returns the job as stored. Raises Refused when the job is running, has ended or
    was never attempted.
    """
    with _verb(queuetopia, job, "retry", by, reason) as verb:
        verb.refuse_unless_blocked("retried")
        verb.retry()
    return verb.job


@_verb_on_job
def edit(queuetopia, job, params, *, was=None, by="", reason="") -> Job:
    """Give a job other params; a backing-off or halted one is retried with them at once.

    ``job`` is a Job or its id. Returns the job as stored. The params are checked as ``create_job`` checks them; old
    and new ones are kept with who did it and why, sensitive ones masked.

    was: the params this edit began with; it is refused if they are others by now.

    Raises InvalidJob for params that the action would not take, Refused when the job is running or has ended.
    """
    with _verb(queuetopia, job, "edit", by, reason) as verb:
        verb.refuse_unless_at_rest("edited")
        if was is not None and verb.job.params != was:
            raise Refused(f"Job {verb.job.pk} cannot be edited: its params have changed meanwhile. Check them again.")
        problems: dict[str, list[str]] = {}
        check_params(queuetopia, verb.job.action, params, problems)
        if problems:
            raise InvalidJob(problems)
        verb.note_params(verb.job.params, params)
        verb.job.params = params
        verb.job.save(using=verb.alias, update_fields=["params"])
        if verb.job.attempted_at is not None:
            verb.retry()
    return verb.job


@_verb_on_job
def move_to_end(queuetopia, job, *, by="", reason="") -> Job:
    """Let the other jobs of its queue that are due go before this one; return the job that stands at the end now.

    ``job`` is a Job or its id. One that was never attempted gets the present as its ``scheduled_at``. One that is
    backing off or halted holds its queue until it ends, whatever its time: it is ``skipped``, and a copy of it, which
    is returned, is created at the end. Raises Refused when the job is running, has ended or is scheduled for later.
    """
    with _verb(queuetopia, job, "move_to_end", by, reason) as verb:
        verb.refuse_unless_at_rest("moved")
        if verb.job.attempted_at is None:
            return verb.join_line_again()
        return verb.end_and_copy(by, reason)


@_verb_on_job
def run_now(queuetopia, job, *, by="", reason="") -> Job:
    """Make a job that is scheduled for later due now; return the job as stored.

    ``job`` is a Job or its id. Its ``scheduled_at`` becomes the present, so it goes behind the jobs of its queue that
    are due already. Raises Refused when the job is due, holds its queue, is running or has ended.
    """
    with _verb(queuetopia, job, "run_now", by, reason) as verb:
        verb.refuse_unless_at_rest("run now")
        verb.schedule_now()
    return verb.job


@_verb_on_job
def reschedule(queuetopia, job, at, *, by="", reason="") -> Job:
    """Give a job that was never attempted another time; return the job as stored.

    ``job`` is a Job or its id. ``at``: an aware datetime, later than now: its ``scheduled_at``, and so its place in
    line. ``run_now`` makes it due. Raises InvalidJob for a wrong time, Refused when the job holds its queue, is running
    or has ended.
    """
    problems: dict[str, list[str]] = {}
    check_scheduled_at(at, problems)
    if problems or at is None:
        raise InvalidJob({"at": problems.get("scheduled_at") or ["is no time; run_now makes a job due."]})
    with _verb(queuetopia, job, "reschedule", by, reason) as verb:
        verb.refuse_unless_at_rest("rescheduled")
        verb.schedule_at(at)
    return verb.job


@_verb_on_job
def mark_done(queuetopia, job, *, by="", reason="") -> Job:
    """Take a job for done, because its work was done in another way; its queue goes on.

    ``job`` is a Job or its id, waiting anywhere in line, backing off or halted. Returns the job as stored, without a
    result. Raises Refused when the job is running or has ended.
    """
    with _verb(queuetopia, job, "mark_done", by, reason) as verb:
        verb.refuse_unless_at_rest("marked as done")
        verb.forget_error()
        verb.end(Job.State.DONE)
        verb.send_after_commit(signals.job_done, job=verb.job)
        verb.notify_unblocked()
    return verb.job


@_verb_on_job
def skip(queuetopia, job, *, by="", reason="") -> Job:
    """Give a backing-off or halted job up (``skipped``); its queue goes on at once.

    ``job`` is a Job or its id. Returns the job as stored. Raises Refused when the job is running, has ended or
    was never attempted.
    """
    with _verb(queuetopia, job, "skip", by, reason) as verb:
        verb.refuse_unless_blocked("skipped")
        verb.skip()
    return verb.job


def cancel(queuetopia, job, *, by="", reason="") -> str:
    """Cancel a job that was never attempted, anywhere in line; ask a running one to stop.

    ``job`` is a Job or its id. Returns "cancelled", "running" (its worker is asked to stop it; should it finish
    first, it is done) or "finished" (it had ended before). Raises Refused when the job was attempted and is not
    running: that one is skipped or retried. Waits up to a second for a job that a node has just claimed.
    """
    answer = _cancel(queuetopia, job, by=by, reason=reason)
    if answer == "running":
        _wait_for_claims(queuetopia.database(), scope=queuetopia.scope, **_queues_of(job))
        never_began = queuetopia.jobs().filter(pk=pk_of(job), state=Job.State.CANCELLED, attempted_at=None)
        return "cancelled" if never_began.exists() else answer
    return answer


@persons_verb
def _cancel(queuetopia, job, *, by, reason) -> str:
    with _verb(queuetopia, job, "cancel", by, reason) as verb:
        if verb.job.is_ended():
            verb.leave_no_event()
            return "finished"
        if verb.is_running():
            if verb.job.pk != verb.queue.current_job:
                raise Refused(f"Job {verb.job.pk} cannot be cancelled: {why_not_at_rest(verb.job, verb.queue)}")
            verb.update_queue(stop_requested=True)
            return "running"
        if verb.job.attempted_at is not None and not verb.job.is_outside():
            raise Refused(f"Job {verb.job.pk} has been attempted and holds its queue: skip it, or retry it.")
        verb.end(Job.State.CANCELLED)
        verb.send_after_commit(signals.job_cancelled, job=verb.job)
        verb.notify_unblocked()
    return "cancelled"


def why_not_at_rest(job, running) -> str | None:
    """Return that a job has ended or runs; ``running`` is the row of its queue if that runs it."""
    if job.is_ended():
        return f"it is {job.state} since {local(job.done_at)}."
    if running:
        since = f"attempt {running.attempt} since {local(running.held_since)}"
        if job.pk != running.current_job:
            return f"it is done together with job {running.current_job}, {since}. Wait for the end, or cancel that one."
        return f"it is running, {since}. Wait for its end, or cancel it first."
    return None


def why_not_blocked(job) -> str | None:
    return "it waits in line and was never attempted. Cancel it." if job.attempted_at is None else None


class _Verb:
    """One verb at work on one job: both rows are locked, and what it does is kept as a JobEvent."""

    def __init__(self, queuetopia, alias, job, queue):
        self.queuetopia, self.alias, self.job, self.queue = queuetopia, alias, job, queue
        self.now = backend_for(alias).now()
        self.before = self._state()
        self.had_failed = bool(job.error)
        self.noted_before: dict[str, Any] = {}  # what else the event keeps
        self.noted_after: dict[str, Any] = {}
        self.leaves_event = True

    def _state(self):
        return {"state": self.job.state, "attempts": self.job.attempts, "running": self.is_running()}

    def is_running(self):
        return self.queue.runs(self.job.pk)

    def refuse_unless_blocked(self, participle):
        self.refuse_unless_at_rest(participle)
        if why := why_not_blocked(self.job):
            raise Refused(f"Job {self.job.pk} cannot be {participle}: {why}")

    def refuse_unless_at_rest(self, participle):
        """Refuse a job that is running or has ended."""
        if why := why_not_at_rest(self.job, self.queue if self.is_running() else None):
            raise Refused(f"Job {self.job.pk} cannot be {participle}: {why}")

    def retry(self):
        job = self.job
        most = job.max_attempts or self.queuetopia.option("max_attempts")
        if job.state == Job.State.HALTED and job.attempts >= most:
            job.max_attempts = job.attempts + 1
        job.state = Job.State.PENDING
        job.next_attempt_at = self.now
        job.outside = None
        job.save(using=self.alias, update_fields=["state", "next_attempt_at", "max_attempts", "outside"])
        if self.queue.current_job in (None, job.pk):
            self.update_queue(due_at=self.now)
        # Else it was moved there, and waits behind the head: its turn will come.

    def skip(self):
        self.end(Job.State.SKIPPED)
        self.send_after_commit(signals.job_skipped, job=self.job, exc=None)
        self.notify_unblocked()

    def schedule_now(self):
        job = self.job
        if job.attempted_at is not None:
            raise Refused(f"Job {job.pk} cannot be run now: it has been attempted and holds its queue. Retry it.")
        if job.scheduled_at <= self.now:
            raise Refused(
                f"Job {job.pk} cannot be run now: it is due since {local(job.scheduled_at)}, and waits for its turn."
            )
        self.note_time(self.now)
        job.scheduled_at = self.now
        job.save(using=self.alias, update_fields=["scheduled_at"])

    def schedule_at(self, at):
        job = self.job
        if job.attempted_at is not None:
            raise Refused(f"Job {job.pk} cannot be rescheduled: it has been attempted and holds its queue. Retry it.")
        if at <= self.now:
            raise InvalidJob({"at": [f"is over: it is {local(self.now)} now; run_now makes a job due."]})
        self.note_time(at)
        job.scheduled_at = at
        job.save(using=self.alias, update_fields=["scheduled_at"])

    def note_time(self, at):
        self.noted_before["scheduled_at"] = self.job.scheduled_at.isoformat()
        self.noted_after["scheduled_at"] = at.isoformat()

    def join_line_again(self) -> Job:
        """Set a waiting job's time behind those of all jobs that are due; return it."""
        job = self.job
        if job.scheduled_at > self.now:
            raise Refused(
                f"Job {job.pk} cannot be moved: it is scheduled for {local(job.scheduled_at)}, and "
                "joins the line only then."
            )
        due = Job.objects.using(self.alias).unfinished().in_queue(job.scope, job.queue)
        last = due.filter(scheduled_at__lte=self.now).in_order().values_list("scheduled_at", flat=True).last()
        self.noted_before["scheduled_at"] = job.scheduled_at.isoformat()
        # SQLite's clock has milliseconds: a job created in this one would come later by its id only.
        job.scheduled_at = max(self.now, last + timedelta(microseconds=1))
        self.noted_after["scheduled_at"] = job.scheduled_at.isoformat()
        job.save(using=self.alias, update_fields=["scheduled_at"])
        return job

    def end_and_copy(self, by, reason) -> Job:
        """Skip the blocking job and create the same one anew at the end of its queue; return that."""
        job = self.job
        self.skip()
        same = {
            name: getattr(job, name) for name in ("scope", "queue", "action", "params", "unique_key", *conf.JOB_OPTIONS)
        }
        (copy,) = create(self.queuetopia, [Job(**same)])
        self.noted_after["copy"] = copy.pk
        _leave_event(self.alias, "move_to_end", by, reason, copy.scope, copy.queue, copy.pk, {"copy_of": job.pk}, {})
        return copy

    def note_params(self, old, new):
        sensitive = self.queuetopia.option("sensitive_params")
        self.noted_before["params"] = _as_json(masked(old, sensitive))
        self.noted_after["params"] = _as_json(masked(new, sensitive))
        if isinstance(old, dict):  # masked, they look the same
            self.noted_after["changed"] = _changed_names(old, new)

    def end(self, state):
        self.job.state, self.job.done_at, self.job.next_attempt_at = state, self.now, None
        self.job.outside = None
        self.job.save(using=self.alias, update_fields=["state", "done_at", "next_attempt_at", "outside"])
        if self.queue.current_job == self.job.pk:
            # Due, not cleared: the next claim finds the new head or empties the queue, and checks again.
            self.update_queue(current_job=None, due_at=self.now)

    def update_queue(self, **values):
        Queue.objects.using(self.alias).filter(pk=self.queue.pk).update(**values)

    def forget_error(self):
        """Write what a success writes: earlier failures stand in the history."""
        self.job.error = ""
        self.job.save(using=self.alias, update_fields=["error"])

    def notify_unblocked(self):
        if self.had_failed:
            unblocked = partial(send_unblocked, self.queuetopia, self.job, self.job.failed_at or self.job.attempted_at)
            transaction.on_commit(unblocked, using=self.alias, robust=True)

    def send_after_commit(self, signal, **arguments):
        transaction.on_commit(partial(send, signal, self.queuetopia, **arguments), using=self.alias, robust=True)

    def leave_no_event(self):
        self.leaves_event = False

    def leave_event(self, verb, by, reason):
        if self.leaves_event:
            before, after = {**self.before, **self.noted_before}, {**self._state(), **self.noted_after}
            _leave_event(self.alias, verb, by, reason, self.job.scope, self.job.queue, self.job.pk, before, after)


def _changed_names(old: dict, new: dict) -> list[str]:
    return sorted(name for name in {*old, *new} if name not in old or name not in new or old[name] != new[name])


def _as_json(params):
    """Return params as they are stored, for a column that is read without their types."""
    return json.loads(json.dumps(params, cls=params_module.ParamsEncoder))


@contextmanager
def _verb(queuetopia, job, verb, by, reason):
    alias = queuetopia.database()
    pk = pk_of(job)
    jobs = Job.objects.using(alias).filter(scope=queuetopia.scope, pk=pk)
    with transaction.atomic(using=alias):
        queue_name = jobs.values_list("queue", flat=True).first()
        if queue_name is None:
            raise Refused(f"There is no job {pk} in {queuetopia.scope}.")
        queue = _locked_queue(alias, queuetopia.scope, queue_name)
        work = _Verb(queuetopia, alias, jobs.select_for_update().get(), queue)
        yield work
        work.leave_event(verb, by, reason)
        transaction.on_commit(partial(_recheck, alias, queue.pk), using=alias, robust=True)


def _locked_queue(alias, scope, name) -> Queue:
    """Return the queue's row, locked until the transaction ends, its ``rev`` raised; make it if there is none."""
    row = Queue.objects.using(alias).filter(pk=backend_for(alias).queue_id(scope, name))
    row.update(rev=F("rev") + 1)
    return row.select_for_update().get()


def _recheck(alias, queue_id):
    """Check for jobs whose creator gave up waiting for the row lock."""
    backend = backend_for(alias)
    again_after_deadlock(alias, partial(backend.recheck, [queue_id]))
    backend.notify()


def recheck_all(alias, queue_ids):
    backend = backend_for(alias)
    again_after_deadlock(alias, partial(backend.recheck, queue_ids))
    backend.notify()


def _leave_event(alias, verb, by, reason, scope, queue="", job=None, before=None, after=None):
    JobEvent.objects.using(alias).create(
        verb=verb,
        scope=scope,
        queue=queue,
        job=job,
        by=storable(by, 255),
        reason=storable(reason, 500),
        before=before or {},
        after=after or {},
    )


def prioritize(queuetopia, queue, seconds=HEAD_START, *, by="", reason="") -> None:
    """Give a queue that waits for a worker a head start: it stands in line as if due so many seconds earlier.

    seconds: a number or a timedelta. It stands before what has become due up to that much earlier, among the queues of
    its scope and of others of the same priority. Once: when its head has started, the queue is like any other.

    Raises Refused when nothing of the queue is ready to start, InvalidJob for a wrong name or number of seconds.
    """
    alias, scope = queuetopia.database(), queuetopia.scope
    problems: dict[str, list[str]] = {}
    check_queue(queue, problems)
    try:
        seconds = conf.clean_seconds(seconds, above=0)
    except ValueError as exc:
        problems["seconds"] = [f"{exc}."]
    if problems:
        raise InvalidJob(problems)
    _refuse_name_of_many(queuetopia, queue)
    again_after_deadlock(alias, partial(_give_head_start, alias, scope, row_name(queue), seconds, by, reason))


def _give_head_start(alias, scope, queue, seconds, by, reason):
    with transaction.atomic(using=alias):
        found = Queue.objects.using(alias).filter(scope=scope, name=queue)
        row, now = found.select_for_update().first(), backend_for(alias).now()
        if row is None:
            raise Refused(f"There is no queue {queue} in {scope}.")
        if row.held_by is not None:
            raise Refused(f"{row} runs job {row.current_job} already.")
        if row.due_at is None or row.due_at > now:
            raise Refused(f"Nothing of {row} is ready to start: explain says why.")
        due_at = row.due_at - timedelta(seconds=seconds)
        found.update(due_at=due_at, rev=F("rev") + 1)
        before, after = {"due_at": row.due_at.isoformat()}, {"due_at": due_at.isoformat()}
        _leave_event(alias, "prioritize", by, reason, scope, queue, None, before, after)
        transaction.on_commit(backend_for(alias).notify, using=alias, robust=True)


def edit_memory(queuetopia, queue, memory, *, was=None, by="", reason="") -> None:
    """Replace what a queue remembers: its next attempt is handed this as ``job.memory``.

    memory: a dict of what params can hold; {} clears it. The queue may have had no job so far. Old and new ones are
    kept with who did it and why, sensitive ones masked. Waits up to a second for a job that a node has just claimed.
    was: the memory this edit began with; it is refused if it is another one by now.

    Raises InvalidJob for a memory that cannot be stored, Refused while a job of the queue runs, or goes on outside: it
    may change the memory, too.
    """
    problems: dict[str, list[str]] = {}
    check_queue(queue, problems)
    try:
        memory_text(memory)
    except InvalidMemory as exc:
        problems["memory"] = [f"{exc}."]
    if problems:
        raise InvalidJob(problems)
    _refuse_name_of_many(queuetopia, queue)
    alias = queuetopia.database()
    _wait_for_claims(alias, scope=queuetopia.scope, name=queue)
    again_after_deadlock(alias, partial(_write_memory, queuetopia, alias, row_name(queue), memory, was, by, reason))


def _write_memory(queuetopia, alias, queue, memory, was, by, reason):
    with transaction.atomic(using=alias):
        row = _locked_queue(alias, queuetopia.scope, queue)
        head = row.current_job and Job.objects.using(alias).defer("params", "errors").filter(pk=row.current_job).first()
        if row.held_by is not None or (head and head.is_outside()):
            raise Refused(
                f"The memory of {row} cannot be edited: job {row.current_job} runs, and may change it. Wait for its "
                "end, or cancel it first."
            )
        old = {} if row.memory is None else row.memory
        if was is not None and old != was:
            raise Refused(f"The memory of {row} cannot be edited: it has changed meanwhile. Check it again.")
        Queue.objects.using(alias).filter(pk=row.pk).update(memory=memory)
        sensitive = queuetopia.option("sensitive_params")
        before, after = ({"memory": _as_json(masked(value, sensitive))} for value in (old, memory))
        if isinstance(old, dict):  # masked, they look the same
            after["changed"] = _changed_names(old, memory)
        _leave_event(alias, "edit_memory", by, reason, row.scope, row.name, None, before, after)
        transaction.on_commit(partial(_recheck, alias, row.pk), using=alias, robust=True)


def pause(queuetopia, queue=None, *, by="", reason=""):
    """Start nothing new in the queue (None: in the whole scope) until it is resumed; the running job finishes.

    Pausing what is paused replaces who and why. A queue may be paused before its first job. Waits up to a second for
    what nodes have just claimed: it has begun by then, or was given back and does not start.
    """
    alias, scope = queuetopia.database(), queuetopia.scope
    _refuse_name_of_many(queuetopia, queue)
    again_after_deadlock(alias, partial(_set_pause, alias, scope, row_name(queue), "pause", by, reason))
    _wait_for_claims(alias, scope=scope, **({} if queue is None else {"name": queue}))


def resume(queuetopia, queue=None, *, by="", reason=""):
    """Serve a paused queue (None: the scope) again, at once; a scope also if a job has snoozed it.

    The breaker of a scope is closed: what waits for the end of an outage starts now, all of it.

    Raises Refused when it is not paused.
    """
    alias, scope = queuetopia.database(), queuetopia.scope
    _refuse_name_of_many(queuetopia, queue)
    again_after_deadlock(alias, partial(_set_pause, alias, scope, row_name(queue), "resume", by, reason))


def _refuse_name_of_many(queuetopia, queue):
    """Refuse a name that independent jobs were given: each of them has a queue of its own."""
    if queuetopia.option("ordered") or not isinstance(queue, str) or is_own(row_name(queue)):
        return
    waiting = Job.objects.using(queuetopia.database()).unfinished().in_queue(queuetopia.scope, queue)
    rows = Queue.objects.using(queuetopia.database()).filter(scope=queuetopia.scope, name=queue)
    if not (rows.exists() or waiting.exists()):  # what was created while the class had an order
        raise Refused(
            f"{queue} is no queue: the jobs of {queuetopia.scope} need no order (ordered = False), so each has a queue "
            "of its own. Name that one (job.row_name), pause the whole scope, or cancel jobs."
        )


def pause_all(alias, *, by="", reason=""):
    """Start nothing new in any scope of a database, known to this code or not, until ``resume_all``.

    One row says so: scopes and queues that get their first job later are held too, and the pauses of scopes and queues
    stay as they are. Waits as ``pause`` does. Pausing again replaces who and why.
    """
    again_after_deadlock(alias, partial(_set_pause, alias, Scope.EVERYTHING, None, "pause", by, reason))
    _wait_for_claims(alias)


def resume_all(alias, *, by="", reason=""):
    """End what ``pause_all`` began. Raises Refused when it did not; what else is paused stays so."""
    again_after_deadlock(alias, partial(_set_pause, alias, Scope.EVERYTHING, None, "resume", by, reason))


def _set_pause(alias, scope, queue, verb, by, reason):
    values: dict[str, Any] = {"paused_at": None, "paused_by": "", "paused_reason": ""}
    if verb == "pause":
        now = backend_for(alias).now()
        values = {"paused_at": now, "paused_by": storable(by, 255), "paused_reason": storable(reason, 500)}
    if queue is not None:
        problems: dict[str, list[str]] = {}
        check_queue(queue, problems)
        if problems:
            raise InvalidJob(problems)
    with transaction.atomic(using=alias):
        if queue is None:
            Scope.objects.using(alias).bulk_create([Scope(name=scope)], ignore_conflicts=True)
            row: Scope | Queue = Scope.objects.using(alias).select_for_update().get(name=scope)
            after_commit = backend_for(alias).notify
        else:
            row = _locked_queue(alias, scope, queue)
            after_commit = partial(_recheck, alias, row.pk)
        rest = _what_ends_rest(row, backend_for(alias).now()) if verb == "resume" else {}
        if verb == "resume" and row.paused_at is None and not rest:
            raise Refused(f"{_paused_place(alias, scope, queue)} is not paused.")
        values |= rest
        before = {"paused": row.paused_at is not None, "by": row.paused_by, "reason": row.paused_reason}
        type(row).objects.using(alias).filter(pk=row.pk).update(**values)
        _leave_event(
            alias, verb, by, reason, scope, queue or "", None, before, {"paused": values["paused_at"] is not None}
        )
        # due_at is kept up to date while a queue is paused, so that a wake-up is all that resuming needs.
        transaction.on_commit(after_commit, using=alias, robust=True)


def _what_ends_rest(row, now) -> dict[str, Any]:
    """Return the values that end what else than a pause keeps a scope from starting jobs: a snooze, an outage."""
    if not isinstance(row, Scope):
        return {}
    is_snoozed = row.snoozed_until is not None and row.snoozed_until > now
    return {**({"snoozed_until": None} if is_snoozed else {}), **({} if row.ramp is None else breakers.AT_REST)}


def _paused_place(alias, scope, queue):
    if scope == Scope.EVERYTHING:
        return f"Everything in database {alias}"
    return scope if queue is None else f"{scope}/{queue}"
