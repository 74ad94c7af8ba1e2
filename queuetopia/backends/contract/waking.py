"""No wake-up is lost, and sessions notice them."""

import contextlib

import pytest
from django.db import transaction

from ...attempts import Verdict
from ...models import Job, Queue
from ...testing import wait_until
from .base import Contract
from .toolkit import (
    HOLDING,
    HOUR,
    NODE,
    PATIENCE,
    SCOPE,
    ContractQueue,
    before,
    claim,
    claim_one,
    end,
    finish,
    line,
    names,
    put,
    put_row,
    rows,
)
from .vendors import has_one_writer, is_waiting


class Waking(Contract):
    def test_creating_a_job_makes_its_queue_due_at_its_time(self, backend):
        now = backend.now()
        put(scheduled_at=now + HOUR)
        assert line().due_at == now + HOUR

    def test_a_wake_lowers_the_time_and_never_raises_it(self, backend):
        now = backend.now()
        for offset, expected in ((2, 2), (3, 2), (1, 1), (1, 1)):
            backend.wake([(SCOPE, "q", now + offset * HOUR)])
            assert line().due_at == now + expected * HOUR

    @pytest.mark.parametrize("verdict", [None, *HOLDING])
    def test_a_wake_leaves_a_queue_alone_that_runs_or_is_blocked(self, backend, verdict):
        put()
        one = claim_one(backend)
        if verdict is not None:
            finish(backend, one, verdict, delay=40)
        state = rows()
        backend.wake([(SCOPE, "q", backend.now() - HOUR)])
        assert rows() == state

    def test_a_wake_of_many_queues_makes_rows_for_the_new_ones(self, backend):
        now = backend.now()
        put("known", scheduled_at=now + HOUR)
        known = line("known").pk
        backend.wake([(SCOPE, name, now) for name in ("new 1", "known", "new 2")])
        assert set(Queue.objects.due(now).values_list("name", flat=True)) == {"new 1", "known", "new 2"}
        assert line("known").pk == known

    def test_waking_known_queues_uses_up_no_ids(self, backend):
        put("a")
        for _ in range(5):
            backend.wake([(SCOPE, "a", backend.now() - HOUR)])
        put("b")
        assert line("b").pk == line("a").pk + 1

    def test_creating_a_job_touches_no_queue_before_the_commit(self, backend):
        with transaction.atomic():
            put()
            assert not Queue.objects.exists()
        assert Queue.objects.count() == 1
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            put("rolled back")
            raise ZeroDivisionError
        assert names(claim(backend)) == ["q"]

    def test_a_job_created_between_clearing_and_the_second_look_is_found(self, backend, elsewhere):
        put()
        one = claim_one(backend)
        creator = elsewhere()
        before(backend, "recheck", lambda: creator.run(put_row))
        assert finish(backend, one).released_due is True
        assert len(claim(backend)) == 1

    def test_a_job_created_while_an_empty_queue_is_cleared_by_a_claim_is_found(self, backend, elsewhere):
        put()
        Job.objects.all().delete()
        creator = elsewhere()
        before(backend, "recheck", lambda: creator.run(put_row))
        assert claim(backend) == []
        assert len(claim(backend)) == 1

    def test_a_job_for_later_created_between_clearing_and_the_second_look_is_found(self, backend, elsewhere):
        put()
        one, creator, now = claim_one(backend), elsewhere(), backend.now()
        before(backend, "recheck", lambda: creator.run(put_row, scheduled_at=now + HOUR))
        finish(backend, one)
        assert line().due_at == now + HOUR

    def test_the_second_look_leaves_a_queue_alone_that_others_made_due_hold_or_block(self, backend):
        now = backend.now()
        for name in ("due", "held", "blocked"):
            put(name, scheduled_at=now - HOUR)
        for one in claim(backend, only="held") + claim(backend, only="blocked"):
            if one.queue == "blocked":
                finish(backend, one, Verdict.HALT)
        state = rows()
        assert backend.recheck(list(Queue.objects.values_list("id", flat=True))) is False
        assert rows() == state

    def test_a_wake_while_the_queue_is_being_cleared_is_not_lost(self, backend, elsewhere):
        """The creator's wake meets the held queue, and the record that lets it go has not committed."""
        put()
        one, creator = claim_one(backend), elsewhere()
        waking = []

        def create(claim):
            waking.append(creator.start(put))  # may wait for our commit, as on SQLite
            if not has_one_writer():
                wait_until(lambda: waking[0].done() or is_waiting())
            return False

        backend.record([end(one)], NODE, "web1:7", create)
        job = waking[0].result(PATIENCE)
        assert claim_one(backend).job_id == job.pk

    def test_a_session_hears_of_a_new_job(self, backend, elsewhere):
        backend.has_news()
        elsewhere().run(put)
        assert wait_until(backend.has_news)
        assert backend.polls_every is not None or backend.fileno() is not None

    def test_a_session_hears_of_verbs(self, backend, elsewhere):
        job = put()
        person = elsewhere()
        for verb in (ContractQueue.pause, ContractQueue.resume):
            while backend.polls_every is None and backend.has_news():
                pass
            backend.has_news()
            person.run(verb)
            assert wait_until(backend.has_news)
        backend.has_news()
        person.run(ContractQueue.cancel, job)
        assert wait_until(backend.has_news)
