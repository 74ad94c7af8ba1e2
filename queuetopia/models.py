"""The tables: Job is the one table of jobs, Queue the bookkeeping that the scheduler reads.

There is no foreign key between them: a job carries its scope and queue as text, so that creating a job
neither reads nor locks a Queue row. This module reads only; ``jobs`` and ``backends`` write.
"""

import uuid
from datetime import UTC, datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models
from django.db.models.functions import Left, Length, Right
from django.db.models.lookups import Exact
from django.utils.translation import gettext_lazy as _

from .attempts import changed_memory, memory_of
from .backends.columns import (
    DatabaseNow,
    ExactCharField,
    PartialIndex,
    UniqueWhileUnfinished,
    WideCharField,
    WideTextField,
    are_times,
)
from .conf import LONGEST
from .decisions import permissions_on
from .exceptions import ReadOnlyJob
from .lines import ADDED, MARK, GivenName, given_name, is_own, row_name
from .outside import token_of
from .params import ParamsField
from .text import visible
from .times import local

if not apps.is_installed("queuetopia"):
    raise ImproperlyConfigured('Queuetopia has no tables here: add "queuetopia" to INSTALLED_APPS, then migrate.')

UNBEGUN = timedelta(seconds=1)  # what is held for longer has begun: see LONGEST_UNBEGUN and LONGEST_WAIT
MAX_KEY = 128  # characters of a key; with three names before it, what an index of MySQL can take


class BoundedQuerySet(models.QuerySet):
    def count_to(self, limit):
        """Return how many there are, without counting further than to ``limit`` and one more."""
        return self.order_by()[: limit + 1].count()


class JobQuerySet(BoundedQuerySet):
    def unfinished(self):
        """Jobs that are neither done nor given up; none of them is ever deleted."""
        return self.filter(done_at=None)

    def ended(self):
        return self.filter(done_at__isnull=False)

    def pending(self):
        return self.filter(state=Job.State.PENDING)

    def halted(self):
        return self.filter(state=Job.State.HALTED)

    def kept_from_running(self, now):
        """Heads that wait for an operator or for their next attempt; not those whose attempt goes on outside."""
        return self.filter(models.Q(state=Job.State.HALTED) | models.Q(next_attempt_at__gt=now), outside__isnull=True)

    def in_queue(self, scope, queue):
        return self.filter(scope=scope, queue=queue)

    def waiting(self, now):
        """Due jobs that wait in line; not those that were attempted."""
        return self.unfinished().filter(scheduled_at__lte=now, attempted_at=None)

    def in_order(self):
        """The order in which the jobs of one queue run."""
        return self.order_by("scheduled_at", "id")


class IndependentJobs(JobQuerySet):
    """Jobs of a class with ``ordered = False``: ``queue="mails"`` selects those that were given this name."""

    def filter(self, *args, **kwargs):
        return super().filter(*args, *_by_given_names(kwargs), **kwargs)

    def exclude(self, *args, **kwargs):
        return super().exclude(*args, *_by_given_names(kwargs), **kwargs)


def _by_given_names(filters):
    """Take the look-ups of exact names of queues out of the filters; return them as conditions."""
    for lookup in ("queue", "queue__exact", "queue__in"):
        if isinstance(filters.get(lookup), str | list | tuple | set | frozenset):
            names = filters.pop(lookup)
            names = [names] if isinstance(names, str) else names
            yield reduce(or_, map(has_name, names), models.Q(pk__in=[]))


def has_name(queue: str, column: str = "queue") -> models.Q:
    """Return the condition that a queue has this name, or was given it by an independent job."""
    if isinstance(queue, GivenName):
        return models.Q(**{column: queue})
    begins = Exact(Left(column, len(queue) + len(MARK)), models.Value(f"{queue}{MARK}"))
    return models.Q(**{column: queue}) | models.Q(begins, Exact(Length(column), len(queue) + ADDED))


def given_of(column: str) -> models.Case:
    """Return the expression for the name that jobs were given, of a column with names of queues' rows."""
    is_own = Exact(Left(Right(column, ADDED), len(MARK)), models.Value(MARK))
    given = Left(column, Length(column) - ADDED)
    return models.Case(models.When(is_own, then=given), default=column, output_field=models.CharField())


