"""User code: ``class MailPerformer(Performer)`` with one method per ``@action``.

This module knows no models, so that a performer can be imported anywhere.
"""

import inspect
import logging
from collections.abc import Callable, Container, Mapping
from functools import cache, cached_property, lru_cache, partialmethod
from typing import Any

from asgiref.sync import sync_to_async

from .completion import acompleted, completed, must_await

logger = logging.getLogger(__name__)

_MARK = "_queuetopia_action"
_CHUNK = "_queuetopia_chunk"
MOST_TOGETHER = 1_000  # jobs of a chunk: their ids stand in the queue's row
_NO_METHODS = (staticmethod, classmethod, property, cached_property)  # marked, they are a system-check error
PERFORMER_HINT = (
    "Write class MailPerformer(Performer), and set performer to the class itself: performer = MailPerformer."
)
_logged_shadows: set[tuple[type, str]] = set()


def action(function_or_name: Callable | str | None = None, *, chunk: int | None = None) -> Any:
    """Make a method an action: ``@action`` or ``@action()`` (named like the method), or ``@action("send-mail")``.

    The method is called as ``method(job, **params)``; it may be ``async def``.

    chunk: at most so many jobs, 2 to 1,000, that stand right behind each other are done together, by one attempt. The
    method is called as ``method(jobs, params)`` then, with a list of jobs and a list of their params, as dicts; after a
    failure with one job at a time. A list that it returns has the result of each job, anything else is that of all.
    """
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or not 2 <= chunk <= MOST_TOGETHER):
        raise ValueError(f"chunk is a number of jobs from 2 to {MOST_TOGETHER}, not {chunk!r}.")
    if function_or_name is None or isinstance(function_or_name, str):
        return lambda function: _mark(function, function_or_name, chunk)
    return _mark(function_or_name, None, chunk)


def _mark(function, name, chunk):
    if isinstance(function, type) or not (callable(function) or isinstance(function, (*_NO_METHODS, partialmethod))):
        raise TypeError(f"@action stands above a method, as in def send_mail(self, job, email); {function!r} is none.")
    name = getattr(_inside(function), "__name__", "") if name is None else name
    if name in ("", "<lambda>"):
        raise ValueError(f'Name this action, with 1 to 255 characters, as in @action("send"): {function!r}.')
    if len(name) > 255:
        raise ValueError(f"An action's name has 1 to 255 characters, not {len(name)}.")
    setattr(_inside(function), _MARK, name)
    if chunk is not None:
        setattr(_inside(function), _CHUNK, chunk)
    return function


def _inside(value):
    """Return the function in a property, a classmethod or the like, which can carry no mark itself."""
    if isinstance(value, property):
        return value.fget
    if isinstance(value, cached_property):
        return value.func
    return value.__func__ if isinstance(value, staticmethod | classmethod) else value


class Performer:
    """Runs jobs. One instance per worker process and class, shared by its threads.

    Write ``@action`` methods, or your own ``perform(job)`` together with ``actions = (names, …)``.
    Return anything: done (what is JSON is kept as ``job.result``). An awaitable is awaited; work that is not done,
    as a generator or an open future, is a failed attempt. Raise: the attempt failed.
    ``Retry``, ``Snooze``, ``Halt`` and ``Skip`` say what comes next.

    actions: the names that a ``perform`` of your own performs: a tuple, list or set; or an object that answers
    ``name in actions``, in any process, for names that cannot be listed.
    aliases: {older name: name} of actions that were renamed: jobs under the older name run as the action of today, and
    the job that is handed over carries the name of today.
    """

    actions: Container[str] = ()
    aliases: Mapping[str, str] = {}  # {what an action was called: what it is called now}, for jobs that wait
    # Whether hooks and receivers get the job as it is stored, by a query after the commit. False saves that: they get
    # it as this attempt has left it, without the errors of earlier ones.
    reads_stored_job = True

    def perform(self, job):
        """Run one attempt: calls the action's method with the params as keywords.

        In a ``def perform(self, job)`` of your own, ``super().perform(job)`` runs the action to its end, also an
        ``async def`` one. In an ``async def perform(self, job)`` await it, whatever the action is: one that is not
        ``async def`` runs in a thread, so that it may use the database.
        """
        method = _bound(self, action_methods(type(self))[job.action])
        who = f"Action {job.action!r} of {type(self).__name__}"
        performer: Any = type(self)
        if _has_async_perform(performer) and not inspect.iscoroutinefunction(method):
            return _run_in_thread(method, job, who)
        returned = _call(method, job)
        return returned if must_await(returned) else completed(returned, who)

    def setup(self):
        """Called once per worker process before its first job; set attributes on ``self``."""

    def handle_start(self, job):
        """Called before each attempt, as part of it: what it raises is raised by the attempt, ``Snooze`` too."""

    def was_done(self, job):
        """Return True if an earlier attempt did the work: the job is done then, and the action is not called.

        Asked before each attempt of a job of which one was cut short, by a timeout, a stop, or the end of its process
        or node, and so could not say. What it raises is raised by the attempt.
        """
        return False

    def backoff(self, job, exc):
        """Return the seconds to wait before the next attempt, or None for the built-in backoff.

        Asked after a failed attempt, before its result is written.
        """
        return None

    def handle_done_job(self, job):
        """Called in a worker after the job's success is committed, at most once."""

    def handle_failed_job(self, job, exc):
        """Called in a worker after a failed attempt is committed, at most once."""

    def handle_exhausted_job(self, job, exc):
        """Called in a worker after the job's last attempt failed and that is committed, at most once."""


