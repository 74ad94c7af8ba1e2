"""``queuetopia tail`` beside a busy node."""

import json
import subprocess
import sys

import pytest
from django.db import connection

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.testapp.queues import SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.mark.capability("J4", "J23", "J25")
def test_another_process_follows_each_job_of_a_busy_node_once(nodes, ledger, tmp_path):
    output = tmp_path / "events"
    with output.open("wb") as file:
        every = "10m" if connection.vendor == "postgresql" else "100ms"  # where nodes tell, nothing else is needed
        line = ["django", "queuetopia", "tail", SlowRetryQueue.scope, "--json", "--every", every]
        following = subprocess.Popen([sys.executable, "-m", *line], env=nodes.environment, stdout=file)
    try:
        probe = []

        def is_following():
            probe.append(SlowRetryQueue.create_job("probe", "noop").pk)
            return events()

        def events():
            return [json.loads(line) for line in output.read_text().splitlines() if line.endswith("}")]

        nodes.start(SlowRetryQueue)
        wait_until(is_following, PATIENCE, interval=0.1)
        jobs = SlowRetryQueue.create_jobs([SlowRetryQueue.job(f"queue-{n % 20}", "noop") for n in range(400)])
        ours = {job.pk for job in jobs}
        wait_until(lambda: ours <= {event["job"] for event in events()}, PATIENCE, message="not all told")
    finally:
        following.terminate()
        following.wait()
    told = [event["job"] for event in events() if event["event"] == "done" and event["job"] in ours]
    assert sorted(told) == sorted(ours)
