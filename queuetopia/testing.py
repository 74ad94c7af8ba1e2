"""For the tests of projects that use Queuetopia: read the jobs that were created, and run them without a node.

Jobs are rows, so a test needs no fake: these functions read the test database, inside the test's transaction too.
"""

import inspect
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime
from typing import Any

from asgiref.sync import async_to_sync
from django.utils import timezone

from .attempts import Claim, current_job, memory_of, memory_text
from .backends import backend_for, breakers, upkeep
from .backends.limits import Limits
from .backends.values import Ending
from .completion import completed, must_await
from .conf import JOB_OPTIONS
from .jobs import create_due, declared, settled, write_reports
from .lines import row_name
from .models import Job, Queue, has_name
from .monitoring import status
from .monitoring.events import Event
from .monitoring.follow import Follower
from .outside import ended
from .params import Unreadable, dumps
from .performer import chunk_of, known_actions
from .registry import by_scope, registered
from .text import masked
from .worker.middleware import wrapped
from .worker.news import notify
from .worker.performing import Attempt, SetupFailed, forget_performer, is_async, job_of, start

MOST_LISTED = 20  # jobs named by a failed assertion


# What was created


def jobs_created(queuetopia, queue: str | None = None, action: str | None = None, params: dict | None = None):
    """Return the jobs of ``queuetopia`` (a Queuetopia class) as a list, in the order in which they were created.

    queue, action: only jobs with exactly this queue or action.
    params: only jobs that have at least these params; more of them do not matter.
    """
    jobs = queuetopia.jobs().order_by("id")
    if queue is not None:
        jobs = jobs.filter(queue=queue)
    if action is not None:
        jobs = jobs.filter(action=action)
    return [job for job in jobs if _has(job, params or {})]


def assert_job_created(
    queuetopia,
    queue: str | None = None,
    action: str | None = None,
    params: dict | None = None,
    *,
    count: int | None = None,
) -> Job:
    """Return the job that matches as in ``jobs_created``, the newest one if there are several.

    count: how many have to match; None means one at least. For none at all there is ``assert_no_job_created``.

    Raises AssertionError, listing the jobs that are there, if there is none, or another number than ``count``.
    """
    __tracebackhide__ = True
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise ValueError(f"count must be a number from 1 on, not {count!r}; for none there is assert_no_job_created.")
    found = jobs_created(queuetopia, queue, action, params)
    wanted = _wanted(queue, action, params)
    if not found:
        raise AssertionError(f"{queuetopia.__name__} has no job with {wanted}. {_there(queuetopia)}")
    if count is not None and len(found) != count:
        raise AssertionError(
            f"{queuetopia.__name__} has {len(found)} with {wanted}, not {count}:{_listed(queuetopia, found)}"
            f"\nIn all: {_there(queuetopia)}"
        )
    return found[-1]


def assert_no_job_created(
    queuetopia, queue: str | None = None, action: str | None = None, params: dict | None = None
) -> None:
    """Raise AssertionError, listing them, if there are jobs that match as in ``jobs_created``."""
    __tracebackhide__ = True
    found = jobs_created(queuetopia, queue, action, params)
    if found:
        raise AssertionError(
            f"{queuetopia.__name__} has {len(found)} with {_wanted(queue, action, params)}:{_listed(queuetopia, found)}"
        )


def _has(job, params):
    missing = object()
    return not params or (
        not isinstance(job.params, Unreadable)
        and all(job.params.get(name, missing) == value for name, value in params.items())
    )


def _wanted(queue, action, params):
    wanted = {"queue": queue, "action": action, "params": params}
    return ", ".join(f"{name}={value!r}" for name, value in wanted.items() if value is not None) or "anything"


def _there(queuetopia):
    there = jobs_created(queuetopia)
    return f"There are {len(there)}:{_listed(queuetopia, there)}" if there else "There are none."


def _listed(queuetopia, jobs):
    sensitive = queuetopia.option("sensitive_params")
    lines = [
        f"{job.pk}: {job.queue!r}, {job.action!r}, {masked(job.params, sensitive)!r}, {job.state}"
        for job in jobs[-MOST_LISTED:]
    ]
    if older := len(jobs) - len(lines):
        lines.insert(0, f"… {older} older ones")
    return "".join(f"\n  {line}" for line in lines)


# Run them