def _bound(performer, name):
    """Return the action's method as the class has it, also when ``setup()`` has set an attribute of its name."""
    cls = type(performer)
    if name not in vars(performer):
        return getattr(performer, name)
    if (cls, name) not in _logged_shadows:
        _logged_shadows.add((cls, name))
        logger.warning(
            "self.%s was set, and is the name of an action's method, which runs all the same; rename one performer=%s",
            name,
            cls.__qualname__,
        )
    method = inspect.getattr_static(cls, name)
    return method.__get__(performer, cls)


def performer_problem(performer) -> str | None:
    """Return why a Queuetopia cannot have this performer; None if it can."""
    if performer is None:
        return "it has no performer"
    is_performer = isinstance(performer, type) and issubclass(performer, Performer)
    return None if is_performer else f"its performer {performer!r} is no subclass of Performer"


def hooks() -> list[str]:
    """Return the names of the methods that Queuetopia calls: no action can have one of these as its method."""
    return [name for name, value in vars(Performer).items() if inspect.isfunction(value) and not name.startswith("__")]


async def _run_in_thread(method, job, who):
    return await acompleted(await sync_to_async(_call)(method, job), who)


def _call(method, job):
    if (jobs := getattr(job, "chunk", None)) is None:  # a test may hand a job of its own
        return method(job, **job.params)
    return method(jobs, [one.params for one in jobs])


@cache
def _has_async_perform(performer):
    return any(inspect.iscoroutinefunction(vars(base).get("perform")) for base in performer.__mro__)


def action_methods(performer) -> dict[str, str]:
    """Return {action name: method name} of a performer class.

    A method that overrides an action stays that action, marked again or not.
    """
    return _action_methods(performer)


@cache
def _action_methods(performer):
    return {action: name for base in reversed(performer.__mro__) for action, name in own_actions(base)}


def name_now(performer, action: str) -> str:
    """Return what the performer calls an action today, of which a job may carry an older name."""
    return _aliases(performer).get(action, action)


@cache
def _aliases(performer) -> dict[str, str]:
    return {} if alias_problems(performer) else dict(performer.aliases)


def alias_problems(performer) -> list[str]:
    """Return what is wrong with the performer's ``aliases``."""
    aliases = performer.aliases
    if not isinstance(aliases, Mapping) or not all(isinstance(name, str) for pair in aliases.items() for name in pair):
        return [f"aliases is {aliases!r}, no dict of names"]
    if not aliases:
        return []
    if not lists_actions(performer):
        return ["aliases has names, and actions, which is no list, has to know these itself"]
    listed: Any = performer.actions
    known = [*listed, *action_methods(performer)]
    problems = [f"aliases has {old!r}, which is an action by itself" for old in aliases if old in known]
    if known or not has_own_perform(performer):
        unknown = [new for new in aliases.values() if new not in known]
        problems += [f"aliases says {new!r}, and there is no such action" for new in unknown]
    return problems


def chunk_of(performer, action: str) -> int | None:
    """Return how many jobs of the action may be done together at most; None if each is done alone."""
    return _chunks(performer).get(action_methods(performer).get(name_now(performer, action), ""))


@cache
def _chunks(performer):
    """Return {method name: chunk}."""
    marked = ((base, name) for base in reversed(performer.__mro__) for _, name in own_actions(base))
    return {name: getattr(_inside(vars(base)[name]), _CHUNK, None) for base, name in marked}


def own_actions(cls: type) -> list[tuple[str, str]]:
    """Return [(action name, method name)] of the methods marked in the body of ``cls`` itself."""
    marked = ((getattr(_inside(value), _MARK, None), name) for name, value in vars(cls).items())
    return [(action, name) for action, name in marked if isinstance(action, str)]


@cache
def _arguments(performer, method):
    """Return the parameters of an action's method: those that receive ``self`` and ``job``, and the others."""
    arguments = list(inspect.signature(getattr(performer, method)).parameters.values())
    stars = [index for index, argument in enumerate(arguments[:2]) if argument.kind is argument.VAR_POSITIONAL]
    first = stars[0] + 1 if stars else 2
    return arguments[:first], arguments[first:]


def has_own_perform(performer) -> bool:
    return performer.perform is not Performer.perform


def known_actions(performer) -> Container[str] | None:
    """Return the names a job may carry, or None when the performer does not say (nothing can be validated).

    They can be listed unless ``lists_actions`` is False.
    """
    return _known_actions(performer)


