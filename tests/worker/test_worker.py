"""What a worker does with what it is handed; more with real processes in ``tests/processes``."""

import contextlib
import socket
import threading

import pytest

from queuetopia.attempts import Claim, Outcome, Verdict
from queuetopia.channel import Board, Frames, encode, receive, uptime
from queuetopia.worker.performing import forget_performer
from queuetopia.worker.process import Worker
from tests.testapp.queues import LedgerPerformer, LedgerQueue

CLAIM = Claim(7, 1, LedgerQueue.scope, "a", "answer", '{"value": 1}', 1, 3, 0, "2026-01-01T00:00:00+00:00",
              None, None, None, None, attempted=False, failed_at=None)  # fmt: skip


@pytest.fixture
def worker():
    """A worker of one slot: its board, and a function that hands it a claim and returns the outcome."""
    channel, theirs = socket.socketpair()
    channel.settimeout(60)
    with contextlib.closing(channel), contextlib.closing(theirs), Board.create_file(1) as file:
        board = Board(file.fileno(), 1)
        serving = threading.Thread(target=Worker(theirs, board).serve)
        serving.start()
        frames = Frames()

        def hand(claim):
            channel.sendall(encode(["run", [[1, claim]]]))
            while True:
                for kind, *content in list(frames.feed(receive(channel))):
                    if kind == "end":
                        return Outcome._make(content[1])

        yield board, hand
        channel.sendall(encode(["bye"]))
        serving.join()


@pytest.mark.parametrize("action", ["answer", "sleep_async"])
def test_gives_back_what_it_has_not_started_when_the_lease_is_over(worker, action):
    """The node stood still meanwhile: the queue may be another's by now."""
    board, hand = worker
    board.deadline = uptime()
    assert hand(CLAIM._replace(action=action)).verdict == Verdict.RETURN

    board.deadline = uptime() + 60
    assert hand(CLAIM).verdict == Verdict.DONE


@pytest.mark.capability("H2")
@pytest.mark.parametrize(("given", "delay"), [({}, 5.0), ({"setup_retry": 0.5}, 0.5)])
def test_gives_a_job_back_whose_setup_fails_for_as_long_as_its_class_says(worker, settings, monkeypatch, given, delay):
    board, hand = worker
    board.deadline = uptime() + 60
    forget_performer(LedgerQueue)
    settings.QUEUETOPIA = {**settings.QUEUETOPIA, "SCOPES": {LedgerQueue.scope: given}}
    with monkeypatch.context() as failing:
        failing.setattr(LedgerPerformer, "setup", lambda self: 1 / 0)
        outcome = hand(CLAIM)
    assert (outcome.verdict, outcome.delay) == (Verdict.RETURN, delay)
    assert "ZeroDivisionError" in outcome.error["message"]

    assert hand(CLAIM).verdict == Verdict.DONE
