"""Params for hypothesis: all that may be stored."""

from datetime import timedelta, timezone

from hypothesis import strategies as st

from queuetopia.params import MAX_INTEGER, TAG

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
# Whole seconds, as zones have them: Python itself reads back an offset of a microsecond as UTC.
OFFSETS = st.integers(-82_800, 82_800).map(lambda seconds: timezone(timedelta(seconds=seconds)))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-MAX_INTEGER, MAX_INTEGER),
    st.floats(allow_nan=False, allow_infinity=False),
    TEXT,
    st.datetimes(timezones=st.none() | OFFSETS).map(lambda moment: moment.replace(fold=0)),
    st.dates(),
    st.times(timezones=st.none() | OFFSETS).map(lambda moment: moment.replace(fold=0)),
    st.timedeltas(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.uuids(),
)
KEYS = TEXT.filter(lambda key: key != TAG)
PARAMS = st.dictionaries(
    KEYS, st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner), max_leaves=20)
)