def lists_actions(performer) -> bool:
    """True if the names can be listed; False for a container that only answers whether a name is in it."""
    return isinstance(performer.actions, list | tuple | set | frozenset)


@cache
def _known_actions(performer):
    if not lists_actions(performer):
        return performer.actions
    names = frozenset([*performer.actions, *action_methods(performer), *_aliases(performer)])
    return None if has_own_perform(performer) and not names else names


@cache
def method_problem(performer, method: str) -> str | None:
    """Return why the action's method cannot be called as ``method(job, **params)``; None if it can."""
    function = inspect.getattr_static(performer, method)
    if isinstance(function, _NO_METHODS):
        return f"it is a {type(function).__name__}"
    if not hasattr(function, "__get__") and callable(function):
        return f"it is a {type(function).__name__}, which Python gives no self"
    if is_generator(function):
        return "it is a generator: a call would run nothing"
    if _chunks(performer).get(method):
        problem = call_problem(performer, method, ["jobs", "params"])
        return problem and f"its jobs are done in chunks, and it {problem}"
    try:
        first, others = _arguments(performer, method)
    except (TypeError, ValueError) as exc:
        return str(exc)
    return _first_problem(first) or _others_problem(others)


def is_generator(function) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _first_problem(first):
    kinds = inspect.Parameter
    if first and first[0].name == "job" and first[0].kind is not kinds.VAR_POSITIONAL:
        return "it lacks self, so that its 'job' would receive the performer"
    takes_both = len(first) == 2 or (first and first[0].kind is kinds.VAR_POSITIONAL)
    positional = (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.VAR_POSITIONAL)
    return None if takes_both and all(a.kind in positional for a in first) else "it must take self and job first"


def _others_problem(others):
    for argument in others:
        if argument.kind is argument.POSITIONAL_ONLY:
            return f"'{argument.name}' is positional-only, and params arrive as keywords"
        if argument.kind is argument.VAR_POSITIONAL:
            return f"'*{argument.name}' never receives anything, params arrive as keywords"
    return None


def mistaken_for_job(performer, method: str) -> str | None:
    """Return the name of the parameter that receives the job and seems to be meant for a param, or None.

    Meant for the job are: job, and names that end with it; names that begin with _; what is annotated as Job or
    cannot be a param (positional-only, *args).
    """
    if _chunks(performer).get(method):
        return None
    first, _ = _arguments(performer, method)
    if len(first) < 2 or first[1].kind is not first[1].POSITIONAL_OR_KEYWORD:
        return None
    name, annotation = first[1].name, first[1].annotation
    annotated = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    is_meant = name.lower().endswith("job") or name.startswith("_") or annotated.endswith("Job")
    return None if is_meant else name


def param_problems(performer, action_name: str, params: dict) -> list[str]:
    """Return what in ``params`` the action's method would not accept: missing and unknown names."""
    return _param_problems(performer, action_name, tuple(params))


@lru_cache(maxsize=1_000)
def _param_problems(performer, action_name, params):
    kinds = inspect.Parameter
    method = action_methods(performer).get(name_now(performer, action_name))
    if method is not None and (method_problem(performer, method) or _chunks(performer).get(method)):
        return []  # said of the action; or it takes them as dicts
    first, arguments = _arguments(performer, method) if method else ([], [])
    taken = {"self", "job", *(a.name for a in first if a.kind is kinds.POSITIONAL_OR_KEYWORD)}
    problems = [
        f"a param cannot be named '{name}'{_remedy(performer, method, name)}"
        for name in sorted(taken)
        if name in params
    ]
    if method is None:
        return problems
    named = {a.name: a for a in arguments if a.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)}
    takes_any = any(a.kind is kinds.VAR_KEYWORD for a in arguments)
    takes = ", ".join(named) or "none"
    for name, argument in named.items():
        if argument.default is kinds.empty and name not in params:
            problems.append(f"missing param '{name}' of action '{action_name}' (it takes: {takes})")
    if not takes_any:
        for name in params:
            if name not in named and name not in taken:
                problems.append(f"unknown param {name!r} of action '{action_name}' (it takes: {takes})")
    return problems


def _remedy(performer, method, name):
    if method is None or mistaken_for_job(performer, method) != name:
        return "; params are passed to the action as keywords"
    return f": there {performer.__name__}.{method} receives the job; write def {method}(self, job, {name})"


def hook_problem(performer, hook: str) -> str | None:
    """Return why a method of Performer's that the class overrides cannot be called as Performer's; None if it can."""
    return call_problem(performer, hook, list(inspect.signature(getattr(Performer, hook)).parameters)[1:])


def call_problem(performer, method: str, names: list[str]) -> str | None:
    """Return why the performer's method cannot be called with these positional arguments; None if it can."""
    function = inspect.getattr_static(performer, method)
    if is_generator(function):
        return "is a generator: a call would run nothing"
    try:
        inspect.signature(function.__get__(object.__new__(performer), performer)).bind(*names)
    except (AttributeError, TypeError, ValueError) as exc:
        return f"cannot be called as {method}({', '.join(names)}): {exc}"
    return None
