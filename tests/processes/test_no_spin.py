"""A node that can do nothing, for whatever reason, does next to nothing: no loop spins.

Each state is made, and waited for until the log shows it. Then all the node's processes together use less than a
twentieth of a core, and the database sees fewer than twenty transactions a second. Both are counted, not timed.
"""

import contextlib
import time

import psutil
import pytest
from django.db import connection, transaction

from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, kill
from tests.processes.scarcity import no_more_descriptors
from tests.processes.waiting import environment, wait_for, wait_for_attempts
from tests.refusing import allow_rows, refuse_rows
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = [
    pytest.mark.processes,
    pytest.mark.slow,
    pytest.mark.django_db(transaction=True, databases=["default", "other"]),
]

SECONDS = 8  # of each measurement
MOST_MEASUREMENTS = 5  # until a node has settled: what spins is busy in each of them
MOST_OF_A_CORE = 0.05
MOST_TRANSACTIONS = 20  # a second
MOST_LINES = 12  # a second

STATES = {}


def state(make):
    STATES[make.__name__] = contextlib.contextmanager(make)
    return make


@state
def halted_and_backing_off(nodes, ledger, tmp_path):
    """Ask for nothing: 50 halted queues, and 50 that wait for their next attempt."""
    SlowRetryQueue.create_jobs([SlowRetryQueue.job(f"h {n}", "fail", max_attempts=1) for n in range(50)])
    SlowRetryQueue.create_jobs(
        [SlowRetryQueue.job(f"b {n}", "say", {"verdict": "retry", "delay": 3600}) for n in range(50)]
    )
    node = nodes.start(SlowRetryQueue)
    wait_until(lambda: SlowRetryQueue.jobs().filter(attempts__gt=0).count() == 100, PATIENCE)
    yield node


@state
def a_paused_scope(nodes, ledger, tmp_path):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q {n % 100}", "noop") for n in range(1_000)])
    LedgerQueue.pause()
    node = nodes.start(LedgerQueue)
    node.wait_for_log("node started")
    yield node
    assert LedgerQueue.jobs().unfinished().count() == 1_000
    LedgerQueue.resume()


@state
def an_action_that_no_code_knows(nodes, ledger, tmp_path):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q {n}", "noop") for n in range(20)])
    Job.objects.update(action="gone")
    node = nodes.start(LedgerQueue)
    wait_until(lambda: Queue.objects.exclude(problem="").count() == 20, PATIENCE)
    yield node


@state
def a_setup_that_fails(nodes, ledger, tmp_path):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q {n}", "noop") for n in range(20)])
    code = "from tests.testapp.queues import LedgerPerformer\ndef setup(self): 1 / 0\nLedgerPerformer.setup = setup\n"
    node = nodes.start(LedgerQueue, env=environment(tmp_path, code))
    wait_until(lambda: Queue.objects.exclude(problem="").exists(), PATIENCE)
    yield node


@state
def workers_that_cannot_start(nodes, ledger, tmp_path):
    LedgerQueue.create_job("a", "noop")
    starts = tmp_path / "starts"
    code = "import sys\nif 'worker' in sys.argv:\n"
    code += f"    print(file=open({str(starts)!r}, 'a'))\n    raise RuntimeError('no worker')\n"
    node = nodes.start(LedgerQueue, env=environment(tmp_path, code))
    # Each try takes a new process: the pauses between them have to grow first.
    wait_until(lambda: starts.exists() and starts.read_text().count("\n") >= 7, PATIENCE)
    yield node


@state
def no_descriptors_for_a_new_worker(nodes, ledger, tmp_path):
    node = nodes.start(LedgerQueue, processes=2)
    workers = node.workers(2)
    with no_more_descriptors(node.scheduler):
        kill(workers[0])
        node.wait_for_log("worker did not start")
        yield node


@state
def a_result_that_the_database_refuses(nodes, ledger, tmp_path):
    refuse_rows("queuetopia_job", "NEW.queue = 'bad'")
    LedgerQueue.create_job("bad", "noop")
    node = nodes.start(LedgerQueue)
    node.wait_for_log("the database refuses a row")
    yield node


