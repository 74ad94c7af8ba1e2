"""Queues that a session leaves out for a while."""

from queuetopia.backends import refusals
from queuetopia.backends.refusals import Refusals
from queuetopia.repeats import Repeats


def test_a_queue_is_left_to_other_nodes_for_a_moment_when_it_is_due_again(monkeypatch):
    clock = 100.0
    monkeypatch.setattr(refusals, "uptime", lambda: clock)
    left_out = Refusals(Repeats())
    left_out.give_way(7, 60.0)
    left_out.give_way(8, 0.5)
    seen = {}
    for clock in (100.0, 100.45, 100.7, 100.8, 159.8, 159.95, 160.9, 161.1):
        seen[clock] = left_out.now(), left_out.or_next(None)
    assert [ids for ids, _ in seen.values()] == [[], [8], [8], [], [], [7], [7], []]
    assert [wait and round(wait, 2) for _, wait in seen.values()] == [None, 0.3, 0.05, None, None, 1.05, 0.1, None]
