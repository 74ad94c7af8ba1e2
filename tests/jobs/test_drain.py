"""``queuetopia.testing.drain``: a user's project tests its queues without a node."""

from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone

from queuetopia.models import Job, Node, Queue
from queuetopia.testing import drain
from tests.states import put_node
from tests.testapp.queues import LEDGER, LedgerQueue, SlowRetryQueue

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(path))
    return path


def lines(ledger):
    return [line.split()[:3] for line in ledger.read_text().splitlines()]


@pytest.mark.capability("E24")
def test_drain_runs_what_is_due_in_order_inside_the_tests_transaction(ledger):
    for seq in range(3):
        LedgerQueue.create_job("a", "write", {"seq": seq})

    jobs = drain(LedgerQueue)

    assert [job.params["seq"] for job in jobs] == [0, 1, 2]
    assert {job.state for job in jobs} == {Job.State.DONE}
    assert lines(ledger) == [[step, "a", str(seq)] for seq in range(3) for step in ("start", "end")]


def test_drain_refuses_to_run_beside_a_node_that_serves_the_scope(ledger):
    job = LedgerQueue.create_job("a", "noop")
    node = put_node(scopes=[LedgerQueue.scope])
    with pytest.raises(RuntimeError, match="node web1:4242 serves it"):
        drain(LedgerQueue)
    job.refresh_from_db()
    assert job.attempts == 0
    Node.objects.filter(pk=node.pk).update(fenced_at=timezone.now())
    assert [job.state for job in drain(LedgerQueue)] == [Job.State.DONE]


@pytest.mark.capability("E24", "Q2")
def test_a_failing_job_blocks_its_queue_and_no_other(ledger):
    SlowRetryQueue.create_job("blocked", "fail", {"times": 1})
    SlowRetryQueue.create_job("blocked", "write", {"seq": 1})
    SlowRetryQueue.create_job("free", "write", {"seq": 1})
    now = timezone.now() + timedelta(minutes=1)

    first = drain(SlowRetryQueue, now=now)
    assert [(job.queue, job.state) for job in first] == [("blocked", "pending"), ("free", "done")]
    assert first[0].next_attempt_at - first[0].attempted_at == timedelta(seconds=2)
    assert drain(SlowRetryQueue, now=now + timedelta(seconds=1)) == []

    later = drain(SlowRetryQueue, now=now + timedelta(seconds=2))
    assert [(job.queue, job.action, job.state, job.attempts) for job in later] == [
        ("blocked", "fail", "done", 2),
        ("blocked", "write", "done", 1),
    ]


@pytest.mark.capability("Q4")
def test_the_default_backoff_is_2_3_5_9_17_seconds():
    SlowRetryQueue.create_job("a", "fail", max_attempts=10)
    now, waits = timezone.now() + timedelta(minutes=1), []
    for _ in range(5):
        (job,) = drain(SlowRetryQueue, now=now)
        waits.append((job.next_attempt_at - job.attempted_at).total_seconds())
        now = job.next_attempt_at
    assert waits == [2, 3, 5, 9, 17]


def test_an_exhausted_job_halts_and_holds_its_queue():
    job = SlowRetryQueue.create_job("a", "fail", max_attempts=1)
    SlowRetryQueue.create_job("a", "noop")

    assert [job.state for job in drain(SlowRetryQueue)] == [Job.State.HALTED]
    assert drain(SlowRetryQueue, now=timezone.now() + timedelta(days=30)) == []
    assert Queue.objects.get(scope=SlowRetryQueue.scope, name="a").current_job == job.pk


def test_only_the_queue_that_was_asked_for_is_drained():
    LedgerQueue.create_job("a", "noop")
    LedgerQueue.create_job("b", "noop")
    assert [job.queue for job in drain(LedgerQueue, "b")] == ["b"]


def test_a_job_scheduled_for_later_runs_when_now_is_later():
    tomorrow = timezone.now() + timedelta(days=1)
    LedgerQueue.create_job("a", "noop", scheduled_at=tomorrow)
    assert drain(LedgerQueue) == []
    assert len(drain(LedgerQueue, now=tomorrow)) == 1


def test_async_actions_are_drained_too(ledger):
    LedgerQueue.create_job("a", "sleep_async", {"seq": 1, "lasts": 0})
    assert [job.state for job in drain(LedgerQueue)] == [Job.State.DONE]


def test_a_job_that_always_fails_without_backoff_ends_in_an_error():
    LedgerQueue.create_job("a", "fail", max_backoff=0)
    with pytest.raises(RuntimeError, match="max_backoff"):
        drain(LedgerQueue, limit=5)


def test_a_rolled_back_job_is_not_there_to_be_drained():
    with transaction.atomic():
        LedgerQueue.create_job("a", "noop")
        transaction.set_rollback(True)
    assert drain(LedgerQueue) == []
