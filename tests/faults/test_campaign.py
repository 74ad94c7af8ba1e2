"""The fault suite in short: ``python -m tests.faults``, on a private database of the kind under test.

``QUEUETOPIA_FAULT_SECONDS`` makes it longer; the seed is printed, and ``QUEUETOPIA_FAULT_SEED`` repeats it.
"""

import os
import subprocess
import sys

import pytest
from django.db import connection

SECONDS = os.environ.get("QUEUETOPIA_FAULT_SECONDS", "20")

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(300 + float(SECONDS))]


@pytest.fixture
def faults(tmp_path):
    """Return a function that runs the command, and returns its exit code and what it prints."""
    database = {"postgresql": "postgres", "mysql": "mariadb", "sqlite": "sqlite"}[connection.vendor]
    # It starts a database of its own, because it breaks it.
    ours = {"DATABASE_URL", "OTHER_DATABASE_URL", "QUEUETOPIA_TEST_DB"}
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    log = tmp_path / "nodes.log"

    def run(mode, *arguments):
        kind = "postgres-with-standby" if (mode, database) == ("run", "postgres") else database
        command = [sys.executable, "-m", "tests.faults", mode, *arguments, "--database", kind]
        if seed := os.environ.get("QUEUETOPIA_FAULT_SEED"):
            command += ["--seed", seed]
        done = subprocess.run(
            command, env={**environment, "QUEUETOPIA_FAULT_LOGS": str(log)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        print(done.stdout)
        if done.returncode and log.exists():
            print(log.read_text()[-100_000:])
        return done.returncode, done.stdout

    return run


@pytest.mark.capability("W7", "E6", "E16", "J18", "W5")
def test_whatever_breaks_nothing_is_lost_or_out_of_order_or_runs_twice_at_once(faults):
    code, printed = faults("run", "--seconds", SECONDS, "--nodes", "4", "--workers", "1")
    assert "violations: 0" in printed
    assert code == 0


def test_the_same_checker_finds_overlaps_of_a_naive_runner(faults):
    code, printed = faults("naive", "--seconds", "30")
    assert "began in attempt" in printed
    assert code == 0
