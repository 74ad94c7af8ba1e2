"""What an outage makes of a scope with a breaker: failures that use no attempt, one try at a time, then a ramp."""

import pytest

from ...attempts import Verdict, describe
from ...breaker import Breaker
from ...models import Queue, Scope
from ...testing import wait_until
from .. import breakers
from ..limits import Limits
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

BREAKER = Breaker(ConnectionError, after=3, backoff_base=10.0, max_backoff=60.0)
BREAKING = Limits(breaker=BREAKER)
DOWN = describe(ConnectionError("no route to host"))
DOWN_TEXT = "ConnectionError: no route to host"


def down(claim):
    """The end of an attempt that failed as the breaker says."""
    return end(claim, Verdict.RETRY, delay=60.0, error=DOWN, breaker=BREAKER.terms)


def breaker() -> Scope:
    return Scope.objects.get(name=SCOPE)


def opened(backend, queues=5, now=None):
    """Make so many queues, let three fail, and return when the scope opened."""
    for number in range(queues):
        put(f"q{number}")
    now = now or backend.now()
    record(backend, *[down(one) for one in claim(backend, 3, now=now)], now=now)
    assert breaker().ramp == 0
    return now


def tried(backend, now):
    return claim(backend, limits=BREAKING, now=now)


class Breaking(Contract):
    def test_so_many_failures_in_a_row_open_the_scope_and_are_counted(self, backend):
        now = opened(backend)
        row = breaker()
        assert (row.failures, row.opened_at, row.probe_at) == (3, now, now + 10 * SECOND)
        assert row.failure == DOWN_TEXT
        assert [stored(job).attempts for job in ContractQueue.jobs().order_by("id")] == [1, 1, 1, 0, 0]

    def test_the_ending_that_opens_it_says_so_once(self, backend):
        for number in range(5):
            put(f"q{number}")
        recorded = record(backend, *[down(one) for one in claim(backend)])
        assert [bool(ending.outcome.outage) for ending in recorded.written] == [False, False, True, False, False]

    def test_a_success_in_between_begins_the_row_anew_and_writes_nothing(self, backend):
        for number in range(5):
            put(f"q{number}")
        for one in claim(backend, 2):
            finish(backend, one, Verdict.RETRY, delay=60.0, error=DOWN, breaker=BREAKER.terms)
        (one,) = claim(backend, 1)
        with backend_statements(backend) as statements:
            finish(backend, one)
        assert not any("failures" in sql and "UPDATE" in sql for sql in statements)
        for one in claim(backend):
            finish(backend, one, Verdict.RETRY, delay=60.0, error=DOWN, breaker=BREAKER.terms)
        assert (breaker().ramp, breaker().failures) == (None, 2)

    def test_other_failures_neither_count_nor_begin_the_row_anew(self, backend):
        for number in range(4):
            put(f"q{number}")
        for number, one in enumerate(claim(backend)):
            if number == 1:
                finish(backend, one, Verdict.RETRY, delay=60.0, error=describe(ValueError("other")))
            else:
                record(backend, down(one))
        assert (breaker().ramp, breaker().failures) == (0, 3)

    def test_while_open_such_a_failure_is_not_counted_and_its_queue_waits_to_be_tried(self, backend):
        for number in range(5):
            put(f"q{number}")
        now = backend.now()
        *_, fourth, fifth = claims = claim(backend, now=now)
        halting = end(fifth, Verdict.HALT, error=DOWN, breaker=BREAKER.terms, exhausted=True)
        recorded = record(backend, *map(down, claims[:4]), halting, now=now)
        assert [ending.outcome.verdict for ending in recorded.written][3:] == [Verdict.OUTAGE, Verdict.OUTAGE]
        for one in (fourth, fifth):
            job = stored(one)
            assert (job.attempts, job.state, job.next_attempt_at, job.error) == (0, "pending", now, DOWN_TEXT)
            assert [(entry["type"], entry["counted"]) for entry in job.errors] == [("ConnectionError", False)]
            assert (line(one.queue).current_job, line(one.queue).due_at) == (job.pk, now)

    def test_while_open_one_at_a_time_is_tried_from_its_time_on(self, backend, node):
        now = opened(backend)
        assert claim(backend, now=now + HOUR) == node.claim(now=now + HOUR) == []
        assert tried(backend, now + SECOND) == []
        assert 5 < backend.next_due([SCOPE]) <= 9
        assert tried(backend, now + 9 * SECOND) == []
        (one,) = tried(backend, now + 10 * SECOND)
        assert one.trial
        assert node.claim(limits=BREAKING, now=now + HOUR) == []
        assert 0 < backend.next_due([SCOPE]) <= 1

    def test_each_try_that_fails_waits_as_long_as_the_outage_has_lasted_up_to_the_cap(self, backend):
        now = opened(backend)
        for at, following in ((10, 20), (20, 40), (40, 80), (80, 140), (140, 200)):
            (one,) = tried(backend, now + at * SECOND)
            record(backend, down(one), now=now + at * SECOND)
            assert breaker().probe_at == now + following * SECOND
            assert stored(one).attempts < 2

    def test_after_a_success_one_then_two_then_four_are_held_at_once(self, backend, node):
        now = opened(backend, queues=30) + 10 * SECOND
        (one,) = tried(backend, now)
        finish(backend, one, now=now)
        sizes = []
        for _ in range(4):
            claims = tried(backend, now)
            sizes.append(len(claims))
            assert node.claim(limits=BREAKING, now=now) == claim(backend, now=now) == []
            for one in claims:
                finish(backend, one, now=now, keep=True)
        assert sizes == [1, 2, 4, 8]

    def test_it_is_closed_when_nothing_waits_any_more_and_says_so_once(self, backend):
        now = opened(backend, queues=4) + 10 * SECOND
        changes = []
        while claims := tried(backend, now + 60 * SECOND):
            changes += [finish(backend, one, now=now + 60 * SECOND).written[0].outcome.outage for one in claims]
        assert [change and change[0] for change in changes] == [None, None, None, breakers.CLOSED]
        row = breaker()
        assert (row.ramp, row.failures, row.opened_at, row.probe_at, row.failure) == (None, 0, None, None, "")

    def test_it_is_closed_after_enough_successes(self, backend):
        now = opened(backend, queues=5) + 10 * SECOND
        Scope.objects.filter(name=SCOPE).update(ramp=breakers.ENOUGH - 1)
        (one, *_) = tried(backend, now)
        finish(backend, one, now=now)
        assert breaker().ramp is None

    def test_in_catching_up_a_failure_is_not_counted_and_as_many_as_run_at_once_open_it_again(self, backend):
        now = opened(backend, queues=20) + 10 * SECOND
        Scope.objects.filter(name=SCOPE).update(ramp=2, failures=0)
        one, other = tried(backend, now)
        record(backend, down(one), now=now)
        assert (breaker().ramp, stored(one).attempts) == (2, 0)
        recorded = record(backend, down(other), now=now)
        row = breaker()
        assert (row.ramp, row.probe_at) == (0, now + 10 * SECOND)
        assert recorded.written[0].outcome.outage is None  # it was told before

    def test_a_failure_from_before_the_outage_changes_nothing_in_catching_up(self, backend):
        for number in range(6):
            put(f"q{number}")
        *first, late = claim(backend, 4)
        record(backend, *map(down, first))
        Scope.objects.filter(name=SCOPE).update(ramp=5)
        record(backend, down(late))
        assert (breaker().ramp, stored(late).attempts) == (5, 0)

    def test_another_end_of_a_try_changes_nothing_and_frees_its_place(self, backend):
        now = opened(backend, queues=8) + 10 * SECOND
        for verdict in (Verdict.RETRY, Verdict.SNOOZE, Verdict.SKIP, Verdict.INTERRUPT):
            (one,) = tried(backend, now)
            error = describe(ValueError("other")) if verdict != Verdict.SNOOZE else None
            finish(backend, one, verdict, delay=3600.0, error=error, now=now)
            assert (breaker().ramp, breaker().failures) == (0, 3)

    def test_what_is_given_back_frees_its_place(self, backend, node):
        now = opened(backend) + 10 * SECOND
        (one,) = tried(backend, now)
        backend.give_back([one], NODE)
        assert len(node.claim(limits=BREAKING, now=now)) == 1

    def test_a_dead_nodes_try_keeps_its_place_until_it_is_taken_over(self, backend):
        now = opened(backend) + 10 * SECOND
        dead = Node()
        assert len(dead.claim(limits=BREAKING, now=now)) == 1
        dead.close()
        assert tried(backend, now) == []
        Queue.objects.held().update(held_by=None, current_job=None)
        assert len(tried(backend, now)) == 1

    def test_a_clock_set_back_holds_no_try_up(self, backend):
        now = opened(backend)
        Scope.objects.filter(name=SCOPE).update(probe_at=now + HOUR)
        assert len(tried(backend, now)) == 1

    def test_the_row_counts_on_over_a_clock_set_back(self, backend):
        put("a")
        Scope.objects.create(name=SCOPE, failures=2, failed_at=backend.now() + HOUR)
        record(backend, down(claim(backend)[0]))
        assert breaker().ramp == 0

    def test_while_open_a_queue_does_not_go_straight_on(self, backend):
        for name in ("a", "b", "b", "c", "d"):
            put(name)
        one, other, *others = claim(backend)
        record(backend, *map(down, (one, *others)))
        assert finish(backend, other, keep=True).claims == []

    def test_a_pause_and_a_snooze_hold_while_it_is_open(self, backend):
        now = opened(backend) + 10 * SECOND
        ContractQueue.pause()
        assert tried(backend, now) == []
        ContractQueue.resume()
        assert breaker().ramp is None

    def test_of_a_snoozed_scope_nothing_is_tried(self, backend):
        now = opened(backend) + 10 * SECOND
        Scope.objects.filter(name=SCOPE).update(snoozed_until=now + HOUR)
        assert tried(backend, now) == []
        assert breaker().ramp == 0

    def test_places_hold_together_with_max_running(self, backend, node):
        now = opened(backend, queues=20) + 10 * SECOND
        Scope.objects.filter(name=SCOPE).update(ramp=8)
        both = Limits(max_running=5, breaker=BREAKER)
        assert len(claim(backend, limits=both, now=now)) == 5
        assert node.claim(limits=both, now=now) == []

    def test_other_scopes_go_on(self, backend):
        opened(backend)
        put("a", queuetopia=OtherQueue)
        assert names(claim(backend, scopes=(SCOPE, OtherQueue.scope))) == ["a"]

    def test_what_no_class_asks_for_any_more_is_closed(self, backend):
        opened(backend)
        assert breakers.close("default", [OtherQueue.scope]) == 0
        assert breakers.close("default", [SCOPE]) == 1
        assert len(claim(backend)) == 2

    @pytest.mark.parametrize("how", ["opens", "catches up"])
    def test_nodes_that_race_never_try_more_than_may_be(self, backend, node, how):
        ContractQueue.create_jobs([ContractQueue.job(f"q{number}", "noop") for number in range(60)])
        now = backend.now()
        Scope.objects.create(name=SCOPE, ramp=0, opened_at=now - HOUR, probe_at=now - HOUR, failures=3, failed_at=now)
        both, most = barrier(2), []

        def work(backend, holder):
            both.wait()
            for _ in range(30):
                claims = claim(backend, 50, holder=holder, limits=BREAKING)
                row, held = breaker(), Queue.objects.held().filter(scope=SCOPE).count()
                most.append((held, row.ramp))
                endings = [down(one) if how == "opens" else end(one) for one in claims]
                while endings:
                    endings = record(backend, *endings, holder=holder).locked

        theirs = node.start(work, node.backend, node.id)
        work(backend, NODE)
        theirs.result(PATIENCE)
        if how == "opens":
            assert max(held for held, _ in most) <= 1
            assert not ContractQueue.jobs().exclude(attempts=0).exists()
        else:
            wait_until(lambda: _finished(backend))
            assert breaker().ramp is None


def _finished(backend):
    for one in claim(backend, 50, limits=BREAKING):
        finish(backend, one)
    return not ContractQueue.jobs().unfinished().exists()


class backend_statements:
    """Collects the statements that a backend's connection runs in the block."""

    def __init__(self, backend):
        self._connection, self._statements = backend.connection, []

    def __enter__(self):
        self._wrapper = self._connection.execute_wrapper(self._note)
        self._wrapper.__enter__()
        return self._statements

    def __exit__(self, *exc):
        self._wrapper.__exit__(*exc)

    def _note(self, execute, sql, params, many, context):
        self._statements.append(sql)
        return execute(sql, params, many, context)
