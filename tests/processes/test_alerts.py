"""Workers tell of queues that stay blocked: once in the whole cluster."""

import pytest

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import settings, wait_for
from tests.testapp.queues import HookQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


def test_a_block_that_lasts_is_told_by_one_node_once_for_each_threshold(nodes, ledger, tmp_path):
    env = settings(tmp_path, nodes, ALERT_AFTER=(0.5, 2.0))
    for _ in range(2):
        nodes.start(HookQueue, processes=1, env=env)
    job = HookQueue.create_job("a", "fail", max_attempts=1)
    HookQueue.create_job("a", "noop")

    told = lambda: ledger.told().get("queue_still_blocked", [])  # noqa: E731
    wait_until(lambda: len(told()) == 2, PATIENCE, message="not told twice")
    HookQueue.skip(job)
    wait_for(HookQueue.create_job("a", "noop"), lambda job: job.done_at)

    assert [(entry["job"], entry["threshold"], entry["waiting"], entry["queue"]) for entry in told()] == [
        (job.pk, 0.5, 1, "a"), (job.pk, 2.0, 1, "a"),
    ]  # fmt: skip
    assert all(entry["duration"] >= entry["threshold"] for entry in told())


def test_admins_get_one_mail_from_all_nodes(nodes, ledger, tmp_path):
    job = HookQueue.create_job("a", "fail", {"text": "no route"}, max_attempts=1)
    assert nodes.start(HookQueue, until_empty=True).wait() == 1
    env = settings(tmp_path, nodes, ALERT_AFTER=(0.01,), MAIL_ADMINS_EVERY=3600)

    started = [nodes.start(HookQueue, processes=1, grace=PATIENCE, env=env) for _ in range(2)]
    mails = tmp_path / "mails"
    has_come = lambda: mails.exists() and any("no route" in path.read_text() for path in mails.iterdir())  # noqa: E731
    wait_until(has_come, PATIENCE, message="no mail")
    for node in started:
        assert node.stop() == 0

    (path,) = mails.iterdir()
    text = path.read_text()
    assert "Subject: [Django] Queuetopia: 1 queue is blocked" in text
    assert f"is held by job {job.pk} (fail), halted" in text
