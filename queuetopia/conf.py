"""The one place that reads settings: ``settings.QUEUETOPIA`` and the options' precedence.

``QUEUETOPIA`` holds ``DEFAULTS`` and ``SCOPES`` (options, below) and the keys of ``SETTINGS``.
An option is looked up in this order: job, SCOPES, class, DEFAULTS, built-in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from .breaker import Breaker
from .exceptions import Verdict
from .moving import as_move

DAY = 86_400.0
LONGEST = 366 * DAY
MOST_GROWTH = 100  # of the wait from one attempt to the next
MOST_ATTEMPTS = 2**31 - 2  # a 32-bit column, and one more attempt after a retry
ON_EXHAUSTED = ("halt", "skip", "retry")

SETTINGS: dict[str, Any] = {
    "DEFAULTS": {},
    "SCOPES": {},
    "LOCK_DATABASE": None,  # alias whose connection holds the locks, past a pooler; None: the jobs' own
    "LEASE": 15,  # seconds after which a vanished node's queues may be taken over
    "ENABLED": True,  # False: run_queuetopia says so and ends; {scope: False}: it leaves that scope to other nodes
    "MAX_PARAMS_BYTES": 262_144,
    "ALERT_AFTER": (300, 3600, 86_400),  # seconds for which a queue is blocked when that is reported (again)
    "MAIL_ADMINS_EVERY": None,  # seconds between two mails to ADMINS about blocked queues; None: no mails
    "STATISTICS_RETENTION": 30 * DAY,  # seconds for which statistics are kept; None: for ever, 0: none are made
    "BACKENDS": {},  # {ENGINE or vendor: dotted path of a Backend of your own}
    "DISPATCH": "queuetopia.dispatch.ByPriority",  # dotted path of a class: from which scopes a node claims first
    "MIDDLEWARE": (),  # dotted paths of callables that wrap every attempt
    "AUTODISCOVER": "queues",  # module imported from every installed app; None: none
}


def clean_seconds(value, *, above=None, at_least=None, at_most=LONGEST):
    """Return ``value`` (seconds or timedelta) as float seconds; ValueError says what is wrong."""
    seconds = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise ValueError(f"{value!r} is neither a number of seconds nor a timedelta")
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise ValueError(f"{value!r} is not a finite number of seconds")
    if above is not None and seconds <= above:
        raise ValueError(f"{value!r} is not more than {above} seconds")
    if at_least is not None and seconds < at_least:
        raise ValueError(f"{value!r} is less than {at_least} seconds")
    if seconds > at_most:
        raise ValueError(f"{value!r} is more than {at_most:.0f} seconds; the unit is seconds, not milliseconds")
    return float(seconds)


def clean_timeout(value):
    return clean_seconds(value, above=0)


def clean_max_backoff(value):
    return clean_seconds(value, at_least=0)


def _clean_backoff_base(value):
    return clean_seconds(value, above=0)


def _clean_backoff_factor(value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MOST_GROWTH:
        raise ValueError(f"{value!r} is not a number between 1 and {MOST_GROWTH}")
    return float(value)


def clean_max_attempts(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if not 1 <= value <= MOST_ATTEMPTS:
        raise ValueError(f"{value!r} is not between 1 and {MOST_ATTEMPTS}")
    return value


def clean_on_exhausted_name(value):
    if move := as_move(value):
        return str(move)  # plain text, as it is stored
    if value not in ON_EXHAUSTED:
        raise ValueError(f"{value!r} is none of {', '.join(map(repr, ON_EXHAUSTED))}, Move(queue)")
    return value


def is_step(value) -> bool:
    """True if ``value`` says itself what follows a last attempt, False if it is, or names, what decides."""
    try:
        return bool(as_move(value)) or value in ON_EXHAUSTED
    except ValueError:
        return False


def _clean_on_exhausted(value):
    if callable(value) or (isinstance(value, str) and value.isidentifier()):  # a method's name: checks.py looks for it
        return value
    return clean_on_exhausted_name(value)


def _clean_on_error(value):
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a dict of exception classes")
    for cls, step in value.items():
        _refuse_no_failure(cls)
        try:
            clean_on_exhausted_name(step)
        except ValueError as exc:
            raise ValueError(f"{cls.__name__}: {exc}") from None
    return dict(value)


def _refuse_no_failure(cls):
    if not (isinstance(cls, type) and issubclass(cls, BaseException)):
        raise ValueError(f"{cls!r} is no exception class")
    if issubclass(cls, Verdict):
        raise ValueError(f"{cls.__name__} says itself what comes next")


def _clean_breaker(value):
    if value is None:
        return None
    if not isinstance(value, Breaker):
        raise ValueError(f"{value!r} is no Breaker, as Breaker(ConnectionError, after=20)")
    if not value.types:
        raise ValueError("it names no exception class")
    for cls in value.types:
        _refuse_no_failure(cls)
    if isinstance(value.after, bool) or not isinstance(value.after, int) or value.after < 1:
        raise ValueError(f"after: {value.after!r} is not a whole number from 1 on")
    times = {"backoff_base": clean_seconds(value.backoff_base, above=0, at_most=DAY)}
    times["max_backoff"] = clean_seconds(value.max_backoff, at_least=times["backoff_base"], at_most=DAY)
    return Breaker(*value.types, after=value.after, **times)


def _clean_jitter(value):
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} is not a fraction between 0 and 1")
    return float(value)


def _clean_interval(value):
    return clean_seconds(value, above=0, at_most=DAY)


def _clean_max_running(value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    if value < 1:
        raise ValueError(f"{value!r} is less than 1; a scope of which nothing may run is paused")
    return value


def _clean_max_depth(value):
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a whole number from 1 on")
    return value


def _clean_rate(value):
    """A rate as (number, seconds), or None."""
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"{value!r} is not (number, seconds), as (50, 1) for fifty starts a second")
    number, seconds = value
    if isinstance(number, bool) or not isinstance(number, int) or number < 1:
        raise ValueError(f"the number of {value!r} is not a whole number from 1 on")
    return number, clean_seconds(seconds, above=0)


def _clean_priority(value):
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number; higher ones are served first")
    return value


def _clean_spacing(value):
    return clean_seconds(value, at_least=0)


def _clean_using(value):
    return None if value is None else _clean_alias(value)


def _clean_alias(value):
    if value not in settings.DATABASES:
        raise ValueError(f"{value!r} is not a database alias; DATABASES has {', '.join(settings.DATABASES)}")
    return value


def _clean_bool(value):
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not True or False")
    return value


def _clean_retention(value):
    return None if value is None else clean_seconds(value, at_least=0, at_most=100 * LONGEST)


def _clean_names(value):
    if isinstance(value, str) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{value!r} is not a sequence of param names")
    return tuple(value)


@dataclass(frozen=True)
class Option:
    """One option of a Queuetopia: its built-in default and what makes a value usable."""

    default: Any
    clean: Callable[[Any], Any]


OPTIONS: dict[str, Option] = {
    "timeout": Option(60.0, clean_timeout),
    "backoff_base": Option(2.0, _clean_backoff_base),
    "backoff_factor": Option(2.0, _clean_backoff_factor),
    "max_backoff": Option(DAY, clean_max_backoff),
    "max_attempts": Option(20, clean_max_attempts),
    "on_exhausted": Option("halt", _clean_on_exhausted),
    "on_error": Option({}, _clean_on_error),
    "breaker": Option(None, _clean_breaker),
    "jitter": Option(0.0, _clean_jitter),
    "setup_retry": Option(5.0, _clean_interval),
    "poll_interval": Option(60.0, _clean_interval),
    "max_running": Option(None, _clean_max_running),
    "max_depth": Option(None, _clean_max_depth),
    "priority": Option(0, _clean_priority),
    "rate": Option(None, _clean_rate),
    "spacing": Option(0.0, _clean_spacing),
    "using": Option(None, _clean_using),
    "ordered": Option(True, _clean_bool),
    "commit_ordered": Option(False, _clean_bool),
    "retention": Option(7 * DAY, _clean_retention),
    "sensitive_params": Option((), _clean_names),
}
JOB_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "timeout": clean_timeout,
    "max_backoff": clean_max_backoff,
    "max_attempts": clean_max_attempts,
    "on_exhausted": clean_on_exhausted_name,
}


def uses_time_zones() -> bool:
    return settings.USE_TZ


def user_settings() -> dict[str, Any]:
    """Return ``settings.QUEUETOPIA``; ImproperlyConfigured when it is no dict."""
    return _dict(getattr(settings, "QUEUETOPIA", {}), "QUEUETOPIA")


def setting(name: str) -> Any:
    """Return ``QUEUETOPIA[name]`` or its built-in value."""
    return user_settings().get(name, SETTINGS[name])


def tasks() -> dict[str, Any]:
    """Return ``settings.TASKS``, the backends of Django's Tasks by alias."""
    tasks = getattr(settings, "TASKS", None)
    return tasks if isinstance(tasks, dict) else {}


