"""Waiting for the results of a real node's jobs."""

import asyncio

import pytest
from asgiref.sync import async_to_sync

from queuetopia import await_many, wait_many
from tests.nodes import PATIENCE
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.mark.capability("H5", "H21")
def test_results_of_a_node_reach_two_hundred_waits_at_once(nodes):
    nodes.start(LedgerQueue)
    jobs = LedgerQueue.create_jobs(LedgerQueue.job(f"queue-{n % 50}", "answer", {"value": n}) for n in range(200))

    async def each():
        return await asyncio.gather(*(job.await_result(2 * PATIENCE) for job in jobs))

    assert async_to_sync(each)() == list(range(200))
    more = LedgerQueue.create_jobs(LedgerQueue.job(f"queue-{n}", "answer", {"value": n}) for n in range(20))
    assert wait_many(more, PATIENCE) == async_to_sync(await_many)(more, PATIENCE) == list(range(20))
    assert LedgerQueue.create_job("a", "answer", {"value": "one"}).wait(PATIENCE) == "one"
