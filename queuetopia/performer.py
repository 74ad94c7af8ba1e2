"""User code: ``class MailPerformer(Performer)`` with one method per ``@action``.

This module knows no models, so that a performer can be imported anywhere.
"""

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any

_MARK = "_queuetopia_action"


def action(function_or_name: Callable | str) -> Any:
    """Make a method an action: ``@action`` (named like the method) or ``@action("send-mail")``.

    The method is called as ``method(job, **params)``; it may be ``async def``.
    """
    if isinstance(function_or_name, str):
        return lambda function: _mark(function, function_or_name)
    return _mark(function_or_name, function_or_name.__name__)


def _mark(function, name):
    if not name or len(name) > 255:
        raise ValueError(f"An action's name has 1 to 255 characters, not {len(name)}.")
    setattr(function, _MARK, name)
    return function


class Performer:
    """Runs jobs. One instance per worker process and class, shared by its threads.

    Write ``@action`` methods, or your own ``perform(job)`` together with ``actions = (names, …)``.
    Return anything: done (what is JSON is kept as ``job.result``). Raise: the attempt failed.
    ``Retry``, ``Snooze``, ``Halt`` and ``Skip`` say what comes next.
    """

    actions: tuple[str, ...] = ()

    def perform(self, job):
        """Run one attempt: calls the action's method with the params as keywords."""
        return getattr(self, action_methods(type(self))[job.action])(job, **job.params)

    def setup(self):
        """Called once per worker process before its first job; set attributes on ``self``."""

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


def action_methods(performer) -> dict[str, str]:
    """Return {action name: method name} of a performer class.

    A method that overrides an action stays that action, marked again or not.
    """
    return _action_methods(performer)


@cache
def _action_methods(performer):
    return {action: name for base in reversed(performer.__mro__) for action, name in own_actions(base)}


def own_actions(cls: type) -> list[tuple[str, str]]:
    """Return [(action name, method name)] of the methods marked in the body of ``cls`` itself."""
    marked = ((getattr(value, _MARK, None), name) for name, value in vars(cls).items())
    return [(action, name) for action, name in marked if action]


@cache
def _arguments(performer, method):
    """Return the parameters of an action's method, ``self`` and ``job`` first."""
    return list(inspect.signature(getattr(performer, method)).parameters.values())


def has_own_perform(performer) -> bool:
    return performer.perform is not Performer.perform


def known_actions(performer) -> frozenset[str] | None:
    """Return the names a job may carry, or None when the performer does not say (nothing can be validated)."""
    return _known_actions(performer)


@cache
def _known_actions(performer):
    names = frozenset([*performer.actions, *action_methods(performer)])
    return None if has_own_perform(performer) and not names else names


def method_problem(performer, method: str) -> str | None:
    """Say why the action's method cannot be called as ``method(job, **params)``, or None."""
    function = inspect.getattr_static(performer, method)
    if isinstance(function, staticmethod | classmethod):
        return f"it is a {type(function).__name__}"
    if is_generator(function):
        return "it is a generator: a call would run nothing"
    try:
        arguments = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as exc:
        return str(exc)
    return _arguments_problem(arguments)


def is_generator(function) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _arguments_problem(arguments):
    kinds = inspect.Parameter
    if len(arguments) < 2 or arguments[1].kind not in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD):
        return "it must take self and job first"
    for argument in arguments[2:]:
        if argument.kind is kinds.POSITIONAL_ONLY:
            return f"'{argument.name}' is positional-only, and params arrive as keywords"
        if argument.kind is kinds.VAR_POSITIONAL:
            return f"'*{argument.name}' never receives anything, params arrive as keywords"
    return None


def param_problems(performer, action_name: str, params: dict) -> list[str]:
    """Say what in ``params`` the action's method would not accept: missing and unknown names."""
    return _param_problems(performer, action_name, tuple(params))


@lru_cache(maxsize=1_000)
def _param_problems(performer, action_name, params):
    kinds = inspect.Parameter
    method = action_methods(performer).get(action_name)
    arguments = _arguments(performer, method) if method else []
    taken = {"self", "job", *(a.name for a in arguments[:2] if a.kind is kinds.POSITIONAL_OR_KEYWORD)}
    problems = [f"a param cannot be named '{name}'" for name in sorted(taken) if name in params]
    if method is None:
        return problems
    arguments = arguments[2:]
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
