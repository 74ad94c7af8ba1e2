"""Jobs as they are made: checked whole before anything is written, then one INSERT and, after the commit, a wake-up."""

import logging
from contextlib import nullcontext
from datetime import datetime
from difflib import get_close_matches
from functools import partial
from itertools import groupby
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.utils import timezone

from .. import conf, signals
from .. import params as params_module
from ..backends import backend_for
from ..backends.keys import is_taken
from ..backends.values import has_no_time
from ..exceptions import InvalidJob, QueueFull, Refused
from ..lines import LONGEST_GIVEN, is_own, own_name
from ..models import MAX_KEY, Job
from ..moving import MAX_NAME, name_problem
from ..performer import (
    PERFORMER_HINT,
    action_methods,
    has_own_perform,
    hooks,
    known_actions,
    lists_actions,
    method_problem,
    name_now,
    param_problems,
    performer_problem,
)
from ..text import brief
from .sending import send

logger = logging.getLogger("queuetopia.jobs")

KEYS = {"unique": "unique_key", "coalesce": "coalesce_key"}  # arguments, and the fields of a job that have them


def build(queuetopia, *, queue, action, params, scheduled_at, **options) -> Job:
    """Return an unsaved Job, or raise InvalidJob with every problem found, keyed by argument."""
    _require_performer(queuetopia)
    params = {} if params is None else params
    if queue is None and not queuetopia.option("ordered"):
        queue = action
    given = {name: value for name, value in options.items() if value is not None}
    if scheduled_at is not None:
        given["scheduled_at"] = scheduled_at
    if problems := _problems(queuetopia, queue, action, params, given):
        raise InvalidJob(problems)
    for name, clean in conf.JOB_OPTIONS.items():
        if name in given:
            given[name] = clean(given[name])
    given = {KEYS.get(name, name): value for name, value in given.items()}
    return Job(scope=queuetopia.scope, queue=queue, action=action, params=params, **given)


def _require_performer(queuetopia):
    if trouble := performer_problem(queuetopia.performer):
        raise ImproperlyConfigured(f"{queuetopia.label}: {trouble}. {PERFORMER_HINT}")


def _problems(queuetopia, queue, action, params, given) -> dict[str, list[str]]:
    """Return everything that would keep such a job from being stored or run, keyed by argument."""
    problems: dict[str, list[str]] = {}
    check_queue(queue, problems, MAX_NAME if queuetopia.option("ordered") else LONGEST_GIVEN)
    if "queue" not in problems and type(queue) is str and is_own(queue):
        problems["queue"] = [f"{queue!r} is how the queue of an independent job is named; choose another name."]
    check_action(queuetopia, action, problems)
    check_params(queuetopia, action, params, problems)
    check_scheduled_at(given.get("scheduled_at"), problems)
    _check_keys(queuetopia, given, problems)
    for name, clean in conf.JOB_OPTIONS.items():
        if name not in given:
            continue
        try:
            clean(given[name])
        except (ValueError, TypeError, OverflowError) as exc:
            problems[name] = [f"{exc}. Leave it out to use the option of {queuetopia.__name__}."]
    return problems


def check_queue(queue, problems, most=MAX_NAME):
    if problem := name_problem(queue):
        problems["queue"] = [f"{problem}."]
    elif len(queue) > most:
        problems["queue"] = [f"has {len(queue)} characters; a queue's name has 1 to {most} where ordered = False."]


def check_action(queuetopia, action, problems):
    if not isinstance(action, str):
        name = getattr(action, "__name__", None)
        hint = f"; give its name, {name!r}" if callable(action) and name else ""
        problems["action"] = [f"must be a str, not {type(action).__name__}{hint}."]
        return
    performer = queuetopia.performer
    known = known_actions(performer)
    if known is None or action in known:
        method = action_methods(performer).get(name_now(performer, action))
        if method is not None and not has_own_perform(performer) and (trouble := method_problem(performer, method)):
            problems["action"] = [f"{performer.__name__}.{method} cannot run action {action!r}: {trouble}."]
        elif not 1 <= len(action) <= MAX_NAME:
            problems["action"] = [f"has {len(action)} characters; an action's name has 1 to {MAX_NAME}."]
        elif problem := params_module.text_problem(action):
            problems["action"] = [f"{problem}."]
        return
    problems["action"] = [f"{performer.__name__} has no action {action[:100]!r}; {_action_hint(performer, action)}"]


