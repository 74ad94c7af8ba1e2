"""``class MailQueue(Queuetopia)``: one declared system of queues, and what can be done to its jobs."""

from collections.abc import Sequence
from functools import wraps
from inspect import signature

from django.apps import apps
from django.core.exceptions import SynchronousOnlyOperation
from django.core.paginator import Paginator
from django.db import Error, connections, router
from django.utils.functional import classproperty

from . import conf, registry
from .backends.trouble import Kind, database_trouble
from .decisions import HEAD_START
from .exceptions import Refused
from .performer import Performer
from .schedules import Periodic


class _DefaultScope:
    """The scope of a class that names none: ``<app_label>.<ClassName>``.

    It is computed on access, because a class may be declared before Django's apps are ready.
    """

    def __get__(self, instance, owner):
        config = apps.get_containing_app_config(owner.__module__)
        label = config.label if config else owner.__module__.partition(".")[0]
        return f"{label}.{owner.__name__}"


class _NameElsewhere:
    """A name that other systems of queues give to the creation of jobs. Its error says what does so here."""

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner):
        cls = owner.__name__
        raise AttributeError(f"{cls} has no {self._name!r}; write: {cls}.create_job(queue, action, {{param: value}})")


def _sync(method):
    """Add the remedy to errors that a mistake of the caller causes: async code, a missing migration, a param as option.

    The last two keep their type, and get a note.
    """

    @wraps(method)
    def named(cls, *args, **kwargs):
        try:
            return method(cls, *args, **kwargs)
        except SynchronousOnlyOperation as exc:
            name = f"{cls.__name__}.{method.__name__}"
            is_twin = hasattr(cls, f"a{method.__name__}")
            instead = f"{cls.__name__}.a{method.__name__}(…)" if is_twin else f"sync_to_async({name})(…)"
            raise SynchronousOnlyOperation(f"{name} uses the database. In async code write: await {instead}") from exc
        except Error as exc:
            if (trouble := database_trouble(exc)).kind is not Kind.REFUSED:
                exc.add_note(f"Database {cls.database()}: {trouble.message}")
            raise
        except TypeError as exc:
            if method.__name__ == "create_job" and _is_of_the_call(exc):
                given = ", ".join(f"{name!r}: …" for name in kwargs if name not in signature(method).parameters)
                example = f"{cls.__name__}.create_job(queue, action, {{{given}}}, timeout=30)"
                exc.add_note(f"The params of the action stand in one dict: {example}")
            raise

    return named


def _is_of_the_call(exc):
    """True for an error that was raised before the first line of what was called."""
    return exc.__traceback__ is not None and exc.__traceback__.tb_next is None