@state
def queues_that_the_database_refuses_to_claim(nodes, ledger, tmp_path):
    LedgerQueue.create_jobs([LedgerQueue.job(f"bad {n}", "noop") for n in range(5)])
    refuse_rows("queuetopia_queue", "NEW.name LIKE 'bad%%'")
    node = nodes.start(LedgerQueue)
    node.wait_for_log("problem not noted", times=5 * 5)  # five tries of each: the pauses between them grow
    yield node


@state
def rows_that_another_transaction_has_locked(nodes, ledger, tmp_path):
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no locks of rows")
    jobs = LedgerQueue.create_jobs([LedgerQueue.job(f"q{n}", "write_when_told", {"seq": 0}) for n in range(2)])
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 2)
    with transaction.atomic():
        list(Job.objects.select_for_update().filter(pk__in=[job.pk for job in jobs]))
        ledger.go()
        wait_until(lambda: len(ledger.records("end")) == 2, PATIENCE)
        yield node


@state
def a_sequence_behind_its_table(nodes, ledger, tmp_path):
    if connection.vendor != "postgresql":
        pytest.skip("other databases' numbers follow their rows")
    LedgerQueue.create_jobs([LedgerQueue.job(f"q {n}", "noop") for n in range(5)])
    with connection.cursor() as cursor:
        cursor.execute("SELECT setval('queuetopia_queue_id_seq', 1, false)")
    LedgerQueue.create_jobs([LedgerQueue.job(f"new {n}", "noop") for n in range(5)])
    node = nodes.start(LedgerQueue, poll_interval=1)
    node.wait_for_log("sqlsequencereset")
    wait_for(LedgerQueue.jobs().get(queue="q 4"), lambda job: job.done_at)
    yield node


@state
def jobs_that_fail_and_are_due_again_at_once(nodes, ledger, tmp_path):
    """No backoff at all, as max_backoff = 0 asks for."""
    LedgerQueue.create_job("a", "fail")
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 5)
    yield node


@state
def jobs_that_snooze_for_no_time(nodes, ledger, tmp_path):
    LedgerQueue.create_job("a", "say", {"verdict": "snooze"})
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 5)
    yield node


@state
def a_job_that_runs(nodes, ledger, tmp_path):
    LedgerQueue.create_jobs([LedgerQueue.job("a", "hang"), LedgerQueue.job("a", "noop"), LedgerQueue.job("b", "hang")])
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 2)
    LedgerQueue.create_jobs([LedgerQueue.job(f"q {n}", "noop") for n in range(50)])
    yield node


@pytest.mark.parametrize("name", STATES)
def test_does_next_to_nothing(name, nodes, ledger, tmp_path):
    try:
        with STATES[name](nodes, ledger, tmp_path) as node:
            # The first ones may see processes start, and the server count what was before.
            for _ in range(MOST_MEASUREMENTS):
                used, transactions, lines = rates(node)
                if used < MOST_OF_A_CORE and transactions < MOST_TRANSACTIONS and lines < MOST_LINES:
                    return
            log = node.log()[-3000:]
    finally:
        allow_rows("queuetopia_job")
        allow_rows("queuetopia_queue")
    pytest.fail(f"{used:.1%} of a core, {transactions:.1f} transactions and {lines:.1f} log lines a second\n{log}")


def rates(node):
    """Return what the node used for some seconds: of a core, and a second in transactions and lines of its log."""
    before, transactions, lines = cpu_seconds(node), transactions_so_far(), node.log().count("\n")
    began = time.monotonic()
    time.sleep(SECONDS)  # what is measured is a while
    after, more = cpu_seconds(node), transactions_so_far() - transactions
    seconds = time.monotonic() - began
    used = sum(after[pid] - before.get(pid, 0.0) for pid in after)
    return used / seconds, more / seconds, (node.log().count("\n") - lines) / seconds


def cpu_seconds(node):
    """Return the processor time that each process of the node has used."""
    used = {}
    for process in node.processes():
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            used[process.pid] = times.user + times.system
    return used


def transactions_so_far():
    """Return how many the server has seen in this database; 0 where it does not count them by database.

    PostgreSQL's sessions report theirs within a second.
    """
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_clear_snapshot()")  # one of the states is inside a transaction
        cursor.execute("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()")
        return cursor.fetchone()[0]
