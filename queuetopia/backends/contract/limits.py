"""``max_running``: at most so many queues of a scope are held at once, whichever nodes hold them."""

import pytest
from django.db import transaction

from ...attempts import Verdict
from ...models import Queue, Scope
from ...testing import wait_until
from .base import Contract
from .toolkit import (
    NODE,
    PATIENCE,
    SCOPE,
    ContractQueue,
    Node,
    OtherQueue,
    barrier,
    claim,
    end,
    finish,
    names,
    put,
    record,
)

ROUNDS = 100


def held():
    return Queue.objects.held().filter(scope=SCOPE).count()


class Limits(Contract):
    def test_no_more_queues_of_a_scope_are_held_than_may_run(self, backend, node):
        for number in range(10):
            put(f"q{number}")
        assert names(claim(backend, max_running=3)) == ["q0", "q1", "q2"]
        assert claim(backend, max_running=3) == node.claim(max_running=3) == []
        assert names(node.claim(max_running=5)) == ["q3", "q4"]
        assert held() == 5

    @pytest.mark.parametrize("how", ["done", "failed", "halted", "given back"])
    def test_a_place_is_free_again_however_its_queue_is_let_go(self, backend, node, how):
        for number in range(3):
            put(f"q{number}")
        first, _ = claim(backend, max_running=2)
        assert node.claim(max_running=2) == []
        match how:
            case "done":
                finish(backend, first)
            case "failed":
                finish(backend, first, Verdict.RETRY, delay=60)
            case "halted":
                finish(backend, first, Verdict.HALT)
            case _:
                backend.give_back([first], NODE)
        assert len(node.claim(max_running=2)) == 1
        assert held() == 2

    def test_a_queue_that_goes_straight_on_keeps_its_place(self, backend):
        for name in ("a", "a", "b"):
            put(name)
        (one,) = claim(backend, max_running=1)
        (following,) = finish(backend, one, keep=True).claims
        assert claim(backend, max_running=1) == []
        finish(backend, following)
        assert names(claim(backend, max_running=1)) == ["b"]

    def test_what_a_dead_node_held_keeps_its_place_until_it_is_taken_over(self, backend):
        put("a")
        put("b")
        dead = Node()
        dead.claim(max_running=1)
        dead.close()
        assert claim(backend, max_running=1) == []

    def test_others_scopes_have_places_of_their_own(self, backend):
        put("a")
        put("a", queuetopia=OtherQueue)
        assert names(claim(backend, max_running=1)) == ["a"]
        assert names(claim(backend, max_running=1, scopes=(OtherQueue.scope,))) == ["a"]

    def test_a_full_scope_has_no_next_time_until_it_is_asked_again(self, backend):
        put("a")
        put("b")
        (one,) = claim(backend, max_running=1)
        assert backend.claim([SCOPE], 10, NODE, max_running=1) == ([], False)
        assert backend.next_due([SCOPE]) is None
        record(backend, end(one))
        assert names(claim(backend, max_running=1)) == ["b"]

    def test_a_node_that_counts_holds_up_no_other(self, backend, node):
        """One that is stopped while it counts, say."""
        put()
        Scope.objects.create(name=SCOPE)
        with transaction.atomic():
            Scope.objects.filter(name=SCOPE).update(paused_reason="")
            assert node.run(node.backend.claim, [SCOPE], 10, node.id, max_running=1) == ([], True)
        assert len(node.claim(max_running=1)) == 1

    def test_nodes_that_race_never_hold_more_and_leave_no_place_free(self, backend, node):
        """Each claims and lets go as fast as it can."""
        ContractQueue.create_jobs([ContractQueue.job(f"q{number % 20}", "noop") for number in range(2_000)])
        both, most = barrier(2), []

        def work(backend, holder):
            both.wait()
            for _ in range(ROUNDS):
                claims = claim(backend, 5, holder=holder, max_running=3)
                most.append(held())
                endings = [end(one) for one in claims]
                while endings:
                    endings = record(backend, *endings, holder=holder).locked

        theirs = node.start(work, node.backend, node.id)
        work(backend, NODE)
        theirs.result(PATIENCE)
        assert max(most) == 3
        assert held() == 0
        assert len(wait_until(lambda: claim(backend, max_running=3))) == 3
