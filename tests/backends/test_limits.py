"""The rate: whatever the moments at which nodes ask, no span has more starts than it may have."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from queuetopia.backends.limits import LATE, Rate

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)

rates = st.tuples(st.integers(1, 200), st.floats(0.1, 1000))
pauses = st.lists(st.one_of(st.just(0.0), st.floats(0, 0.3)), min_size=1, max_size=60)  # shares of the span


def starts(rate, span, pauses, most=10**6):
    """Ask after each pause; return when each start was allowed, in seconds."""
    turn, clock, found = None, 0.0, []
    for pause in pauses:
        clock += pause * span
        now = BEGAN + timedelta(seconds=clock)
        if number := min(most, rate.due(turn, now)):
            turn = rate.after(turn, now, number)
            found += [clock] * number
    return found


@given(rates, pauses, st.integers(1, 10))
def test_no_span_has_more_starts_than_its_number_though_each_may_come_late(numbers, pauses, most):
    number, span = numbers
    found = starts(Rate(number, span), span, pauses, most)
    longer = span * (1 + LATE) * 0.999  # a start may come so much after the answer
    assert all(later - first >= longer for first, later in zip(found, found[number:], strict=False))


@given(rates)
def test_who_asks_often_gets_nearly_all(numbers):
    number, span = numbers
    seconds = 3 * span
    found = starts(Rate(number, span), span, [seconds / span / 3000] * 3000)
    assert len(found) >= 0.95 * 3 * number - 1


@given(rates, st.floats(10, 10**6))
def test_a_turn_that_is_too_far_ahead_is_of_a_clock_that_was_set_back_or_of_a_slower_rate(numbers, spans):
    rate = Rate(*numbers)
    far = BEGAN + timedelta(seconds=spans * (rate.early + rate.interval))
    assert rate.due(far, BEGAN) == rate.due(None, BEGAN) >= 1
    assert rate.after(far, BEGAN, 1) == rate.after(None, BEGAN, 1)


@given(rates)
def test_a_start_is_due_after_the_wait_that_is_told(numbers):
    rate, now = Rate(*numbers), BEGAN
    turn = rate.after(None, now, rate.due(None, now))
    assert rate.due(turn, now + timedelta(seconds=rate.wait(turn, now) + 1e-5)) >= 1
