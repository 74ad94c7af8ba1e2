"""The life of a job, in order: build, create, decide what an attempt's end means, what a person can do, delete.

Every function that a person's verb calls takes the queue's row first (raising its ``rev``), then the job's, in
one transaction, and leaves a JobEvent: so a verb and the running claim never decide on the same thing twice.
"""

import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from datetime import datetime, timedelta
from difflib import get_close_matches
from functools import partial, wraps
from typing import Any

from django.db import OperationalError, connections, transaction
from django.db.models import F
from django.utils import timezone

from . import conf, signals
from . import params as params_module
from .attempts import Claim, Outcome, Verdict, backoff, describe, masked, raised, secrets_of, storable
from .backends import backend_for
from .backends.base import has_no_time
from .exceptions import InvalidJob, Refused
from .models import Job, JobEvent, Queue, Scope
from .performer import known_actions, param_problems

logger = logging.getLogger(__name__)

MAX_NAME = 255
MOST_COUNTED = 1_000  # waiting jobs counted for a signal
DEADLOCKS = 5  # in a row, after which a person's verb gives up


# Build and create


def build(queuetopia, *, queue, action, params, scheduled_at, **options) -> Job:
    """Return an unsaved Job, or raise InvalidJob with every problem found, keyed by argument."""
    params = {} if params is None else params
    given = {name: value for name, value in options.items() if value is not None}
    if scheduled_at is not None:
        given["scheduled_at"] = scheduled_at
    if problems := _problems(queuetopia, queue, action, params, given):
        raise InvalidJob(problems)
    for name, clean in conf.JOB_OPTIONS.items():
        if name in given:
            given[name] = clean(given[name])
    return Job(scope=queuetopia.scope, queue=queue, action=action, params=params, **given)


def _problems(queuetopia, queue, action, params, given) -> dict[str, list[str]]:
    """Return everything that would keep such a job from being stored or run, keyed by argument."""
    problems: dict[str, list[str]] = {}
    _check_queue(queue, problems)
    _check_action(queuetopia, action, problems)
    _check_params(queuetopia, action, params, problems)
    _check_scheduled_at(given.get("scheduled_at"), problems)
    for name, clean in conf.JOB_OPTIONS.items():
        if name not in given:
            continue
        try:
            clean(given[name])
        except (ValueError, TypeError, OverflowError) as exc:
            problems[name] = [f"{exc}. Leave it out to use the option of {queuetopia.__name__}."]
    return problems


def _check_queue(queue, problems):
    if not isinstance(queue, str):
        problems["queue"] = [f"must be a str, not {type(queue).__name__}."]
    elif not 1 <= len(queue) <= MAX_NAME:
        problems["queue"] = [f"has {len(queue)} characters; a queue's name has 1 to {MAX_NAME}."]
    elif problem := params_module.text_problem(queue):
        problems["queue"] = [f"{problem}."]