def default_options() -> dict[str, Any]:
    return _dict(setting("DEFAULTS"), "QUEUETOPIA['DEFAULTS']")


def scope_options(scope: str) -> dict[str, Any]:
    scopes = _dict(setting("SCOPES"), "QUEUETOPIA['SCOPES']")
    return _dict(scopes.get(scope, {}), f"QUEUETOPIA['SCOPES'][{scope!r}]")


def _dict(value, where):
    if not isinstance(value, dict):
        raise ImproperlyConfigured(f"{where} is a {type(value).__name__}; it must be a dict.")
    return value


def option(queuetopia, name: str) -> Any:
    """Return option ``name`` of a Queuetopia class, in stored form (seconds are float).

    SCOPES wins over the class, the class over DEFAULTS, DEFAULTS over the built-in.
    """
    return _option(queuetopia, name)


@cache
def _option(queuetopia, name):
    known = OPTIONS[name]
    for source, options in (
        ("SCOPES", scope_options(queuetopia.scope)),
        (queuetopia.__qualname__, _class_options(queuetopia)),
        ("DEFAULTS", default_options()),
    ):
        if name in options:
            try:
                return known.clean(options[name])
            except (ValueError, TypeError) as exc:
                raise ImproperlyConfigured(f"Option {name} in {source}: {exc}.") from exc
    return known.default


