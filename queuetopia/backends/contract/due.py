"""When the next queue is due, and whether anything is left to do."""

import pytest

from ...attempts import Verdict
from .. import upkeep
from .base import Contract
from .toolkit import HOUR, SCOPE, SECOND, ContractQueue, OtherQueue, claim, claim_one, end, finish, put, record


class Due(Contract):
    def test_the_next_due_time_is_told(self, backend):
        now = backend.now()
        assert backend.next_due([SCOPE]) is None
        for name, hours in (("a", 3), ("b", 1), ("c", 2)):
            put(name, scheduled_at=now + hours * HOUR)
        put("d", queuetopia=OtherQueue, scheduled_at=now + 0.5 * HOUR)
        assert 3590 < backend.next_due([SCOPE]) <= 3600
        assert 1790 < backend.next_due([SCOPE, OtherQueue.scope]) <= 1800
        assert backend.next_due([]) is None
        ContractQueue.pause("b")
        assert 7190 < backend.next_due([SCOPE]) <= 7200
        ContractQueue.pause()
        assert backend.next_due([SCOPE]) is None

    def test_the_next_due_time_does_not_tell_of_queues_that_run_or_are_halted(self, backend):
        for name in ("held", "halted", "empty"):
            put(name)
        claims = {one.queue: one for one in claim(backend)}
        record(backend, end(claims["halted"], Verdict.HALT), end(claims["empty"]))
        assert backend.next_due([SCOPE]) is None

    def test_a_backoff_is_the_next_due_time(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, delay=100)
        assert 90 < backend.next_due([SCOPE]) <= 100

    def test_a_queue_that_became_due_since_the_last_claim_is_not_forgotten(self, backend):
        """Between a claim's query and next_due() time goes on: a queue that fell due there must be reported."""
        now = backend.now()
        put(scheduled_at=now - SECOND)
        assert claim(backend, now=now - 2 * SECOND) == []
        assert 0 <= backend.next_due([SCOPE]) < 1

    @pytest.mark.parametrize(
        ("verdict", "delay", "is_work"),
        [
            (Verdict.DONE, 0, False),
            (Verdict.SKIP, 0, False),
            (Verdict.HALT, 0, False),
            (Verdict.RETRY, 40, True),
            (Verdict.SNOOZE, 40, True),
            (Verdict.INTERRUPT, 0, True),
            (Verdict.RETURN, 0, True),
        ],
    )
    def test_what_until_empty_waits_for(self, backend, verdict, delay, is_work):
        assert not upkeep.has_work(backend, [SCOPE])
        put()
        assert upkeep.has_work(backend, [SCOPE])
        assert not upkeep.has_work(backend, [OtherQueue.scope])
        one = claim_one(backend)
        assert upkeep.has_work(backend, [SCOPE])
        finish(backend, one, verdict, delay=delay)
        assert upkeep.has_work(backend, [SCOPE]) is is_work

    def test_until_empty_waits_neither_for_what_is_paused_nor_for_what_is_for_later(self, backend):
        put("later", scheduled_at=backend.now() + HOUR)
        put("paused")
        ContractQueue.pause("paused")
        assert not upkeep.has_work(backend, [SCOPE])
        ContractQueue.resume("paused")
        assert upkeep.has_work(backend, [SCOPE])
        ContractQueue.pause()
        assert not upkeep.has_work(backend, [SCOPE])
