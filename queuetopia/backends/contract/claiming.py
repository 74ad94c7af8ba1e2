"""What ``claim`` gives out, in which order, and what ``give_back`` takes back."""

import itertools

import pytest
from django.db import OperationalError, models, transaction

from ... import pause_all, resume_all
from ...attempts import Verdict, describe, readable
from ...models import Job, Queue
from .. import upkeep
from .base import Contract
from .toolkit import (
    HOLDING,
    HOUR,
    NODE,
    PATIENCE,
    SCOPE,
    SECOND,
    ContractQueue,
    OtherQueue,
    barrier,
    claim,
    claim_one,
    end,
    finish,
    line,
    names,
    put,
    put_row,
    record,
    rows,
    stored,
)


class Claiming(Contract):
    def test_a_claim_is_the_head_of_its_queue_with_all_that_a_worker_needs(self, backend):
        job = ContractQueue.create_job(
            "q", "write", {"seq": 1}, timeout=7, max_backoff=8, max_attempts=9, on_exhausted="skip"
        )
        one = claim_one(backend)
        assert (one.job_id, one.queue_id, one.scope, one.queue, one.action) == (job.pk, line().pk, SCOPE, "q", "write")
        assert (one.timeout, one.max_backoff, one.max_attempts, one.on_exhausted) == (7, 8, 9, "skip")
        assert (one.attempt, one.fence, one.rev, one.attempted, one.failed_at) == (1, 1, 0, False, None)
        assert readable(one.params) == {"seq": 1}

    def test_a_claim_is_written_on_the_queue_and_not_on_the_job(self, backend):
        job = put()
        before_claim, now = stored(job).__dict__, backend.now()
        one = claim_one(backend, now=now)
        held = line()
        assert (held.held_by, held.held_since, held.current_job) == (NODE, now, job.pk)
        assert (held.attempt, held.fence) == (1, one.fence)
        assert stored(job).__dict__ | {"_state": None} == before_claim | {"_state": None}

    def test_a_claim_says_whether_the_job_was_attempted_and_whether_it_failed(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.SNOOZE)
        snoozed = claim_one(backend)
        assert (snoozed.attempt, snoozed.attempted, snoozed.failed_at) == (1, True, None)
        finish(backend, snoozed, Verdict.RETRY, error=describe(ValueError()))
        failed = claim_one(backend)
        assert (failed.attempt, failed.attempted, bool(failed.failed_at)) == (2, True, True)

    def test_a_queue_is_claimed_by_one_of_two_nodes_at_once(self, backend, node):
        ContractQueue.create_jobs([ContractQueue.job(f"q{number}", "noop") for number in range(20)])
        both = barrier(2)

        def claim_all(backend, holder):
            both.wait()
            return list(itertools.chain.from_iterable(claim(backend, 7, holder=holder) for _ in range(10)))

        theirs = node.start(claim_all, node.backend, node.id)
        ours = claim_all(backend, NODE)
        claims = ours + theirs.result(PATIENCE)
        assert sorted(names(claims)) == sorted(f"q{number}" for number in range(20))
        for one in ours:
            assert line(one.queue).held_by == NODE

    def test_a_held_queue_is_not_claimed_again(self, backend, node):
        put()
        put()
        claim_one(backend)
        assert claim(backend) == [] == node.claim()

    def test_each_claim_of_a_queue_has_a_higher_fence(self, backend, node):
        put()
        put()
        fences = [line().fence]
        for verdict in (Verdict.RETURN, Verdict.INTERRUPT, Verdict.SNOOZE, Verdict.RETRY):
            (theirs,) = node.claim()
            node.record(end(theirs, verdict))
            ours = claim_one(backend)
            finish(backend, ours, verdict)
            fences += [theirs.fence, ours.fence]
        one = claim_one(backend)
        (following,) = finish(backend, one, keep=True).claims
        fences += [one.fence, following.fence]
        assert line().fence == fences[-1]
        assert all(earlier < later for earlier, later in itertools.pairwise(fences))

    @pytest.mark.parametrize("keep", [False, True])
    def test_jobs_of_a_queue_are_claimed_by_time_and_then_in_order_of_creation(self, backend, keep):
        now = backend.now()
        created = [put_row(scheduled_at=now + offset * SECOND) for offset in (2, 2, 1, 3, 1, 2)]
        backend.wake([(SCOPE, "q", now)])
        seen, kept = [], []
        for _ in created:
            one = kept[0] if kept else claim_one(backend, now=now + HOUR)
            seen.append(one.job_id)
            kept = finish(backend, one, keep=keep, now=now + HOUR).claims
        assert seen == [created[index].pk for index in (2, 4, 0, 1, 5, 3)]
        assert claim(backend, now=now + HOUR) == []

    def test_jobs_created_without_a_time_run_in_order_of_creation(self, backend):
        jobs_in_order = [put() for _ in range(3)]
        jobs_in_order += ContractQueue.create_jobs([ContractQueue.job("q", "noop") for _ in range(3)])
        for job in jobs_in_order:
            one = claim_one(backend)
            assert one.job_id == job.pk
            finish(backend, one)

    def test_only_the_head_is_claimed(self, backend):
        first = put()
        put()
        put("p")
        assert sorted(names(claim(backend))) == ["p", "q"]
        assert line().current_job == first.pk

    def test_a_job_for_later_is_not_claimed_before_its_time_and_holds_nobody_back(self, backend):
        now = backend.now()
        later = put(scheduled_at=now + HOUR)
        assert claim(backend) == []
        due = put()
        one = claim_one(backend)
        assert one.job_id == due.pk
        finish(backend, one)
        assert line().due_at == now + HOUR
        assert claim(backend) == [] == claim(backend, now=now + HOUR - SECOND)
        assert claim_one(backend, now=now + HOUR).job_id == later.pk

    @pytest.mark.parametrize("verdict", HOLDING)
    def test_an_attempted_job_holds_back_all_others_whatever_their_time(self, backend, verdict):
        now = backend.now()
        attempted = put()
        delay = 0.0 if verdict in (Verdict.HALT, Verdict.INTERRUPT) else 40.0
        finish(backend, claim_one(backend), verdict, now=now, delay=delay)
        put(scheduled_at=now - HOUR)
        assert line().current_job == attempted.pk
        if verdict == Verdict.HALT:
            assert claim(backend, now=now + 1_000 * HOUR) == []
            return
        if delay:
            assert claim(backend, now=now + 39 * SECOND) == []
        assert claim_one(backend, now=now + 40 * SECOND).job_id == attempted.pk

    def test_a_job_given_back_before_its_first_attempt_holds_nobody_back(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETURN)
        earlier = put(scheduled_at=backend.now() - HOUR)
        assert claim_one(backend).job_id == earlier.pk

    def test_the_limit_is_respected_and_more_is_told(self, backend):
        ContractQueue.create_jobs([ContractQueue.job(f"q{number}", "noop") for number in range(5)])
        sizes, hints = [], []
        for limit in (2, 2, 2, 2):
            claims, more = backend.claim([SCOPE], limit, NODE)
            sizes.append(len(claims))
            hints.append(more)
        assert sizes == [2, 2, 1, 0]
        assert hints[:2] == [True, True]
        assert hints[3] is False

    def test_the_queue_that_has_been_due_longest_comes_first(self, backend):
        now = backend.now()
        for name, age in (("b", 2), ("c", 1), ("a", 3)):
            put(name, scheduled_at=now - age * HOUR)
        put("d", queuetopia=OtherQueue, scheduled_at=now - 2.5 * HOUR)
        scopes = [SCOPE, OtherQueue.scope]
        assert [claim_one(backend, limit=1, scopes=scopes).queue for _ in range(4)] == ["a", "d", "b", "c"]

    def test_only_the_scopes_asked_for_are_claimed_each_with_its_own_queue_of_a_name(self, backend):
        ours, theirs = put(), put(queuetopia=OtherQueue)
        assert [one.job_id for one in claim(backend, scopes=[OtherQueue.scope])] == [theirs.pk]
        assert claim(backend, scopes=[]) == []
        one = claim_one(backend)
        assert one.job_id == ours.pk
        finish(backend, one)
        assert Queue.objects.get(scope=OtherQueue.scope).held_by == NODE

    def test_one_queue_alone_can_be_claimed(self, backend):
        put("a")
        put("b")
        assert names(claim(backend, only="b")) == ["b"]
        assert claim(backend, only="b") == []

    def test_a_paused_queue_is_not_claimed_until_it_is_resumed(self, backend):
        put("a")
        put("b")
        ContractQueue.pause("a", by="ann")
        assert names(claim(backend)) == ["b"]
        put("a")
        assert claim(backend) == []
        ContractQueue.resume("a")
        assert names(claim(backend)) == ["a"]

    def test_a_paused_scope_is_not_claimed_until_it_is_resumed(self, backend):
        put()
        put("other", queuetopia=OtherQueue)
        scopes = [SCOPE, OtherQueue.scope]
        ContractQueue.pause()
        assert names(claim(backend, scopes=scopes)) == ["other"]
        ContractQueue.resume()
        assert names(claim(backend, scopes=scopes)) == ["q"]

    def test_while_everything_is_paused_nothing_is_claimed_a_scope_that_comes_later_included(self, backend):
        scopes = [SCOPE, OtherQueue.scope]
        put()
        pause_all(using="default")
        put("other", queuetopia=OtherQueue)
        assert claim(backend, scopes=scopes) == []
        assert backend.next_due(scopes) is None and not upkeep.has_work(backend, scopes)
        resume_all(using="default")
        assert sorted(names(claim(backend, scopes=scopes))) == ["other", "q"]

    @pytest.mark.parametrize("number", [1, 20])
    def test_everything_paused_while_jobs_run_lets_them_finish_and_starts_nothing(self, backend, number):
        for queue in range(number):
            put(str(queue))
            put(str(queue))
        claims = claim(backend, number)
        assert len(claims) == number
        pause_all(using="default")
        result = record(backend, *[end(claimed) for claimed in claims], keep=True)
        assert len(result.written) == number and result.claims == []
        assert claim(backend) == []

    def test_a_queue_that_is_due_and_empty_is_cleared(self, backend):
        put()
        Job.objects.all().delete()
        assert claim(backend) == []
        assert (line().due_at, line().current_job, line().held_by) == (None, None, None)

    def test_a_queue_that_is_due_too_early_waits_for_its_job(self, backend):
        now = backend.now()
        put_row(scheduled_at=now + HOUR)
        Queue.objects.create(scope=SCOPE, name="q", due_at=now)
        assert claim(backend) == []
        assert line().due_at == now + HOUR

    def test_a_halted_head_is_not_passed_over_even_if_its_queue_does_not_know_it(self, backend):
        halted = put_row(state="halted")
        put_row()
        Queue.objects.create(scope=SCOPE, name="q", due_at=backend.now())
        assert claim(backend) == []
        assert (line().current_job, line().due_at) == (halted.pk, None)

    def test_a_queue_whose_current_job_has_vanished_goes_on_with_the_next(self, backend):
        gone, following = put(), put()
        finish(backend, claim_one(backend), Verdict.RETRY)
        Job.objects.filter(pk=gone.pk).delete()
        assert claim_one(backend).job_id == following.pk

    def test_a_queue_whose_running_job_vanishes_goes_on_with_the_next(self, backend):
        put()
        one = claim_one(backend)
        Job.objects.filter(pk=one.job_id).delete()
        following = put()
        finish(backend, one)
        assert claim_one(backend).job_id == following.pk

    def test_attempts_are_counted_beyond_ten_thousand(self, backend):
        put()
        for attempts in (10_000, 2**31 - 2):
            Job.objects.update(attempts=attempts)
            one = claim_one(backend)
            assert (one.attempt, line().attempt) == (attempts + 1, attempts + 1)
            finish(backend, one, Verdict.RETRY, error=describe(ValueError()))
            assert stored(one).attempts == attempts + 1
            assert stored(one).errors[-1]["attempt"] == attempts + 1

    @pytest.mark.parametrize("keep", [False, True])
    def test_a_count_of_attempts_at_its_end_breaks_no_other_queue(self, backend, keep):
        first, corrupt = put(), put()
        put("good")
        Job.objects.filter(pk=corrupt.pk).update(attempts=2**31 - 1)
        claims = {one.queue: one for one in claim(backend)}
        recorded = record(backend, *(end(one) for one in claims.values()), keep=keep)
        assert len(recorded.written) == 2
        (one,) = recorded.claims or claim(backend)
        assert (one.job_id, one.attempt) == (corrupt.pk, 2**31 - 1)
        finish(backend, one, Verdict.RETRY, error=describe(ValueError()))
        assert stored(first).state == stored(claims["good"]).state == "done"

    def test_a_claim_that_is_given_back_leaves_queue_and_job_as_they_were(self, backend, node):
        put("blocked")
        finish(backend, claim_one(backend), Verdict.RETRY, error=describe(ValueError("no")))
        put("waiting")
        Queue.objects.filter(name="waiting").update(due_at=backend.now() - HOUR)
        before = rows()

        claims = claim(backend)
        assert sorted(names(claims)) == ["blocked", "waiting"]
        assert backend.give_back(claims, NODE) == {one.queue_id for one in claims}
        Queue.objects.update(fence=models.F("fence") - 1)
        assert rows() == before
        assert sorted(names(node.claim())) == ["blocked", "waiting"]  # the locks are free, too

    def test_a_claim_is_given_back_only_while_it_is_ours(self, backend, node):
        put("other node's")
        others = node.claim()
        put("older")
        (older,) = claim(backend)
        backend.give_back([older], NODE)
        (newer,) = claim(backend)
        before = rows()
        assert backend.give_back([older, *others], NODE) == set()
        assert rows() == before
        finish(backend, newer)

    def test_a_claim_that_is_given_back_after_a_request_to_stop_is_cancelled_unbegun(self, backend):
        job = put()
        one = claim_one(backend)
        with transaction.atomic():
            assert ContractQueue.cancel(job) == "running"
        assert backend.give_back([one], NODE) == set()
        finish(backend, one, Verdict.RETURN)
        assert (stored(job).state, stored(job).attempts, stored(job).attempted_at) == ("cancelled", 0, None)

    def test_a_claim_whose_answer_was_lost_is_found_at_once(self, backend, monkeypatch):
        put("a")
        original = type(backend).start_heads

        def start_heads(*args, **kwargs):
            monkeypatch.undo()
            original(backend, *args, **kwargs)
            raise OperationalError("cancelled after the commit")

        monkeypatch.setattr(backend, "start_heads", start_heads)
        one = claim_one(backend)
        finish(backend, one)
        assert stored(one).state == "done"
