"""A job's params as JSON: what may be in them, how other types are stored, what comes back.

JSON's own types go in as they are. datetime, date, time, timedelta, Decimal and UUID are stored tagged:
``{"__queuetopia__": "date", "value": "2026-01-31"}``. Everything else is refused with its path, so that what a
performer gets equals what ``create_job`` was given, on every database.
"""

import json
import math
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import models
from django.db.models.fields.json import KeyTransform

TAG = "__queuetopia__"
MAX_DEPTH = 31  # MariaDB's JSON is at most 32 levels deep, and a tagged value is one
MAX_INTEGER = 2**63 - 1  # MySQL turns anything wider into a float
FIRST_EXPONENT = 1e16  # the first float that is written with an exponent

_TO_TAGGED: dict[type, tuple[str, Callable[[Any], Any]]] = {
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
    timedelta: ("timedelta", lambda value: [value.days, value.seconds, value.microseconds]),
    Decimal: ("decimal", str),
    UUID: ("uuid", str),
}
_FROM_TAGGED: dict[str, Callable[[Any], Any]] = {
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda value: timedelta(*value),
    "decimal": Decimal,
    "uuid": UUID,
    "float": float,
}


class InvalidParams(ValueError):
    """Something in the params cannot be stored; the text starts with its path."""


def dumps(params: dict) -> str:
    """Return the params as strict JSON text; InvalidParams names the path of what cannot be stored."""
    if not isinstance(params, dict):
        raise InvalidParams(f"must be a dict of the action's keyword arguments, not {type(params).__name__}")
    check(params, "params")
    return as_text(params)


def loads(text: str) -> dict:
    """Return the params from stored text; ValueError when it is no JSON object of ours."""
    params = _DECODER.decode(text)
    if not isinstance(params, dict):
        raise ValueError(f"params are a {type(params).__name__}, not an object")
    return params


def check(value, path: str) -> None:
    """Raise InvalidParams if the value cannot be stored on every database; the text names the path in it."""
    _check(value, path, MAX_DEPTH)


def text_problem(text: str) -> str | None:
    """Return why ``text`` cannot be stored on every database; None if it can."""
    if "\x00" in text:
        return "contains a NUL character, which PostgreSQL cannot store"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains a lone surrogate, which is not text; decode the bytes it came from first"
    return None


def _check(value, path, depth):
    if depth < 0:
        raise InvalidParams(f"{path[:100]}: nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, str):
        if problem := text_problem(value):
            raise InvalidParams(f"{path}: {problem}")
    elif value is None or isinstance(value, bool):
        pass
    elif isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            raise InvalidParams(f"{path}: is wider than 64 bits; pass it as str or Decimal")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidParams(f"{path}: {value} is not JSON; leave it out or pass None")
    elif isinstance(value, dict):
        _check_object(value, path, depth)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, f"{path}[{index}]", depth - 1)
    elif not isinstance(value, tuple(_TO_TAGGED)):
        raise InvalidParams(f"{path}: {_refusal(value)}")
    elif isinstance(value, Decimal) and not value.is_finite():
        raise InvalidParams(f"{path}: {value} is not a finite number")


def _check_object(value, path, depth):
    for key, item in value.items():
        if not isinstance(key, str):
            raise InvalidParams(f"{path}: key {key!r} is {type(key).__name__}, JSON has only str keys")
        if problem := text_problem(key):
            raise InvalidParams(f"{path}: key {key!r} {problem}")
        if key == TAG:
            raise InvalidParams(f"{path}: the key {TAG!r} is Queuetopia's own; rename it")
        _check(item, f"{path}.{key}", depth - 1)


