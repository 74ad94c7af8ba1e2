"""What a performer or hook returned: its finished result, an awaitable to wait for, or work that was never done.

Only a finished result is a success. This module knows no models.
"""

import asyncio
import concurrent.futures
import contextlib
import inspect
import itertools
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from typing import Any, cast

from asgiref.sync import async_to_sync

from .exceptions import Unfinished, Verdict

MOST_MEMBERS = 1_000  # values of a returned list, dict … that are searched for unfinished work

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
_LAZY = (Generator, AsyncGenerator, map, filter, zip, enumerate, type(iter(int, 1)))
_UNENTERED = (contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager)

_waiting: dict[int, asyncio.Task] = {}  # by the id of the thread that waits


def completed(returned: Any, who: str) -> Any:
    """Return the finished result of what was returned; wait for it if it is an awaitable.

    An awaitable runs in an event loop of its own. Whatever it calls by ``sync_to_async``, as Django's async ORM does,
    runs in this thread, on this thread's database connections. Where an event loop runs, use ``acompleted``.

    who: names what returned it, in the error.

    Raises Unfinished if it is neither finished nor an awaitable.
    """
    if type(returned) in _PLAIN:
        return returned
    if _has_to_be_awaited(returned):
        return _wait(returned, who)
    return _finished(returned, who)


async def acompleted(returned: Any, who: str) -> Any:
    """Return what ``completed`` returns, from inside a running event loop."""
    while _has_to_be_awaited(returned):
        returned = await returned
    return _finished(returned, who)


def cancel(thread_id: int, reason: BaseException) -> bool:
    """Cancel the awaitable for which a thread waits in ``completed``; return False if it waits for none."""
    try:
        task = _waiting[thread_id]
        task.get_loop().call_soon_threadsafe(task.cancel, reason)
    except (KeyError, RuntimeError):  # no awaitable, or its loop has just been closed
        return False
    return True


def must_await(returned: Any) -> bool:
    """True for an awaitable in a thread whose event loop runs: only its caller can wait for it."""
    return type(returned) not in _PLAIN and inspect.isawaitable(returned) and _running_loop() is not None


def _wait(awaitable, who):
    thread_id = threading.get_ident()

    async def wait():
        _waiting[thread_id] = cast(asyncio.Task, asyncio.current_task())
        try:
            return await acompleted(awaitable, who)
        finally:
            del _waiting[thread_id]

    return async_to_sync(wait)()


def _has_to_be_awaited(returned):
    if isinstance(returned, asyncio.Future):  # it can be awaited in its own loop only
        return not returned.done() and returned.get_loop() is _running_loop()
    return inspect.isawaitable(returned)


def _running_loop():
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _finished(returned, who):
    """Return the result of what needs no waiting. Raises Unfinished."""
    while _is_done_future(returned):
        returned = returned.get() if _is_pool_result(returned) else returned.result()
    if isinstance(returned, Verdict) or (isinstance(returned, type) and issubclass(returned, Verdict)):
        raise Unfinished(f"{who} returned {returned!r}. Raise it instead.")
    for member in _members(returned):
        if trouble := _trouble(member):
            _close(returned)
            inside = "" if member is returned else f"{_name(returned)} with "
            raise Unfinished(f"{who} returned {inside}{trouble}")
        if member is not returned and _is_done_future(member):
            _finished(member, who)  # raises what the future's work raised
    return returned


def _trouble(value) -> str | None:
    """Return which work the value stands for that has not been done, and how to do it; None for a finished value."""
    if type(value) in _PLAIN:
        return None
    name = _name(value)
    if _is_future(value):
        return None if _is_done_future(value) else f"{name} that is not done. Wait for its result, and return that."
    if inspect.isawaitable(value):
        return f"{name} that was not awaited. Await each one, as by asyncio.gather()."
    if isinstance(value, _UNENTERED):
        return f"{name}, a context manager that was not entered. Use it in a with statement."
    if isinstance(value, _LAZY) or _is_of_itertools(value):
        return f"{name}, and nothing has run it. Loop over it, or return list(…)."
    if isinstance(value, threading.Thread) and (value.is_alive() or value.ident is None):
        return f"{name} that has not ended. Start and join it first."
    if isinstance(value, subprocess.Popen) and value.poll() is None:
        return f"{name} whose program still runs. Wait for it first."
    if _is_process(value) and value.exitcode is None:
        return f"{name} that has not ended. Start and join it first."
    return None


def _name(value):
    name = type(value).__qualname__.lstrip("_")
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def _is_of_itertools(value):
    return type(value).__module__ == "itertools" and isinstance(value, Iterator)


def _is_future(value):
    return isinstance(value, concurrent.futures.Future | asyncio.Future) or _is_pool_result(value)


def _is_done_future(value):
    if _is_pool_result(value):
        return value.ready()
    return isinstance(value, concurrent.futures.Future | asyncio.Future) and value.done()


def _is_pool_result(value):
    return _is_instance_of("multiprocessing.pool", "AsyncResult", value)


def _is_process(value):
    return _is_instance_of("multiprocessing.process", "BaseProcess", value)


def _is_instance_of(module, name, value):
    """True if the value is of that class; its module is not imported for it."""
    found = sys.modules.get(module)
    return found is not None and isinstance(value, getattr(found, name))


def _members(returned) -> Iterator[Any]:
    """Yield the value and what is in it, up to a bound: lists, tuples, sets and dicts are opened."""
    unopened, seen = [returned], 0
    while unopened and seen < MOST_MEMBERS:
        value = unopened.pop()
        seen += 1
        yield value
        members: Iterable = ()
        if isinstance(value, dict):
            members = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            members = value
        unopened.extend(itertools.islice(members, MOST_MEMBERS))


def _close(returned):
    """Close coroutines: our error says already that they were never awaited."""
    for member in _members(returned):
        if inspect.iscoroutine(member):
            member.close()
