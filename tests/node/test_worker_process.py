"""How much a scheduler hands to one worker."""

import socket
import subprocess
from contextlib import contextmanager

import pytest

from queuetopia.channel import Board, uptime
from queuetopia.node.worker_process import LONGEST_UNBEGUN, MOST_AHEAD, SHORT, SHORTEST, Assignment, WorkerProcess


@contextmanager
def worker_with(slots, seconds):
    """A worker that is ready, and whose last job lasted so long."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Board.create_file(slots) as file, subprocess.Popen(["true"]) as process:
        worker = WorkerProcess(process, ours, Board(file.fileno(), slots), "", 0.0, ready=True)
        worker.average = seconds
        worker.theirs = theirs
        yield worker
        worker.board.close()


def hand(worker, *tickets):
    """Write down that it has just been handed these."""
    worker.assigned |= {ticket: Assignment(ticket, None, None, 60.0, uptime()) for ticket in tickets}


class TestJobsAhead:
    @pytest.mark.parametrize(
        ("slots", "seconds", "ahead"),
        [
            (1, 10 * SHORT, 0),  # whoever waits behind it could run elsewhere meanwhile
            (4, 10 * SHORT, 0),
            (1, SHORT / 10, 10),
            (200, 5 * SHORT, 40),  # of which a slot gets free every half millisecond
            (1, 0.0, SHORT / SHORTEST),  # what ends at once is not known more exactly than that
            (8, 0.0, MOST_AHEAD),
        ],
    )
    def test_are_as_many_as_get_a_slot_soon(self, slots, seconds, ahead):
        with worker_with(slots, seconds) as worker:
            assert worker.room() == slots + ahead

    def test_are_none_as_long_as_nothing_is_known_of_the_jobs(self):
        with worker_with(3, 1.0) as worker:
            worker.average = None
            assert worker.room() == 3

    def test_are_asked_back_when_none_of_them_gets_a_slot(self):
        with worker_with(2, 0.0) as worker:
            now = uptime()
            hand(worker, 1, 2, 3)
            for slot, ticket in enumerate([1, 2]):
                worker.board.start(slot, ticket)
            assert not worker.is_stuck(now + SHORT)
            assert worker.is_stuck(now + 3 * SHORT)

            worker.assigned.pop(3)
            assert not worker.is_stuck(now + 3 * SHORT)  # nothing waits behind them

    def test_stay_while_one_slot_gets_free_again_and_again_beside_a_long_job(self, monkeypatch):
        with worker_with(2, 0.0) as worker:
            now = uptime()
            hand(worker, 1, 2, 3)
            worker.board.start(0, 1)
            monkeypatch.setattr("queuetopia.channel.uptime", lambda: now + 10 * SHORT)
            worker.board.start(1, 2)
            assert not worker.is_stuck(now + 9 * SHORT)

    def test_are_asked_back_when_one_has_waited_for_long_however_many_others_began(self, monkeypatch):
        """Jobs that last less than that each, but far longer than the last ones: with 500 before it, it waits long."""
        with worker_with(1, 0.0) as worker:
            now = uptime()
            hand(worker, 1, 2, 3)
            monkeypatch.setattr("queuetopia.channel.uptime", lambda: now + LONGEST_UNBEGUN)
            worker.board.start(0, 2)
            assert worker.is_stuck(now + LONGEST_UNBEGUN + SHORT)

    def test_are_asked_back_from_a_free_slot_that_does_not_begin_them(self):
        """Another job of the process holds Python's lock, say."""
        with worker_with(2, 0.0) as worker:
            now = uptime()
            hand(worker, 1, 2)
            worker.board.start(0, 1)
            assert not worker.is_stuck(now + LONGEST_UNBEGUN - SHORT)
            assert worker.is_stuck(now + LONGEST_UNBEGUN + SHORT)