def perform_job(job: Job, memory: dict | None = None) -> Any:
    """Run one attempt of ``job`` here and now; return what the performer returned, or raise what it raised.

    job: a stored Job, or one from ``MailQueue.job(...)``. The performer is a new one, set up by ``setup()``, and
    is handed a read-only copy as in a worker, with the number of the next attempt. Nothing else happens: no queue
    is asked, no row of Queuetopia is written, there is no hook but ``handle_start``, no signal, backoff or timeout.
    ``Retry``, ``Snooze``, ``Halt`` and ``Skip`` are raised too.

    memory: what its queue remembers; changed to what the attempt leaves in ``job.memory``. None means nothing.

    An ``async def`` action is run to its end. From an async test: ``await sync_to_async(perform_job)(job)``.

    Raises LookupError when no class has the job's scope, or its performer no such action.
    """
    queuetopia = by_scope().get(job.scope)
    if queuetopia is None:
        raise LookupError(f"No Queuetopia has the scope {job.scope!r} of {job}; is its module imported?")
    known = known_actions(queuetopia.performer)
    if known is not None and job.action not in known:
        raise LookupError(f"{queuetopia.performer.__name__} has no action {job.action!r}.")
    performer = queuetopia.performer()
    completed(performer.setup(), f"setup() of {type(performer).__name__}")
    handed = job_of(_claim_of(job, memory))
    returned = copy_context().run(_performed, performer, handed)  # as in a worker, and in ``_attempt``
    if memory is not None and (left := handed.changed_memory()) is not None:
        memory.clear()
        memory.update(memory_of(left))
    return returned


def _performed(performer, handed):
    current_job.set(handed)
    if chunk_of(type(performer), handed.action) is not None:
        handed.lead([])
    start(performer, handed)
    who = f"Action {handed.action!r} of {type(performer).__name__}"
    returned = wrapped(performer, who, is_async=False)(handed)
    if must_await(returned):
        if inspect.iscoroutine(returned):
            returned.close()  # it would warn that it was never awaited
        raise RuntimeError("Run an async action in an event loop by: await sync_to_async(perform_job)(job)")
    return ended(completed(returned, who))


def _claim_of(job, memory):
    scheduled_at = job.scheduled_at if job.pk is not None else timezone.now()
    return Claim(
        job_id=job.pk,
        queue_id=0,
        scope=job.scope,
        queue=job.row_name,
        action=job.action,
        params=dumps(job.params),
        attempt=job.attempts + 1,
        fence=job.attempts + 1,
        rev=0,
        scheduled_at=scheduled_at.isoformat(),
        **{name: getattr(job, name) for name in JOB_OPTIONS},
        attempted=job.attempted_at is not None,
        failed_at=job.failed_at and job.failed_at.isoformat(),
        memory=None if memory is None else memory_text(memory),
    )


def drain(queuetopia, queue: str | None = None, *, now: datetime | None = None, limit: int = 1_000) -> list[Job]:
    """Run what is due of ``queuetopia`` in this process, as a node would, and return the jobs as stored now.

    The rules of queues hold: order, blocking, attempts, backoff, exhaustion; hooks and signals follow each attempt.
    Nothing needs to be committed, so it works inside the test's transaction; jobs that the performers create are run
    too. Timeouts are not enforced. The list holds one entry per attempt, in order, and one for each job of a chunk.

    queue: only this queue; None means all of them.
    now: what counts as due; None means the database's clock. Hand a later datetime in to pass a backoff.
    limit: attempts after which RuntimeError is raised, because a job that fails without a backoff never ends.

    From an async test: ``await sync_to_async(drain)(MailQueue)``.

    Raises RuntimeError while a live node serves the scope: no lock would keep it from running the same jobs.
    """
    _refuse_beside_a_node(queuetopia)
    forget_performer(queuetopia)
    backend = backend_for(queuetopia.database())
    holder = uuid.uuid4()
    jobs: list[int] = []
    while claim := _next_claim(backend, queuetopia, queue, holder, now):
        if len(jobs) >= limit:
            raise RuntimeError(f"{limit} attempts made and more are due; does a job fail with a max_backoff of 0?")
        attempt = _attempt(claim) if claim.outside is None else None
        outcome = attempt.outcome if attempt else settled(claim)
        recorded = backend.record([Ending(claim, outcome)], holder, "drain", lambda claim: False, now)
        for ending in recorded.written:
            notify(ending.claim, ending.outcome, attempt and attempt.exc)
        jobs += [ending.claim.job_id for ending in recorded.written] or [claim.job_id]
    stored = queuetopia.jobs().in_bulk(jobs)
    return [stored[pk] for pk in jobs if pk in stored]


