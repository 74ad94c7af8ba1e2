"""Rows of nodes, claims of dead nodes, alerts and chores."""

import uuid

from ... import conf
from ...attempts import Verdict, describe
from ...models import Job, Queue
from ...models import Node as NodeRow
from ...testing import wait_until
from .. import nodes, upkeep
from .base import Contract
from .toolkit import (
    HOUR,
    NODE,
    OTHER_NODE,
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
    put,
    record,
    stored,
)


class Nodes(Contract):
    def test_a_node_is_registered_beats_and_goes(self, backend):
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        row = NodeRow.objects.get()
        assert (row.host, row.pid, row.scopes, row.workers, row.fenced_at) == ("web1", 7, [SCOPE], [], None)
        NodeRow.objects.update(last_seen=row.last_seen - HOUR)
        assert nodes.beat(backend, NODE, [{"pid": 8}]) is True
        row = NodeRow.objects.get()
        assert row.workers == [{"pid": 8}]
        assert abs(row.last_seen - backend.now()) < 10 * SECOND
        nodes.unregister(backend, NODE)
        assert not NodeRow.objects.exists()

    def test_a_node_that_goes_while_it_holds_a_queue_is_fenced_and_not_forgotten(self, backend):
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        put()
        one = claim_one(backend)
        nodes.unregister(backend, NODE)
        assert NodeRow.objects.get().fenced_at is not None
        finish(backend, one)
        nodes.unregister(backend, NODE)
        assert not NodeRow.objects.exists()

    def test_the_other_nodes_are_told(self, backend):
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        nodes.register(backend, OTHER_NODE, "web2", 8, [])
        assert [row.id for row in nodes.other_nodes(backend, NODE)] == [OTHER_NODE]
        assert len(nodes.other_nodes(backend, uuid.uuid4())) == 2

    def test_a_fenced_node_is_refused_and_stays_fenced(self, backend):
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        nodes.fence(backend, NODE)
        fenced_at = NodeRow.objects.get().fenced_at
        seen = NodeRow.objects.get().last_seen
        assert nodes.beat(backend, NODE, []) is False
        assert nodes.beat(backend, uuid.uuid4(), []) is False
        assert NodeRow.objects.get().last_seen == seen
        nodes.fence(backend, NODE)
        assert NodeRow.objects.get().fenced_at == fenced_at
        assert abs(fenced_at - backend.now()) < 10 * SECOND

    def test_the_claims_of_a_dead_node_are_told_and_counted(self, backend, node):
        for name in ("a", "b", "c"):
            put(name)
        put("elsewhere", queuetopia=OtherQueue)
        theirs = {one.queue: one for one in node.claim(scopes=[SCOPE, OtherQueue.scope])}
        node.record(end(theirs["c"], Verdict.RETRY, error=describe(KeyError())))
        (theirs["c"],) = node.claim()
        lost = {one.queue: (one, error) for one, error in nodes.lost_claims(backend, OTHER_NODE, [SCOPE], 10)}
        assert sorted(lost) == ["a", "b", "c"]
        assert {name: error for name, (_, error) in lost.items()} == {"a": "", "b": "", "c": "KeyError"}
        for name, (one, _) in lost.items():
            held = theirs[name]
            assert (one.job_id, one.fence, one.attempt) == (held.job_id, held.fence, held.attempt)
        assert len(nodes.lost_claims(backend, OTHER_NODE, [SCOPE], 2)) == 2
        assert nodes.lost_claims(backend, NODE, [SCOPE], 10) == []

        node.run(node.backend.close_session)
        ids = sorted(one.queue_id for one, _ in lost.values())
        wait_until(lambda: sorted(backend.try_lock(ids)) == ids)
        record(backend, *(end(one, Verdict.RETRY, error=describe(OSError())) for one, _ in lost.values()))
        assert {name: stored(theirs[name]).attempts for name in lost} == {"a": 1, "b": 1, "c": 2}
        assert nodes.lost_claims(backend, OTHER_NODE, [SCOPE], 10) == []
        node.run(node.backend.open_session, conf.lease())
        stale = node.record(*(end(theirs[name]) for name in lost))
        assert len(stale.stale) == 3

    def test_a_dead_nodes_queue_whose_job_has_vanished_is_let_go(self, backend, node):
        put()
        node.claim()
        Job.objects.all().delete()
        put()
        assert nodes.lost_claims(backend, OTHER_NODE, [SCOPE], 10) == []
        node.run(node.backend.close_session)
        assert len(wait_until(lambda: claim(backend))) == 1
        node.run(node.backend.open_session, conf.lease())

    def test_whether_a_node_holds_something(self, backend, node):
        assert nodes.holds_nothing(backend, OTHER_NODE)
        put()
        (one,) = node.claim()
        assert not nodes.holds_nothing(backend, OTHER_NODE)
        assert nodes.holds_nothing(backend, NODE)
        node.record(end(one))
        assert nodes.holds_nothing(backend, OTHER_NODE)

    def test_each_alert_is_one_nodes(self, backend, node):
        ContractQueue.create_jobs([ContractQueue.job(f"queue-{number}", "noop") for number in range(20)])
        record(backend, *(end(claim, Verdict.HALT) for claim in claim(backend, 20)))
        Job.objects.update(failed_at=backend.now() - 2 * HOUR)
        Queue.objects.update(alert_at=backend.now() - HOUR)
        start = barrier(2)

        def take(session):
            start.wait()
            return [alert.claim.job_id for _ in range(20) for alert in upkeep.due_alerts(session, [SCOPE], limit=3)]

        theirs = node.start(take, node.backend)
        ours = take(backend)
        told = ours + theirs.result(PATIENCE) + [alert.claim.job_id for alert in upkeep.due_alerts(backend, [SCOPE])]
        assert sorted(told) == sorted(Job.objects.values_list("pk", flat=True))

    def test_a_chore_is_one_nodes(self, backend, node):
        start = barrier(2)

        def take(session):
            start.wait()
            return upkeep.is_turn(session, "mail", 3600)

        theirs = node.start(take, node.backend)
        assert [take(backend), theirs.result(PATIENCE)].count(True) == 1