class Job(models.Model):
    """One unit of work: an action with its params, in one queue of one scope."""

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        DONE = "done", _("done")
        HALTED = "halted", _("halted")
        SKIPPED = "skipped", _("skipped")
        CANCELLED = "cancelled", _("cancelled")

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(_("scope"), max_length=128)
    queue = ExactCharField(_("queue"), max_length=255)
    action = ExactCharField(_("action"), max_length=255)
    params = ParamsField(_("params"), default=dict)

    # What was given for this job; None means: looked up at each attempt.
    timeout = models.FloatField(_("timeout (s)"), null=True)
    max_backoff = models.FloatField(_("max. backoff (s)"), null=True)
    max_attempts = models.PositiveIntegerField(_("max. attempts"), null=True)
    on_exhausted = ExactCharField(_("on exhausted"), max_length=260, null=True)

    scheduled_at = models.DateTimeField(_("scheduled at"), db_default=DatabaseNow())
    state = models.CharField(_("state"), max_length=16, choices=State, default=State.PENDING)
    attempts = models.PositiveIntegerField(_("attempts"), default=0)
    attempted_at = models.DateTimeField(_("attempted at"), null=True)
    attempted_by = WideCharField(_("attempted by"), max_length=255, default="")
    next_attempt_at = models.DateTimeField(_("next attempt at"), null=True)
    done_at = models.DateTimeField(_("done at"), null=True)
    error = WideTextField(_("last error"), default="")
    errors = models.JSONField(_("errors"), default=list)
    failed_at = models.DateTimeField(_("first failed at"), null=True)
    outside = models.JSONField(_("outside"), null=True)
    progress = models.JSONField(_("progress"), null=True)
    result = ParamsField(_("result"), null=True)
    unique_key = ExactCharField(_("unique key"), max_length=MAX_KEY, null=True)
    # Cleared by the job's first claim: what new params could still come to it has none after that.
    coalesce_key = ExactCharField(_("coalesce key"), max_length=MAX_KEY, null=True)

    is_new = False  # True on what create_job and create_jobs have written, not on what was there with its key
    fence: int | None = None  # set on the job a performer is handed
    _claim: Any = None  # of the attempt, on the job a performer is handed
    _completed: Any = None  # the ``Completion`` that its attempt has committed, once it has
    _memory: Any = None  # the queue's memory, once the attempt has asked for it
    chunk: "list[Job] | None" = None  # of an attempt whose action has a chunk: the jobs that it does, this one first
    _head: "Job | None" = None  # on the others of these: the first of them

    objects = JobQuerySet.as_manager()

    class Meta:
        verbose_name = _("job")
        verbose_name_plural = _("jobs")
        # Jobs are created by code and changed by verbs, so no user can be allowed to "add" or "change" them.
        default_permissions = ("view", "delete")
        permissions = (
            *permissions_on("job"),
            ("view_params", _("Can view the params and results of jobs")),
        )
        indexes = (
            PartialIndex(  # the head of a queue
                fields=["scope", "queue", "scheduled_at", "id"],
                condition=models.Q(done_at=None),
                fallback=["scope", "queue", "done_at", "scheduled_at", "id"],
                name="queuetopia_job_head",
            ),
            # Retention. Without its condition PostgreSQL searches heads here, too, before it has statistics.
            PartialIndex(
                fields=["scope", "done_at"],
                condition=models.Q(done_at__isnull=False),
                fallback=["scope", "done_at"],
                name="queuetopia_job_ended",
            ),
            # The admin's list of these few, which it would otherwise search among all.
            PartialIndex(
                fields=["id"],
                condition=models.Q(state__in=["skipped", "cancelled"]),
                fallback=["state"],
                name="queuetopia_job_given_up",
            ),
            # Those that wait for an operator: heads, and what has moved behind one. On MySQL the index above serves.
            PartialIndex(
                fields=["scope", "queue", "scheduled_at", "id"],
                condition=models.Q(state="halted"),
                fallback=["state"],
                name="queuetopia_job_halted",
            ),
        )
        constraints = (
            models.CheckConstraint(
                condition=models.Q(timeout=None) | models.Q(timeout__gt=0, timeout__lte=LONGEST),
                name="queuetopia_job_timeout",
            ),
            models.CheckConstraint(
                condition=models.Q(max_backoff=None) | models.Q(max_backoff__gte=0, max_backoff__lte=LONGEST),
                name="queuetopia_job_max_backoff",
            ),
            models.CheckConstraint(
                condition=models.Q(max_attempts=None) | models.Q(max_attempts__gte=1),
                name="queuetopia_job_max_attempts",
            ),
            models.CheckConstraint(
                condition=models.Q(state__in=["pending", "halted"], done_at=None)
                | models.Q(state__in=["done", "skipped", "cancelled"], done_at__isnull=False),
                name="queuetopia_job_done_at",
            ),
            models.CheckConstraint(
                condition=are_times("scheduled_at", "attempted_at", "next_attempt_at", "done_at"),
                name="queuetopia_job_times",
            ),
            UniqueWhileUnfinished(fields=["scope", "queue", "unique_key"], name="queuetopia_job_unique"),
            UniqueWhileUnfinished(fields=["scope", "queue", "action", "coalesce_key"], name="queuetopia_job_coalesce"),
        )

    def __str__(self):
        return visible(f"job {self.pk} ({self.action}) of {self.scope}/{self.queue}")

    def save(self, *args, **kwargs):
        self._refuse_if_claim("save")
        super().save(*args, **kwargs)

    def delete(self, *args, **kwargs):
        self._refuse_if_claim("delete")
        return super().delete(*args, **kwargs)

    @classmethod
    def from_db(cls, *args, **kwargs):
        job = super().from_db(*args, **kwargs)
        if is_own(job.__dict__.get("queue", "")):
            job.queue = given_name(job.queue)
        return job

    @property
    def row_name(self) -> str:
        """The name of its queue's row: ``queue``, but for an independent job (``ordered = False``)."""
        return row_name(self.queue)

    def is_ended(self):
        return self.done_at is not None

    def is_backing_off(self):
        """True for a pending job that has been attempted: it holds its queue."""
        return self.state == self.State.PENDING and self.attempted_at is not None

    def is_due(self, now):
        return self.state == self.State.PENDING and (self.next_attempt_at or self.scheduled_at) <= now

    def wait(self, timeout: float | timedelta | None = None) -> Any:
        """Wait until the job has ended; return its result, or raise as ``queuetopia.wait_many`` does."""
        import queuetopia  # by its public name: models know nothing of what reads them

        return queuetopia.wait_many([self], timeout)[0]

    async def await_result(self, timeout: float | timedelta | None = None) -> Any:
        """Do what ``wait`` does in async code, without blocking the event loop or a thread."""
        import queuetopia

        return (await queuetopia.await_many([self], timeout))[0]

    @property
    def token(self) -> str:
        """What ``MailQueue.complete(token)`` and ``.fail(token)`` take, for an attempt that returns ``Deferred``.

        For the job that a performer is handed. Signed with SECRET_KEY, of this attempt only, and fit for a URL.
        """
        if self._claim is None:
            raise RuntimeError(f"Job {self.pk} runs nowhere here: a token is of the attempt that a performer makes.")
        return token_of(self.scope, self.pk, self._claim.fence)

    @property
    def memory(self) -> dict:
        """What the queue remembers: a small JSON object that the attempt may change, or set to another.

        For the job that a performer is handed. It is stored with the success of the attempt, in the same transaction
        and under its fence, and handed to the next one; what a failed attempt made of it is forgotten. It holds what
        params can hold, 16,384 bytes of it at most; an attempt that leaves something else has failed by InvalidMemory.
        """
        if self._claim is None:
            raise RuntimeError(
                f"Job {self.pk} runs nowhere here: its queue's memory is for the attempt that a performer makes. "
                "MailQueue.memory(queue) reads it."
            )
        if self._head is not None:
            return self._head.memory
        if "_memory" not in vars(self):
            self._remember(memory_of(self._claim.memory))
        return self._memory

    @memory.setter
    def memory(self, memory):
        (self._head or self)._remember(memory)

    def _remember(self, memory):
        self._memory = memory

    def changed_memory(self) -> str | None:
        """Return the memory as the attempt has left it, as text; None if it did not change it."""
        return changed_memory(self._memory, self._claim.memory) if "_memory" in vars(self) else None

    def is_outside(self):
        """True while an attempt of it goes on elsewhere, or what came of that is about to be recorded."""
        return self.outside is not None and not self.is_ended()

    def is_reported(self):
        """True if the end of a deferred attempt was reported from outside, and is not recorded yet."""
        return not {"result", "error"}.isdisjoint(self.outside or {})

    def completing(self):
        """Make an attempt's own writes and its success one transaction: ``with job.completing() as done: …``.

        For the job that a performer is handed. The transaction is on the jobs' database (``using``), and cannot be
        inside another one. At its end the job is written as done, with ``done.result`` as its result, if this attempt
        still has its queue; else StaleAttempt is raised and everything is rolled back. What the performer returns or
        raises after the block changes nothing; an exception is logged.
        """
        import queuetopia

        return queuetopia.completing(self)

    def once(self, using: str | None = None, step: str = ""):
        """Run a block once, whatever happens to its attempt: ``with job.once(using="books") as is_new: …``.

        For the job that a performer is handed, and for another database than the jobs' (None: the jobs' own), where
        Queuetopia's tables are migrated too. The block is a transaction there, which cannot be inside another one, and
        which notes that it was committed. ``is_new`` is False for an attempt whose predecessor came so far.

        step: a name, where a job has several such blocks on one database.

        Raises StaleAttempt when a later attempt of the queue has been here.
        """
        import queuetopia

        return queuetopia.once(self, using, step)

    def report_progress(self, fraction: float, text: str = "") -> None:
        """Have operators see how far this attempt has come: ``job.report_progress(0.4, "page 12 of 30")``.

        For the job that a performer is handed, at any time, in async code and in transactions too: it returns at once.
        A report is written within a second or two, by a connection of its own; of several in one second, the last one.
        A database that cannot be reached is no error here, and an attempt that has lost its queue writes nothing.

        fraction: from 0 to 1.
        text: 200 characters at most. Values of sensitive params in it are masked.

        Raises ValueError for another fraction or text.
        """
        import queuetopia

        queuetopia.report_progress(self, fraction, text)

    def note_new(self):
        self.is_new = True

    @property
    def is_of_several(self) -> bool:
        """True in an attempt that does several jobs together."""
        return self.chunk is not None and len(self.chunk) > 1

    def lead(self, behind: "list[Job]") -> None:
        """Make this job, and those behind it, the chunk of its attempt."""
        self.chunk = [self, *behind]
        for job in behind:
            job.follow(self)

    def follow(self, head: "Job") -> None:
        self._head = head

    def _note_completion(self, completion):
        self._completed = completion

    def _refuse_if_claim(self, verb):
        if self._claim is not None:
            raise ReadOnlyJob(
                f"Job {self.pk} was handed to a performer: {verb}() would race with the scheduler, which writes the "
                "row. Return, raise, or keep your data in a model of your own."
            )


