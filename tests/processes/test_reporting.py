"""Progress beside real nodes: it shows while the attempt runs, whatever the performer does meanwhile."""

from pathlib import Path

import pytest

from queuetopia.models import Queue
from queuetopia.monitoring.status import progress_of, progress_text
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.capability("J21", "J22"),
]


def shown(job):
    job.refresh_from_db()
    return progress_text(progress_of(job, Queue.objects.filter(name=job.queue).first()))


@pytest.mark.parametrize("action", ["report", "report_async"])
def test_the_last_of_many_reports_shows_while_the_attempt_runs(nodes, ledger, action):
    job = LedgerQueue.create_job("a", action, {"texts": [f"page {number}" for number in range(1, 1_001)]})
    nodes.start(LedgerQueue)
    wait_until(lambda: shown(job) == "100 %: page 1000", PATIENCE)
    assert "100 %: page 1000" in LedgerQueue.explain("a")["sentence"]
    Path(f"{ledger.path}.go").touch()
    wait_for_all()
    assert (shown(job), job.state) == ("", "done")
    assert ledger.attempts() == 1


def test_what_was_reported_before_a_deferral_stays(nodes, ledger):
    job = LedgerQueue.create_job("a", "defer", {"then": "report"})
    nodes.start(LedgerQueue)
    wait_until(lambda: shown(job) == "10 %: sent" and job.is_outside(), PATIENCE)
    LedgerQueue.retry(job)
    wait_until(lambda: ledger.attempts() == 2, PATIENCE)
    wait_until(lambda: shown(job) == "10 %: sent" and job.is_outside(), PATIENCE)
