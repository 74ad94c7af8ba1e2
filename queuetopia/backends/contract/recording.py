"""What ``record`` writes, refuses, and goes on with."""

import json
from datetime import timedelta

import pytest
from django.db import DatabaseError
from django.utils import timezone

from ...attempts import ERRORS_KEPT, ERRORS_LIMIT, Verdict, describe
from ...exceptions import NodeDied
from ...models import Job, JobEvent, Queue
from ...outside import token_of
from ...testing import wait_until
from .. import nodes, upkeep
from .. import rows as rows_of_queues
from .base import Contract
from .toolkit import (
    AFTER,
    FAILED,
    FREEING,
    GRAVEYARD,
    HOUR,
    NODE,
    SCOPE,
    SECOND,
    ContractQueue,
    OtherQueue,
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


class Recording(Contract):
    def test_what_is_reported_of_a_deferred_attempt_comes_with_the_next_claim_of_its_queue(self, backend):
        put()
        following = put()
        one = claim_one(backend)
        finish(backend, one, Verdict.DEFER, delay=3600.0)
        assert claim(backend) == []
        ContractQueue.complete(token_of(SCOPE, one.job_id, one.fence), {"n": 1})
        two = claim_one(backend)
        assert (two.job_id, json.loads(two.outside), two.attempt) == (one.job_id, {"result": '{"n": 1}'}, 1)
        finish(backend, two, result='{"n": 1}')
        job = stored(one)
        assert (job.state, job.attempts, job.result, job.outside) == ("done", 1, {"n": 1}, None)
        three = claim_one(backend)
        assert (three.job_id, three.outside) == (following.pk, None)

    def test_a_deferred_attempt_whose_deadline_is_over_is_claimed_as_one_that_nothing_was_reported_of(self, backend):
        put()
        now = backend.now()
        finish(backend, claim_one(backend), Verdict.DEFER, delay=60.0, now=now)
        assert claim(backend, now=now + 59 * SECOND) == []
        (two,) = claim(backend, now=now + 60 * SECOND)
        assert (two.outside, two.attempt) == ("{}", 1)

    @pytest.mark.parametrize("verdict", [Verdict.DEFER, Verdict.RETRY, Verdict.HALT, Verdict.INTERRUPT])
    def test_a_success_reported_before_the_attempt_has_ended_is_its_end(self, backend, verdict):
        put()
        one = claim_one(backend)
        ContractQueue.complete(token_of(SCOPE, one.job_id, one.fence), [1])
        (written,) = finish(backend, one, verdict, delay=60.0, error=describe(ValueError("boom"))).written
        assert (written.outcome.verdict, stored(one).state, stored(one).result) == (Verdict.DONE, "done", [1])

    def test_a_failure_reported_before_the_attempt_is_deferred_makes_its_queue_due_at_once(self, backend):
        put()
        one = claim_one(backend)
        ContractQueue.fail(token_of(SCOPE, one.job_id, one.fence), "no")
        finish(backend, one, Verdict.DEFER, delay=3600.0)
        assert json.loads(claim_one(backend).outside) == {"error": "no"}

    @pytest.mark.parametrize("results", [(None, None), ('"a"', '"a"'), ('{"n": 2}', None), ("2", '"ä"')])
    def test_jobs_that_were_done_together_are_written_together_and_their_queue_goes_on_behind_them(
        self, backend, results
    ):
        first, second, third, fourth = (put() for _ in range(4))
        one, now = claim_one(backend), backend.now()
        behind = zip((second, third), results, strict=True)
        chunk = [[job.pk, job.scheduled_at.isoformat(), result] for job, result in behind]
        recorded = record(backend, end(one, result="1", chunk=chunk, duration=3.0), keep=True, now=now)
        assert [ending.claim.job_id for ending in recorded.written] == [first.pk, second.pk, third.pk]
        assert [ending.outcome.duration for ending in recorded.written] == [1.0] * 3
        assert [one.job_id for one in recorded.claims] == [fourth.pk]
        for job, result in ((first, "1"), *zip((second, third), results, strict=True)):
            job = stored(job)
            assert (job.state, job.attempts, job.attempted_by, job.error) == ("done", 1, "web1:7", "")
            assert (job.attempted_at, job.done_at, job.next_attempt_at) == (job.done_at, job.attempted_at, None)
            assert job.result == (None if result is None else json.loads(result))

    def test_what_a_stale_chunk_has_done_is_refused(self, backend):
        first, second = put(), put()
        one = claim_one(backend)
        Queue.objects.update(fence=one.fence + 1)
        chunk = [[second.pk, second.scheduled_at.isoformat(), None]]
        assert record(backend, end(one, chunk=chunk)).stale
        assert (stored(first).state, stored(second).state) == ("pending", "pending")

    @pytest.mark.parametrize("verdict", FAILED)
    def test_the_head_of_a_chunk_that_failed_is_tried_alone_before_it_is_given_up(self, backend, verdict):
        first, second = put(), put()
        one = claim_one(backend)
        rows_of_queues.mark_chunk(backend.alias, one, [second.pk])
        finish(backend, one, verdict, error=describe(ValueError("boom")))
        assert (stored(first).state, stored(first).attempts, stored(second).attempts) == ("pending", 1, 0)
        two = claim_one(backend)
        assert (two.job_id, two.attempt) == (first.pk, 2)
        finish(backend, two, verdict, error=describe(ValueError("boom")))
        assert stored(first).state == AFTER[verdict][0]["state"]

    @pytest.mark.parametrize("verdict", [Verdict.SNOOZE, Verdict.INTERRUPT, Verdict.CANCEL])
    def test_a_chunk_that_ended_without_a_failure_may_begin_again(self, backend, verdict):
        _, second = put(), put()
        one = claim_one(backend)
        rows_of_queues.mark_chunk(backend.alias, one, [second.pk])
        assert line().chunk_of(one.fence) == [second.pk]
        finish(backend, one, verdict)
        assert line().chunk is None

    @pytest.mark.parametrize("keep", [True, False])
    @pytest.mark.parametrize("passed_over", [True, False])
    def test_what_a_success_remembers_comes_with_the_next_claim_of_its_queue(self, backend, keep, passed_over):
        for queue in ("a", "a", "b", "b"):
            put(queue)
        one, other = sorted(claim(backend), key=lambda one: one.queue)
        assert (one.memory, other.memory) == (None, None)
        remembering = end(one, memory='{"n": 1}')._replace(passed_over=passed_over)  # written one by one, then
        recorded = record(backend, remembering, end(other), keep=keep)
        following = {next_one.queue: next_one for next_one in recorded.claims or claim(backend)}
        assert (json.loads(following["a"].memory), following["b"].memory) == ({"n": 1}, None)
        record(backend, end(following["a"]), end(following["b"], memory='{"n": 2}'))
        assert (line("a").memory, line("b").memory) == ({"n": 1}, {"n": 2})

    @pytest.mark.parametrize("verdict", sorted(set(Verdict) - {Verdict.DONE}))
    def test_what_another_end_remembers_is_forgotten(self, backend, verdict):
        put()
        finish(backend, claim_one(backend), verdict, memory='{"n": 1}', error=describe(ValueError("boom")))
        assert line().memory is None

    def test_what_a_stale_success_remembers_is_forgotten(self, backend):
        put()
        one = claim_one(backend)
        Queue.objects.update(fence=one.fence + 1)
        assert record(backend, end(one, memory='{"n": 1}')).stale
        assert line().memory is None

    @pytest.mark.parametrize("verdict", Verdict)
    def test_the_rows_after_each_verdict(self, backend, verdict):
        put()
        Job.objects.update(attempts=2, attempted_at=backend.now() - HOUR, attempted_by="other")
        one, now = claim_one(backend), backend.now()
        (written,) = finish(backend, one, verdict, now=now, delay=40.0).written
        assert written.outcome.verdict == verdict
        means = {"now": now, "later": now + 40 * SECOND, "job": one.job_id}
        job_after, line_after = AFTER[verdict]
        job, queue = stored(one), line()
        assert {name: getattr(job, name) for name in job_after} == {
            name: means.get(value, value) for name, value in job_after.items()
        }
        assert {name: getattr(queue, name) for name in line_after} == {
            name: means.get(value, value) for name, value in line_after.items()
        }
        assert (queue.held_by, queue.held_since, queue.attempt, queue.fence) == (None, None, 0, one.fence)
        attempted = (now, "web1:7") if verdict != Verdict.RETURN else (now - HOUR, "other")
        assert job.attempted_by == attempted[1]
        assert abs(job.attempted_at - attempted[0]) < SECOND

    def test_a_job_given_back_unattempted_is_as_it_was(self, backend):
        put()
        untouched = rows()[0]
        now = backend.now()
        finish(backend, claim_one(backend), Verdict.RETURN, now=now, delay=40)
        assert rows()[0] == untouched
        assert (line().current_job, line().due_at) == (None, now + 40 * SECOND)

    @pytest.mark.parametrize("delay", [0.0, 0.000001, 2.0, 86_400.0])
    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT])
    def test_the_next_attempt_comes_after_exactly_the_delay(self, backend, verdict, delay):
        put()
        finish(backend, claim_one(backend), verdict, delay=delay)
        job = stored(Job.objects.get())
        assert job.next_attempt_at - job.attempted_at == timedelta(seconds=delay)
        assert line().due_at == job.next_attempt_at

    @pytest.mark.parametrize("verdict", FAILED)
    def test_each_failure_leaves_an_entry(self, backend, verdict):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, error=describe(KeyError("first")), duration=1.5)
        now = backend.now()
        finish(backend, claim_one(backend), verdict, error=describe(OSError("second ␀ 🙂")), duration=0.25, now=now)
        job = stored(Job.objects.get())
        first, second = job.errors
        assert (first["attempt"], first["type"], first["message"], first["duration"]) == (1, "KeyError", "'first'", 1.5)
        assert second == {
            "attempt": 2, "at": now.isoformat(), "by": "web1:7", "duration": 0.25, "counted": True,
            **describe(OSError("second ␀ 🙂")),
        }  # fmt: skip
        assert job.error == "OSError: second ␀ 🙂"

    def test_an_interrupted_attempt_leaves_an_entry_that_does_not_count(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.INTERRUPT, error=describe(KeyError()))
        job = stored(Job.objects.get())
        assert (job.errors[0]["attempt"], job.errors[0]["counted"]) == (1, False)
        assert (job.error, job.attempts) == ("", 0)

    def test_only_the_newest_errors_are_kept(self, backend):
        put()
        for attempt in range(1, ERRORS_KEPT + 4):
            finish(backend, claim_one(backend), Verdict.RETRY, error=describe(ValueError(attempt)))
        entries = stored(Job.objects.get()).errors
        assert [entry["attempt"] for entry in entries] == list(range(4, ERRORS_KEPT + 4))
        assert entries[-1]["message"] == str(ERRORS_KEPT + 3)

    def test_success_keeps_the_errors_and_clears_the_last_one_and_the_next_attempt(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, error=describe(ValueError("boom")))
        finish(backend, claim_one(backend))
        job = stored(Job.objects.get())
        assert (job.state, job.attempts, job.next_attempt_at, len(job.errors)) == ("done", 2, None, 1)
        assert job.error == ""

    @pytest.mark.parametrize(
        "result", [None, 0, False, "", "text", 1.5, [], [1, None], {"a": {"b": "🙂"}}, 2**53, "x" * 100_000]
    )
    def test_a_result_is_kept(self, backend, result):
        put()
        finish(backend, claim_one(backend), result=None if result is None else json.dumps(result))
        assert stored(Job.objects.get()).result == result

    def test_a_kept_queue_goes_on_with_its_next_job_under_a_higher_fence(self, backend, node, elsewhere):
        first, second = put(), put()
        one = claim_one(backend)
        recorded = finish(backend, one, keep=True)
        (following,) = recorded.claims
        assert (following.job_id, following.attempt) == (second.pk, 1)
        assert following.fence > one.fence
        assert recorded.released_due is False
        assert elsewhere().run(stored, first).state == "done"
        assert (line().held_by, line().current_job, line().fence) == (NODE, second.pk, following.fence)
        assert node.claim() == []

    @pytest.mark.parametrize("verdict", FREEING)
    def test_a_queue_is_kept_after_whatever_ends_its_job(self, backend, verdict):
        put()
        second = put()
        assert [one.job_id for one in finish(backend, claim_one(backend), verdict, keep=True).claims] == [second.pk]

    @pytest.mark.parametrize("verdict", sorted(set(Verdict) - set(FREEING)))
    def test_a_queue_is_not_kept_while_its_job_has_not_ended(self, backend, verdict):
        put()
        put()
        assert finish(backend, claim_one(backend), verdict, keep=True, delay=40).claims == []
        assert line().held_by is None

    def test_a_moved_job_is_halted_at_the_end_of_the_other_queue_and_its_own_goes_on_in_the_same_commit(self, backend):
        earlier = put(GRAVEYARD)
        first, second = put(), put()
        claims = {one.queue: one for one in claim(backend)}
        now = backend.now()
        ending = end(claims["q"], Verdict.MOVE, error=describe(ValueError("boom")))
        recorded = record(backend, ending, keep=True, now=now)
        assert [one.job_id for one in recorded.claims] == [second.pk]
        moved = stored(first)
        assert (moved.queue, moved.state, moved.scheduled_at, moved.attempts) == (GRAVEYARD, "halted", now, 1)
        assert (moved.error, len(moved.errors)) == ("ValueError: boom", 1)
        event = JobEvent.objects.get()
        assert (event.verb, event.job, event.queue, event.after) == ("move", first.pk, "q", {"queue": GRAVEYARD})
        assert line(GRAVEYARD).current_job == earlier.pk  # it comes after what is in line there
        finish(backend, claims[GRAVEYARD])
        assert claim(backend) == []
        assert (line(GRAVEYARD).current_job, line(GRAVEYARD).due_at) == (first.pk, None)

    def test_jobs_that_moved_to_one_queue_hold_it_one_after_the_other(self, backend):
        jobs = [put("a"), put("b"), put("c")]
        record(backend, *(end(one, Verdict.MOVE) for one in claim(backend)))
        assert claim(backend) == []  # finds that its head is halted
        assert Queue.objects.blocked().get().current_job == jobs[0].pk
        ContractQueue.skip(jobs[0])
        assert claim(backend) == []
        assert Queue.objects.blocked().get().current_job == jobs[1].pk
        ContractQueue.retry(jobs[2])  # keeps its place behind the head
        assert claim(backend) == []
        ContractQueue.retry(jobs[1])
        assert [one.job_id for one in claim(backend)] == [jobs[1].pk]

    def test_a_stale_attempt_moves_nothing(self, backend):
        put()
        one = claim_one(backend)
        finish(backend, one, Verdict.RETURN)
        assert record(backend, end(one, Verdict.MOVE)).stale
        assert (Job.objects.get().queue, JobEvent.objects.count()) == ("q", 0)

    def test_a_kept_queue_without_a_due_job_is_let_go(self, backend):
        now = backend.now()
        put("empty")
        put("later")
        put("later", scheduled_at=now + HOUR)
        recorded = record(backend, *map(end, claim(backend)), keep=True)
        assert (recorded.claims, recorded.released_due) == ([], False)
        assert [line(name).due_at for name in ("empty", "later")] == [None, now + HOUR]
        assert not Queue.objects.held().exists()

    def test_a_kept_queue_does_not_pass_a_halted_job(self, backend):
        put()
        one = claim_one(backend)
        halted = put_row(state="halted", scheduled_at=backend.now() - HOUR)
        assert finish(backend, one, keep=True).claims == []
        assert (line().current_job, line().due_at) == (halted.pk, None)

    def test_a_released_queue_goes_to_the_end_of_the_line(self, backend):
        now = backend.now()
        for name, age in (("long due", 3), ("waiting", 2)):
            put(name, scheduled_at=now - age * HOUR)
            put(name, scheduled_at=now - age * HOUR)
        one = claim_one(backend, limit=1)
        assert one.queue == "long due"
        recorded = finish(backend, one)
        assert (recorded.claims, recorded.released_due) == ([], True)
        assert line("long due").due_at >= now
        assert [claim_one(backend, limit=1).queue for _ in range(2)] == ["waiting", "long due"]

    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_stale_result_changes_nothing(self, backend, node, verdict, keep):
        put()
        stale = claim_one(backend)
        finish(backend, stale, Verdict.RETURN)
        (current,) = node.claim()
        put()
        state = rows()
        outcome = {"delay": 3.0, "error": describe(ValueError()), "result": "1"}
        recorded = record(backend, end(stale, verdict, **outcome), keep=keep)
        assert [ending.claim for ending in recorded.stale] == [stale]
        assert (recorded.written, recorded.claims, recorded.released_due) == ([], [], False)
        assert rows() == state
        assert node.record(end(current)).stale == []

    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_result_recorded_twice_is_stale_the_second_time(self, backend, verdict):
        put()
        put()
        ending = end(claim_one(backend), verdict)
        assert record(backend, ending).stale == []
        state = rows()
        assert [stale.claim for stale in record(backend, ending).stale] == [ending.claim]
        assert rows() == state

    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.SKIP])
    def test_a_result_recorded_twice_does_not_disturb_the_job_that_follows(self, backend, node, verdict):
        put()
        put()
        ending = end(claim_one(backend), verdict)
        (following,) = record(backend, ending, keep=True).claims
        assert [stale.claim for stale in record(backend, ending, keep=True).stale] == [ending.claim]
        assert line().current_job == following.job_id
        assert node.run(node.backend.try_lock, [following.queue_id]) == []
        finish(backend, following)

    def test_a_batch_records_each_attempt_by_its_own_verdict(self, backend):
        verdicts = {str(verdict): verdict for verdict in Verdict}
        for name in verdicts:
            put(name)
            put(name)
        put("stale")
        claims = {one.queue: one for one in claim(backend, 20)}
        finish(backend, claims["stale"], Verdict.RETURN)
        endings = [
            end(one, verdicts.get(one.queue, Verdict.DONE), delay=40, error=describe(ValueError(one.queue)))
            for one in claims.values()
        ]
        recorded = record(backend, *endings, keep=True)
        assert {ending.claim.queue: ending.outcome.verdict for ending in recorded.written} == verdicts
        assert [ending.claim.queue for ending in recorded.stale] == ["stale"]
        assert sorted(names(recorded.claims)) == sorted(map(str, FREEING))
        for verdict in Verdict:
            expected = AFTER[verdict][0]["state"]
            assert stored(claims[str(verdict)]).state == expected

    def test_a_batch_is_recorded_whole_or_not_at_all(self, backend):
        for name in ("good", "bad"):
            put(name)
            put(name)
        good, bad = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        with pytest.raises((DatabaseError, ValueError)):  # of the database, or of what reads the text for it
            record(backend, end(good, Verdict.RETRY), end(bad, result="{no JSON"), keep=True)
        assert {line(name).held_by for name in ("good", "bad")} == {NODE}
        recorded = record(backend, end(good, Verdict.RETRY), end(bad), keep=True)
        assert len(recorded.written) == 2
        assert names(recorded.claims) == ["bad"]

    def test_a_problem_stays_on_its_queue_until_the_next_claim(self, backend):
        put()
        put("fine")
        one, fine = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        error = {"message": f"no action {one.action!r}" + "!" * 1_000}
        record(backend, end(one, Verdict.RETURN, delay=40, error=error), end(fine))
        assert line().problem.startswith("no action 'noop'!!!")
        assert line("fine").problem == ""
        claim_one(backend, now=backend.now() + HOUR)
        assert line().problem == ""

    def test_a_problem_noted_too_late_is_dropped(self, backend):
        put()
        stale = claim_one(backend)
        finish(backend, stale, Verdict.RETURN)
        claim_one(backend)
        recorded = record(backend, end(stale, Verdict.RETURN, error={"message": "old"}))
        assert recorded.stale
        assert line().problem == ""

    def test_a_new_node_tries_queues_with_a_problem_at_once(self, backend):
        for name in ("problem", "theirs", "none"):
            put(name, queuetopia=OtherQueue if name == "theirs" else ContractQueue)
        for one in claim(backend, scopes=[SCOPE, OtherQueue.scope]):
            error = None if one.queue == "none" else {"message": "no such action"}
            finish(backend, one, Verdict.RETURN, delay=3600, error=error)
        assert claim(backend) == []
        upkeep.forget_problems(backend, [SCOPE])
        # Within the resolution of the database's clock, which is a millisecond on SQLite.
        assert names(wait_until(lambda: claim(backend, scopes=[SCOPE, OtherQueue.scope]))) == ["problem"]

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.SNOOZE, Verdict.RETURN])
    def test_a_wait_longer_than_time_itself_breaks_nothing(self, backend, verdict):
        put()
        put("other")
        one, other = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        recorded = record(backend, end(one, verdict, delay=1e300), end(other))
        assert len(recorded.written) == 2
        assert line().due_at > backend.now() + 100 * 24 * HOUR
        assert stored(other).state == "done"

    def test_the_errors_of_a_job_weigh_so_much_at_most(self, backend):
        job, now = put(), backend.now() + SECOND
        error = {"type": "E", "message": "\U0001f4a5" * 2_000, "traceback": "\U0001f4a5" * 8_000}
        for _ in range(5):
            one = claim_one(backend, now=now)
            finish(backend, one, Verdict.RETRY, now=now, error=error)
            assert len(json.dumps(stored(job).errors)) <= ERRORS_LIMIT
        assert [bool(entry["traceback"]) for entry in stored(job).errors] == [False] * 4 + [True]

    def test_two_ends_of_one_queue_in_a_batch_give_its_lock_back_once(self, backend):
        put()
        one = claim_one(backend)
        recorded = record(backend, end(one, Verdict.RETURN), end(one, Verdict.CANCEL))
        assert (len(recorded.written), len(recorded.stale)) == (1, 1)
        assert len(claim(backend)) == 1

    @pytest.mark.parametrize("verdict", [verdict for verdict in Verdict if verdict != Verdict.RETURN])
    def test_a_job_that_its_attempt_has_written_as_done_stays_so_however_the_attempt_ends(self, backend, verdict):
        put()
        following = put()
        one = claim_one(backend)
        write_done(one)
        (written,) = finish(backend, one, verdict, delay=40.0, error=describe(ValueError("boom"))).written
        job = stored(one)
        assert (written.outcome.verdict, job.state, job.result, job.errors) == (Verdict.DONE, "done", {"n": 1}, [])
        assert claim_one(backend).job_id == following.pk

    def test_a_job_that_was_done_when_its_node_died_does_not_run_again(self, backend):
        put()
        following = put()
        write_done(claim_one(backend))
        ((lost, _),) = nodes.lost_claims(backend, NODE, [SCOPE], 10)
        finish(backend, lost, Verdict.RETRY, error=describe(NodeDied("gone")))
        assert (stored(lost).state, stored(lost).errors) == ("done", [])
        assert claim_one(backend).job_id == following.pk

    def test_an_attempt_has_its_queue_until_its_end(self, backend):
        put()
        one = claim_one(backend)
        assert rows_of_queues.holds_on("default", one)
        finish(backend, one, Verdict.RETRY)
        assert not rows_of_queues.holds_on("default", one)
        two = claim_one(backend)
        assert rows_of_queues.holds_on("default", two)
        assert not rows_of_queues.holds_on("default", one)


def write_done(claim):
    """Write the job as done by its own attempt, as ``job.completing()`` does."""
    rows_of_queues.write_job("default", end(claim, result='{"n": 1}'), "web1:7", timezone.now(), True)
