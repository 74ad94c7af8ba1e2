"""Names that look alike are different."""

from ...models import Job, Queue, Scope
from .base import Contract
from .toolkit import ODD_NAMES, ContractQueue, claim, claim_one, end, names, put, record


class Names(Contract):
    def test_names_that_look_alike_are_different_queues(self, backend):
        created = {name: put(name).pk for name in ODD_NAMES}
        claims = claim(backend, 100)
        assert {one.queue: one.job_id for one in claims} == created
        assert len({one.queue_id for one in claims}) == len(ODD_NAMES)
        record(backend, *map(end, claims))
        again = {name: put(name).pk for name in reversed(ODD_NAMES)}
        assert {name: claim_one(backend, only=name).job_id for name in ODD_NAMES} == again
        assert Queue.objects.count() == len(ODD_NAMES)

    def test_scopes_that_look_alike_are_different(self, backend):
        scopes = ["tests.a", "tests.A", "tests.a ", "tests.á"]
        backend.wake([(scope, "q", backend.now()) for scope in scopes])
        for scope in scopes:
            Job.objects.create(scope=scope, queue="q", action="noop")
            Scope.objects.create(name=scope)
        Scope.objects.filter(name="tests.A").update(paused_at=backend.now())
        assert [len(claim(backend, scopes=[scope])) for scope in scopes] == [1, 0, 1, 1]

    def test_a_hundred_new_names_need_nothing_but_their_first_job(self, backend):
        ContractQueue.create_jobs([ContractQueue.job(f"customer-{number}", "noop") for number in range(100)])
        claims = claim(backend, 1_000)
        assert len(set(names(claims))) == 100
        assert len(record(backend, *map(end, claims)).written) == 100
