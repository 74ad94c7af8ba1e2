"""An operator's verbs while jobs wait, run and end."""

import pytest
from django.db import transaction

from ...attempts import Verdict, describe
from ...exceptions import Refused
from .. import upkeep
from .base import Contract
from .toolkit import (
    AFTER,
    EDITED,
    ENDING,
    JOB_VERBS,
    ContractQueue,
    claim,
    claim_one,
    do_verb,
    end,
    finish,
    line,
    put,
    record,
    stored,
)


class Verbs(Contract):
    def test_a_running_job_is_left_alone_by_every_verb_but_cancel(self, backend):
        job = put()
        one = claim_one(backend)
        for verb in set(JOB_VERBS) - {"cancel"}:
            with pytest.raises(Refused, match="running"):
                do_verb(verb, job)
        assert stored(finish(backend, one).written[0].claim).state == "done"

    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_request_to_stop_turns_what_has_not_ended_into_cancelled(self, backend, verdict):
        job = put()
        following = put()
        one = claim_one(backend)
        assert ContractQueue.cancel(job) == "running"
        recorded = record(backend, end(one, verdict, delay=40, error=describe(ValueError("boom"))), keep=True)
        becomes = verdict if verdict in ENDING else Verdict.CANCEL
        assert [ending.outcome.verdict for ending in recorded.written] == [becomes]
        assert stored(job).state == AFTER[becomes][0]["state"]
        assert [one.job_id for one in recorded.claims] == [following.pk]
        assert line().stop_requested is False

    def test_requests_to_stop_are_told_for_our_own_running_jobs(self, backend, node):
        for name in ("a", "b", "waiting"):
            put(name)
        claims = claim(backend, only="a") + claim(backend, only="b")
        assert upkeep.stop_requests(backend, claims) == set()
        assert upkeep.stop_requests(backend, []) == set()
        ContractQueue.cancel(claims[1].job_id)
        assert upkeep.stop_requests(backend, claims) == {claims[1].job_id}
        assert upkeep.stop_requests(backend, claims[:1]) == set()
        record(backend, *map(end, claims))
        assert upkeep.stop_requests(backend, claims) == set()

    @pytest.mark.parametrize("verdict", ENDING)
    @pytest.mark.parametrize("what", ["q", None])
    def test_a_queue_paused_while_its_job_runs_finishes_it_and_starts_nothing(self, backend, verdict, what):
        put()
        put()
        one = claim_one(backend)
        ContractQueue.pause(what)
        recorded = finish(backend, one, verdict, keep=True)
        assert recorded.claims == [] == claim(backend)
        ContractQueue.resume(what)
        assert len(claim(backend)) == 1

    @pytest.mark.parametrize("verdict", ENDING)
    def test_a_job_cancelled_in_line_is_not_started_after_the_one_before_it(self, backend, verdict):
        put()
        cancelled, following = put(), put()
        one = claim_one(backend)
        assert ContractQueue.cancel(cancelled) == "cancelled"
        (after,) = finish(backend, one, verdict, keep=True).claims
        assert after.job_id == following.pk
        assert after.rev > one.rev
        assert stored(cancelled).state == "cancelled"

    @pytest.mark.parametrize("verdict", ENDING)
    def test_a_cancel_not_yet_committed_when_its_turn_comes_is_obeyed(self, backend, node, verdict):
        put()
        cancelled, following = put(), put()
        (one,) = node.claim()
        with transaction.atomic():
            assert ContractQueue.cancel(cancelled) == "cancelled"
            recorded = node.record(end(one, verdict), keep=True)
        recorded = node.record(*recorded.locked, keep=True)
        assert [ending.claim for ending in recorded.written] == [one]
        assert [after.job_id for after in recorded.claims] == [following.pk]
        assert stored(cancelled).state == "cancelled"

    @pytest.mark.parametrize("verdict", ENDING)
    @pytest.mark.parametrize(("verb", "order"), [("edit", [1, 2]), ("mark_done", [2]), ("move_to_end", [2, 1])])
    def test_a_verb_on_a_job_in_line_counts_when_its_turn_comes(self, backend, verb, order, verdict):
        put()
        jobs = put(), put()
        one = claim_one(backend)
        do_verb(verb, jobs[0])
        for number in order:
            (one,) = finish(backend, one, verdict, keep=True).claims
            assert one.job_id == jobs[number - 1].pk
        if verb == "edit":
            assert stored(jobs[0]).params == EDITED
        assert finish(backend, one, verdict, keep=True).claims == []

    @pytest.mark.parametrize("verb", sorted(set(JOB_VERBS) - {"cancel"}))
    def test_a_verb_on_a_halted_job_is_followed_at_once(self, backend, verb):
        job, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        do_verb(verb, job)
        one = claim_one(backend)
        assert one.job_id == (job if verb in ("retry", "edit") else following).pk

    def test_what_is_moved_to_the_end_runs_when_nobody_else_is_left(self, backend):
        job, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        copy = ContractQueue.move_to_end(job)
        finish(backend, claim_one(backend))
        assert stored(following).state == "done"
        again = claim_one(backend)
        assert (again.job_id, again.attempt) == (copy.pk, 1)
        assert claim(backend) == []

    def test_a_job_cancelled_between_its_claim_and_its_start_has_no_attempt(self, backend):
        job = put()
        one = claim_one(backend)
        assert ContractQueue.cancel(job) == "running"
        finish(backend, one, Verdict.RETURN)
        job.refresh_from_db()
        assert (job.state, job.attempts, job.attempted_at) == ("cancelled", 0, None)
        assert line().current_job is None
