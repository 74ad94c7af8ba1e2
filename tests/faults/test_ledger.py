"""The checker bites: it finds in a ledger whatever must never be, and tolerates no more than it says."""

import pytest

from .ledger import Ledger, Record, Thaw, check, set_aside_late, takeovers


def record(event, number, fence, clock, queue="a", pid=1):
    return Record(event, queue, number, fence, clock, pid)


GOOD = [record("start", 0, 1, 1.0), record("end", 0, 1, 2.0), record("start", 1, 2, 3.0), record("end", 1, 2, 4.0)]


def test_a_line_over_which_its_writer_was_killed_hides_no_other(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.path.write_text("start a 1 2 3.5 7\nalive a 1alive b 1 2 4.5 8\nalive a\nend b 1 2 5.5 8\nend a 1 2 6.5")
    assert [(record.event, record.queue, record.clock) for record in ledger.records()] == [
        ("start", "a", 3.5), ("alive", "b", 4.5), ("end", "b", 5.5),
    ]  # fmt: skip


def test_the_checker_is_content_with_a_good_ledger():
    assert check(GOOD, {"a": [0, 1]}) == ([], 0)


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (GOOD[:2], "job 1 is lost"),
        ([*GOOD[:1], GOOD[2], GOOD[1], GOOD[3]], None),
        (
            [record("start", 0, 1, 1.0), record("start", 1, 2, 1.5, pid=2), record("end", 0, 1, 2.0), GOOD[3]],
            "began in attempt",
        ),
        (
            [
                record("start", 1, 1, 1.0),
                record("end", 1, 1, 2.0),
                record("start", 0, 2, 3.0),
                record("end", 0, 2, 4.0),
            ],
            "before the end",
        ),
        ([*GOOD[:2], record("start", 1, 1, 3.0, pid=2), record("end", 1, 1, 4.0, pid=2)], "began after attempt 1"),
    ],
)
def test_the_checker_finds_what_is_wrong(records, sentence):
    wrong = check(records, {"a": [0, 1]}).wrong
    if sentence is None:  # the same records in another order of the file: the clock decides
        assert wrong == []
    else:
        assert any(sentence in found for found in wrong), wrong


def test_the_checker_counts_what_ended_twice():
    twice = [*GOOD, record("start", 1, 3, 5.0), record("end", 1, 3, 6.0)]
    assert check(twice, {"a": [0, 1]}) == ([], 1)


def test_an_attempt_that_fails_by_itself_is_no_takeover_and_one_that_is_cut_short_is():
    records = [
        record("start", 0, 1, 1.0),
        record("failed", 0, 1, 1.5),
        record("start", 0, 2, 2.0),
        record("alive", 0, 2, 2.5),
        record("start", 0, 3, 4.0),
        record("end", 0, 3, 5.0),
        record("start", 1, 4, 6.0),
    ]
    assert [(takeover.last, takeover.seconds) for takeover in takeovers(records)] == [(records[3], 1.5)]


# Job 0 is run by process 1 under fence 1, frozen at 2.0; process 2 takes it over under fence 2; process 1 wakes at 8.0.
FROZEN = [record("start", 0, 1, 1.0), record("start", 0, 2, 6.0, pid=2), record("end", 0, 2, 9.0, pid=2)]
THAW = Thaw(frozenset([1]), 2.0, 8.0)


def test_the_last_signs_of_what_was_frozen_are_set_aside():
    late = record("alive", 0, 1, 8.1)
    assert set_aside_late([*FROZEN, late], [THAW]) == (FROZEN, [late])


@pytest.mark.parametrize(
    ("sign", "thaws"),
    [
        (record("alive", 0, 1, 8.1), []),
        (record("alive", 0, 1, 7.9), [THAW]),
        (record("alive", 0, 1, 9.1), [THAW]),
        (record("alive", 0, 1, 8.1), [THAW._replace(pids=frozenset([3]))]),
        (record("alive", 0, 1, 8.1), [THAW._replace(frozen_at=0.5)]),
        (record("end", 0, 2, 8.2, pid=1), [THAW]),
    ],
    ids=["nobody frozen", "before the thaw", "long after it", "another process", "begun after it", "nobody took over"],
)
def test_no_other_sign_is_set_aside(sign, thaws):
    assert set_aside_late([*FROZEN, sign], thaws) == ([*FROZEN, sign], [])