def _refuse_beside_a_node(queuetopia):
    nodes, now = status.node_rows(queuetopia.database())
    for node in nodes:
        if queuetopia.scope in node.scopes and status.is_alive(node, now):
            raise RuntimeError(
                f"drain() refuses to run jobs of {queuetopia.scope}: node {node} serves it, and both would run them. "
                "Stop the node, or leave the jobs to it."
            )


def _next_claim(backend, queuetopia, queue, holder, now):
    after: str | None = ""
    while after is not None:  # the wake-up that follows a commit may never come in a test's transaction
        _, after = upkeep.sweep(backend, queuetopia.scope, after)
    if queue is not None and not queuetopia.option("ordered"):
        of_name = Queue.objects.using(backend.alias).due(now or backend.now()).filter(has_name(queue, "name"))
        queue = (
            of_name.filter(scope=queuetopia.scope).order_by("due_at").values_list("name", flat=True).first() or queue
        )
    breaker, limits = queuetopia.option("breaker"), None
    if breaker and breakers.tripped(backend.alias, [queuetopia.scope]):
        limits = Limits(breaker=breaker)
    claims, _ = backend.claim([queuetopia.scope], 1, holder, now=now, only=queue and row_name(queue), limits=limits)
    return claims[0] if claims else None


def _attempt(claim):
    known = known_actions(by_scope()[claim.scope].performer)
    if known is not None and claim.action not in known:
        raise LookupError(f"Job {claim.job_id} has the action {claim.action!r}, which no performer knows.")
    attempt = Attempt(claim)
    run = async_to_sync(attempt.aperform) if is_async(claim) else attempt.perform
    copy_context().run(run)  # what an attempt sets there is its own, as in a worker
    write_reports()
    if isinstance(attempt.exc, KeyboardInterrupt | SetupFailed):
        raise attempt.exc
    return attempt


# Schedules


def due_times(queuetopia, name: str, since: datetime, until: datetime) -> list[datetime]:
    """Return when the schedule ``name`` of ``queuetopia`` is due after ``since`` and up to ``until``, oldest first.

    since, until: aware datetimes. The last 1,000 times are returned at most, in UTC. Nothing is read or written.

    Raises LookupError when the class has no such schedule, or one that a system check refuses.
    """
    schedules = declared(queuetopia)
    if name not in schedules:
        known = ", ".join(schedules) or "none"
        raise LookupError(f"{queuetopia.__name__} has no schedule {name!r} that could be used; it has: {known}.")
    return schedules[name].between(since, until)


def create_due_jobs(queuetopia, *, now: datetime | None = None) -> list[Job]:
    """Create the jobs of the schedules of ``queuetopia`` that are due, as a node would, and return them.

    now: what counts as the present; None means the database's clock. A schedule begins with the first call, which
    creates nothing: call it once, then again with a later ``now``.
    """
    schedules = declared(queuetopia)
    return create_due(backend_for(queuetopia.database()), {queuetopia: schedules}, now)[0] if schedules else []


# What happens


@contextmanager
def capture_events(*queuetopias) -> Iterator[list[Event]]:
    """Collect what happens to jobs inside the ``with`` block: the list is filled when the block ends.

    queuetopias: the classes whose events are wanted; none means all that are declared.

    Each is an ``Event``, as of ``MailQueue.events()``, oldest first: what ``drain`` or a node did, what an operator's
    verbs did. A job that is created is no event: use ``jobs_created``. Works inside the test's transaction.
    """
    scopes: dict[str, list[str]] = {}
    for queuetopia in queuetopias or registered():
        scopes.setdefault(queuetopia.database(), []).append(queuetopia.scope)
    followers = [Follower(alias, names) for alias, names in scopes.items()]
    for follower in followers:
        follower.poll()  # what was before, in a transaction perhaps whose clock stands still
    captured: list[Event] = []
    yield captured
    found = [Event(**event) for follower in followers for event in follower.poll()]
    captured += sorted(found, key=lambda event: event.at)


# Wait for other processes


def wait_until(condition: Callable[[], Any], timeout: float = 10, interval: float = 0.01, message: str | None = None):
    """Call ``condition`` until it returns something true, and return that.

    timeout: seconds after which AssertionError is raised, with ``message``; it is asked once more then.
    interval: seconds between two calls.
    """
    __tracebackhide__ = True
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{message or f'{condition!r} stayed {result!r}'} (waited {timeout:g} s)")
        time.sleep(interval)
    return result
