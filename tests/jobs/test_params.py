"""Params: what goes in comes back, on text alone; everything else is refused with its path."""

import json
from collections import OrderedDict
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.db import connection
from django.utils.translation import gettext_lazy
from hypothesis import example, given
from hypothesis import strategies as st

from queuetopia.params import (
    MAX_DEPTH,
    MAX_INTEGER,
    TAG,
    InvalidParams,
    ParamsField,
    Unreadable,
    dumps,
    loads,
    text_problem,
)
from tests.jobs.strategies import PARAMS
from tests.testapp.models import Note


def nested(levels):
    """A dict with this many levels of lists inside."""
    value = []
    for _ in range(levels - 1):
        value = [value]
    return {"deep": value}


def endless():
    value = {}
    value["again"] = value
    return value


class Colour(Enum):
    RED = "red"


@pytest.mark.capability("E17", "H9")
@given(PARAMS)
@example({"zone": datetime(2026, 1, 31, 12, tzinfo=UTC)})
@example({"tiny": 5e-324, "vast": 1e300, "widest": MAX_INTEGER, "lowest": -MAX_INTEGER, "minus zero": -0.0})
@example({"big": [6.099793795087163e16, -1e16, 9e18, {"e+1": 2.0**63, "int": 10**16, "less": 1e16 - 2}]})
@example({"🙂": "\U0010ffff", "": "\x1b[31m\u2028\ufeff", "constructor": "<b>'\";--"})
def test_what_goes_in_comes_back_with_its_type(params):
    assert repr(loads(dumps(params))) == repr(params)


@given(st.datetimes(timezones=st.timezones()))
def test_a_datetime_of_a_named_zone_comes_back_as_the_same_moment(moment):
    assert loads(dumps({"at": moment}))["at"].utctimetuple() == moment.utctimetuple()