class QueueIs:
    """The states of a queue as conditions on its row, to filter by and to count by."""

    HELD = models.Q(held_by__isnull=False)
    BLOCKED = models.Q(current_job__isnull=False, held_by=None)  # its head was attempted, has not ended, does not run
    HALTED = BLOCKED & models.Q(due_at=None)
    BACKING_OFF = BLOCKED & models.Q(due_at__isnull=False)
    IDLE = models.Q(current_job=None, held_by=None)
    PAUSED = models.Q(paused_at__isnull=False)
    WITH_A_PROBLEM = ~models.Q(problem="")


class QueueQuerySet(BoundedQuerySet):
    def due(self, now):
        """Queues whose head may run and that no node serves."""
        return self.filter(due_at__lte=now, paused_at=None, held_by=None)

    def held(self):
        return self.filter(QueueIs.HELD)

    def with_a_place(self):
        """Held queues that take one of the places that their scope has: its ``max_running``."""
        return self.filter(QueueIs.HELD, has_place=True)

    def paused(self):
        return self.filter(QueueIs.PAUSED)

    def blocked(self):
        return self.filter(QueueIs.BLOCKED)

    def halted(self):
        return self.filter(QueueIs.HALTED)

    def backing_off(self):
        return self.filter(QueueIs.BACKING_OFF)

    def idle(self):
        return self.filter(QueueIs.IDLE)


