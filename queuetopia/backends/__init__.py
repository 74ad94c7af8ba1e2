"""Everything that differs between databases, and nothing else.

``base.Backend`` is the contract, written with the ORM; ``sqlite``, ``mysql`` and ``postgresql`` override the few
statements where the vendor differs or where speed needs it.
"""

from importlib import import_module

from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.utils.module_loading import import_string

from .. import conf
from ..times import refuse_wrong

_BY_VENDOR = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}


def backend_for(alias: str):
    """Return a Backend that works through the connection of ``alias``.

    Raise TimesRefused if Django's settings would store times wrong there.
    """
    backend = backend_class(alias)
    refuse_wrong(connections[alias])
    return backend(alias)


def backend_class(alias: str):
    """Return the Backend of ``alias``: the project's own for its ENGINE or vendor, or else ours for the vendor."""
    vendor = connections[alias].vendor
    if path := conf.backend_path(connections[alias].settings_dict["ENGINE"], vendor):
        return _own_backend(path)
    if vendor not in _BY_VENDOR:
        raise ImproperlyConfigured(
            f"Queuetopia has no backend for the vendor {vendor!r} of database {alias!r}; "
            f"it has {', '.join(sorted(_BY_VENDOR))}. One of your own is named in QUEUETOPIA['BACKENDS']."
        )
    module = import_module(f".{_BY_VENDOR[vendor]}", __name__)
    return module.Backend


def _own_backend(path):
    from .base import Backend

    try:
        backend = import_string(path)
    except ImportError as exc:
        raise ImproperlyConfigured(f"QUEUETOPIA['BACKENDS'] names {path!r}, which cannot be imported: {exc}") from exc
    if not (isinstance(backend, type) and issubclass(backend, Backend)):
        raise ImproperlyConfigured(
            f"QUEUETOPIA['BACKENDS'] names {path!r}, which is no subclass of queuetopia.backends.base.Backend."
        )
    return backend