def _class_options(queuetopia):
    return {name: vars(base)[name] for base in reversed(queuetopia.__mro__) for name in OPTIONS if name in vars(base)}


@dataclass(frozen=True)
class Lease:
    """The times of one node's lease, in seconds (fence + kill < session < lease, fence >= 2 heartbeats).

    lease: a vanished node's queues run again within this time.
    session: the server ends a silent lock session after this long.
    fence: a scheduler that has not reached the database for this long kills its workers.
    kill: bound on how long that killing takes.
    heartbeat: how often the scheduler proves that it lives.
    """

    lease: float

    kill = 1.0

    @property
    def fence(self):
        return 0.6 * self.lease

    @property
    def heartbeat(self):
        return self.lease / 5

    @property
    def session(self):
        return (self.takeover + self.lease) / 2

    @property
    def takeover(self):
        """How long after a node's last heartbeat all its processes are certainly gone."""
        return self.fence + self.kill


def lease() -> Lease:
    return Lease(clean_lease(setting("LEASE")))


def clean_lease(value):
    """LEASE in seconds; at least 3, so that fence + kill stay below it."""
    return clean_seconds(value, at_least=3, at_most=DAY)


def _clean_lock_database(value):
    if value is not None:
        for alias in [*value, *value.values()] if isinstance(value, dict) else [value]:
            _clean_alias(alias)
    return value


def _clean_max_params_bytes(value):
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is not a positive whole number of bytes")
    return value


def clean_alert_after(value):
    """ALERT_AFTER as float seconds, shortest first."""
    if isinstance(value, str | dict) or not hasattr(value, "__iter__"):
        raise ValueError(f"{value!r} is not a sequence of seconds or timedeltas")
    return tuple(sorted({clean_seconds(seconds, above=0) for seconds in value}))


def alert_after() -> tuple[float, ...]:
    """Return after how many seconds, shortest first, a queue is reported as still blocked."""
    return clean_alert_after(setting("ALERT_AFTER"))


def clean_mail_admins_every(value):
    return None if value is None else clean_seconds(value, at_least=60)


def mail_admins_every() -> float | None:
    return clean_mail_admins_every(setting("MAIL_ADMINS_EVERY"))


def statistics_retention() -> float | None:
    return _clean_retention(setting("STATISTICS_RETENTION"))


