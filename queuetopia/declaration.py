"""``class MailQueue(Queuetopia)``: one declared system of queues, and the registry of all of them."""

from functools import lru_cache

from django.apps import apps
from django.core.paginator import Paginator
from django.db import router
from django.utils.functional import classproperty

from . import conf
from .performer import Performer

_registry: list[type["Queuetopia"]] = []


class _DefaultScope:
    """The scope of a class that names none: ``<app_label>.<ClassName>``, looked up when it is asked for,
    because a class may be declared before Django's apps are ready."""

    def __get__(self, instance, owner):
        config = apps.get_containing_app_config(owner.__module__)
        label = config.label if config else owner.__module__.partition(".")[0]
        return f"{label}.{owner.__name__}"


class Queuetopia:
    """A declared system of queues: its performer, its options and the jobs of its scope.

    A subclass without ``performer`` is abstract. ``scope`` is its name in the database and never inherited.
    Options (class attributes, see ``conf.OPTIONS``): timeout, max_backoff, max_attempts, on_exhausted, jitter,
    poll_interval, using, commit_ordered, retention, sensitive_params.
    """

    performer: type[Performer] = None  # type: ignore[assignment]
    scope: str = _DefaultScope()  # type: ignore[assignment]

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "scope" not in vars(cls):
            cls.scope = _DefaultScope()  # type: ignore[assignment]
        if cls.performer is not None:
            _register(cls)

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
        )

    @classmethod
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
    ):
        """Write a job at the end of ``queue`` and return it.

        The job exists only if the surrounding transaction commits; then the schedulers are woken. One INSERT is
        all that happens inside the transaction.

        queue: 1-255 characters; it exists from its first job on.
        params: dict of the action's keyword arguments: JSON, datetime, date, time, timedelta, Decimal, UUID.
        scheduled_at: not before this aware datetime; None means the database's now.
        timeout: seconds (or timedelta) one attempt may last; None means the class's.
        max_backoff: cap, in seconds (or timedelta), of the wait between attempts; None means the class's.
        max_attempts: failed attempts before the job is exhausted; None means the class's.
        on_exhausted: "halt", "skip" or "retry"; None means the class's.

        Raises InvalidJob, naming the argument, if anything in the job could not run or be stored.
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
        )
        return jobs.create(cls, [job])[0]

    @classmethod
    def create_jobs(cls, new_jobs):
        """Write jobs made by ``job()`` with bulk inserts in one transaction, in the order given; return them.

        All are validated before the first is written. Raises InvalidJob keyed by position (``jobs[3].queue``).
        """
        from . import jobs

        return jobs.create_many(cls, list(new_jobs))

    @classmethod
    async def acreate_job(cls, *args, **kwargs):
        """Do what ``create_job`` does from async code. Like all of Django's ORM there, outside transactions."""
        from asgiref.sync import sync_to_async

        return await sync_to_async(cls.create_job)(*args, **kwargs)

    # Looking

    @classmethod
    def jobs(cls):
        """Return a QuerySet of this scope's jobs."""
        from .models import Job

        return Job.objects.using(cls.database()).filter(scope=cls.scope)

    @classmethod
    def list_jobs(cls, **filters):
        """Return a QuerySet of this scope's jobs with Django's look-ups as filters, in order of their time."""
        return cls.jobs().filter(**filters).in_order()

    @classmethod
    def paginate_jobs(cls, page=1, per_page=50, **filters):
        """Return a django Page of ``list_jobs(**filters)``; a page out of range is the last one."""
        return Paginator(cls.list_jobs(**filters), per_page).get_page(page)

    @classmethod
    def status(cls, queues=20):
        """Return how the scope does now, as a dict: nodes, counts, and up to ``queues`` queues, blocked ones first."""
        from . import status

        return status.scope_status(cls, queues=queues)

    @classmethod
    def explain(cls, queue):
        """Say why ``queue`` does what it does now: a dict with a ``sentence``, its ``causes`` and the facts.

        See ``explain.explain``.
        """
        from . import explain

        return explain.explain(cls, queue)

    @classmethod
    def statistics(cls, since=None, until=None, by="action", action=None):
        """Return how many jobs were started, done, failed …, and how long they took: see ``statistics.statistics``."""
        from . import statistics

        return statistics.statistics(cls, since=since, until=until, by=by, action=action)

    # What a person can do; each is a function of jobs.py, which says when it is refused.

    @classmethod
    def retry(cls, job, *, by="", reason=""):
        """Make the next attempt of a backing-off or halted job now; see ``jobs.retry``."""
        from . import jobs

        return jobs.retry(cls, job, by=by, reason=reason)

    @classmethod
    def skip(cls, job, *, by="", reason=""):
        """Give a backing-off or halted job up; its queue goes on. See ``jobs.skip``."""
        from . import jobs

        return jobs.skip(cls, job, by=by, reason=reason)

    @classmethod
    def cancel(cls, job, *, by="", reason=""):
        """Cancel a job: returns "cancelled", "running" (a stop was asked for) or "finished". See ``jobs.cancel``."""
        from . import jobs

        return jobs.cancel(cls, job, by=by, reason=reason)

    @classmethod
    def mark_done(cls, job, *, by="", reason=""):
        """Take a waiting, backing-off or halted job for done; its queue goes on. See ``jobs.mark_done``."""
        from . import jobs

        return jobs.mark_done(cls, job, by=by, reason=reason)

    @classmethod
    def edit(cls, job, params, *, was=None, by="", reason=""):
        """Give a job other params; a backing-off or halted one is retried with them. See ``jobs.edit``."""
        from . import jobs

        return jobs.edit(cls, job, params, was=was, by=by, reason=reason)

    @classmethod
    def move_to_end(cls, job, *, by="", reason=""):
        """Let the other due jobs of its queue go first; return the job at the end. See ``jobs.move_to_end``."""
        from . import jobs

        return jobs.move_to_end(cls, job, by=by, reason=reason)

    @classmethod
    def pause(cls, queue=None, *, by="", reason=""):
        """Start nothing new in ``queue`` (None: in the whole scope); the running job finishes."""
        from . import jobs

        return jobs.pause(cls, queue, by=by, reason=reason)

    @classmethod
    def resume(cls, queue=None, *, by="", reason=""):
        """Serve a paused queue (None: the scope) again, at once."""
        from . import jobs

        return jobs.resume(cls, queue, by=by, reason=reason)


def _register(queuetopia):
    # A module imported anew (reload, tests) replaces what it declared before.
    _registry[:] = [known for known in _registry if known.label != queuetopia.label]
    _registry.append(queuetopia)


def registered() -> list[type[Queuetopia]]:
    """Return every concrete Queuetopia class, in order of declaration."""
    return list(_registry)


def by_scope() -> dict[str, type[Queuetopia]]:
    """Return {scope: class}. Two classes of one scope are a system-check error; the first is returned."""
    return _by_scope(tuple(_registry)) if apps.ready else _by_scope.__wrapped__(_registry)


@lru_cache(maxsize=1)
def _by_scope(queuetopias):
    # Asked for each job. Before the apps are ready a default scope may still change.
    scopes: dict[str, type[Queuetopia]] = {}
    for queuetopia in queuetopias:
        scopes.setdefault(queuetopia.scope, queuetopia)
    return scopes
