"""Where a line stands: ``position``, ``is_through``, ``wait_through``."""

import json
import threading

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from queuetopia import InvalidJob, JobHalted, Refused
from queuetopia.attempts import Verdict
from queuetopia.backends.contract.base import Contract, several_writers
from queuetopia.backends.contract.toolkit import HOUR, PATIENCE, ContractQueue, OtherQueue, claim, finish, put
from queuetopia.testing import wait_until


def ended(backend, *, verdict=Verdict.DONE):
    (one,) = claim(backend, 1)
    finish(backend, one, verdict)


@pytest.mark.capability("X7")
class TestPositions(Contract):
    def test_a_line_is_through_when_all_that_stood_in_it_have_ended(self, backend):
        put(), put()
        position = ContractQueue.position("q")
        put()
        assert not ContractQueue.is_through(position)
        ended(backend)
        assert not ContractQueue.is_through(position)
        ended(backend, verdict=Verdict.SKIP)
        assert ContractQueue.is_through(position)
        assert not ContractQueue.is_through(ContractQueue.position("q"))

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.HALT, Verdict.SNOOZE])
    def test_a_blocked_line_is_not_through(self, backend, verdict):
        put()
        position = ContractQueue.position("q")
        ended(backend, verdict=verdict)
        assert not ContractQueue.is_through(position)

    def test_an_empty_line_is_through_and_so_it_is_with_jobs_for_later_or_of_others(self, backend):
        put(scheduled_at=backend.now() + HOUR)
        put("other")
        put(queuetopia=OtherQueue)
        position = ContractQueue.position("q")
        put()
        assert ContractQueue.is_through(position)
        assert ContractQueue.is_through(ContractQueue.position("never seen"))

    def test_a_position_is_a_text_for_any_queue(self, backend):
        for queue in ("🙂\n'\"", "x" * 255):
            put(queue)
            position = ContractQueue.position(queue)
            assert isinstance(position, str)
            assert not ContractQueue.is_through(json.loads(json.dumps(position)))

    @several_writers
    def test_a_job_that_is_committed_later_with_an_earlier_time_is_waited_for_too(self, backend, elsewhere):
        """What was committed before the position has ended, whenever the answer is True: that is the promise."""
        created, committed = threading.Event(), threading.Event()

        def create():
            with transaction.atomic():
                put()
                created.set()
                assert committed.wait(PATIENCE)

        creating = elsewhere().start(create)
        assert created.wait(PATIENCE)
        put()
        position = ContractQueue.position("q")
        ended(backend)
        assert ContractQueue.is_through(position)
        committed.set()
        creating.result(PATIENCE)
        assert not ContractQueue.is_through(position)
        wait_until(lambda: claim_and_end(backend), PATIENCE)
        assert ContractQueue.is_through(position)

    def test_each_question_is_one_look_up(self, backend):
        put()
        position = ContractQueue.position("q")
        with CaptureQueriesContext(connection) as queries:
            ContractQueue.is_through(position)
        assert len(queries) == 1
        assert "LIMIT 1" in queries[0]["sql"]

    def test_a_wait_ends_when_the_line_has_come_so_far(self, backend, elsewhere):
        put(), put()
        position = ContractQueue.position("q")
        put()
        waiting = [
            elsewhere().start(ContractQueue.wait_through, position, PATIENCE),
            elsewhere().start(async_to_sync(ContractQueue.await_through), position, PATIENCE),
        ]
        ended(backend)
        ended(backend)
        assert [one.result(PATIENCE) for one in waiting] == [None, None]
        ContractQueue.wait_through(position, 0)

    def test_a_wait_that_takes_too_long_says_what_the_queue_does(self, backend):
        job = put()
        position = ContractQueue.position("q")
        for wait in (ContractQueue.wait_through, async_to_sync(ContractQueue.await_through)):
            with pytest.raises(TimeoutError, match=rf"Not through after 0 s: q waits with job {job.pk} \(noop\)"):
                wait(position, 0)

    def test_a_wait_for_a_halted_job_ends(self, backend):
        job = put()
        position = ContractQueue.position("q")
        ended(backend, verdict=Verdict.HALT)
        with pytest.raises(JobHalted) as caught:
            ContractQueue.wait_through(position)
        assert caught.value.job == job

    def test_a_wait_is_refused_inside_a_transaction_where_it_would_last_for_ever(self, backend):
        with transaction.atomic():
            put()
            position = ContractQueue.position("q")
            with pytest.raises(Refused, match="transaction on database 'default' is open"):
                ContractQueue.wait_through(position, 1)

    @pytest.mark.parametrize("wrong", ["", "7", "[]", "null", '["a", "q", "yesterday", 1]', None, 7, '["a","q",1,"x"]'])
    def test_what_is_no_position_is_named(self, backend, wrong):
        for ask in (ContractQueue.is_through, ContractQueue.wait_through):
            with pytest.raises(ValueError, match=r"is no position; ContractQueue.position\(queue\) returns one"):
                ask(wrong)
        with pytest.raises(ValueError, match=r"is of '\S+.other', not of 'queuetopia.contract'"):
            ContractQueue.is_through(OtherQueue.position("q"))
        with pytest.raises(InvalidJob):
            ContractQueue.position("")


def claim_and_end(backend):
    claims = claim(backend, 1)
    for one in claims:
        finish(backend, one)
    return claims