def _clean_middleware(value):
    paths = _clean_middleware_paths(value)
    for path in paths:
        try:
            middleware = import_string(path)
        except Exception as exc:  # the module is the project's
            raise ValueError(f"{path!r} cannot be imported: {exc}") from exc
        if not callable(middleware):
            raise ValueError(f"{path!r} is {middleware!r}, which cannot be called with perform")
    return paths


def _clean_middleware_paths(value):
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
        raise ValueError(f"{value!r} is no list of dotted paths")
    return tuple(value)


def middleware() -> tuple[str, ...]:
    """Return the dotted paths of what wraps every attempt, the outermost first."""
    return _clean_middleware_paths(setting("MIDDLEWARE"))


def clean_dispatch(value):
    """DISPATCH as the class that it names."""
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no dotted path")
    try:
        dispatch = import_string(value)
    except Exception as exc:  # the module is the project's
        raise ValueError(f"{value!r} cannot be imported: {exc}") from exc
    if not (isinstance(dispatch, type) and callable(getattr(dispatch, "turns", None))):
        raise ValueError(f"{value!r} is {dispatch!r}, which is no class with a method turns(room)")
    return dispatch


def dispatch() -> type:
    """Return the class that says from which scopes a node claims first."""
    try:
        return clean_dispatch(setting("DISPATCH"))
    except ValueError as exc:
        raise ImproperlyConfigured(f"QUEUETOPIA['DISPATCH']: {exc}.") from exc


def _clean_autodiscover(value):
    if value is not None and not (isinstance(value, str) and all(map(str.isidentifier, value.split(".")))):
        raise ValueError(f"{value!r} is neither a module's name nor None")
    return value


def _clean_enabled(value):
    by_scope = value if isinstance(value, dict) else {"": value}
    if not all(isinstance(scope, str) and isinstance(enabled, bool) for scope, enabled in by_scope.items()):
        raise ValueError(f"{value!r} is not True or False, and no dict of them by scope")
    return value


def is_enabled(scope: str) -> bool:
    """Return whether nodes with these settings serve the scope; one that ``ENABLED`` does not name is served."""
    try:
        enabled = _clean_enabled(setting("ENABLED"))
    except ValueError as exc:
        raise ImproperlyConfigured(f"QUEUETOPIA['ENABLED']: {exc}.") from exc
    return enabled.get(scope, True) if isinstance(enabled, dict) else enabled


def autodiscover() -> str | None:
    """Return the module to import from every app; the built-in one if the setting is wrong, for a check to say so."""
    try:
        return _clean_autodiscover(setting("AUTODISCOVER"))
    except (ImproperlyConfigured, ValueError):
        return SETTINGS["AUTODISCOVER"]


def clean_backends(value):
    """BACKENDS as it is; ValueError unless it is {text: dotted path}."""
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is not a dict")
    for name, path in value.items():
        if not isinstance(name, str):
            raise ValueError(f"{name!r} is neither an ENGINE nor a vendor")
        if not (isinstance(path, str) and "." in path and all(map(str.isidentifier, path.split(".")))):
            raise ValueError(f"{path!r}, of {name!r}, is no dotted path of a class")
    return value


def backend_path(engine: str, vendor: str) -> str | None:
    """Return the dotted path of the project's own Backend for a database, by its ENGINE or else its vendor."""
    try:
        paths = clean_backends(setting("BACKENDS"))
    except ValueError as exc:
        raise ImproperlyConfigured(f"QUEUETOPIA['BACKENDS']: {exc}.") from exc
    return paths.get(engine) or paths.get(vendor)


CLEAN_SETTINGS: dict[str, Callable[[Any], Any]] = {
    "BACKENDS": clean_backends,
    "LOCK_DATABASE": _clean_lock_database,
    "LEASE": clean_lease,
    "ENABLED": _clean_enabled,
    "MAX_PARAMS_BYTES": _clean_max_params_bytes,
    "ALERT_AFTER": clean_alert_after,
    "MAIL_ADMINS_EVERY": clean_mail_admins_every,
    "STATISTICS_RETENTION": _clean_retention,
    "DISPATCH": clean_dispatch,
    "MIDDLEWARE": _clean_middleware,
    "AUTODISCOVER": _clean_autodiscover,
}


def _forget_options(*, setting, **kwargs):
    if setting == "QUEUETOPIA":
        _option.cache_clear()


setting_changed.connect(_forget_options, dispatch_uid="queuetopia.conf")