def _refusal(value):
    if isinstance(value, tuple):
        return "a tuple would come back as a list; pass a list"
    if isinstance(value, models.Model):
        return f"a model instance ({type(value).__name__}) cannot be stored; pass its pk and load it in the performer"
    if isinstance(value, models.QuerySet):
        return "a QuerySet cannot be stored; pass a list of pks and load them in the performer"
    if isinstance(value, set | frozenset):
        return f"a {type(value).__name__} cannot be stored; pass a sorted list"
    return (
        f"{type(value).__name__} cannot be stored; use JSON's types, datetime, date, time, timedelta, Decimal or UUID"
    )


class ParamsEncoder(json.JSONEncoder):
    """Writes the tagged types, refuses what JSON does not know (NaN included)."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "allow_nan": False})

    def default(self, o):
        for kind, (tag, encode) in _TO_TAGGED.items():  # a datetime is a date too: the order matters
            if isinstance(o, kind):
                return {TAG: tag, "value": encode(o)}
        return super().default(o)

    def encode(self, o):
        text = super().encode(o)
        return super().encode(_tag_wide_floats(o)) if "e+1" in text else text


as_text = ParamsEncoder().encode  # made once: it is asked for each job


def _tag_wide_floats(value):
    # PostgreSQL writes the float 6.1e+16 as an integer: no more a float, and often another number.
    if isinstance(value, float) and FIRST_EXPONENT <= abs(value) <= MAX_INTEGER:
        return {TAG: "float", "value": float.__repr__(value)}
    if isinstance(value, dict):
        return {key: _tag_wide_floats(item) for key, item in value.items()}
    return [_tag_wide_floats(item) for item in value] if isinstance(value, list) else value


def _untag(item):
    if TAG not in item:
        return item
    try:
        return _FROM_TAGGED[item[TAG]](item["value"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as exc:
        # Without the value: it may be a secret.
        raise ValueError(f"{TAG} {str(item[TAG])[:20]!r} has a value that Queuetopia does not write") from exc


def _integer(text):
    # PostgreSQL writes the float 1e300 as 301 digits; integers that wide are never stored by us.
    return int(text) if len(text) < 19 or abs(int(text)) <= MAX_INTEGER else float(text)


class ParamsDecoder(json.JSONDecoder):
    """Reads what ParamsEncoder wrote."""

    def __init__(self, **kwargs):
        super().__init__(**{**kwargs, "object_hook": _untag, "parse_int": _integer})


def as_json(value):
    """Return the value as it is stored, with tags instead of other types than JSON's."""
    return json.loads(as_text(value))


def untagged(value):
    """Return what ``as_json`` was given; a value without tags as it is."""
    if isinstance(value, dict):
        return _untag({key: untagged(item) for key, item in value.items()})
    return [untagged(item) for item in value] if isinstance(value, list) else value


_DECODER = ParamsDecoder()  # made once: it is asked for each job


class Unreadable(str):
    """Stands for a stored value that is not what we write; it is the raw text."""


class ParamsField(models.JSONField):
    """A JSON column of params. A value that cannot be read comes back as Unreadable, never as an error,
    so that one corrupt row spoils no list."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "encoder": ParamsEncoder, "decoder": ParamsDecoder})

    def deconstruct(self):
        name, path, args, kwargs = super().deconstruct()
        kwargs.pop("encoder", None)
        kwargs.pop("decoder", None)
        return name, path, args, kwargs

    def from_db_value(self, value, expression, connection):
        try:
            read = super().from_db_value(value, expression, connection)
        except (ValueError, TypeError, RecursionError):
            return Unreadable(value)
        # Django returns text that is no JSON as it is; SQLite has such text for one key, as in params__name.
        is_raw = read is value and isinstance(value, str) and not isinstance(expression, KeyTransform)
        return Unreadable(value) if is_raw else read

    # dumpdata and loaddata: serializers have texts of their own for other types than JSON's

    def value_from_object(self, obj):
        value = super().value_from_object(obj)
        return as_json(value) if isinstance(value, tuple(_TO_TAGGED)) else value

    def value_to_string(self, obj):
        return as_json(super().value_from_object(obj))

    def to_python(self, value):
        return untagged(value)