class Queue(models.Model):
    """What the scheduler knows of one queue. The row appears with the first job and stays.

    due_at: when the head may run; None: nothing to do now.
    current_job: the head from its first attempt until it ends, whatever newer jobs' times say.
    held_by, held_since, fence, attempt: who runs it, since when, under which number, which attempt.
    has_place: it was claimed as one of the ``max_running`` of its scope; it takes that place while it is held.
    spaced_until: before that no job of it starts, because one has: its scope's ``spacing``.
    rev: raised by every verb of an operator; whatever was decided before it is decided again.
    alert_at: when to check whether it is still blocked, and report it; set when its head fails first.
    memory: what its last success has left for the next attempt: see ``Job.memory``.
    chunk: the last fence under which several of its jobs began together, and the ids of those behind the head.
    """

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(_("scope"), max_length=128)
    name = ExactCharField(_("name"), max_length=255)
    due_at = models.DateTimeField(_("due at"), null=True)
    current_job = models.BigIntegerField(_("current job"), null=True)
    attempt = models.PositiveIntegerField(_("attempt"), db_default=0)
    held_by = models.UUIDField(_("held by"), null=True)
    held_since = models.DateTimeField(_("held since"), null=True)
    fence = models.BigIntegerField(_("fence"), db_default=0)
    rev = models.BigIntegerField(_("revision"), db_default=0)
    stop_requested = models.BooleanField(_("stop requested"), db_default=False)
    has_place = models.BooleanField(_("has a place"), db_default=False)
    spaced_until = models.DateTimeField(_("spaced until"), null=True)
    problem = WideCharField(_("problem"), max_length=500, db_default="")
    paused_at = models.DateTimeField(_("paused at"), null=True)
    paused_by = WideCharField(_("paused by"), max_length=255, db_default="")
    paused_reason = WideCharField(_("reason"), max_length=500, db_default="")
    alert_at = models.DateTimeField(_("alert at"), null=True)
    memory = ParamsField(_("memory"), null=True)
    chunk = models.JSONField(_("chunk"), null=True)

    objects = QueueQuerySet.as_manager()

    class Meta:
        verbose_name = _("queue")
        verbose_name_plural = _("queues")
        default_permissions = ("view",)
        permissions = permissions_on("queue")
        indexes = (
            PartialIndex(  # the queues that are due
                fields=["scope", "due_at"],
                condition=models.Q(paused_at=None),
                fallback=["scope", "paused_at", "due_at"],
                name="queuetopia_queue_due",
            ),
            PartialIndex(  # the queues that may still be blocked
                fields=["alert_at"],
                condition=models.Q(alert_at__isnull=False),
                fallback=["alert_at"],
                name="queuetopia_queue_alert",
            ),
            PartialIndex(  # the queues that take a place of their scope's max_running
                fields=["scope"],
                condition=models.Q(has_place=True),
                fallback=["scope", "has_place"],
                name="queuetopia_queue_place",
            ),
        )
        constraints = (
            models.UniqueConstraint(fields=["scope", "name"], name="queuetopia_queue_name"),
            models.CheckConstraint(
                condition=are_times("due_at", "held_since", "paused_at"), name="queuetopia_queue_times"
            ),
        )

    def __str__(self):
        return visible(f"{self.scope}/{self.name}")

    def may_not_have_begun(self, now):
        """True for a held queue whose job no worker may have begun: nodes give back what they cannot begin soon."""
        return self.held_by is not None and self.held_since is not None and now - self.held_since < UNBEGUN

    def is_running(self):
        return self.held_by is not None

    def chunk_of(self, fence) -> list[int]:
        """Return the ids of the jobs that began under this fence together with the head, behind it."""
        chunk = self.chunk if isinstance(self.chunk, dict) else {}
        return chunk.get("jobs", []) if chunk.get("fence") == fence else []

    def runs(self, job_id) -> bool:
        """True if an attempt of this job runs, alone or in a chunk."""
        return self.held_by is not None and (job_id == self.current_job or job_id in self.chunk_of(self.fence))


