"""Everything that differs between databases, and nothing else.

``base.Backend`` is the contract, written with the ORM; ``sqlite``, ``mysql`` and ``postgresql`` override the few
statements where the vendor differs or where speed needs it.
"""

from importlib import import_module

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

_BY_VENDOR = {"postgresql": "postgresql", "mysql": "mysql", "sqlite": "sqlite"}


def backend_for(alias: str):
    """Return a Backend that works through the connection of ``alias``."""
    vendor = connections[alias].vendor
    if vendor not in _BY_VENDOR:
        raise ImproperlyConfigured(
            f"Queuetopia has no backend for the vendor {vendor!r} of database {alias!r}; "
            f"it has {', '.join(sorted(_BY_VENDOR))}."
        )
    module = import_module(f".{_BY_VENDOR[vendor]}", __name__)
    return module.Backend(alias)
