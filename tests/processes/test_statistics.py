"""What a node counts is in the database when it has ended."""

import pytest

from queuetopia.models import Statistic
from tests.processes.waiting import settings
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.mark.capability("J7", "H30")
def test_a_nodes_attempts_are_counted_and_saved_when_it_ends(nodes):
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{number}", "noop") for number in range(20)])
    LedgerQueue.create_job("a", "fail", {"times": 2})
    LedgerQueue.create_job("b", "say", {"verdict": "skip"})

    assert nodes.start(LedgerQueue, until_empty=True).wait() == 0

    figures = {row.pop("action"): row for row in LedgerQueue.statistics()["rows"]}
    assert {name: (row["created"], row["started"], row["done"], row["failed"]) for name, row in figures.items()} == {
        "noop": (20, 20, 20, 0), "fail": (1, 1, 1, 2), "say": (1, 1, 0, 1),
    }  # fmt: skip
    assert figures["fail"]["blocked"]["count"] == 1
    assert figures["noop"]["wait"]["count"] == figures["noop"]["run"]["count"] == 20
    assert Statistic.objects.values("node").distinct().count() == 1


def test_no_statistics_are_made_where_none_are_wanted(nodes, tmp_path):
    LedgerQueue.create_job("a", "noop")

    node = nodes.start(LedgerQueue, until_empty=True, env=settings(tmp_path, nodes, STATISTICS_RETENTION=0))

    assert node.wait() == 0

    assert not LedgerQueue.jobs().unfinished().exists()
    assert not Statistic.objects.exists()