def _check_action(queuetopia, action, problems):
    if not isinstance(action, str):
        problems["action"] = [f"must be a str, not {type(action).__name__}."]
        return
    known = known_actions(queuetopia.performer)
    if known is None or action in known:
        if not 1 <= len(action) <= MAX_NAME:
            problems["action"] = [f"has {len(action)} characters; an action's name has 1 to {MAX_NAME}."]
        elif problem := params_module.text_problem(action):
            problems["action"] = [f"{problem}."]
        return
    close = get_close_matches(action, known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"it knows: {', '.join(sorted(known)) or 'none'}."
    problems["action"] = [f"{queuetopia.performer.__name__} has no action {action[:100]!r}; {hint}"]


def _check_params(queuetopia, action, params, problems):
    try:
        size = len(params_module.dumps(params))
    except params_module.InvalidParams as exc:
        problems["params"] = [f"{exc}."]
        return
    limit = conf.setting("MAX_PARAMS_BYTES")
    if size > limit:
        problems["params"] = [
            f"take {size} bytes as JSON, over QUEUETOPIA['MAX_PARAMS_BYTES'] = {limit}; store the data elsewhere "
            "and pass its key."
        ]
    elif isinstance(action, str) and (wrong := param_problems(queuetopia.performer, action, params)):
        problems["params"] = [f"{problem}." for problem in wrong]


def _check_scheduled_at(scheduled_at, problems):
    if scheduled_at is None:
        return
    if not isinstance(scheduled_at, datetime):
        problems["scheduled_at"] = [f"must be an aware datetime, not {type(scheduled_at).__name__}."]
    elif timezone.is_naive(scheduled_at):
        problems["scheduled_at"] = ["is a naive datetime; use django.utils.timezone.now() or make_aware()."]
    elif not 1971 <= scheduled_at.year <= 9998:
        problems["scheduled_at"] = [f"is in the year {scheduled_at.year}, outside 1971-9998."]


def create_many(queuetopia, jobs: list) -> list[Job]:
    """Validate all jobs, then ``create`` them."""
    _check_bulk(queuetopia, jobs)
    return create(queuetopia, jobs)


def create(queuetopia, jobs: list[Job]) -> list[Job]:
    """INSERT the jobs in the caller's transaction; after commit wake the schedulers and send job_created."""
    if not jobs:
        return jobs
    alias = queuetopia.database()
    commit_ordered = queuetopia.option("commit_ordered")
    with transaction.atomic(using=alias) if commit_ordered or len(jobs) > 1 else nullcontext():
        if commit_ordered:
            backend_for(alias).lock_order(queuetopia.scope, {job.queue for job in jobs})
        backend_for(alias).insert(jobs)
        transaction.on_commit(partial(_announce, queuetopia, jobs, alias), using=alias, robust=True)
    return jobs


def _check_bulk(queuetopia, jobs: list):
    """Refuse what ``job()`` did not make, and what was changed to something wrong since."""
    make = f"{queuetopia.__name__}.job()"
    problems: dict[str, list[str]] = {}
    seen: set[int] = set()
    for index, job in enumerate(jobs):
        name = f"jobs[{index}]"
        if not isinstance(job, Job):
            problems[name] = [f"is a {type(job).__name__}; make it with {make}."]
        elif job.scope != queuetopia.scope:
            problems[f"{name}.scope"] = [f"is {job.scope!r}; make it with {make}."]
        elif not job._state.adding:
            problems[name] = [f"was stored before, as job {job.pk}; make a new one with {make}."]
        elif id(job) in seen:
            problems[name] = [f"stands in the list twice; make a second one with {make}."]
        else:
            seen.add(id(job))
            wrong = _problems(queuetopia, job.queue, job.action, job.params, _given(job))
            problems |= {f"{name}.{argument}": texts for argument, texts in wrong.items()}
    if problems:
        raise InvalidJob(problems)


def _given(job):
    given = {name: getattr(job, name) for name in conf.JOB_OPTIONS if getattr(job, name) is not None}
    if not has_no_time(job):
        given["scheduled_at"] = job.scheduled_at
    return given


def _announce(queuetopia, jobs, alias):
    due: dict[str, datetime] = {}
    for job in jobs:
        due[job.queue] = min(job.scheduled_at, due.get(job.queue, job.scheduled_at))
    try:
        wakes = [(queuetopia.scope, queue, at) for queue, at in due.items()]
        again_after_deadlock(alias, partial(backend_for(alias).wake, wakes))
    except Exception as exc:
        # The jobs are committed: their caller must not fail for a hint.
        logger.warning("wake-up failed, the sweep finds the jobs scope=%s error=%r", queuetopia.scope, str(exc))
    if signals.job_created.has_listeners(queuetopia):
        for job in jobs:
            send(signals.job_created, queuetopia, job=job)


def send(signal, queuetopia, **arguments):
    """Send a signal; a receiver that raises is logged and changes nothing."""
    for receiver, answer in signal.send_robust(sender=queuetopia, **arguments):
        if isinstance(answer, Exception):
            secrets = secrets_of(arguments["job"].params, queuetopia.option("sensitive_params"))
            logger.error("receiver failed receiver=%r\n%s", receiver, raised(answer, secrets))


def send_unblocked(queuetopia, job, since: datetime) -> None:
    """Send queue_unblocked for a job that has just ended and had failed first at ``since``."""
    if signals.queue_unblocked.has_listeners(queuetopia):
        now = backend_for(queuetopia.database()).now()
        duration = max(0.0, ((job.done_at or now) - since).total_seconds())
        waiting = number_waiting(queuetopia, job.queue, now)
        send(signals.queue_unblocked, queuetopia, job=job, queue=job.queue, duration=duration, waiting=waiting)


def number_waiting(queuetopia, queue: str, now: datetime) -> int:
    """Return how many due jobs wait in the queue, up to ``MOST_COUNTED`` and one more."""
    return (
        Job.objects.using(queuetopia.database()).in_queue(queuetopia.scope, queue).waiting(now).count_to(MOST_COUNTED)
    )


# What an attempt's end means


def failed(
    queuetopia, claim: Claim, exc: BaseException, *, duration=0.0, secrets=(), delay=None, next_step=None
) -> Outcome:
    """Return the Outcome of a failed attempt.

    delay: seconds asked for by Retry or the performer's backoff(); None means the built-in formula.
    next_step: what a callable ``on_exhausted`` said; None means the option's name, "halt" for a callable.
    """
    exhausted = claim.attempt >= (claim.max_attempts or queuetopia.option("max_attempts"))
    if exhausted and next_step is None:
        configured = claim.on_exhausted or queuetopia.option("on_exhausted")
        next_step = "halt" if callable(configured) else configured
    verdict = {"halt": Verdict.HALT, "skip": Verdict.SKIP}.get(next_step, Verdict.RETRY) if exhausted else Verdict.RETRY
    if delay is None:
        cap = queuetopia.option("max_backoff") if claim.max_backoff is None else claim.max_backoff
        delay = backoff(claim.attempt, cap) * (1 + random.random() * queuetopia.option("jitter"))  # noqa: S311
    return Outcome(
        claim.job_id,
        claim.fence,
        verdict,
        delay=delay if verdict is Verdict.RETRY else 0.0,
        error=describe(exc, secrets),
        duration=duration,
        exhausted=exhausted,
    )


# What a person can do


def again_after_deadlock(alias, act: Callable[[], Any]) -> Any:
    """Return what ``act``, a transaction, returns; have it done again if a deadlock rolled it back.

    Or if others wrote what it had read, and its isolation forbids that. Raises Refused after some times in a row.
    Inside a transaction of the caller's there is no second try, for all that had been done in it before is gone too:
    the database's error comes through.
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
        f"The database broke it off {DEADLOCKS} times, for others were at the same rows (a deadlock, or isolation). "
        "Nothing has been changed: try again."
    ) from deadlock


def _persons_verb(verb):
    @wraps(verb)
    def retried(queuetopia, *args, **kwargs):
        return again_after_deadlock(queuetopia.database(), partial(verb, queuetopia, *args, **kwargs))

    return retried


@_persons_verb
def retry(queuetopia, job, *, by="", reason="") -> Job:
    """Make the next attempt of a backing-off or halted job now; a halted job gets one attempt more.

    ``job`` is a Job or its id. Returns the job as stored. Raises Refused when the job is running, has ended or
    was never attempted.
    """
    with _verb(queuetopia, job, "retry", by, reason) as verb:
        verb.refuse_unless_blocked("retried")
        verb.retry()
    return verb.job


@_persons_verb
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
            raise Refused(f"Job {verb.job.pk} cannot be edited: its params have changed meanwhile. Look at them again.")
        problems: dict[str, list[str]] = {}
        _check_params(queuetopia, verb.job.action, params, problems)
        if problems:
            raise InvalidJob(problems)
        verb.note_params(verb.job.params, params)
        verb.job.params = params
        verb.job.save(using=verb.alias, update_fields=["params"])
        if verb.job.attempted_at is not None:
            verb.retry()
    return verb.job


@_persons_verb
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


@_persons_verb
def mark_done(queuetopia, job, *, by="", reason="") -> Job:
    """Take a job for done, because its work was done in another way; its queue goes on.

    ``job`` is a Job or its id, waiting anywhere in line, backing off or halted. Returns the job as stored, without a
    result. Raises Refused when the job is running or has ended.
    """
    with _verb(queuetopia, job, "mark_done", by, reason) as verb:
        verb.refuse_unless_at_rest("marked as done")
        verb.end(Job.State.DONE)
        verb.send_after_commit(signals.job_done, job=verb.job)
        verb.tell_unblocked()
    return verb.job


@_persons_verb
def skip(queuetopia, job, *, by="", reason="") -> Job:
    """Give a backing-off or halted job up (``skipped``); its queue goes on at once.

    ``job`` is a Job or its id. Returns the job as stored. Raises Refused when the job is running, has ended or
    was never attempted.
    """
    with _verb(queuetopia, job, "skip", by, reason) as verb:
        verb.refuse_unless_blocked("skipped")
        verb.skip()
    return verb.job


@_persons_verb
def cancel(queuetopia, job, *, by="", reason="") -> str:
    """Cancel a job that was never attempted, anywhere in line; ask a running one to stop.

    ``job`` is a Job or its id. Returns "cancelled", "running" (its worker is asked to stop it; should it finish
    first, it is done) or "finished" (it had ended before). Raises Refused when the job was attempted and is not
    running: that one is skipped or retried.
    """
    with _verb(queuetopia, job, "cancel", by, reason) as verb:
        if verb.job.is_ended():
            verb.leave_no_event()
            return "finished"
        if verb.is_running():
            verb.update_queue(stop_requested=True)
            return "running"
        if verb.job.attempted_at is not None:
            raise Refused(f"Job {verb.job.pk} has been attempted and holds its queue: skip it, or retry it.")
        verb.end(Job.State.CANCELLED)
        verb.send_after_commit(signals.job_cancelled, job=verb.job)
    return "cancelled"


class _Verb:
    """One verb at work on one job: both rows are locked, and what it does is kept as a JobEvent."""

    def __init__(self, queuetopia, alias, job, queue):
        self.queuetopia, self.alias, self.job, self.queue = queuetopia, alias, job, queue
        self.now = backend_for(alias).now()
        self.before = self._state()
        self.noted_before: dict[str, Any] = {}  # what else the event keeps
        self.noted_after: dict[str, Any] = {}
        self.leaves_event = True

    def _state(self):
        return {"state": self.job.state, "attempts": self.job.attempts, "running": self.is_running()}

    def is_running(self):
        return self.queue.current_job == self.job.pk and self.queue.held_by is not None

    def refuse_unless_blocked(self, participle):
        self.refuse_unless_at_rest(participle)
        if self.job.attempted_at is None:
            raise Refused(
                f"Job {self.job.pk} cannot be {participle}: it waits in line and was never attempted. Cancel it."
            )

    def refuse_unless_at_rest(self, participle):
        """Refuse a job that is running or has ended."""
        job = self.job
        if job.is_ended():
            raise Refused(
                f"Job {job.pk} cannot be {participle}: it is {job.state} since {job.done_at:%Y-%m-%d %H:%M:%S %Z}."
            )
        if self.is_running():
            raise Refused(
                f"Job {job.pk} cannot be {participle}: it is running, attempt {self.queue.attempt} since "
                f"{self.queue.held_since:%Y-%m-%d %H:%M:%S %Z}. Wait for its end, or cancel it first."
            )

    def retry(self):
        job = self.job
        most = job.max_attempts or self.queuetopia.option("max_attempts")
        if job.state == Job.State.HALTED and job.attempts >= most:
            job.max_attempts = job.attempts + 1
        job.state = Job.State.PENDING
        job.next_attempt_at = self.now
        job.save(using=self.alias, update_fields=["state", "next_attempt_at", "max_attempts"])
        self.update_queue(current_job=job.pk, due_at=self.now)

    def skip(self):
        self.end(Job.State.SKIPPED)
        self.send_after_commit(signals.job_skipped, job=self.job, exc=None)
        self.tell_unblocked()

    def join_line_again(self) -> Job:
        """Set a waiting job's time behind those of all jobs that are due; return it."""
        job = self.job
        if job.scheduled_at > self.now:
            raise Refused(
                f"Job {job.pk} cannot be moved: it is scheduled for {job.scheduled_at:%Y-%m-%d %H:%M:%S %Z}, and "
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
        same = {name: getattr(job, name) for name in ("scope", "queue", "action", "params", *conf.JOB_OPTIONS)}
        (copy,) = create(self.queuetopia, [Job(**same)])
        self.noted_after["copy"] = copy.pk
        _leave_event(self.alias, "move_to_end", by, reason, copy.scope, copy.queue, copy.pk, {"copy_of": job.pk}, {})
        return copy

    def note_params(self, old, new):
        sensitive = self.queuetopia.option("sensitive_params")
        self.noted_before["params"] = _as_json(masked(old, sensitive))
        self.noted_after["params"] = _as_json(masked(new, sensitive))
        if isinstance(old, dict):  # masked, they look the same
            self.noted_after["changed"] = sorted(
                name for name in {*old, *new} if name not in old or name not in new or old[name] != new[name]
            )

    def end(self, state):
        self.job.state, self.job.done_at, self.job.next_attempt_at = state, self.now, None
        self.job.save(using=self.alias, update_fields=["state", "done_at", "next_attempt_at"])
        if self.queue.current_job == self.job.pk:
            # Due, not cleared: the next claim finds the new head or empties the queue, and looks again.
            self.update_queue(current_job=None, due_at=self.now)

    def update_queue(self, **values):
        Queue.objects.using(self.alias).filter(pk=self.queue.pk).update(**values)

    def tell_unblocked(self):
        if self.job.error:
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


def _as_json(params):
    """Return params as they are stored, for a column that is read without their types."""
    return json.loads(json.dumps(params, cls=params_module.ParamsEncoder))


@contextmanager
def _verb(queuetopia, job, verb, by, reason):
    alias = queuetopia.database()
    pk = job.pk if isinstance(job, Job) else job
    jobs = Job.objects.using(alias).filter(scope=queuetopia.scope, pk=pk)
    with transaction.atomic(using=alias):
        queue_name = jobs.values_list("queue", flat=True).first()
        if queue_name is None:
            raise Refused(f"There is no job {pk} in {queuetopia.scope}.")
        queue = _locked_queue(alias, queuetopia.scope, queue_name)
        work = _Verb(queuetopia, alias, jobs.select_for_update().get(), queue)
        yield work
        work.leave_event(verb, by, reason)
        transaction.on_commit(partial(_look_again, alias, queue.pk), using=alias, robust=True)


def _locked_queue(alias, scope, name) -> Queue:
    """Return the queue's row, locked until the transaction ends, its ``rev`` raised; make it if there is none."""
    row = Queue.objects.using(alias).filter(pk=backend_for(alias).queue_id(scope, name))
    row.update(rev=F("rev") + 1)
    return row.select_for_update().get()


def _look_again(alias, queue_id):
    """Look for jobs of a queue whose row was locked: whoever created them meanwhile did not wait for it for long."""
    backend = backend_for(alias)
    again_after_deadlock(alias, partial(backend.look_again, [queue_id]))
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


@_persons_verb
def pause(queuetopia, queue=None, *, by="", reason=""):
    """Start nothing new in the queue (None: in the whole scope) until it is resumed; the running job finishes.

    Pausing what is paused replaces who and why. A queue may be paused before its first job.
    """
    alias = queuetopia.database()
    paused = {
        "paused_at": backend_for(alias).now(),
        "paused_by": storable(by, 255),
        "paused_reason": storable(reason, 500),
    }
    _set_pause(queuetopia, alias, queue, "pause", by, reason, paused)


@_persons_verb
def resume(queuetopia, queue=None, *, by="", reason=""):
    """Serve a paused queue (None: the scope) again, at once. Raises Refused when it is not paused."""
    alias = queuetopia.database()
    running = {"paused_at": None, "paused_by": "", "paused_reason": ""}
    _set_pause(queuetopia, alias, queue, "resume", by, reason, running)


def _set_pause(queuetopia, alias, queue, verb, by, reason, values):
    scope = queuetopia.scope
    if queue is not None:
        problems: dict[str, list[str]] = {}
        _check_queue(queue, problems)
        if problems:
            raise InvalidJob(problems)
    with transaction.atomic(using=alias):
        if queue is None:
            Scope.objects.using(alias).bulk_create([Scope(name=scope)], ignore_conflicts=True)
            row: Scope | Queue = Scope.objects.using(alias).select_for_update().get(name=scope)
            after_commit = backend_for(alias).notify
        else:
            row = _locked_queue(alias, scope, queue)
            after_commit = partial(_look_again, alias, row.pk)
        if verb == "resume" and row.paused_at is None:
            raise Refused(f"{scope}{'' if queue is None else f'/{queue}'} is not paused.")
        before = {"paused": row.paused_at is not None, "by": row.paused_by, "reason": row.paused_reason}
        type(row).objects.using(alias).filter(pk=row.pk).update(**values)
        _leave_event(
            alias, verb, by, reason, scope, queue or "", None, before, {"paused": values["paused_at"] is not None}
        )
        # due_at is kept up to date while a queue is paused, so that a wake-up is all that resuming needs.
        transaction.on_commit(after_commit, using=alias, robust=True)


# Delete what has ended


def delete_ended(job_id, *, alias) -> bool:
    """Delete a job of the database ``alias`` that has ended, and what people did to it.

    Returns whether it did: no unfinished job is ever deleted. The job's scope need not be known to this code.
    """
    with transaction.atomic(using=alias):
        deleted, _ = Job.objects.using(alias).ended().filter(pk=job_id).delete()
        if deleted:
            JobEvent.objects.using(alias).filter(job=job_id).delete()
    return bool(deleted)


def prune(queuetopia, *, older_than=None, batch=1_000, alias=None) -> int:
    """Delete up to ``batch`` jobs that ended before the retention (and what people did to them); return how many.

    older_than: seconds or timedelta instead of the option ``retention``; with a retention of None nothing is
    deleted. No unfinished job is ever deleted. Nothing of yours is called or cascaded to, for nodes prune too: a
    foreign key to a job needs ``db_constraint=False``, else the database raises IntegrityError.
    """
    keep = queuetopia.option("retention") if older_than is None else conf.OPTIONS["retention"].clean(older_than)
    if keep is None:
        return 0
    alias = alias or queuetopia.database()
    cutoff = backend_for(alias).now() - timedelta(seconds=keep)
    ended = Job.objects.using(alias).filter(scope=queuetopia.scope, done_at__lt=cutoff)
    ids = list(ended.order_by("done_at").values_list("pk", flat=True)[:batch])
    events = JobEvent.objects.using(alias).filter(scope=queuetopia.scope)
    with transaction.atomic(using=alias):
        # Plain DELETEs: no signal is sent, no row is fetched.
        events.filter(job__in=ids)._raw_delete(alias)
        ended.filter(pk__in=ids)._raw_delete(alias)
    if not ids:
        events.filter(job=None, at__lt=cutoff)._raw_delete(alias)
    return len(ids)
