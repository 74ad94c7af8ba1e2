"""Jobs with keys, created by many processes at once while nodes run them.

``QUEUETOPIA_CREATORS_ROUNDS=2000`` lets each of the creators go on for longer.
"""

import os
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.creators import KEYS, MILLION, QUEUES
from tests.processes.waiting import wait_for_all
from tests.testapp.models import Note
from tests.testapp.queues import LedgerQueue

CREATORS = 8
ROUNDS = int(os.environ.get("QUEUETOPIA_CREATORS_ROUNDS", "15"))

pytestmark = [pytest.mark.processes, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]


@pytest.mark.capability("X3")
def test_eight_creators_never_have_two_unfinished_jobs_of_a_key_and_lose_no_params(nodes, ledger, tmp_path):
    Note.objects.bulk_create(Note(text=f"{queue} {key} 0") for queue in QUEUES for key in KEYS)
    for node in [nodes.start(LedgerQueue) for _ in range(2)]:
        node.wait_for_log("node started")
    logs = [tmp_path / f"creator-{seed}" for seed in range(CREATORS)]
    creators = [start(nodes, seed, log) for seed, log in enumerate(logs)]
    while any(creator.poll() is None for creator in creators):
        rows = LedgerQueue.jobs().unfinished().values_list("queue", "unique_key", "coalesce_key")
        keys = [row for row in rows if row[1:] != (None, None)]
        assert len(keys) == len(set(keys))
    assert [log.read_text() for log in logs if "Traceback" in log.read_text()] == []
    assert {creator.returncode for creator in creators} == {0}
    wait_for_all(LedgerQueue)
    for note in Note.objects.all():
        queue, key, last = note.text.split()
        runs = [record for record in ledger.records("end", queue) if record.number // MILLION == int(key)]
        numbers = [record.number % MILLION for record in sorted(runs, key=lambda record: record.fence)]
        assert numbers[-1] == int(last)
        assert all(one < other for one, other in pairwise(numbers))


def start(nodes, seed, log):
    command = [sys.executable, "-m", "tests.creators", str(seed), str(ROUNDS)]
    with log.open("wb") as output:
        return subprocess.Popen(command, env=nodes.environment, stdout=output, stderr=output)