def test_the_second_of_two_equal_clock_times_comes_back_as_the_second():
    paris = datetime(2025, 10, 26, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Paris"))
    assert loads(dumps({"at": paris}))["at"].astimezone(UTC) == datetime(2025, 10, 26, 1, 30, tzinfo=UTC)


def test_other_types_than_those_of_json_are_stored_tagged():
    assert json.loads(dumps({"day": date(2026, 1, 31)})) == {"day": {TAG: "date", "value": "2026-01-31"}}


def test_subclasses_of_dict_and_str_are_their_content():
    params = OrderedDict(name=type("Safe", (str,), {})("<b>"))
    assert loads(dumps(params)) == {"name": "<b>"}


def test_a_wide_number_that_the_database_wrote_out_is_a_float_again():
    assert repr(loads(f'{{"vast": 1{"0" * 300}}}')) == repr({"vast": 1e300})


@pytest.mark.capability("E17", "H9")
@pytest.mark.parametrize(
    ("params", "path", "reason"),
    [
        ({"a": float("nan")}, "params.a", "nan is not JSON"),
        ({"a": [0.5, float("inf")]}, "params.a[1]", "inf is not JSON"),
        ({"a": float("-inf")}, "params.a", "-inf is not JSON"),
        ({"a": Decimal("NaN")}, "params.a", "not a finite number"),
        ({"a": Decimal("sNaN")}, "params.a", "not a finite number"),
        ({"a": Decimal("-Infinity")}, "params.a", "not a finite number"),
        ({"a": {"b": ["x\0y"]}}, "params.a.b[0]", "NUL"),
        ({"a": "\ud83d"}, "params.a", "lone surrogate"),
        ({"a": b"bytes".decode() + "\udcff"}, "params.a", "lone surrogate"),
        ({"a\0": 1}, "params", "NUL"),
        ({"a": {"\udc00": 1}}, "params.a", "lone surrogate"),
        ({1: 2}, "params", "key 1 is int"),
        ({"a": [{None: 2}]}, "params.a[0]", "key None is NoneType"),
        ({"a": {("x", "y"): 2}}, "params.a", "is tuple"),
        ({"a": (1, 2)}, "params.a", "pass a list"),
        ({"a": {1, 2}}, "params.a", "set cannot be stored"),
        ({"a": b"bytes"}, "params.a", "bytes cannot be stored"),
        ({"a": 1 + 2j}, "params.a", "complex cannot be stored"),
        ({"a": lambda: None}, "params.a", "function cannot be stored"),
        ({"a": Colour.RED}, "params.a", "Colour cannot be stored"),
        ({"a": gettext_lazy("now")}, "params.a", "cannot be stored"),
        ({"a": [Note(pk=7)]}, "params.a[0]", "(Note) cannot be stored; pass its pk"),
        ({"a": Note.objects.all()}, "params.a", "QuerySet cannot be stored"),
        ({"a": {TAG: "date"}}, "params.a", "rename it"),
        ({TAG: "date"}, "params", "rename it"),
        ({"a": 2**63}, "params.a", "wider than 64 bits"),
        ({"a": -(2**63)}, "params.a", "wider than 64 bits"),
        ({"a": 10**5000}, "params.a", "wider than 64 bits"),
        (nested(MAX_DEPTH + 1), "params.deep", "nested deeper than 31 levels"),
        (nested(5_000), "params.deep", "nested deeper than 31 levels"),
        (endless(), "params.again", "nested deeper than 31 levels"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_path(params, path, reason):
    with pytest.raises(InvalidParams) as caught:
        dumps(params)
    found, _, why = str(caught.value).partition(": ")
    assert found == path or (path in ("params.deep", "params.again") and found.startswith(path))
    assert reason in why


@pytest.mark.parametrize("params", [None, [], "text", 5, [("a", 1)], object()])
def test_params_are_a_dict(params):
    with pytest.raises(InvalidParams, match=f"must be a dict .*, not {type(params).__name__}"):
        dumps(params)


def test_thirty_one_levels_are_not_too_deep():
    assert loads(dumps(nested(MAX_DEPTH))) == nested(MAX_DEPTH)


@pytest.mark.parametrize("value", [UUID(int=7), time(12, 30, 15, 5), timedelta(-1, 3, 7), Decimal("1E+50")])
def test_a_value_is_itself_at_any_depth(value):
    assert loads(dumps({"a": [{"b": value}]})) == {"a": [{"b": value}]}


@given(st.text())
def test_text_is_fine_exactly_when_it_encodes_and_has_no_nul(text):
    storable = "\0" not in text and text.encode("utf-8", "replace") == text.encode("utf-8", "surrogatepass")
    assert (text_problem(text) is None) == storable


FOREIGN = [
    "no json",
    "[" * 50_000,
    '{"a": {"__queuetopia__": "pickle", "value": "x"}}',
    '{"a": {"__queuetopia__": ["date"], "value": "x"}}',
    '{"a": {"__queuetopia__": "date"}}',
    '{"a": {"__queuetopia__": "date", "value": "tomorrow"}}',
    '{"a": {"__queuetopia__": "date", "value": 5}}',
    '{"a": {"__queuetopia__": "uuid", "value": 5}}',
    '{"a": {"__queuetopia__": "decimal", "value": "many"}}',
    '{"a": {"__queuetopia__": "timedelta", "value": [1e300]}}',
]


@pytest.mark.capability("J10")
@pytest.mark.parametrize("text", FOREIGN)
def test_what_others_wrote_into_the_column_is_shown_and_breaks_no_list(text):
    read = ParamsField().from_db_value(text, None, connection)
    assert isinstance(read, Unreadable)
    assert read == text


@pytest.mark.parametrize("text", [text for text in FOREIGN if text != "[" * 50_000] + ["[1]", "null", '"a"'])
def test_text_that_is_no_object_of_ours_is_a_value_error(text):
    with pytest.raises(ValueError):
        loads(text)


def test_a_kind_of_datetime_comes_back_as_the_same_moment():
    stamp = type("Stamp", (datetime,), {})(2026, 1, 31, 12)
    assert loads(dumps({"a": stamp})) == {"a": datetime(2026, 1, 31, 12)}
