"""What creators are promised of jobs with a key: one unfinished job of each, and no params that get lost."""

import json
import threading

import pytest
from django.db import transaction

from ...attempts import Verdict
from ...models import Job
from ...testing import wait_until
from .. import keys
from .base import Contract, several_writers
from .toolkit import (
    HOUR,
    PATIENCE,
    SCOPE,
    ContractQueue,
    OtherQueue,
    barrier,
    claim,
    claim_one,
    end,
    fail,
    finish,
    join,
    line,
    names,
    put,
    record,
    stored,
)
from .vendors import has_one_writer, is_waiting

CREATORS, ROUNDS = 8, 20


def unique(queue="q", key="k", **options):
    return put(queue, unique=key, **options)


def coalesced(number, queue="q", key="k", **options):
    return ContractQueue.create_job(queue, "noop", {"edited": number}, coalesce=key, **options)


def params(claim):
    return json.loads(claim.params)["edited"]


class Refusing:
    """A database in which no transaction can be opened at the moment."""

    @staticmethod
    def atomic(using):
        fail()


class Keyed(Contract):
    @pytest.mark.parametrize("state", ["waiting", "running", "backing off", "halted"])
    def test_a_unique_key_leads_to_the_unfinished_job_that_has_it(self, backend, state):
        job = unique()
        if state != "waiting":
            one = claim_one(backend)
        if state in ("backing off", "halted"):
            finish(backend, one, Verdict.RETRY if state == "backing off" else Verdict.HALT, delay=60)
        again = unique()
        assert (again.pk, again.is_new, job.is_new) == (job.pk, False, True)
        assert (again.state, again.attempts) == (stored(job).state, stored(job).attempts)
        assert Job.objects.count() == 1

    @pytest.mark.parametrize("how", ["done", "given up", "cancelled", "marked as done", "in a batch"])
    def test_a_unique_key_is_free_again_when_its_job_has_ended(self, backend, how):
        job = unique()
        if how == "cancelled":
            ContractQueue.cancel(job)
        elif how == "marked as done":
            ContractQueue.mark_done(job)
        elif how == "in a batch":
            unique("other")
            record(backend, *(end(one) for one in claim(backend)))
        else:
            finish(backend, claim_one(backend), Verdict.DONE if how == "done" else Verdict.SKIP)
        again = unique()
        assert (again.pk != job.pk, again.is_new) == (True, True)
        assert [stored(job).unique_key, again.unique_key] == ["k", "k"]

    def test_a_key_is_one_of_its_queue_and_kind_and_counts_character_by_character(self, backend):
        jobs = [
            unique(), unique("Q"), unique(key="K"), unique(key="k "), unique(queuetopia=OtherQueue), put(), put(),
            coalesced(1), coalesced(1, "Q"), coalesced(1, key="K"), unique(key="🙂" * 128),
            coalesced(1, key="🙂" * 128), ContractQueue.create_job("q", "write", {"seq": 1}, coalesce="k"),
        ]  # fmt: skip
        assert all(job.is_new for job in jobs)
        assert len({job.pk for job in jobs}) == len(jobs)

    def test_a_job_at_the_end_takes_the_unique_key_of_the_one_that_it_copies(self, backend):
        job = unique()
        finish(backend, claim_one(backend), Verdict.HALT)
        copy = ContractQueue.move_to_end(job)
        assert (copy.pk != job.pk, copy.is_new) == (True, True)
        assert unique().pk == copy.pk

    @pytest.mark.parametrize("how", ["by an operator", "by its end"])
    def test_a_job_that_is_moved_leaves_its_keys_behind(self, backend, how):
        job, there = unique(), unique("there")
        if how == "by an operator":
            ContractQueue.move([job, coalesced(1), coalesced(1, key="other")], "there")
        else:
            (one,) = claim(backend, only="q")
            finish(backend, one, Verdict.MOVE, to="there")
        assert (stored(job).queue, stored(job).unique_key) == ("there", None)
        assert (unique("there").pk, unique().is_new) == (there.pk, True)

    def test_a_waiting_job_gets_the_new_params_and_keeps_its_place(self, backend):
        first, second = coalesced(1), put()
        again = coalesced(2, timeout=5)
        assert (again.pk, again.is_new, again.params) == (first.pk, False, {"edited": 2})
        assert (again.scheduled_at, again.timeout) == (first.scheduled_at, None)
        one = claim_one(backend)
        assert (one.job_id, params(one)) == (first.pk, 2)
        finish(backend, one)
        assert claim_one(backend).job_id == second.pk

    def test_a_job_that_a_node_has_claimed_gets_no_more_params(self, backend):
        first = coalesced(1)
        one = claim_one(backend)
        second = coalesced(2)
        assert (second.is_new, stored(first).params, params(one)) == (True, {"edited": 1}, 1)
        finish(backend, one, Verdict.RETRY)
        assert coalesced(3).pk == second.pk
        assert params(claim_one(backend, now=backend.now() + HOUR)) == 1

    @pytest.mark.parametrize("goes_on", [False, True])
    def test_params_that_come_between_a_claim_and_its_start_are_not_lost(self, backend, goes_on, monkeypatch):
        if goes_on:
            put()
            one = claim_one(backend)
        job = coalesced(1)
        close = keys.close_to_creators

        def close_later(backend, claims, holder):
            if claims:
                coalesced(2)
            return close(backend, claims, holder)

        monkeypatch.setattr(keys, "close_to_creators", close_later)
        (ours,) = finish(backend, one, keep=True).claims if goes_on else claim(backend)
        assert (ours.job_id, params(ours)) == (job.pk, 2)
        assert (stored(job).params, coalesced(3).is_new) == ({"edited": 2}, True)

    @pytest.mark.parametrize("goes_on", [False, True])
    def test_a_claim_that_cannot_read_the_last_params_now_is_let_go_and_made_again(self, backend, goes_on, monkeypatch):
        if goes_on:
            put()
            one = claim_one(backend)
        job = coalesced(1)
        with monkeypatch.context() as patch:
            patch.setattr(backend, "is_busy", lambda exc: True)
            patch.setattr(keys, "transaction", Refusing)
            claims = finish(backend, one, keep=True).claims if goes_on else claim(backend)
        assert claims == []
        assert (line().held_by, stored(job).coalesce_key) == (None, "k")
        assert coalesced(2).pk == job.pk
        assert params(claim_one(backend, now=backend.now() + HOUR)) == 2

    @several_writers
    @pytest.mark.parametrize("commits", [True, False])
    @pytest.mark.parametrize("goes_on", [False, True])
    def test_a_job_waits_for_the_creator_whose_transaction_has_given_it_params(
        self, backend, elsewhere, goes_on, commits
    ):
        if goes_on:
            put()
            one = claim_one(backend)
        coalesced(1)
        put("other")
        creator, going_on = elsewhere(), threading.Event()

        def create():
            with transaction.atomic():
                coalesced(2)
                created.set()
                assert going_on.wait(PATIENCE)
                transaction.set_rollback(not commits)

        created = threading.Event()
        creating = creator.start(create)
        assert created.wait(PATIENCE)
        claims = [*finish(backend, one, keep=True).claims] if goes_on else []
        assert names(claims + claim(backend)) == ["other"]
        assert (line().held_by, line().current_job) == (None, None)
        going_on.set()
        creating.result(PATIENCE)
        (last,) = wait_until(lambda: claim(backend), PATIENCE)
        assert params(last) == (2 if commits else 1)

    @several_writers
    @pytest.mark.parametrize("commits", [True, False])
    @pytest.mark.parametrize("kind", ["unique", "coalesce"])
    def test_a_creator_waits_for_another_one_with_the_same_key(self, backend, elsewhere, kind, commits):
        create = unique if kind == "unique" else lambda: coalesced(2)
        with transaction.atomic():
            first = unique() if kind == "unique" else coalesced(1)
            second = elsewhere().start(create)
            wait_until(is_waiting, PATIENCE)
            transaction.set_rollback(not commits)
        second = second.result(PATIENCE)
        assert (second.pk == first.pk, second.is_new) == (commits, not commits)
        assert list(Job.objects.all()) == [second]
        assert kind == "unique" or stored(second).params == {"edited": 2}

    def test_a_rollback_takes_a_job_and_params_back(self, backend):
        job = coalesced(1)
        with transaction.atomic():
            coalesced(2)
            coalesced(1, key="new")
            unique()
            transaction.set_rollback(True)
        assert list(Job.objects.all()) == [job]
        assert stored(job).params == {"edited": 1}
        assert unique().is_new

    def test_in_bulk_the_order_is_kept_and_a_key_that_comes_twice_is_one_job(self, backend):
        there = unique(key="there")
        new = [
            ContractQueue.job("q", "noop", {"edited": number}, **key)
            for number, key in enumerate([{}, {"unique": "there"}, {"coalesce": "a"}, {}, {"coalesce": "a"}, {}])
        ]
        jobs = ContractQueue.create_jobs(new)
        assert [job.is_new for job in jobs] == [True, False, True, True, False, True]
        assert (jobs[1], jobs[4]) == (there, jobs[2])
        ordered = Job.objects.in_queue(SCOPE, "q").in_order()
        assert list(ordered) == [there, jobs[0], jobs[2], jobs[3], jobs[5]]
        assert stored(jobs[2]).params == {"edited": 4}

    def test_creators_with_the_same_keys_do_not_deadlock_while_their_jobs_end(self, backend, elsewhere):
        """Two keys in two orders, each creation a transaction of its own; some roll back; a node ends what there is."""
        creators = 2 if has_one_writer() else CREATORS
        start = barrier(creators + 1)

        def create(number):
            start.wait()
            for round_ in range(ROUNDS):
                for key in ("a", "b") if number % 2 else ("b", "a"):
                    with transaction.atomic():
                        unique(key=key)
                        transaction.set_rollback((round_ + number) % 5 == 0)
                    with transaction.atomic():
                        coalesced(number * ROUNDS + round_, key=key)
                        transaction.set_rollback((round_ + number) % 7 == 0)

        creating = [elsewhere().start(create, number) for number in range(creators)]
        start.wait()
        while not all(creator.done() for creator in creating):
            for one in claim(backend):
                record(backend, end(one))
            jobs = Job.objects.unfinished().values_list("unique_key", "coalesce_key")
            found = [key for key in jobs if key != (None, None)]
            assert len(found) == len(set(found))
        join(creating)