class Node(models.Model):
    """One run of a scheduler: its lease on all the queues it holds. Removed at a clean end, else swept."""

    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    host = models.CharField(_("host"), max_length=255)
    pid = models.PositiveIntegerField(_("pid"))
    scopes = models.JSONField(_("scopes"), default=list)
    workers = models.JSONField(_("workers"), default=list)
    started_at = models.DateTimeField(_("started at"), db_default=DatabaseNow())
    last_seen = models.DateTimeField(_("last seen"), db_default=DatabaseNow())
    fenced_at = models.DateTimeField(_("fenced at"), null=True)

    class Meta:
        verbose_name = _("node")
        verbose_name_plural = _("nodes")

    def __str__(self):
        return visible(f"{self.host}:{self.pid}")


class Once(models.Model):
    """How far the jobs of a queue have come in this database, which need not be the jobs' own: see ``Job.once``.

    job, fence: the last job whose block was committed here, and the attempt that did so.
    steps: the names of its blocks that were.
    """

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(_("scope"), max_length=128)
    queue = ExactCharField(_("queue"), max_length=255)
    job = models.BigIntegerField(_("job"), db_default=0)
    fence = models.BigIntegerField(_("fence"), db_default=0)
    steps = models.JSONField(_("steps"), default=list)

    class Meta:
        default_permissions = ()
        constraints = (models.UniqueConstraint(fields=["scope", "queue"], name="queuetopia_once_queue"),)

    def __str__(self):
        return visible(f"{self.scope}/{self.queue}")


