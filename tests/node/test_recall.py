"""What the scheduler has handed to a worker it takes back without the worker's consent: never what has begun.

Each order in which the two may read and write the board, with a real pool, and a worker's side driven step by step.
"""

import contextlib
import math
from types import SimpleNamespace

import pytest

from queuetopia.attempts import Outcome, Verdict
from queuetopia.channel import SETTLE, encode, uptime
from queuetopia.node.endings import Endings
from queuetopia.node.hands import Hands
from queuetopia.node.pool import MOST_REFUSALS, Pool
from queuetopia.node.worker_process import LONGEST_SILENCE
from queuetopia.worker.process import Worker
from tests.node.test_worker_process import worker_with
from tests.worker.test_worker import CLAIM


class Side:
    """The worker's side of a channel: it begins and ends jobs when it is told to."""

    def __init__(self, process):
        self.board, self.channel = process.board, process.theirs
        self.worker = Worker(self.channel, self.board)

    def begin(self, ticket, slot=0):
        """Do what a worker does right before a job runs; return whether it runs."""
        return self.worker.enter(slot, ticket, run=None)

    def report(self, ticket, verdict=Verdict.DONE, **more):
        outcome = Outcome(CLAIM.job_id + ticket, CLAIM.fence, verdict, **more)
        self.channel.sendall(encode(["end", ticket, outcome]))

    def end(self, ticket, slot=0):
        self.report(ticket)
        self.board.clear(slot)


@pytest.fixture
def store():
    return SimpleNamespace(endings=Endings(backend=None))


@pytest.fixture
def hands(store):
    return Hands([store], "web1:7")


@pytest.fixture
def pool(hands):
    return Pool(hands, size=0, slots=1, verbosity=0, node="web1:7", descriptors=list, node_ids=list)


@pytest.fixture
def sides(pool, hands, store):
    """Add a worker of so many slots that was handed so many claims; return its process and its side."""
    with contextlib.ExitStack() as stack:

        def add(slots, claims):
            process = stack.enter_context(worker_with(slots, 0.0))
            process.has_ended = lambda: False
            process.channel.setblocking(False)
            pool.workers.append(process)
            hands.waiting.extend((store, CLAIM._replace(job_id=CLAIM.job_id + n)) for n in range(1, claims + 1))
            pool.hand_out()
            return process, Side(process)

        yield add
        pool.workers.clear()


def settle(pool, worker):
    worker.settles_at = uptime()
    pool.time_out()


def taken(hands):
    """The tickets of the claims that may be handed out again."""
    return [claim.job_id - CLAIM.job_id for _, claim in hands.waiting]


def test_what_has_not_begun_is_taken_without_a_word_and_never_begins(pool, sides, hands, store):
    worker, side = sides(1, 3)
    assert side.begin(1)
    pool.recall(worker)
    settle(pool, worker)
    assert taken(hands) == [2, 3]
    assert list(worker.assigned) == [1]

    side.end(1)
    assert not side.begin(2)
    assert not side.begin(3)
    pool.collect()
    assert taken(hands) == [2, 3]  # the worker's word that it did not begin them changes nothing
    assert [ending.outcome.verdict for ending in store.endings.new] == [Verdict.DONE]


def test_nothing_is_taken_before_each_side_sees_what_the_other_one_wrote(pool, sides, hands):
    worker, _ = sides(1, 2)
    pool.recall(worker)
    assert worker.settles_at >= uptime() + SETTLE / 2
    worker.settles_at = uptime() + 60
    pool.time_out()
    assert taken(hands) == []


def test_what_began_before_the_recall_stays_the_workers(pool, sides, hands, store):
    worker, side = sides(1, 1)
    assert side.begin(1)
    pool.recall(worker)
    settle(pool, worker)
    assert taken(hands) == []
    side.end(1)
    pool.collect()
    assert len(store.endings.new) == 1


def test_what_began_between_recall_and_settling_is_left_to_the_workers_word(pool, sides, hands):
    """Both have seen what the other wrote: the worker gives way, and the scheduler waits until it has said so."""
    worker, side = sides(1, 1)
    side.board.start(0, 1)  # published, and nothing read yet
    pool.recall(worker)
    settle(pool, worker)
    assert taken(hands) == []
    assert list(worker.assigned) == [1]

    assert not side.begin(1)
    pool.collect()
    assert taken(hands) == [1]
    assert worker.assigned == {}


def test_what_ended_without_being_heard_is_recorded_and_not_taken(pool, sides, hands, store):
    worker, side = sides(1, 2)
    assert side.begin(1)
    side.end(1)
    pool.recall(worker)
    settle(pool, worker)
    assert [ending.claim.job_id - CLAIM.job_id for ending in store.endings.new] == [1]
    assert taken(hands) == [2]