def _action_hint(performer, action):
    if callable(getattr(performer, action, None)) and action not in hooks() and not action.startswith("_"):
        return f"mark its method {action} with @action."
    if not lists_actions(performer):
        return f"{performer.__name__}.actions does not have it."
    known: Any = known_actions(performer)
    if not known:
        return "it has none: mark its methods with @action."
    close = get_close_matches(action, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it knows: {', '.join(sorted(known))}."


def check_params(queuetopia, action, params, problems):
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


def check_scheduled_at(scheduled_at, problems):
    if scheduled_at is None:
        return
    if not isinstance(scheduled_at, datetime):
        kind = type(scheduled_at).__name__
        problems["scheduled_at"] = [f"must be an aware datetime, not {kind}; as in timezone.now() + timedelta(days=1)."]
    elif timezone.is_naive(scheduled_at):
        problems["scheduled_at"] = ["is a naive datetime; use django.utils.timezone.now() or make_aware()."]
    elif not 1971 <= scheduled_at.year <= 9998:
        problems["scheduled_at"] = [f"is in the year {scheduled_at.year}, outside 1971-9998."]


def _check_keys(queuetopia, given, problems):
    for name in KEYS:
        key = given.get(name)
        if key is None:
            continue
        if not queuetopia.option("ordered"):
            problems[name] = ["is among the jobs of one queue; with ordered = False each has its own. Leave it out."]
        elif not isinstance(key, str):
            problems[name] = [f"must be a str, not {type(key).__name__}."]
        elif not 1 <= len(key) <= MAX_KEY:
            problems[name] = [f"has {len(key)} characters; a key has 1 to {MAX_KEY}."]
        elif problem := params_module.text_problem(key):
            problems[name] = [f"{problem}."]
    if all(name in given for name in KEYS):
        problems["coalesce"] = ["cannot be combined with unique: give one of them."]


def create_many(queuetopia, jobs: list) -> list[Job]:
    """Validate all jobs, then ``create_new`` them."""
    _check_bulk(queuetopia, jobs)
    return create_new(queuetopia, jobs)


def create_new(queuetopia, jobs: list[Job]) -> list[Job]:
    """Do what ``create`` does, unless a queue would get deeper than the class's ``max_depth``: raise QueueFull then."""
    most = queuetopia.option("max_depth")
    if most is None or not jobs:
        return create(queuetopia, jobs)
    alias = queuetopia.database()
    _refuse_manual_transaction(alias)
    with transaction.atomic(using=alias):
        if queuetopia.option("commit_ordered"):  # then the count is exact
            backend_for(alias).lock_order(queuetopia.scope, {job.queue for job in jobs})
        _refuse_if_full(queuetopia, backend_for(alias), jobs, most)
        return create(queuetopia, jobs)


def _refuse_if_full(queuetopia, backend, jobs, most):
    by_queue: dict[str, list[int]] = {}
    for index, job in enumerate(jobs):
        by_queue.setdefault(job.queue, []).append(index)
    for queue, indexes in by_queue.items():
        line = queuetopia.jobs().unfinished().filter(queue=queue).order_by()
        room = most - line[:most].count()
        if len(indexes) <= room:
            continue
        new = [index for index in indexes if not (_has_key(jobs[index]) and is_taken(backend, jobs[index]))]
        if len(new) > room:
            argument = "queue" if len(jobs) == 1 else f"jobs[{new[room]}].queue"
            raise QueueFull({argument: [
                f"{queue!r} has {most - room} unfinished jobs, of {most} that {queuetopia.__name__} lets it have "
                "(max_depth). Nothing was created; try again when some have ended."
            ]})  # fmt: skip


def create(queuetopia, jobs: list[Job]) -> list[Job]:
    """INSERT the jobs in the caller's transaction; after commit wake the schedulers and send job_created.

    Return them as they are stored: in the place of one whose key an unfinished job has stands that one.
    """
    if not jobs:
        return jobs
    alias = queuetopia.database()
    _refuse_manual_transaction(alias)
    commit_ordered = queuetopia.option("commit_ordered")
    separate(queuetopia, jobs)
    with transaction.atomic(using=alias) if commit_ordered or len(jobs) > 1 else nullcontext():
        if commit_ordered:
            backend_for(alias).lock_order(queuetopia.scope, {job.row_name for job in jobs})
        stored = _inserted(backend_for(alias), jobs)
        if new := [job for job in stored if job.is_new]:
            transaction.on_commit(partial(_announce, queuetopia, new, alias), using=alias, robust=True)
    return stored


def _inserted(backend, jobs) -> list[Job]:
    """INSERT jobs in their order, those without a key in bulk."""
    stored: list[Job] = []
    keyed = [job for job in jobs if _has_key(job)]
    if len(keyed) > 1:  # in one order, or two who have the same keys in another one would deadlock
        backend.lock_order(keyed[0].scope, {job.queue for job in keyed})
    for has_key, group in groupby(jobs, _has_key):
        if has_key:
            stored += [_inserted_alone(backend, job) for job in group]
            continue
        plain = list(group)
        backend.insert(plain)
        for job in plain:
            job.note_new()
        stored += plain
    return stored


def _has_key(job):
    return job.unique_key is not None or job.coalesce_key is not None


def _inserted_alone(backend, job):
    stored = backend.insert_keyed(job)
    if stored is job:
        job.note_new()
    return stored


def separate(queuetopia, jobs: list[Job]) -> None:
    """Give each of new jobs a queue of its own, if its class says that they need no order."""
    if not queuetopia.option("ordered"):
        for job in jobs:
            job.queue = own_name(job.queue)


def _refuse_manual_transaction(alias):
    """Raise Refused where Django cannot call us after the commit: nothing would wake the schedulers."""
    connection = connections[alias]
    if not connection.in_atomic_block and not connection.get_autocommit():
        raise Refused(
            f"No job was created: database {alias!r} is in manual transaction mode (autocommit is off), where Django "
            "calls nothing after a commit. Create jobs inside transaction.atomic(), or with autocommit on."
        )


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
    given |= {name: getattr(job, field) for name, field in KEYS.items() if getattr(job, field) is not None}
    return given


def _announce(queuetopia, jobs, alias):
    due: dict[str, datetime] = {}
    for job in jobs:
        due[job.row_name] = min(job.scheduled_at, due.get(job.row_name, job.scheduled_at))
    try:
        wakes = [(queuetopia.scope, queue, at) for queue, at in due.items()]
        if left := backend_for(alias).wake(wakes):
            logger.warning(
                "wake-up failed, the sweep finds the jobs scope=%s queues=%d cause='rows or tables are locked'",
                queuetopia.scope, left,
            )  # fmt: skip
    except Exception as exc:
        # The jobs are committed: their caller must not fail for a hint.
        logger.warning("wake-up failed, the sweep finds the jobs scope=%s error=%r", queuetopia.scope, brief(exc))
    if signals.job_created.has_listeners(queuetopia):
        for job in jobs:
            send(signals.job_created, queuetopia, job=job)
