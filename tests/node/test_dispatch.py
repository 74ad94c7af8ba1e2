"""From which scopes a node claims first."""

from collections import Counter

import pytest

from queuetopia.dispatch import SHARE, ByPriority, Dispatch, LongestDueFirst, RoundRobin

pytestmark = pytest.mark.capability("H24", "J2")


def claimed(dispatch, room, work):
    """Let a dispatch choose once; ``work`` is {scope: due queues}."""
    brought, turns = Counter(), dispatch.turns(room)
    turn = next(turns, None)
    while turn and room > 0:
        (scopes, most), found = turn, Counter()
        for scope in scopes:
            found[scope] = min(most - found.total(), room - found.total(), work[scope] - brought[scope])
        brought += found
        room -= found.total()
        try:
            turn = turns.send(found.total())
        except StopIteration:
            break
    return brought


def test_scopes_of_one_priority_are_claimed_from_together():
    assert [*ByPriority({"a": 0, "b": 0}).turns(7)] == [(["a", "b"], 7)]
    assert [*Dispatch({"a": 5, "b": 0}).turns(7)] == [(["a", "b"], 7)]
    assert [*LongestDueFirst({"a": 5, "b": 0}).turns(7)] == [(["a", "b"], 7)]


def test_the_higher_priority_comes_first_and_what_is_left_of_the_room_is_the_lower_ones():
    dispatch = ByPriority({"low": -1, "high": 10, "middle": 0})
    assert claimed(dispatch, 5, {"high": 3, "middle": 1, "low": 9}) == {"high": 3, "middle": 1, "low": 1}


@pytest.mark.parametrize("room", [1, 3, 8, 100])
def test_a_lower_priority_keeps_a_twentieth_of_the_starts_while_it_has_work(room):
    dispatch, total = ByPriority({"high": 1, "low": 0}), Counter()
    for _ in range(2_000):
        total += claimed(dispatch, room, {"high": 10**6, "low": 10**6})
    assert total["low"] / total.total() == pytest.approx(1 / SHARE, rel=0.1)


def test_a_lower_priority_without_work_is_owed_nothing():
    dispatch = ByPriority({"high": 1, "low": 0})
    for _ in range(100):
        claimed(dispatch, 10, {"high": 10**6, "low": 0})
    assert claimed(dispatch, 10, {"high": 10**6, "low": 10})["low"] <= 1


def test_round_robin_gives_each_scope_its_part_and_the_rest_to_who_has_work():
    dispatch = RoundRobin({"a": 0, "b": 0, "c": 0})
    brought = claimed(dispatch, 9, {"a": 99, "b": 99, "c": 1})
    assert (brought.total(), brought["c"], min(brought["a"], brought["b"])) == (9, 1, 3)
    firsts = [claimed(dispatch, 1, {"a": 9, "b": 9, "c": 9}) for _ in range(3)]
    assert sum(firsts, Counter()) == {"a": 1, "b": 1, "c": 1}