def test_what_ends_between_the_look_at_the_board_and_at_the_channel_is_recorded(pool, sides, hands, store, monkeypatch):
    worker, side = sides(1, 1)
    assert side.begin(1)
    pool.recall(worker)
    receive = worker.receive
    monkeypatch.setattr(worker, "receive", lambda: [side.end(1), receive()][1])
    settle(pool, worker)
    assert len(store.endings.new) == 1
    assert taken(hands) == []


def test_the_rest_of_the_backlog_goes_with_the_first_that_is_refused(pool, sides, hands):
    worker, side = sides(1, 3)
    side.worker.backlog.extend((ticket, CLAIM) for ticket in (2, 3, 4))
    pool.recall(worker)
    assert not side.begin(1)
    pool.collect()
    assert taken(hands) == [1, 2, 3]
    assert [ticket for ticket, _ in side.worker.backlog] == [4]  # handed out after the recall


def test_what_is_handed_out_after_a_recall_is_the_workers_again(pool, sides):
    worker, side = sides(1, 1)
    pool.recall(worker)
    settle(pool, worker)
    assert not side.begin(1)
    pool.collect()
    pool.hand_out()
    (ticket,) = worker.assigned
    assert ticket == 2
    assert side.begin(ticket)


def test_a_second_recall_never_lets_a_ticket_of_the_first_pass(pool, sides):
    worker, side = sides(2, 2)
    pool.recall(worker)
    settle(pool, worker)
    pool.recall(worker)
    assert not side.begin(1)
    assert not side.begin(2, slot=1)
    assert worker.board.running() == {}


def test_a_worker_with_a_free_slot_that_begins_nothing_gets_nothing_until_it_says_something(pool, sides, hands):
    worker, side = sides(2, 2)
    assert side.begin(1)
    pool.recall(worker)
    settle(pool, worker)
    assert taken(hands) == [2]
    assert worker.room() == 0

    assert not side.begin(2, slot=1)
    pool.collect()
    assert worker.room() == 1


def test_a_worker_that_runs_nothing_and_begins_nothing_for_long_is_replaced(pool, sides, monkeypatch):
    worker, _ = sides(1, 1)
    pool.recall(worker)
    settle(pool, worker)
    killed = []
    monkeypatch.setattr(pool, "kill", killed.append)
    pool.time_out()
    assert killed == []
    worker.silent_since -= LONGEST_SILENCE
    pool.time_out()
    assert killed == [worker]


class TestReports:
    """What a worker says is data from a process in which user code runs."""

    @pytest.mark.parametrize("number", [math.nan, math.inf, -1.0])
    def test_times_that_are_none_are_zero(self, pool, sides, store, number):
        worker, side = sides(1, 1)
        side.report(1, Verdict.RETRY, duration=number, delay=number)
        pool.collect()
        (ending,) = store.endings.new
        assert (ending.outcome.duration, ending.outcome.delay) == (0.0, 0.0)
        assert worker.room() > 0

    @pytest.mark.parametrize("more", [{"verdict": "no verdict"}, {"duration": "long"}, {"delay": None}])
    def test_what_is_no_outcome_is_garbled(self, pool, sides, store, more):
        worker, side = sides(1, 1)
        worker.kill = worker.bury = lambda: None
        side.report(1, **more)
        pool.collect()
        assert worker.garbled
        (ending,) = store.endings.new
        assert ending.outcome.error["type"] == "WorkerDied"

    def test_a_worker_that_takes_the_lease_for_over_while_it_stands_is_replaced(self, pool, sides):
        pool.extend_lease(uptime() + 60)
        worker, side = sides(1, 4)
        for ticket in range(1, MOST_REFUSALS):
            side.report(ticket, Verdict.RETURN)
        pool.collect()
        assert worker.condemned_at is None
        side.report(MOST_REFUSALS, Verdict.RETURN)
        pool.collect()
        assert worker.condemned_at is not None

    def test_a_worker_that_gives_back_after_the_lease_or_for_a_reason_is_none_of_these(self, pool, sides):
        worker, side = sides(1, 8)
        for ticket in range(1, 5):
            side.report(ticket, Verdict.RETURN)  # nothing was said of a lease that stands
        pool.collect()
        pool.extend_lease(uptime() + 60)
        for ticket in range(5, 9):
            side.report(ticket, Verdict.RETURN, error={"message": "setup() failed"})
        pool.collect()
        assert worker.condemned_at is None
