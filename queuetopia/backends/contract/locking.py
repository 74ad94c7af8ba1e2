"""Open transactions of other connections delay their own queues only, and deadlocks cost nothing."""

import random
import threading
from functools import partial

import pytest
from django.db import OperationalError, transaction

from ...attempts import Verdict, describe
from ...models import Job, JobEvent, Queue, Scope
from ...models import Node as NodeRow
from ...testing import wait_until
from .. import backend_for, nodes, upkeep
from .base import Contract, several_writers
from .toolkit import (
    HOUR,
    NODE,
    PATIENCE,
    SCOPE,
    SECOND,
    ContractQueue,
    Dice,
    barrier,
    before,
    claim,
    claim_one,
    end,
    finish,
    halted,
    join,
    line,
    names,
    put,
    put_row,
    record,
    stored,
)
from .vendors import is_waiting, locked, look_for_deadlocks_after, repeatable_read


class Locking(Contract):
    @several_writers
    def test_a_claim_whose_row_somebody_has_locked_is_given_back_without_the_others_waiting(self, backend, node):
        put("a")
        put("b")
        claims = node.claim()
        with transaction.atomic():
            ContractQueue.pause("a")
            let_go = node.run(node.backend.give_back, claims, node.id)
        assert let_go == {one.queue_id for one in claims if one.queue == "b"}
        assert line("a").held_by == node.id

    @several_writers
    @pytest.mark.parametrize("known", [False, True])
    def test_transactions_that_create_in_opposite_order_do_not_wait_for_each_other(self, backend, elsewhere, known):
        if known:
            put("a")
            put("b")
        both = barrier(2)

        def create(*queues):
            with transaction.atomic():
                for name in queues:
                    put(name)
                    both.wait()  # the other has created its job too and has not committed

        running = [elsewhere().start(create, "a", "b"), elsewhere().start(create, "b", "a")]
        join(running)
        assert sorted(names(claim(backend))) == ["a", "b"]

    @several_writers
    def test_a_transaction_that_creates_jobs_delays_no_scheduler(self, backend):
        put("known")
        one = claim_one(backend)
        with transaction.atomic():
            put("known")
            put("new")
            assert finish(backend, one).released_due is False
            assert claim(backend) == []
        assert sorted(names(claim(backend))) == ["known", "new"]

    @several_writers
    def test_a_transaction_with_one_snapshot_creates_jobs_while_their_queue_is_served(self, backend):
        """REPEATABLE READ: creating reads and writes nothing that a scheduler changes."""
        put()
        with repeatable_read():
            assert Job.objects.count() == 1
            put()
            finish(backend, claim_one(backend))
            put()
        assert claim_one(backend).job_id == Job.objects.earliest("id").pk + 1

    @several_writers
    def test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_claimed(self, backend):
        put("a")
        put("b")
        with transaction.atomic():
            ContractQueue.pause("a")
            assert names(claim(backend)) == ["b"]
        assert claim(backend) == []
        ContractQueue.resume("a")
        assert names(claim(backend)) == ["a"]

    @several_writers
    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.RETRY, Verdict.RETURN])
    @pytest.mark.parametrize("locked", ["queue", "job"])
    def test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_recorded(
        self, backend, node, locked, verdict
    ):
        job = put("a")
        put("a")
        put("b")
        error = describe(ValueError("no")) if verdict == Verdict.RETRY else None
        endings = [end(one, verdict if one.queue == "a" else Verdict.DONE, error=error) for one in node.claim()]
        passed = ["a"] if locked == "queue" or verdict != Verdict.RETURN else []
        with transaction.atomic():
            if locked == "queue":
                ContractQueue.pause("a")
            else:
                Job.objects.filter(pk=job.pk).update(timeout=7)
            recorded = node.record(*endings)
            assert names(ending.claim for ending in recorded.locked) == passed
            assert "b" in names(ending.claim for ending in recorded.written)
            assert line("b").held_by is None
            if passed:
                assert node.record(*recorded.locked).locked == recorded.locked
        if passed:
            (ending,) = node.record(*recorded.locked).written
            assert ending.outcome.verdict == verdict
        assert line("a").held_by is None
        assert stored(job).is_ended() == (verdict == Verdict.DONE)

    @several_writers
    def test_a_result_that_is_no_longer_ours_is_stale_though_somebody_has_its_row_locked(self, backend, node):
        put("a")
        old = claim_one(backend)
        finish(backend, old, Verdict.RETURN)
        claim_one(backend)
        with transaction.atomic():
            ContractQueue.pause("a")
            assert names(ending.claim for ending in node.record(end(old)).stale) == ["a"]

    @several_writers
    def test_a_job_created_while_a_persons_transaction_is_open_waits_for_it_no_longer_than_that(
        self, backend, elsewhere
    ):
        """Neither its creator nor the scheduler waits; the locking transaction checks for jobs after its commit."""
        put("a", scheduled_at=backend.now() + HOUR)
        with transaction.atomic():
            ContractQueue.pause("a")
            ContractQueue.resume("a")
            elsewhere().run(put, "a")
            assert claim(backend) == []
        assert names(claim(backend)) == ["a"]

    @several_writers
    def test_a_due_queue_that_is_locked_does_not_stand_before_the_others(self, backend, elsewhere):
        now = backend.now()
        put("a", scheduled_at=now - HOUR)
        put("b")
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="a")
            assert names(claim(backend, 1)) == ["b"]

    @several_writers
    @pytest.mark.parametrize("in_session", [False, True])
    def test_a_wake_of_many_queues_wakes_those_that_are_not_locked(self, backend, elsewhere, in_session):
        now = backend.now()
        queues = ["x", "y", "z"]
        backend.wake([(SCOPE, name, now + HOUR) for name in queues])
        waker = backend if in_session else backend_for("default")
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="x")
            wake = waker.wake if in_session else partial(elsewhere().run, waker.wake)
            assert wake([(SCOPE, name, now) for name in queues]) == 1
        assert sorted(Queue.objects.due(now).values_list("name", flat=True)) == ["y", "z"]

    @several_writers
    @pytest.mark.parametrize("what", ["row", "table"])
    def test_a_heartbeat_that_is_kept_waiting_is_no_lost_session(self, backend, elsewhere, what):
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        with locked(NodeRow, what):
            assert nodes.beat(backend, NODE, []) is True
            assert backend.is_alive()
        assert nodes.beat(backend, NODE, []) is True

    @several_writers
    def test_create_job_does_not_wait_for_a_locked_table_of_queues(self, backend, elsewhere):
        """It stores the job; the sweep wakes its queue."""
        creator = elsewhere()
        creator.run(put, "known")
        with locked(Queue, "table"):
            creator.run(put, "known")
            creator.run(put, "new")
        assert Job.objects.count() == 3
        creator.run(put, "known")

    @several_writers
    def test_the_second_look_comes_back_to_a_queue_that_was_locked(self, backend, elsewhere):
        put("a")
        one, creator, opened = claim_one(backend), elsewhere(), threading.Event()
        released = threading.Event()

        def lock_row():
            put_row("a")
            with transaction.atomic():
                Queue.objects.select_for_update().get(name="a")
                opened.set()
                assert released.wait(PATIENCE)

        before(backend, "recheck", lambda: (creators.append(creator.start(lock_row)), opened.wait(PATIENCE)))
        creators = []
        assert finish(backend, one).released_due is False
        assert backend.unchecked == {one.queue_id}
        assert backend.recheck([]) is False
        released.set()
        join(creators)
        assert backend.recheck([]) is True
        assert backend.unchecked == set()
        assert names(claim(backend)) == ["a"]

    def test_wakes_of_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(30)]
        now = backend.now()
        together = barrier(4)

        def wake(seed):
            dice = Dice(seed)
            for round_ in range(10):
                together.wait()
                due_at = now - (round_ + dice.random()) * HOUR
                backend_for("default").wake([(SCOPE, name, due_at) for name in dice.sample(queues, len(queues))])

        join([elsewhere().start(wake, seed) for seed in range(4)])
        assert Queue.objects.filter(due_at__lt=now - 9 * HOUR).count() == len(queues)

    def test_wakes_and_the_second_look_at_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(30)]
        put_rows = [Job(scope=SCOPE, queue=name, action="noop") for name in queues]
        Job.objects.bulk_create(put_rows)
        now = backend.now()
        backend.wake([(SCOPE, name, now) for name in queues])
        ids = list(Queue.objects.order_by("-id").values_list("id", flat=True))
        together = barrier(2)

        def wake():
            for _ in range(50):
                together.wait()
                backend_for("default").wake([(SCOPE, name, now - HOUR) for name in queues])
                together.wait()

        waking = elsewhere().start(wake)
        for _ in range(50):
            Queue.objects.update(due_at=None)
            together.wait()
            backend.recheck(random.sample(ids, len(ids)))
            together.wait()
        waking.result(PATIENCE)

    def test_claims_and_wakes_of_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(20)]
        ContractQueue.create_jobs([ContractQueue.job(name, "noop") for name in reversed(queues)])
        now, rounds = backend.now(), 30
        together = barrier(3)

        def wake(seed):
            dice = Dice(seed)
            for round_ in range(rounds):
                together.wait()
                due_at = now - (round_ + dice.random()) * SECOND
                try:
                    backend_for("default").wake([(SCOPE, name, due_at) for name in dice.sample(queues, len(queues))])
                except OperationalError as exc:  # on a slow machine it may have to wait for longer than it would
                    assert not backend.is_deadlock(exc)
                    assert backend.is_busy(exc)

        waking = [elsewhere().start(wake, seed) for seed in range(2)]
        for _ in range(rounds):
            together.wait()
            claims = claim(backend, 20)
            random.shuffle(claims)
            assert record(backend, *(end(one, Verdict.RETURN) for one in claims)).stale == []
        join(waking)

    def test_verbs_of_many_people_on_a_new_queue_do_not_deadlock(self, elsewhere):
        together = barrier(5)

        def pause():
            for number in range(5):
                together.wait()
                ContractQueue.pause(f"q{number}")

        join([elsewhere().start(pause) for _ in range(5)])
        assert Queue.objects.paused().count() == 5

    @several_writers
    def test_a_verb_that_a_deadlock_rolls_back_is_done_again(self, backend, elsewhere):
        job = halted(backend)
        person = deadlock(elsewhere(), job, partial(ContractQueue.retry, job, by="ann"))
        assert person.result(PATIENCE).state == "pending"
        (event,) = JobEvent.objects.all()
        assert (event.verb, event.by) == ("retry", "ann")
        assert claim_one(backend).job_id == job.pk

    @several_writers
    def test_a_verb_inside_a_transaction_is_not_done_again_after_a_deadlock(self, backend, elsewhere):
        job = halted(backend)

        def act():
            with transaction.atomic():
                ContractQueue.create_job("other", "noop")
                ContractQueue.retry(job)

        with pytest.raises(OperationalError):
            deadlock(elsewhere(), job, act).result(PATIENCE)
        assert stored(job).state == "halted"
        assert Job.objects.count() == 1

    def test_creators_in_commit_order_wait_for_each_other(self, backend, elsewhere):
        """``commit_ordered``: jobs of one queue run in the order in which their transactions committed."""
        waits = threading.Event()

        def create_second():
            waits.set()
            with transaction.atomic():
                backend_for("default").lock_order(SCOPE, {"q"})
                return put().pk

        with transaction.atomic():
            backend_for("default").lock_order(SCOPE, {"q"})
            second = elsewhere().start(create_second)
            assert waits.wait(PATIENCE)
            wait_until(is_waiting)
            assert not second.done()
            first = put().pk
        assert first < second.result(PATIENCE)
        assert claim_one(backend).job_id == first

    @pytest.mark.parametrize("known", [False, True])
    def test_creators_in_commit_order_do_not_deadlock(self, elsewhere, known):
        if known:
            put("a")
            put("b")
        together = barrier(5)

        def create(seed):
            dice = Dice(seed)
            for _ in range(5):
                together.wait()
                with transaction.atomic():
                    backend_for("default").lock_order(SCOPE, set(dice.sample(["a", "b"], 2)))
                    put("a")

        join([elsewhere().start(create, seed) for seed in range(5)])
        assert Job.objects.filter(queue="a").count() == 25 + known

    @several_writers
    def test_a_wake_that_another_transaction_breaks_off_is_done_again(self, serializable, backend, elsewhere):
        put()
        finish(backend, claim_one(backend))
        creator = elsewhere()
        with transaction.atomic():
            Queue.objects.update(rev=9)
            waking = creator.start(put)
            wait_until(lambda: waking.done() or is_waiting(), PATIENCE)
        join([waking])
        assert claim_one(backend).job_id == waking.result().pk

    @several_writers
    def test_an_alert_whose_row_is_locked_is_passed_over_and_comes_later(self, backend):
        put("locked")
        put("free")
        record(backend, *(end(claim, Verdict.HALT) for claim in claim(backend)))
        Job.objects.update(failed_at=backend.now() - 2 * HOUR)
        Queue.objects.update(alert_at=backend.now() - HOUR)
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="locked")
            assert [alert.claim.queue for alert in upkeep.due_alerts(backend, [SCOPE])] == ["free"]
        assert [alert.claim.queue for alert in upkeep.due_alerts(backend, [SCOPE])] == ["locked"]


def deadlock(person, job, act):
    """Make ``act``, which locks the queue's row and then the job's, deadlock with us, who lock them the other way.

    MySQL rolls the transaction back that has written less, PostgreSQL the one that checks for a deadlock first.
    """
    person.run(look_for_deadlocks_after, 3)
    look_for_deadlocks_after(60)
    try:
        with transaction.atomic():
            Scope.objects.bulk_create([Scope(name=f"written {number}") for number in range(100)])
            Job.objects.select_for_update().get(pk=job.pk)
            acting = person.start(act)
            wait_until(is_waiting, PATIENCE)
            Queue.objects.select_for_update().get(scope=job.scope, name=job.queue)
    finally:
        look_for_deadlocks_after(1)
    return acting