class ScopeQuerySet(models.QuerySet):
    def resting(self, now):
        """Those that are paused by an operator, or snoozed by a performer."""
        return self.filter(models.Q(paused_at__isnull=False) | models.Q(snoozed_until__gt=now))

    def starting_none(self, now):
        """Those of which the usual claim starts nothing now: resting, or with a breaker that is not closed."""
        return self.resting(now) | self.filter(ramp__isnull=False)


class Scope(models.Model):
    """A scope that is paused, snoozed, counted or in an outage, or was. That named ``EVERYTHING`` is the pause of all.

    next_start_at: when the next job of a scope with a ``rate`` is due to start; see ``backends.limits.Rate``.
    snoozed_until: before that nothing of it starts, because a performer raised ``Snooze(…, scope=True)``.
    failures, failed_at, failure, opened_at, probe_at, ramp: the state of its breaker; see ``backends.breakers``.
    """

    EVERYTHING = "*"  # a check keeps classes from being named so

    name = ExactCharField(_("name"), max_length=128, unique=True)
    paused_at = models.DateTimeField(_("paused at"), null=True)
    paused_by = WideCharField(_("paused by"), max_length=255, default="")
    paused_reason = WideCharField(_("reason"), max_length=500, default="")
    next_start_at = models.DateTimeField(_("next start at"), null=True)
    snoozed_until = models.DateTimeField(_("snoozed until"), null=True)
    failures = models.PositiveIntegerField(_("failures in a row"), null=True)
    failed_at = models.DateTimeField(_("failed at"), null=True)
    failure = WideCharField(_("last failure"), max_length=500, db_default="")
    opened_at = models.DateTimeField(_("open since"), null=True)
    probe_at = models.DateTimeField(_("next try at"), null=True)
    ramp = models.PositiveIntegerField(_("successes since"), null=True)

    objects = ScopeQuerySet.as_manager()

    class Meta:
        verbose_name = _("scope")
        verbose_name_plural = _("overview")  # the page about all of them, as the admin's lists of pages name it
        default_permissions = ("view",)
        permissions = permissions_on("scope")

    def __str__(self):
        return "everything" if self.name == self.EVERYTHING else visible(self.name)


