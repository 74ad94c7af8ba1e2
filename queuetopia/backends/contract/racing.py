"""What changes between a claim's query, its lock and its mark: a lock says nothing about what was read before."""

import json
import threading

import pytest
from django.db import transaction

from ...attempts import Verdict
from ...models import Job
from ...testing import wait_until
from .base import Contract
from .toolkit import (
    EDITED,
    JOB_VERBS,
    NODE,
    PATIENCE,
    SCOPE,
    ContractQueue,
    before,
    claim,
    claim_one,
    do_verb,
    end,
    finish,
    line,
    put,
)
from .vendors import is_waiting


class Racing(Contract):
    def test_a_job_finished_between_pick_and_lock_is_not_run_twice(self, backend, node):
        put()
        following = put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        assert len(picked) == 1
        node.record(end(node.claim()[0]))
        claims, _ = backend.start_heads(backend.try_lock(picked), NODE)
        assert [one.job_id for one in claims] == [following.pk]

    def test_a_job_finished_between_pick_and_lock_leaves_an_empty_queue(self, backend, node):
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        node.record(end(node.claim()[0]))
        claims, rest = backend.start_heads(backend.try_lock(picked), NODE)
        assert (claims, rest) == ([], picked)

    def test_a_queue_whose_new_holder_lost_its_lock_again_between_pick_and_lock_is_left_alone(self, backend, node):
        """Its workers may be alive: who takes over has to wait for that, a free lock is not enough."""
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        theirs = node.claim()[0]
        node.run(node.backend.close_session)
        locked = wait_until(lambda: backend.try_lock(picked))  # the server needs a moment to give it back
        assert backend.start_heads(locked, NODE) == ([], picked)
        assert (line().held_by, line().fence) == (node.id, theirs.fence)

    def test_a_queue_claimed_between_pick_and_lock_is_left_alone(self, backend, node):
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        theirs = node.claim()[0]
        assert backend.try_lock(picked) == []
        assert line().held_by == node.id
        node.record(end(theirs, Verdict.RETRY, delay=40))
        claims, _ = backend.start_heads(backend.try_lock(picked), NODE)
        assert claims == []
        assert line().current_job == theirs.job_id

    @pytest.mark.parametrize("verb", [*JOB_VERBS, "pause", "pause scope"])
    def test_a_verb_between_lock_and_mark_is_obeyed(self, backend, verb):
        job, _ = put(), put()
        if verb in ("skip", "retry"):
            finish(backend, claim_one(backend), Verdict.RETRY)
        before(backend, "start_heads", lambda: do_verb(verb, job))
        claims = claim(backend)
        passed = ("cancel", "skip", "mark_done", "move_to_end")
        following = [2] if verb in passed else [] if verb.startswith("pause") else [1]
        first = Job.objects.earliest("id").pk
        assert [one.job_id - first + 1 for one in claims] == following
        if verb == "edit":
            assert json.loads(claims[0].params) == EDITED
        if not claims:
            ContractQueue.resume(None if verb == "pause scope" else "q")
            assert claim_one(backend).job_id == job.pk

    @pytest.mark.parametrize("verb", ["cancel", "skip", "mark_done", "move_to_end", "pause"])
    def test_a_verb_that_is_not_yet_committed_when_its_queue_is_claimed_is_obeyed(self, backend, node, verb):
        job, following = put(), put()
        if verb == "skip":
            finish(backend, claim_one(backend), Verdict.RETRY)
        picked, goes_on = threading.Event(), threading.Event()

        def wait():
            picked.set()
            assert goes_on.wait(PATIENCE)

        before(node.backend, "start_heads", wait)
        theirs = node.start(claim, node.backend, holder=node.id)
        assert picked.wait(PATIENCE)
        with transaction.atomic():
            do_verb(verb, job)
            goes_on.set()
            wait_until(lambda: theirs.done() or is_waiting(), PATIENCE)
        claims = theirs.result(PATIENCE) or node.claim()
        assert [one.job_id for one in claims] == ([] if verb == "pause" else [following.pk])
