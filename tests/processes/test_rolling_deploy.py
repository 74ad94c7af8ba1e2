"""Two versions of a project side by side: the old code leaves the new one's jobs alone, says so, and goes on."""

import pytest

from queuetopia.models import Job, Queue
from queuetopia.monitoring.status import unknown_scopes
from queuetopia.testing import wait_until
from tests.faults.ledger import check
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, wait_for, wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

NEW_CODE = """
from queuetopia import action
from tests.testapp.queues import LedgerPerformer, LedgerQueue, note

class NewPerformer(LedgerPerformer):
    @action
    def write_anew(self, job, seq, loudly=False):
        note("start", job.queue, seq, job.fence)
        note("end", job.queue, seq, job.fence)

LedgerQueue.performer = NewPerformer

class NewQueue(LedgerQueue):
    scope = "tests.new"
"""


def put(queue, action, seq, scope=LedgerQueue.scope, **params):
    """Create a job as a web process with the new code does."""
    return Job.objects.create(scope=scope, queue=queue, action=action, params={"seq": seq, **params})


@pytest.mark.capability("E30")
def test_a_job_of_the_new_code_waits_untouched_for_a_node_that_has_it_beside_an_old_one(nodes, ledger, tmp_path):
    old = nodes.start(LedgerQueue, poll_interval=0.5)
    new_action = [put("a", "write_anew", 0), put("a", "write", 1), put("a", "write_anew", 2, loudly=True)]
    new_scope = put("a", "write_anew", 0, scope="tests.new")
    queue = Queue.objects.filter(scope=LedgerQueue.scope, name="a").exclude(problem="")
    wait_until(queue.exists, PATIENCE, message="no problem told")

    assert (
        queue.get().problem == f"This code has no action 'write_anew'; job {new_action[0].pk} waits for code that has."
    )
    wait_for(LedgerQueue.create_job("b", "noop"), lambda job: job.done_at)  # other queues go on
    for job in (*new_action, new_scope):
        job.refresh_from_db()
        assert (job.state, job.attempts, job.errors) == ("pending", 0, [])
    assert [scope["scope"] for scope in unknown_scopes("default")] == ["tests.new"]

    new = nodes.start(env=environment(tmp_path, NEW_CODE), poll_interval=0.5)
    wait_for_all()
    wait_for(new_scope, lambda job: job.done_at)

    assert check(ledger.records(), {"a": [0, 1, 2]}).wrong == []
    for job in (*new_action, new_scope):
        job.refresh_from_db()
        assert (job.state, job.attempts, job.errors) == ("done", 1, [])
    assert new_action[0].done_at <= new_action[1].done_at <= new_action[2].done_at
    assert new.stop() == 0
    assert old.stop() == 0


@pytest.mark.capability("E30")
def test_jobs_of_both_versions_run_in_order_while_nodes_of_both_serve_their_queues(nodes, ledger, tmp_path):
    created = {f"queue-{number}": list(range(10)) for number in range(4)}
    nodes.start(LedgerQueue, poll_interval=0.2)
    nodes.start(LedgerQueue, env=environment(tmp_path, NEW_CODE), poll_interval=0.2)
    jobs = [
        LedgerQueue.job(queue, "write", {"seq": seq}) for seq in range(10) for queue in created
    ]  # fmt: skip
    for job in jobs[::3]:
        job.action = "write_anew"
    Job.objects.bulk_create(jobs)

    wait_for_all()

    assert check(ledger.records(), created).wrong == []
    assert set(Job.objects.values_list("attempts", flat=True)) == {1}