class Statistic(models.Model):
    """What one node did of one action in one span of time. See ``monitoring.statistics``.

    node: NOBODY in the rows of what no node records: see ``monitoring.census``.
    at: BEGINNING in the rows that keep the counts of those that were deleted: a sum of all rows never falls.
    waits, runs, blocks: histograms: {number of a bin: how many times}.
    """

    NOBODY = uuid.UUID(int=0)
    BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
    COUNTS = ("created", "started", "done", "failed", "halted", "skipped", "cancelled")
    SECONDS = ("run_seconds", "blocked_seconds")

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(_("scope"), max_length=128)
    at = models.DateTimeField(_("at"))
    action = ExactCharField(_("action"), max_length=255)
    node = models.UUIDField(_("node"))
    created = models.PositiveBigIntegerField(_("created"), default=0)
    started = models.PositiveBigIntegerField(_("started"), default=0)
    done = models.PositiveBigIntegerField(_("done"), default=0)
    failed = models.PositiveBigIntegerField(_("failed"), default=0)
    halted = models.PositiveBigIntegerField(_("halted"), default=0)
    skipped = models.PositiveBigIntegerField(_("skipped"), default=0)
    cancelled = models.PositiveBigIntegerField(_("cancelled"), default=0)
    run_seconds = models.FloatField(_("run time (s)"), default=0)
    blocked_seconds = models.FloatField(_("blocked time (s)"), default=0)
    waits = models.JSONField(_("wait times"), default=dict)
    runs = models.JSONField(_("run times"), default=dict)
    blocks = models.JSONField(_("blocked times"), default=dict)

    class Meta:
        verbose_name = _("statistic")
        verbose_name_plural = _("statistics")
        default_permissions = ("view",)
        constraints = (
            models.UniqueConstraint(fields=["scope", "at", "action", "node"], name="queuetopia_statistic_row"),
        )

    def __str__(self):
        return visible(f"{self.action} of {self.scope} from {local(self.at)} on")


class Chore(models.Model):
    """What is done once per interval in the whole cluster, by whichever node comes first.

    marks: how far it has come, for a chore that goes on where it left off.
    """

    name = ExactCharField(_("name"), max_length=128, unique=True)
    done_at = models.DateTimeField(_("done at"), null=True)
    marks = models.JSONField(_("marks"), default=dict)

    class Meta:
        verbose_name = _("chore")
        verbose_name_plural = _("chores")
        default_permissions = ()

    def __str__(self):
        return self.name


class Schedule(models.Model):
    """How far a schedule of a class has come. The row appears when a node first serves it.

    until: every due time up to here is dealt with; the next one follows from it and from what the code declares.
    last_due_at, last_job: the last due time that got a job, and the last job, which an operator may have created.
    created, missed, held_back: how many due times got a job, were missed, or came while the last job had not ended.
    """

    id = models.BigAutoField(primary_key=True)
    scope = ExactCharField(_("scope"), max_length=128)
    name = ExactCharField(_("name"), max_length=128)
    until = models.DateTimeField(_("dealt with until"))
    last_due_at = models.DateTimeField(_("last due at"), null=True)
    last_job = models.BigIntegerField(_("last job"), null=True)
    created = models.PositiveBigIntegerField(_("created"), db_default=0)
    missed = models.PositiveBigIntegerField(_("missed"), db_default=0)
    held_back = models.PositiveBigIntegerField(_("held back"), db_default=0)
    paused_at = models.DateTimeField(_("paused at"), null=True)
    paused_by = WideCharField(_("paused by"), max_length=255, db_default="")
    paused_reason = WideCharField(_("reason"), max_length=500, db_default="")

    class Meta:
        verbose_name = _("schedule")
        verbose_name_plural = _("schedules")
        default_permissions = ("view", "delete")
        permissions = permissions_on("schedule")
        constraints = (models.UniqueConstraint(fields=["scope", "name"], name="queuetopia_schedule_name"),)

    def __str__(self):
        return visible(f"{self.scope}/{self.name}")


class JobEvent(models.Model):
    """A decision of an operator about a job, a queue or a scope: who, when, why, and the state before and after."""

    verb = models.CharField(_("verb"), max_length=32)
    scope = ExactCharField(_("scope"), max_length=128)
    queue = ExactCharField(_("queue"), max_length=255, default="")
    job = models.BigIntegerField(_("job"), null=True)
    at = models.DateTimeField(_("at"), db_default=DatabaseNow())
    by = WideCharField(_("by"), max_length=255, default="")
    reason = WideCharField(_("reason"), max_length=500, default="")
    before = models.JSONField(_("before"), default=dict)
    after = models.JSONField(_("after"), default=dict)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        indexes = (models.Index(fields=["job"], name="queuetopia_event_job"),)

    def __str__(self):
        return visible(f"{self.verb} {self.scope}/{self.queue}")