class Queuetopia:
    """A declared system of queues: its performer, its options and the jobs of its scope.

    A subclass without ``performer`` is abstract. ``scope`` is its name in the database and never inherited.
    Options (class attributes, see ``conf.OPTIONS``): timeout, backoff_base, backoff_factor, max_backoff, max_attempts,
    on_exhausted, on_error, breaker, jitter, setup_retry, poll_interval, max_running, max_depth, priority, rate,
    spacing, ordered, using, commit_ordered, retention, sensitive_params.

    ``schedules`` is a list of ``Every`` and ``Cron``: jobs that nodes create by the clock.
    """

    performer: type[Performer] = None  # type: ignore[assignment]
    schedules: Sequence[Periodic] = ()
    scope: str = _DefaultScope()  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "scope" not in vars(cls):
            cls.scope = _DefaultScope()  # type: ignore[assignment]
        registry.register(cls)

    # What was declared

    @classproperty
    def label(cls):
        return f"{cls.__module__}.{cls.__qualname__}"  # type: ignore[attr-defined]

    @classmethod
    def option(cls, name):
        """Return an option as it holds now: SCOPES, then the class, then DEFAULTS, then the built-in."""
        return conf.option(cls, name)

    @classmethod
    def database(cls):
        """Return the alias of the database that holds this scope's jobs."""
        from .models import Job

        return cls.option("using") or router.db_for_write(Job)

    # Creating jobs

    @classmethod
    def job(
        cls,
        queue,
        action,
        params=None,
        *,
        scheduled_at=None,
        timeout=None,
        max_backoff=None,
        max_attempts=None,
        on_exhausted=None,
        unique=None,
        coalesce=None,
    ):
        """Return an unsaved, valid Job for ``create_jobs``. Arguments and errors are those of ``create_job``."""
        from . import jobs

        return jobs.build(
            cls,
            queue=queue,
            action=action,
            params=params,
            scheduled_at=scheduled_at,
            timeout=timeout,
            max_backoff=max_backoff,
            max_attempts=max_attempts,
            on_exhausted=on_exhausted,
            unique=unique,
            coalesce=coalesce,
        )

    @classmethod
    @_sync
    def create_job(
        cls,
        queue,
        action,
        params=None,
        *,
        scheduled_at=None,
        timeout=None,
        max_backoff=None,
        max_attempts=None,
        on_exhausted=None,
        unique=None,
        coalesce=None,
    ):
        """Write a job at the end of ``queue`` and return it.

        The job exists only if the surrounding transaction commits; then the schedulers are woken. One INSERT is
        all that happens inside the transaction.

        queue: 1-255 characters; it exists from its first job on. With ``ordered = False`` the job waits for no other
            one of this name, which has 234 characters at most; None names it by its action.
        params: dict of the action's keyword arguments: JSON, datetime, date, time, timedelta, Decimal, UUID.
        scheduled_at: not before this aware datetime; None means the database's now.
        timeout: seconds (or timedelta) one attempt may last; None means the class's.
        max_backoff: cap, in seconds (or timedelta), of the wait between attempts; None means the class's.
        max_attempts: failed attempts before the job is exhausted; None means the class's.
        on_exhausted: "halt", "skip", "retry" or ``Move(queue)``; None means the class's.
        unique: a key of 1-128 characters. While an unfinished job of the queue has it, that job is returned as it is.
        coalesce: the same kind of key. A job of the queue and action that has it, and that no node has claimed yet,
            gets these params instead, keeps its place, time and options, and is returned; its row stays locked until
            the commit. See the guide "What a creator may ask for".

        ``is_new`` of the returned job is False if it was there.

        Raises InvalidJob, naming the argument, if anything in the job could not run or be stored; QueueFull if the
        queue has as many unfinished jobs as the class's ``max_depth``; Refused where autocommit is off and no
        ``transaction.atomic()`` is open.
        """
        from . import jobs

        job = cls.job(
            queue,
            action,
            params,
            scheduled_at=scheduled_at,
            timeout=timeout,
            max_backoff=max_backoff,
            max_attempts=max_attempts,
            on_exhausted=on_exhausted,
            unique=unique,
            coalesce=coalesce,
        )
        return jobs.create_new(cls, [job])[0]

    @classmethod
    @_sync
    def create_jobs(cls, new_jobs):
        """Write jobs made by ``job()`` with bulk inserts in one transaction, in the order given; return them.

        All are validated before the first is written. Raises InvalidJob keyed by position (``jobs[3].queue``).
        """
        from . import jobs

        return jobs.create_many(cls, list(new_jobs))

    @classmethod
    async def acreate_job(cls, *args, **kwargs):
        """Call ``create_job`` from async code. Like all of Django's ORM there, outside transactions."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(cls.create_job)(*args, **kwargs)

    delay = _NameElsewhere()
    apply_async = _NameElsewhere()
    send = _NameElsewhere()
    enqueue = _NameElsewhere()
    defer = _NameElsewhere()

    # Looking

    @classmethod
    def jobs(cls):
        """Return a QuerySet of this scope's jobs.

        With ``ordered = False``, ``filter(queue="mails")`` selects all jobs that were given this name.
        """
        from .models import IndependentJobs, Job, JobQuerySet

        jobs = JobQuerySet if cls.option("ordered") else IndependentJobs
        return jobs(Job, using=cls.database()).filter(scope=cls.scope)

    @classmethod
    @_sync
    def list_jobs(cls, *, search="", **filters):
        """Return a QuerySet of this scope's jobs with Django's look-ups as filters, in order of their time.

        search: a job's number, the beginning of a queue's name, or, among the newest 20,000 jobs of the database, the
        beginning of an action or something in the last error or the params. See ``search.matching`` for what it
        costs; with it two queries are made at once, and 2,002 jobs are found at most.

        Raises ValueError for a state that no job can have.
        """
        from .monitoring.search import matching, refuse_impossible

        refuse_impossible(cls.scope, filters)
        return matching(cls.jobs().filter(**filters), search).in_order()

    @classmethod
    @_sync
    def paginate_jobs(cls, page=1, per_page=50, **filters):
        """Return a django Page of ``list_jobs(**filters)`` (``search`` is one); a page out of range is the last one."""
        return Paginator(cls.list_jobs(**filters), per_page).get_page(page)

    @classmethod
    def events(cls, *, since=None, timeout=None):
        """Return what happens to this scope's jobs, for ``for`` and ``async for``: see ``events.Events``."""
        from .monitoring.events import Events

        return Events(cls.database(), [cls.scope], since=since, timeout=timeout)

    @classmethod
    @_sync
    def status(cls, queues=20):
        """Return the state of the scope as a dict: nodes, counts, and up to ``queues`` queues, blocked ones first."""
        from .monitoring import status

        return status.scope_status(cls, queues=queues)

    @classmethod
    @_sync
    def explain(cls, queue):
        """Return why ``queue`` runs, waits or is blocked: a dict with a ``sentence``, its ``causes`` and the facts.

        See ``explain.explain``.
        """
        from .monitoring import explain

        return explain.explain(cls, queue)

    @classmethod
    @_sync
    def memory(cls, queue):
        """Return what ``queue`` remembers: the dict that its next attempt is handed as ``job.memory``."""
        from .attempts import memory_of
        from .models import Queue

        rows = Queue.objects.using(cls.database()).filter(scope=cls.scope, name=queue)
        memory = rows.values_list("memory", flat=True).first()
        return memory_of(memory) if isinstance(memory, str) else memory or {}

    @classmethod
    @_sync
    def list_schedules(cls):
        """Return how the schedules stand, a dict each: when the next job is due, what was created and left out.

        See ``monitoring.schedules.described``.
        """
        from .backends import backend_for
        from .monitoring import schedules

        return schedules.of_scope(cls, backend_for(cls.database()).now())

    @classmethod
    @_sync
    def position(cls, queue):
        """Return where the line of ``queue`` ends now, a short text for ``is_through``. After a commit.

        See ``positions.position``.
        """
        from .monitoring import positions

        return positions.position(cls, queue)

    @classmethod
    @_sync
    def is_through(cls, position):
        """Return whether all jobs up to the position have ended. See ``positions.is_through``."""
        from .monitoring import positions

        return positions.is_through(cls, position)

    @classmethod
    def wait_through(cls, position, timeout=None):
        """Wait until all jobs up to the position have ended; raise TimeoutError. See ``positions.wait_through``."""
        from .monitoring import positions

        positions.wait_through(cls, position, timeout)

    @classmethod
    async def await_through(cls, position, timeout=None):
        """Do what ``wait_through`` does in async code, without blocking the event loop or a thread."""
        from .monitoring import positions

        await positions.await_through(cls, position, timeout)

    @classmethod
    @_sync
    def statistics(cls, since=None, until=None, by="action", action=None):
        """Return how many jobs were started, done, failed …, and how long they took: see ``statistics.statistics``."""
        from .monitoring import statistics

        return statistics.statistics(cls, since=since, until=until, by=by, action=action)

    # The verbs of operators; each is a function of jobs.py, which documents when it is refused.

    @classmethod
    @_sync
    def complete(cls, token, result=None):
        """Report the success of an attempt that returned ``Deferred``. See ``jobs.complete``."""
        from . import jobs

        return jobs.complete(cls, token, result)

    @classmethod
    @_sync
    def fail(cls, token, error=""):
        """Report the failure of an attempt that returned ``Deferred``. See ``jobs.fail``."""
        from . import jobs

        return jobs.fail(cls, token, error)

    @classmethod
    @_sync
    def report_progress(cls, token, fraction, text=""):
        """Report how far an attempt that returned ``Deferred`` has come. See ``jobs.report_outside``."""
        from . import jobs

        return jobs.report_outside(cls, token, fraction, text)

    @classmethod
    @_sync
    def retry(cls, job, *, by="", reason=""):
        """Make the next attempt of a backing-off or halted job now; see ``jobs.retry``."""
        from . import jobs

        return jobs.retry(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def skip(cls, job, *, by="", reason=""):
        """Give a backing-off or halted job up; its queue goes on. See ``jobs.skip``."""
        from . import jobs

        return jobs.skip(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def retry_all(cls, queue=None, *, error=None, gently=False, by="", reason=""):
        """Retry all jobs that hold queues, or those with this error; return how many. See ``jobs.retry_all``."""
        from . import jobs

        return jobs.retry_all(cls, queue, error=error, gently=gently, by=by, reason=reason)

    @classmethod
    @_sync
    def skip_all(cls, queue=None, *, error=None, by="", reason=""):
        """Skip all jobs that hold queues, or those with this error; return how many. See ``jobs.skip_all``."""
        from . import jobs

        return jobs.skip_all(cls, queue, error=error, by=by, reason=reason)

    @classmethod
    @_sync
    def cancel(cls, job, *, by="", reason=""):
        """Cancel a job: returns "cancelled", "running" (a stop was asked for) or "finished". See ``jobs.cancel``."""
        from . import jobs

        return jobs.cancel(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def mark_done(cls, job, *, by="", reason=""):
        """Mark a waiting, backing-off or halted job as done; its queue goes on. See ``jobs.mark_done``."""
        from . import jobs

        return jobs.mark_done(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def edit(cls, job, params, *, was=None, by="", reason=""):
        """Give a job other params; a backing-off or halted one is retried with them. See ``jobs.edit``."""
        from . import jobs

        return jobs.edit(cls, job, params, was=was, by=by, reason=reason)

    @classmethod
    @_sync
    def move_to_end(cls, job, *, by="", reason=""):
        """Let the other due jobs of its queue go first; return the job at the end. See ``jobs.move_to_end``."""
        from . import jobs

        return jobs.move_to_end(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def move(cls, queue_or_jobs, to, *, by="", reason=""):
        """Carry unfinished jobs to the end of queue ``to``, in their order; return how many. See ``jobs.move``."""
        from . import jobs

        return jobs.move(cls, queue_or_jobs, to, by=by, reason=reason)

    @classmethod
    @_sync
    def reschedule(cls, job, at, *, by="", reason=""):
        """Give a job that was never attempted another time; return it. See ``jobs.reschedule``."""
        from . import jobs

        return jobs.reschedule(cls, job, at, by=by, reason=reason)

    @classmethod
    @_sync
    def run_now(cls, job, *, by="", reason=""):
        """Make a job that is scheduled for later due now; return it. See ``jobs.run_now``."""
        from . import jobs

        return jobs.run_now(cls, job, by=by, reason=reason)

    @classmethod
    @_sync
    def pause_schedule(cls, name, *, by="", reason=""):
        """Create no jobs of the schedule until it is resumed. See ``jobs.pause_schedule``."""
        from . import jobs

        return jobs.pause_schedule(cls, name, by=by, reason=reason)

    @classmethod
    @_sync
    def resume_schedule(cls, name, *, by="", reason=""):
        """Create jobs of a paused schedule again, from its next due time on. See ``jobs.resume_schedule``."""
        from . import jobs

        return jobs.resume_schedule(cls, name, by=by, reason=reason)

    @classmethod
    @_sync
    def run_schedule(cls, name, *, by="", reason=""):
        """Create a job of the schedule now, besides those of its due times; return it. See ``jobs.run_schedule``."""
        from . import jobs

        return jobs.run_schedule(cls, name, by=by, reason=reason)

    @classmethod
    @_sync
    def prioritize(cls, queue, seconds=HEAD_START, *, by="", reason=""):
        """Give a queue that waits for a worker a head start in line. See ``jobs.prioritize``."""
        from . import jobs

        return jobs.prioritize(cls, queue, seconds, by=by, reason=reason)

    @classmethod
    @_sync
    def edit_memory(cls, queue, memory, *, was=None, by="", reason=""):
        """Replace what ``queue`` remembers, while it does not run. See ``jobs.edit_memory``."""
        from . import jobs

        return jobs.edit_memory(cls, queue, memory, was=was, by=by, reason=reason)

    @classmethod
    @_sync
    def pause(cls, queue=None, *, by="", reason=""):
        """Start nothing new in ``queue`` (None: in the whole scope); the running job finishes."""
        from . import jobs

        return jobs.pause(cls, queue, by=by, reason=reason)

    @classmethod
    @_sync
    def resume(cls, queue=None, *, by="", reason=""):
        """Serve a paused queue (None: the scope) again, at once."""
        from . import jobs

        return jobs.resume(cls, queue, by=by, reason=reason)


def pause_all(*, using=None, by="", reason=""):
    """Start nothing new in any scope, until ``resume_all``; what runs finishes. See ``jobs.pause_all``.

    using: alias of the one database to pause; None means each database in which this code keeps jobs.
    """
    from . import jobs
    from .monitoring import status

    for alias in status.databases() if using is None else [_known_alias(using)]:
        jobs.pause_all(alias, by=by, reason=reason)


def resume_all(*, using=None, by="", reason=""):
    """End what ``pause_all`` began; scopes and queues that are paused themselves stay so.

    using: alias of the one database to resume; None means each database that is paused.

    Raises Refused if nothing was paused so.
    """
    from . import jobs
    from .monitoring import status

    for alias in status.paused_databases() if using is None else [_known_alias(using)]:
        jobs.resume_all(alias, by=by, reason=reason)


def _known_alias(using):
    if using not in connections:
        raise Refused(f"There is no database {using!r}; DATABASES has {', '.join(connections)}.")
    return using
