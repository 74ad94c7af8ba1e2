"""The classes that the project has declared. This module knows nothing of them, so every other one can import it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from django.apps import apps

from . import conf

_declared: list[type[Any]] = []  # abstract classes too


def register(queuetopia) -> None:
    """Add a class. A module imported anew (reload, tests) replaces what it declared before."""
    _declared[:] = [known for known in _declared if known.label != queuetopia.label]
    _declared.append(queuetopia)


@contextmanager
def only(*queuetopias) -> Iterator[None]:
    """Register only these classes, and those declared inside the block; restore the registry at its end. For tests."""
    before = list(_declared)
    _declared[:] = queuetopias
    try:
        yield
    finally:
        _declared[:] = before


def registered() -> list[type[Any]]:
    """Return every concrete Queuetopia class, in order of declaration."""
    return [known for known in _declared if not _is_abstract(known)]


def forgotten() -> list[type[Any]]:
    """Return the classes that have no performer, are no base of another class, and do not say performer = None."""
    bases = {base for known in _declared for base in known.__mro__[1:]}
    return [
        known for known in _declared if _is_abstract(known) and known not in bases and "performer" not in vars(known)
    ]


def by_scope() -> dict[str, type[Any]]:
    """Return {scope: class}. Two classes of one scope are a system-check error; the first is returned."""
    return _by_scope(tuple(_declared)) if apps.ready else _by_scope.__wrapped__(_declared)


def disabled(scopes) -> list[str]:
    """Return which of ``scopes`` (none: of all that are declared) QUEUETOPIA["ENABLED"] keeps from being served."""
    return [scope for scope in scopes or by_scope() if not conf.is_enabled(scope)]


def _is_abstract(queuetopia):
    return queuetopia.performer is None


@lru_cache(maxsize=1)
def _by_scope(queuetopias):
    # Called for each job. Before the apps are ready a default scope may still change.
    scopes: dict[str, type[Any]] = {}
    for queuetopia in queuetopias:
        if not _is_abstract(queuetopia):
            scopes.setdefault(queuetopia.scope, queuetopia)
    return scopes
