"""The setting MIDDLEWARE: callables that wrap every attempt of every class, as Django's wrap every request.

Each takes ``perform`` and returns the callable that is called with the job in its place; the first is the outermost.
"""

import inspect
from collections.abc import Callable
from functools import cache, lru_cache

from django.utils.module_loading import import_string

from .. import conf
from ..completion import acompleted, completed


def wrapped(performer, who: str, *, is_async: bool) -> Callable:
    """Return the callable that runs an attempt of the performer, middleware included."""
    paths = conf.middleware()
    return _wrapped(performer, who, is_async, paths) if paths else performer.perform


@lru_cache(maxsize=1_000)
def _wrapped(performer, who, is_async, paths):
    def perform(job):
        return completed(performer.perform(job), who)

    async def aperform(job):
        return await acompleted(performer.perform(job), who)

    return _layers(aperform if is_async else perform, paths)[-1]


def takes_async() -> bool:
    """True if each middleware makes an ``async def`` of one; else an async action is run below a sync ``perform``."""
    paths = conf.middleware()
    return not paths or _takes_async(paths)


@cache
def _takes_async(paths):
    async def perform(job): ...

    try:
        return all(inspect.iscoroutinefunction(layer) for layer in _layers(perform, paths))
    except Exception:  # each attempt fails with it
        return False


def _layers(perform, paths):
    layers = [perform]
    for path in reversed(paths):
        layers.append(import_string(path)(layers[-1]))
    return layers
