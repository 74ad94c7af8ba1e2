"""What the limits of a scope let start, whichever nodes claim: ``max_running``, ``rate``, ``spacing``; and a snooze."""

import pytest
from django.db import transaction

from ...attempts import Verdict
from ...models import Queue, Scope
from ...testing import wait_until
from ..limits import Limits, Rate
from .base import Contract
from .toolkit import (
    HOUR,
    NODE,
    PATIENCE,
    SCOPE,
    SECOND,
    ContractQueue,
    Node,
    OtherQueue,
    barrier,
    claim,
    end,
    finish,
    line,
    names,
    put,
    record,
    stored,
)

ROUNDS = 100
MOST = {number: Limits(max_running=number) for number in range(1, 6)}


def held():
    return Queue.objects.held().filter(scope=SCOPE).count()


class Limited(Contract):
    def test_no_more_queues_of_a_scope_are_held_than_may_run(self, backend, node):
        for number in range(10):
            put(f"q{number}")
        assert names(claim(backend, limits=MOST[3])) == ["q0", "q1", "q2"]
        assert claim(backend, limits=MOST[3]) == node.claim(limits=MOST[3]) == []
        assert names(node.claim(limits=MOST[5])) == ["q3", "q4"]
        assert held() == 5

    @pytest.mark.parametrize("how", ["done", "failed", "halted", "given back"])
    def test_a_place_is_free_again_however_its_queue_is_let_go(self, backend, node, how):
        for number in range(3):
            put(f"q{number}")
        first, _ = claim(backend, limits=MOST[2])
        assert node.claim(limits=MOST[2]) == []
        match how:
            case "done":
                finish(backend, first)
            case "failed":
                finish(backend, first, Verdict.RETRY, delay=60)
            case "halted":
                finish(backend, first, Verdict.HALT)
            case _:
                backend.give_back([first], NODE)
        assert len(node.claim(limits=MOST[2])) == 1
        assert held() == 2

    def test_a_queue_that_goes_straight_on_keeps_its_place(self, backend):
        for name in ("a", "a", "b"):
            put(name)
        (one,) = claim(backend, limits=MOST[1])
        (following,) = finish(backend, one, keep=True).claims
        assert claim(backend, limits=MOST[1]) == []
        finish(backend, following)
        assert names(claim(backend, limits=MOST[1])) == ["b"]

    def test_what_a_dead_node_held_keeps_its_place_until_it_is_taken_over(self, backend):
        put("a")
        put("b")
        dead = Node()
        dead.claim(limits=MOST[1])
        dead.close()
        assert claim(backend, limits=MOST[1]) == []

    def test_others_scopes_have_places_of_their_own(self, backend):
        put("a")
        put("a", queuetopia=OtherQueue)
        assert names(claim(backend, limits=MOST[1])) == ["a"]
        assert names(claim(backend, limits=MOST[1], scopes=(OtherQueue.scope,))) == ["a"]

    def test_a_full_scope_has_no_next_time_until_it_is_asked_again(self, backend):
        put("a")
        put("b")
        (one,) = claim(backend, limits=MOST[1])
        assert backend.claim([SCOPE], 10, NODE, limits=MOST[1]) == ([], False)
        assert backend.next_due([SCOPE]) is None
        record(backend, end(one))
        assert names(claim(backend, limits=MOST[1])) == ["b"]

    def test_a_node_that_counts_holds_up_no_other(self, backend, node):
        """One that is stopped while it counts, say."""
        put()
        Scope.objects.create(name=SCOPE)
        with transaction.atomic():
            Scope.objects.filter(name=SCOPE).update(paused_reason="")
            assert node.run(node.backend.claim, [SCOPE], 10, node.id, limits=MOST[1]) == ([], True)
        assert len(node.claim(limits=MOST[1])) == 1

    def test_nodes_that_race_never_hold_more_and_leave_no_place_free(self, backend, node):
        """Each claims and lets go as fast as it can."""
        ContractQueue.create_jobs([ContractQueue.job(f"q{number % 20}", "noop") for number in range(2_000)])
        both, most = barrier(2), []

        def work(backend, holder):
            both.wait()
            for _ in range(ROUNDS):
                claims = claim(backend, 5, holder=holder, limits=MOST[3])
                most.append(held())
                endings = [end(one) for one in claims]
                while endings:
                    endings = record(backend, *endings, holder=holder).locked

        theirs = node.start(work, node.backend, node.id)
        work(backend, NODE)
        theirs.result(PATIENCE)
        assert max(most) == 3
        assert held() == 0
        assert len(wait_until(lambda: claim(backend, limits=MOST[3]))) == 3

    # rate

    def test_of_a_rate_no_more_start_than_are_due_and_the_next_time_is_when_one_is(self, backend, node):
        for number in range(5):
            put(f"q{number}")
        slow = Limits(rate=(1, 60))
        now = backend.now()
        assert names(claim(backend, limits=slow, now=now)) == ["q0"]
        assert claim(backend, limits=slow, now=now) == node.claim(limits=slow, now=now) == []
        assert 55 < backend.next_due([SCOPE]) < 65
        assert node.claim(limits=slow, now=now + 60 * SECOND) == []  # a little longer, to be safe
        assert names(node.claim(limits=slow, now=now + 63 * SECOND)) == ["q1"]

    def test_starts_of_a_rate_are_spread_over_its_span(self, backend):
        for number in range(20):
            put(f"q{number}")
        now, fast = backend.now(), Limits(rate=(100, 10))
        started = [len(claim(backend, limits=fast, now=now + tenths * SECOND / 10)) for tenths in range(12)]
        assert (started[0], sum(started)) == (2, 13)
        assert max(started[1:]) <= 2

    def test_places_and_a_rate_hold_together(self, backend):
        for number in range(5):
            put(f"q{number}")
        both, now = Limits(max_running=1, rate=(1, 60)), backend.now()
        (one,) = claim(backend, limits=both, now=now)
        finish(backend, one)
        assert claim(backend, limits=both, now=now) == []
        (two,) = claim(backend, limits=both, now=now + 63 * SECOND)
        assert claim(backend, limits=both, now=now + 126 * SECOND) == []
        finish(backend, two)
        assert len(claim(backend, limits=both, now=now + 126 * SECOND)) == 1

    def test_nodes_that_race_start_no_more_than_a_rate_lets(self, backend, node):
        ContractQueue.create_jobs([ContractQueue.job(f"q{number}", "noop") for number in range(100)])
        both, limits, rate = barrier(2), Limits(rate=(20, 2)), Rate(20, 2)

        def work(backend, holder):
            both.wait()
            return sum(len(claim(backend, 5, holder=holder, limits=limits)) for _ in range(ROUNDS))

        began = backend.now()
        theirs = node.start(work, node.backend, node.id)
        started = work(backend, NODE) + theirs.result(PATIENCE)
        took = (backend.now() - began).total_seconds()
        assert 1 <= started <= (took + rate.early) / rate.interval + 1

    # spacing

    def test_a_queue_starts_its_next_job_no_sooner_than_its_spacing_lets(self, backend, node):
        for name in ("a", "a", "b"):
            put(name)
        spaced, now = Limits(spacing=30.0), backend.now()
        one, other = claim(backend, limits=spaced, now=now)
        assert (one.queue, other.queue) == ("a", "b")
        finish(backend, one, now=now)
        assert node.claim(limits=spaced, now=now + 29 * SECOND) == []
        assert line("a").due_at == now + 30 * SECOND
        assert names(node.claim(limits=spaced, now=now + 30 * SECOND)) == ["a"]

    @pytest.mark.parametrize("how", ["a new job", "a failure", "a verb"])
    def test_spacing_holds_whatever_makes_the_queue_due(self, backend, how):
        job = put("a")
        spaced, now = Limits(spacing=3600.0), backend.now()
        (one,) = claim(backend, limits=spaced)
        finish(backend, one, Verdict.DONE if how == "a new job" else Verdict.RETRY)
        if how == "a new job":
            put("a")
        if how == "a verb":
            ContractQueue.retry(job)
        assert claim(backend, limits=spaced) == []
        assert line("a").due_at > now + 3000 * SECOND
        assert len(claim(backend, limits=spaced, now=now + 3700 * SECOND)) == 1

    def test_a_spacing_that_is_longer_than_it_may_be_by_now_holds_nothing_up(self, backend):
        put("a")
        now = backend.now()
        Queue.objects.filter(name="a").update(spaced_until=now + HOUR)
        assert claim(backend, limits=Limits(spacing=3600.0), now=now) == []
        Queue.objects.filter(name="a").update(due_at=now)
        assert len(claim(backend, limits=Limits(spacing=60.0), now=now)) == 1

    # Snooze(scope=True)

    def test_a_snoozed_scope_starts_nothing_until_its_time_and_others_go_on(self, backend, node):
        for name in ("a", "a", "b"):
            put(name)
        put("c", queuetopia=OtherQueue)
        now = backend.now()
        (one,) = claim(backend, 1, now=now)
        assert finish(backend, one, Verdict.SNOOZE, delay=40.0, of_scope=True, now=now).written
        both = (SCOPE, OtherQueue.scope)
        assert names(node.claim(now=now + 39 * SECOND)) == []
        assert 30 < backend.next_due([SCOPE]) <= 40
        assert names(claim(backend, scopes=both, now=now + 39 * SECOND)) == ["c"]
        assert sorted(names(node.claim(now=now + 40 * SECOND))) == ["a", "b"]
        assert stored(one).attempts == 0

    def test_while_its_scope_is_snoozed_a_queue_does_not_go_straight_on(self, backend):
        for name in ("a", "b", "b"):
            put(name)
        one, other = claim(backend)
        finish(backend, one, Verdict.SNOOZE, delay=3600.0, of_scope=True)
        assert finish(backend, other, keep=True).claims == []
        assert claim(backend) == []

    def test_the_longest_snooze_of_a_scope_holds(self, backend):
        for name in ("a", "b"):
            put(name)
        one, other = claim(backend)
        now = backend.now()
        finish(backend, one, Verdict.SNOOZE, delay=100.0, of_scope=True, now=now)
        finish(backend, other, Verdict.SNOOZE, delay=10.0, of_scope=True, now=now)
        assert claim(backend, now=now + 99 * SECOND) == []
        assert len(claim(backend, now=now + 100 * SECOND)) == 2
