"""What needs no connection: times of a lease, backoffs, settings of a session."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queuetopia import conf
from queuetopia.attempts import backoff
from queuetopia.backends import base


@pytest.mark.capability("Q4", "E3")
@given(attempt=st.integers(1, 10**6), cap=st.floats(0, 366 * 86_400))
def test_the_backoff_doubles_up_to_its_cap_whatever_the_attempt(attempt, cap):
    seconds = backoff(attempt, cap)
    assert isinstance(seconds, float)
    assert seconds == min(2 ** min(attempt - 1, 100) + 1, cap)
    assert seconds <= backoff(attempt + 1, cap) <= cap


@pytest.mark.capability("E3", "E34")
@pytest.mark.parametrize(
    ("base", "factor", "seconds"),
    [(2, 2, [2, 3, 5, 9]), (30, 2, [30, 45, 75, 135]), (30, 3, [30, 60, 150, 420]), (5, 1, [5, 5, 5, 5])],
)
def test_the_backoff_begins_with_its_base_and_grows_by_its_factor(base, factor, seconds):
    assert [backoff(attempt, 1_000.0, base, factor) for attempt in range(1, 5)] == seconds


@given(attempt=st.integers(1, 2**31), base=st.floats(0.001, 366 * 86_400), factor=st.floats(1, 100))
def test_no_base_and_factor_go_over_the_cap_or_back(attempt, base, factor):
    first, seconds, following = (backoff(number, 86_400.0, base, factor) for number in (1, attempt, attempt + 1))
    assert first == min(base, 86_400)
    assert first <= seconds <= following <= 86_400


@pytest.mark.parametrize("lease", [3, 4.5, 15, 3600])
def test_a_session_ends_after_its_nodes_processes_and_before_the_lease(lease):
    times = conf.Lease(lease)
    assert 2 * times.heartbeat <= times.fence < times.takeover < times.session < lease
    assert math.ceil(times.session) <= math.ceil(lease)  # MySQL's, in whole seconds


@pytest.mark.capability("Q4", "Q12")
def test_the_first_backoffs_are_those_of_the_original():
    day = conf.OPTIONS["max_backoff"].default
    assert [backoff(attempt, day) for attempt in range(1, 7)] == [2, 3, 5, 9, 17, 33]
    assert backoff(18, day) == day == 86_400


@pytest.mark.parametrize(
    ("setting", "expected"),
    [(None, "default"), ("other", "other"), ({"default": "other"}, "other"), ({"other": "default"}, "default")],
)
def test_the_locks_may_have_an_alias_of_their_own(settings, setting, expected):
    settings.QUEUETOPIA = {"LOCK_DATABASE": setting}
    assert base.lock_alias("default") == base.lock_alias("default" + base.PRIVATE) == expected


def test_a_session_is_neither_pooled_nor_closed_by_age():
    settings = {"OPTIONS": {"pool": True}, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True, "AUTOCOMMIT": False}
    session = base.Backend("default").session_settings(settings, conf.lease())
    assert session == {"OPTIONS": {}, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True}
