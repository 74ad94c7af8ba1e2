"""Jobs that need no order (``ordered = False``): each has a queue of its own, whose row goes when its job has ended."""

from ...attempts import Verdict
from ...lines import given_name
from ...models import Job, Queue
from .. import rows, upkeep
from .base import Contract
from .toolkit import HOUR, NODE, IndependentQueue, claim, claim_one, end, finish, put, record, stored

SCOPE = IndependentQueue.scope


def queues():
    return Queue.objects.filter(scope=SCOPE)


def put_one(name="q", **options):
    return put(name, queuetopia=IndependentQueue, **options)


def claim_all(backend, **options):
    return claim(backend, 100, scopes=(SCOPE,), **options)


class Independent(Contract):
    def test_independent_jobs_of_one_name_are_claimed_together(self, backend, node):
        jobs = [put_one() for _ in range(3)]
        claims = claim_all(backend)
        assert sorted(one.job_id for one in claims) == [job.pk for job in jobs]
        assert {given_name(one.queue) for one in claims} == {"q"}
        assert len({one.queue for one in claims}) == 3
        assert node.claim(scopes=(SCOPE,)) == []

    def test_an_independent_job_that_fails_or_is_halted_delays_no_other(self, backend):
        first, second = put_one(), put_one()
        one, other = sorted(claim_all(backend))
        assert (one.job_id, other.job_id) == (first.pk, second.pk)
        finish(backend, one, Verdict.RETRY, delay=60)
        finish(backend, other, Verdict.HALT)
        later = put_one()
        assert [found.job_id for found in claim_all(backend)] == [later.pk]
        assert [found.job_id for found in claim_all(backend, now=backend.now() + HOUR)] == [first.pk]

    def test_an_independent_job_that_is_given_back_is_claimed_again(self, backend, node):
        job = put_one()
        one = claim_one(backend, scopes=(SCOPE,))
        backend.give_back([one], NODE)
        (again,) = node.claim(scopes=(SCOPE,))
        assert (again.job_id, again.queue) == (job.pk, one.queue)
        assert again.fence > one.fence

    def test_the_queue_of_an_independent_job_has_no_next_job(self, backend):
        for _ in range(3):
            put_one()
        first, *others = claim_all(backend)
        recorded = record(backend, end(first), keep=True)
        assert (recorded.claims, recorded.released_due) == ([], False)
        recorded = record(backend, *map(end, others), keep=True)
        assert recorded.claims == claim_all(backend) == []
        assert {stored(one).state for one in (first, *others)} == {Job.State.DONE}

    def test_independent_jobs_in_bulk_keep_their_order_and_have_queues_of_their_own(self, backend):
        jobs = IndependentQueue.create_jobs([IndependentQueue.job(f"q{n % 3}", "noop") for n in range(1_100)])
        in_order = Job.objects.filter(scope=SCOPE).in_order()
        assert [(job.queue, job.row_name) for job in in_order] == [(job.queue, job.row_name) for job in jobs]
        assert [job.queue for job in jobs[:4]] == ["q0", "q1", "q2", "q0"]
        # Of a thousand, a slow machine leaves some to the sweep.
        assert set(queues().values_list("name", flat=True)) <= {job.row_name for job in jobs}
        assert len(claim_all(backend)) == 100

    def test_the_sweep_finds_independent_jobs_whose_wake_up_was_lost(self, backend):
        jobs = [put_one() for _ in range(3)]
        queues().delete()
        upkeep.sweep(backend, SCOPE, "")
        assert sorted(one.job_id for one in claim_all(backend)) == [job.pk for job in jobs]

    def test_only_the_row_of_an_independent_job_that_has_ended_is_removed(self, backend):
        held, done, blocked, waiting, ordered = (
            put_one(),
            put_one(),
            put_one(),
            put_one(scheduled_at=backend.now() + HOUR),
            put(),
        )
        claims = {one.job_id: one for one in claim(backend, 100, scopes=(SCOPE, ordered.scope))}
        for job in (done, ordered):
            finish(backend, claims[job.pk])
        finish(backend, claims[blocked.pk], Verdict.HALT)
        rows.remove_own(backend.alias, list(Queue.objects.values_list("pk", flat=True)))
        assert Queue.objects.filter(scope=ordered.scope, name=ordered.queue).exists()
        assert set(queues().values_list("name", flat=True)) == {job.row_name for job in (held, blocked, waiting)}
        finish(backend, claims[held.pk])

    def test_a_wake_up_after_its_row_was_removed_leaves_nothing_behind(self, backend):
        job = put_one()
        finish(backend, claim_one(backend, scopes=(SCOPE,)))
        rows.remove_own(backend.alias, list(queues().values_list("pk", flat=True)))
        Job.objects.filter(pk=job.pk).delete()
        backend.wake([(SCOPE, job.row_name, job.scheduled_at)])
        assert queues().exists()
        assert claim_all(backend) == []
        assert not queues().exists()

    def test_the_row_of_an_independent_job_that_is_halted_stays(self, backend):
        job = put_one()
        Job.objects.filter(pk=job.pk).update(state=Job.State.HALTED)
        assert claim_all(backend) == []
        assert queues().get().current_job == job.pk
