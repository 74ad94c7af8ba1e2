"""What fails for a long time is tried again soon enough, and fills no log."""

import logging

import pytest
from django.db import OperationalError

from queuetopia import repeats
from queuetopia.node.protocol import Options
from queuetopia.node.scheduler import LONGEST_DELAY, Scheduler
from queuetopia.repeats import Repeats, pause

logger = logging.getLogger("queuetopia.tests")


@pytest.fixture
def told(caplog):
    """Return a function that has something happen; it returns the records so far."""
    seldom = Repeats()
    caplog.set_level(logging.INFO, "queuetopia")

    def happen(now, cause="refused", event="no session for=%d\n%s"):
        seldom.log(logger, logging.ERROR, event, now, "traceback", cause=cause, now=now)
        return [record.getMessage() for record in caplog.records]

    return happen


def test_the_first_of_its_kind_is_told_at_once_and_then_one_a_minute_with_how_many_were_left_out(told):
    for second in range(150):
        records = told(second)
    first, *others = [record.splitlines() for record in records]
    assert first == ["no session for=0", "traceback"]
    assert [lines[0] for lines in others] == ["no session for=60 repeated=59", "no session for=120 repeated=59"]


def test_another_cause_and_another_event_are_told_at_once_and_do_not_begin_the_minute_again(told):
    told(0)
    told(1, cause="starting up")
    told(2, event="housekeeping failed %d\n%s")
    assert len(told(3)) == 3
    assert len(told(60)) == 4


def test_causes_that_are_different_each_time_fill_no_log_either(told):
    for tenth in range(600):
        records = told(tenth / 10, cause=f"backend {tenth} is gone")
    assert len(records) == repeats.MOST
    assert len(told(61)) == repeats.MOST + 1


def test_the_pause_after_failures_doubles_up_to_its_longest_however_many_there_were():
    assert [pause(failures, 0.1, 1) for failures in (0, 1, 2, 3, 4, 10_000)] == [0.1, 0.2, 0.4, 0.8, 1, 1]


def test_a_node_whose_database_is_away_for_an_hour_tries_again_every_second_and_says_so_seldom(monkeypatch, caplog):
    failures, pauses = 5_000, []
    scheduler = Scheduler(Options())

    def open_session(self):
        if len(pauses) < failures:
            raise OperationalError("connection refused")

    def wait(self, seconds):
        pauses.append(seconds)

    for name, method in {"open": open_session, "serve": lambda self: None, "close": lambda self: None}.items():
        monkeypatch.setattr(Scheduler, name, method)
    monkeypatch.setattr(Scheduler, "_is_stopped_within", wait)
    try:
        assert scheduler.run() == 0
    finally:
        scheduler.signals.restore()

    assert (pauses[0], pauses[-1], len(pauses)) == (0.1, LONGEST_DELAY, failures)
    assert LONGEST_DELAY < 1
    # By the real clock these tries took some seconds: one record, or two on a slow machine.
    assert len([record for record in caplog.records if "no database session" in record.getMessage()]) <= 2
