"""Log records of jobs as fields, written by the libraries that projects use for it."""

import json

import pytest

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.mark.parametrize("library", ["python-json-logger", "structlog"])
def test_what_is_logged_of_a_job_names_it_in_fields(nodes, ledger, library):
    job = LedgerQueue.create_job("customer-42", "fail", {"times": 1}, max_backoff=0)
    node = nodes.start(
        LedgerQueue, env={"DJANGO_SETTINGS_MODULE": "tests.json_settings", "QUEUETOPIA_TEST_JSON": library}
    )
    wait_until(lambda: "attempt failed" in node.log(), PATIENCE)
    (record,) = [json.loads(line) for line in node.log().splitlines() if '"attempt failed' in line and "kind" in line]
    assert record["job"] == job.pk
    expected = {
        "kind": "attempt failed",
        "scope": "tests.ledger",
        "queue": "customer-42",
        "action": "fail",
        "attempt": 1,
    }
    assert record.items() >= expected.items()
    assert record["fence"] >= 1
    assert record["node"]
