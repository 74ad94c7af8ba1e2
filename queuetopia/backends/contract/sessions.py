"""Sessions and the locks they hold."""

import pytest
from django.db import OperationalError, close_old_connections, connections

from ... import conf
from ...attempts import Verdict
from ...models import Job, Queue
from ...testing import wait_until
from .. import backend_for
from .base import Contract
from .toolkit import (
    HOUR,
    NODE,
    SCOPE,
    ContractQueue,
    Dice,
    before,
    claim,
    claim_one,
    end,
    fail,
    finish,
    line,
    names,
    put,
    record,
    stored,
)
from .vendors import nowhere


class Sessions(Contract):
    def test_locks_are_held_while_a_job_runs_and_no_longer(self, backend, node):
        """A random walk: after each step the server knows exactly the locks that the backend believes it holds."""
        dice = Dice(4)
        queues = [f"q{number}" for number in range(6)]
        running = {}
        for _ in range(60):
            put(dice.choice(queues))
            for one in claim(backend, dice.randint(0, 3)):
                running[one.queue_id] = one
            chosen = dice.sample(sorted(running), min(len(running), dice.randint(0, 3)))
            endings = [end(running.pop(queue_id), dice.choice(list(Verdict))) for queue_id in chosen]
            for following in record(backend, *endings, keep=dice.random() < 0.5).claims:
                running[following.queue_id] = following
            for halted in Job.objects.halted():
                ContractQueue.skip(halted)
            held = set(Queue.objects.held().values_list("id", flat=True))
            assert backend.held == set(running) == held
            free = set(Queue.objects.values_list("id", flat=True)) - held
            locked_elsewhere = set(node.run(node.backend.try_lock, sorted(free | held)))
            node.run(node.backend.unlock, locked_elsewhere)
            assert locked_elsewhere == free

    def test_a_lock_is_exclusive_until_it_is_given_back(self, backend, node):
        assert backend.try_lock([1, 2]) == [1, 2]
        assert node.run(node.backend.try_lock, [1, 2, 3]) == [3]
        backend.unlock([1])
        assert node.run(node.backend.try_lock, [1, 2]) == [1]
        node.run(node.backend.unlock, [1, 3])
        backend.unlock([2])
        backend.unlock([2, 5])
        assert backend.held == set() == node.backend.held

    def test_a_lock_taken_twice_is_given_back_by_one_unlock(self, backend, node):
        backend.try_lock([1])
        backend.try_lock([1])
        backend.unlock([1])
        assert node.run(node.backend.try_lock, [1]) == [1]

    def test_a_closed_session_leaves_no_locks(self, backend, node):
        put()
        (one,) = node.claim()
        assert backend.try_lock([one.queue_id]) == []
        node.run(node.backend.close_session)
        assert wait_until(lambda: backend.try_lock([one.queue_id])) == [one.queue_id]
        assert node.backend.held == set()
        node.run(node.backend.open_session, conf.lease())

    def test_what_user_code_does_to_its_connections_does_not_touch_the_session(self, backend, node):
        put()
        one = claim_one(backend)
        close_old_connections()
        connections.close_all()
        assert backend.is_alive()
        assert node.run(node.backend.try_lock, [one.queue_id]) == []
        finish(backend, one)

    def test_a_database_that_cannot_be_reached_is_an_error_of_djangos_and_not_of_the_driver(self, monkeypatch):
        """What opens a session again and again after a lost one waits for those."""
        for name, value in nowhere().items():
            monkeypatch.setitem(connections.settings["default"], name, value)
        backend = backend_for("default")
        with pytest.raises(OperationalError):
            backend.open_session(conf.lease())
        backend.close_session()

    def test_a_session_can_be_closed_twice_and_opened_again(self, backend):
        put()
        assert backend.in_session
        backend.close_session()
        backend.close_session()
        assert not backend.in_session
        backend.open_session(conf.lease())
        assert backend.is_alive()
        assert len(claim(backend)) == 1

    def test_a_queue_whose_lock_somebody_else_has_is_passed_over_and_claimed_later(self, backend, node):
        now = backend.now()
        put("locked", scheduled_at=now - HOUR)
        put("free")
        locked = line("locked").pk
        node.run(node.backend.try_lock, [locked])
        claims, more = backend.claim([SCOPE], 1, NODE)
        assert names(claims) == ["free"], "a lock at the head of the line must not keep the others from running"
        claims, more = backend.claim([SCOPE], 1, NODE)
        assert (claims, more) == ([], True)
        node.run(node.backend.unlock, [locked])
        assert names(claim(backend, limit=1)) == ["locked"]

    def test_a_claim_that_fails_half_way_loses_no_queue(self, backend, node):
        """Locked, and then the mark fails, as on a deadlock: this node or another must get the queue."""
        put("a")
        put("b")
        before(backend, "start_heads", fail)
        (one, *_) = claims = claim(backend)
        assert sorted(names(claims)) == ["a", "b"]
        record(backend, *map(end, claims))
        assert backend.held == set()
        assert node.run(node.backend.try_lock, [one.queue_id]) == [one.queue_id]

    def test_a_record_that_fails_after_its_commit_loses_no_queue(self, backend, node):
        put()
        put()
        one = claim_one(backend)
        before(backend, "recheck", fail)
        assert record(backend, end(one)).written
        assert len(record(backend, end(one)).stale) == 1
        following = claim_one(backend)
        assert following.fence > one.fence
        finish(backend, following)
        assert backend.held == set()
        assert node.run(node.backend.try_lock, [one.queue_id]) == [one.queue_id]

    def test_without_a_session_no_locks_are_taken(self, backend):
        put()
        plain = backend_for("default")
        assert not plain.in_session
        one = claim_one(plain)
        assert backend.try_lock([one.queue_id]) == [one.queue_id]
        finish(plain, one)
        assert stored(one).state == "done"

    def test_a_session_that_was_left_in_a_transaction_is_lost(self, backend):
        """An interrupted SET autocommit does so."""
        assert backend.is_alive()
        backend.connection.autocommit = False
        assert not backend.is_alive()
        backend.connection.autocommit = True
