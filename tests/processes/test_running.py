"""A node runs jobs: in workers, in order, at once when they are created, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
import time
from datetime import timedelta
from statistics import median

import psutil
import pytest
from django.db import connection
from django.utils import timezone

from queuetopia import start_node
from queuetopia.models import Job, Node, Queue
from queuetopia.testing import wait_until
from tests.faults.ledger import now
from tests.nodes import MARK, PATIENCE, is_running, kill
from tests.processes.waiting import wait_for_all, wait_for_attempts
from tests.testapp.queues import LEDGER, LedgerQueue, OtherDatabaseQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

AN_HOUR = 3600


@pytest.mark.capability("W3", "W4")
def test_a_job_is_executed_once_outside_the_schedulers_process(nodes, ledger):
    LedgerQueue.create_job("a", "write", {"seq": 1})

    node = nodes.start(LedgerQueue)
    wait_for_all()

    (start,) = ledger.records("start")
    assert start.pid in node.workers(2)


@pytest.mark.capability("W3", "W8", "W11")
def test_a_thousand_jobs_leave_no_process_thread_or_descriptor_behind(nodes):
    node = nodes.start(LedgerQueue)
    assert run_jobs(200)
    workers, before = node.workers(2), footprint(node)

    assert run_jobs(1000)

    assert node.workers(2) == workers
    # A connection or a pipe more or less may be open at this moment.
    assert [now <= then + 2 for then, now in zip(before, footprint(node), strict=True)] == [True] * len(before)


def run_jobs(count):
    actions = ["noop"] * 9 + ["close_connections"]
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{i % 20}", actions[i % 10]) for i in range(count)])
    wait_for_all()
    return True


def footprint(node):
    """Return the numbers of processes, and of each one's threads and descriptors."""
    processes = sorted(node.processes(), key=lambda process: process.pid)
    return [len(processes), *(n for process in processes for n in (process.num_threads(), process.num_fds()))]


@pytest.mark.capability("W8")
def test_a_node_that_has_ended_leaves_no_process_connection_row_or_held_queue_behind(nodes):
    before = server_connections()
    node = nodes.start(LedgerQueue)
    assert run_jobs(50)

    assert node.stop() == 0

    assert node.is_gone()
    wait_until(lambda: server_connections() <= before, message="connections left behind")
    assert not Node.objects.exists()
    assert not Queue.objects.held().exists()


def server_connections():
    count = {
        "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()",
        "mysql": "SELECT count(*) FROM information_schema.processlist WHERE db = database()",
        "sqlite": "SELECT 0",
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(count)
        return cursor.fetchone()[0]


@pytest.mark.capability("E10", "E32")
def test_one_process_with_one_slot_is_strictly_serial(nodes, ledger):
    for queue in "abcde":
        LedgerQueue.create_jobs([LedgerQueue.job(queue, "write", {"seq": seq, "lasts": 0.01}) for seq in range(4)])

    nodes.start(LedgerQueue, processes=1, concurrency=1)
    wait_for_all()

    assert [record.event for record in ledger.records()] == ["start", "end"] * 20


@pytest.mark.capability("H3", "H14")
def test_a_node_holds_no_more_queues_than_it_has_room_to_run(nodes, ledger):
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{i}", "write_when_told", {"seq": i}) for i in range(6)])

    nodes.start(LedgerQueue, processes=1, concurrency=2)
    wait_for_attempts(ledger, 2)

    assert Queue.objects.held().count() == 2


@pytest.mark.capability("E14", "E31", "H16")
def test_two_queuetopias_run_side_by_side_and_each_queue_in_order(nodes, ledger):
    for seq in range(10):
        LedgerQueue.create_job("a", "write", {"seq": seq})
        SlowRetryQueue.create_job("b", "write", {"seq": seq})

    nodes.start(LedgerQueue, SlowRetryQueue)
    wait_for_all(LedgerQueue)
    wait_for_all(SlowRetryQueue)

    assert [record.number for record in ledger.records("start", "a")] == list(range(10))
    assert [record.number for record in ledger.records("start", "b")] == list(range(10))


@pytest.mark.capability("J9")
def test_a_node_serves_only_the_scopes_it_was_given(nodes):
    served, other = LedgerQueue.create_job("a", "noop"), SlowRetryQueue.create_job("a", "noop")

    node = nodes.start(LedgerQueue, until_empty=True)

    assert node.wait() == 0
    served.refresh_from_db()
    other.refresh_from_db()
    assert (served.state, other.state) == (Job.State.DONE, Job.State.PENDING)


@pytest.mark.capability("H4", "Q8")
def test_one_node_serves_queues_in_two_databases(nodes):
    here, there = LedgerQueue.create_job("a", "answer", {"value": 1}), OtherDatabaseQueue.create_job("a", "noop")

    nodes.start(LedgerQueue, OtherDatabaseQueue)
    wait_for_all(LedgerQueue)
    wait_for_all(OtherDatabaseQueue)

    assert Job.objects.using("default").get(pk=here.pk).result == 1
    assert Job.objects.using("other").get(pk=there.pk).state == Job.State.DONE


def test_fifty_async_jobs_run_at_once_in_one_process(nodes, ledger):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{i}", "sleep_async", {"seq": i, "lasts": 1}) for i in range(50)])

    nodes.start(LedgerQueue, processes=1, concurrency=50)
    wait_for_all()

    # Each jobs lasts a second: had one of them waited for another, the first end would stand before the last start.
    assert [record.event for record in ledger.records()] == ["start"] * 50 + ["end"] * 50


def test_four_threads_of_one_process_run_four_jobs_at_once(nodes, ledger):
    LedgerQueue.create_jobs([LedgerQueue.job(f"q{i}", "write_when_told", {"seq": i}) for i in range(4)])

    nodes.start(LedgerQueue, processes=1, concurrency=4)

    wait_for_attempts(ledger, 4)


@pytest.mark.capability("J12", "E7", "H26")
def test_a_running_job_is_seen_from_another_connection(nodes, ledger):
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 1})

    node = nodes.start(LedgerQueue)
    (start,) = wait_until(lambda: ledger.records("start"), PATIENCE)

    queue = Queue.objects.get(name="a")
    holder = Node.objects.get(pk=queue.held_by)
    assert (queue.current_job, queue.attempt, queue.fence) == (job.pk, 1, start.fence)
    assert queue.held_since is not None
    assert holder.pid == node.scheduler


@pytest.mark.capability("J5")
def test_a_long_job_keeps_its_queue_and_no_other(nodes, ledger):
    LedgerQueue.create_job("long", "write_when_told", {"seq": 1})
    LedgerQueue.create_job("long", "write", {"seq": 2})
    LedgerQueue.create_jobs([LedgerQueue.job("short", "write", {"seq": seq}) for seq in range(50)])

    nodes.start(LedgerQueue)
    wait_until(lambda: len(ledger.records("end", "short")) == 50, PATIENCE)
    assert [record.event for record in ledger.records(queue="long")] == ["start"]

    ledger.go()
    wait_for_all()
    assert [record.number for record in ledger.records("start", "long")] == [1, 2]


# Wake-ups


@pytest.mark.capability("J3")
def test_with_a_poll_interval_of_an_hour_a_new_job_starts_in_under_a_second(nodes, ledger, record_property):
    LedgerQueue.create_job("a", "noop")
    nodes.start(LedgerQueue, poll_interval=AN_HOUR)
    wait_for_all()

    delays = []
    for seq in range(5):
        created = now()
        LedgerQueue.create_job(f"queue-{seq}", "write", {"seq": seq})
        wait_for_all()
        delays.append(ledger.records("start")[-1].clock - created)

    record_property("start_after_creation_seconds", delays)
    print(f"\n{connection.vendor}: a new job starts after {median(delays):.3f} s")  # noqa: T201 - to be read by people
    assert median(delays) < 1


@pytest.mark.capability("J3", "Q14")
def test_a_lost_wake_up_is_found_at_the_next_poll(nodes):
    LedgerQueue.create_job("a", "noop")
    nodes.start(LedgerQueue, poll_interval=1)
    wait_for_all()

    lost = Job.objects.create(scope=LedgerQueue.scope, queue="new", action="noop")
    lost_too = Job.objects.create(scope=LedgerQueue.scope, queue="a", action="noop")
    wait_for_all()

    assert {job.state for job in Job.objects.filter(pk__in=[lost.pk, lost_too.pk])} == {Job.State.DONE}


@pytest.mark.capability("E19", "H13")
def test_what_was_created_while_no_node_ran_is_found_at_the_start_wake_up_or_not(nodes):
    LedgerQueue.create_job("a", "noop")
    Job.objects.create(scope=LedgerQueue.scope, queue="lost", action="noop")

    nodes.start(LedgerQueue, poll_interval=AN_HOUR)

    wait_for_all()


@pytest.mark.capability("J3")
def test_a_scheduled_job_runs_when_it_is_due_and_not_before(nodes, ledger):
    LedgerQueue.create_job("a", "noop")
    nodes.start(LedgerQueue, poll_interval=AN_HOUR)
    wait_for_all()

    due_at = timezone.now() + timedelta(seconds=1)
    due_clock = now() + 1
    LedgerQueue.create_job("a", "write", {"seq": 2}, scheduled_at=due_at)
    LedgerQueue.create_job("a", "write", {"seq": 1})
    wait_for_all()

    first, second = ledger.records("start")
    assert (first.number, second.number) == (1, 2)
    assert first.clock < due_clock <= second.clock + 0.01


@pytest.mark.parametrize("state", ["idle", "blocked", "stopping"])
def test_a_scheduler_with_nothing_to_do_uses_little_cpu(nodes, ledger, state, record_property):
    """A guard against busy loops, no benchmark."""
    LedgerQueue.create_job("a", "write", {"seq": 1})
    if state == "blocked":
        SlowRetryQueue.create_job("b", "fail", max_attempts=1)
        LedgerQueue.create_job("b", "noop", scheduled_at=timezone.now() + timedelta(days=1))
    if state == "stopping":
        LedgerQueue.create_job("b", "hang")
        LedgerQueue.create_job("c", "die", {"how": "kill"})
    node = nodes.start(LedgerQueue, SlowRetryQueue, grace=PATIENCE)
    wait_until(lambda: ledger.attempts() == {"idle": 1, "blocked": 2, "stopping": 4}[state], PATIENCE)
    wait_until(lambda: Queue.objects.held().count() == (1 if state == "stopping" else 0), PATIENCE)
    if state == "stopping":
        node.send(signal.SIGTERM)
        node.wait_for_log("stopping")
        kill_idle_worker(node, ledger)

    share = cpu_share(psutil.Process(node.scheduler), seconds=3)

    record_property("cpu_share", share)
    print(f"\n{connection.vendor}: a scheduler {state} uses {share:.1%} of a CPU")  # noqa: T201 - to be read by people
    node.send(signal.SIGTERM)
    assert share < 0.25


def kill_idle_worker(node, ledger):
    """Kill the worker that runs nothing; it is not replaced any more."""
    (busy,) = {record.pid for record in ledger.records(queue="b")}
    (idle,) = set(node.workers(2)) - {busy}
    kill(idle)
    node.workers(1)


def cpu_share(process, seconds):
    """Return what part of one CPU a process uses while these seconds pass: here the time itself is measured."""
    began, before = time.monotonic(), sum(process.cpu_times()[:2])
    wait_until(lambda: time.monotonic() - began >= seconds, timeout=2 * seconds, interval=0.1)
    return (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)


# The end of --until-empty


@pytest.mark.capability("E10")
def test_until_empty_waits_through_backoffs_and_ends_with_0(nodes):
    job = SlowRetryQueue.create_job("a", "fail", {"times": 1})
    follower = SlowRetryQueue.create_job("a", "noop")
    later = SlowRetryQueue.create_job("b", "noop", scheduled_at=timezone.now() + timedelta(days=1))
    SlowRetryQueue.pause("paused")
    SlowRetryQueue.create_job("paused", "noop")

    assert nodes.start(SlowRetryQueue, until_empty=True).wait() == 0

    states = [Job.objects.get(pk=pk).state for pk in (job.pk, follower.pk, later.pk)]
    assert states == [Job.State.DONE, Job.State.DONE, Job.State.PENDING]


def test_until_empty_ends_with_1_if_a_job_is_halted(nodes):
    SlowRetryQueue.create_job("a", "fail", max_attempts=1)
    SlowRetryQueue.create_job("a", "noop")
    SlowRetryQueue.create_job("b", "noop")

    assert nodes.start(SlowRetryQueue, until_empty=True).wait() == 1

    assert [job.state for job in SlowRetryQueue.jobs().order_by("id")] == ["halted", "pending", "done"]


@pytest.mark.capability("Q24")
def test_a_node_that_is_disabled_says_so_and_runs_nothing(nodes):
    job = LedgerQueue.create_job("a", "noop")

    node = nodes.start(LedgerQueue, env={"QUEUETOPIA_TEST_ENABLED": "false"})

    assert node.wait() == 0
    assert "ENABLED" in node.log()
    job.refresh_from_db()
    assert job.state == Job.State.PENDING


@pytest.mark.capability("Q24")
def test_a_node_serves_no_scope_that_is_disabled_and_all_the_others(nodes):
    job = LedgerQueue.create_job("a", "noop")
    other = SlowRetryQueue.create_job("a", "noop")
    off = json.dumps({LedgerQueue.scope: False})

    node = nodes.start(LedgerQueue, SlowRetryQueue, until_empty=True, env={"QUEUETOPIA_TEST_ENABLED": off})

    assert node.wait() == 0
    assert f"QUEUETOPIA['ENABLED'] is False for {LedgerQueue.scope}." in node.log()
    assert [Job.objects.get(pk=each.pk).state for each in (job, other)] == ["pending", "done"]

    node = nodes.start(LedgerQueue, env={"QUEUETOPIA_TEST_ENABLED": off})

    assert node.wait() == 0
    assert f"Not running: QUEUETOPIA['ENABLED'] is False for {LedgerQueue.scope}." in node.log()
    job.refresh_from_db()
    assert job.state == Job.State.PENDING


# From Python


@pytest.mark.capability("Q11")
def test_start_node_serves_until_its_block_ends(node_environment, ledger, monkeypatch):
    job = LedgerQueue.create_job("a", "answer", {"value": 42})
    monkeypatch.setenv(LEDGER, str(ledger.path))

    with start_node(LedgerQueue, processes=1) as node:
        wait_for_all()
        assert is_running(node.pid)

    job.refresh_from_db()
    assert job.result == 42
    assert not is_running(node.pid)
    assert not Node.objects.exists()


STARTER = """
import sys
import django
django.setup()
from queuetopia import start_node
from tests.testapp.queues import LedgerQueue
node = start_node(LedgerQueue, processes=1)
sys.stdin.read()
"""


@pytest.mark.capability("Q11")
def test_a_node_stops_gracefully_when_the_process_that_started_it_is_killed(nodes, ledger, tmp_path):
    job = LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    mark = {**nodes.environment, MARK: "starter"}
    with subprocess.Popen([sys.executable, "-c", STARTER], env=mark, stdin=subprocess.PIPE) as starter:
        wait_for_attempts(ledger, 1)
        starter.kill()

    (worker,) = {record.pid for record in ledger.records()}
    ledger.go()
    wait_until(lambda: not is_running(worker), PATIENCE)

    wait_until(lambda: not Node.objects.exists(), PATIENCE)
    job.refresh_from_db()
    assert (job.state, job.attempts) == (Job.State.DONE, 1)


def test_with_a_slice_of_one_job_queues_take_turns(nodes, ledger):
    LedgerQueue.create_jobs([LedgerQueue.job(queue, "write", {"seq": seq}) for queue in "ab" for seq in range(10)])
    node = nodes.start(LedgerQueue, processes=1, slice=1, until_empty=True)
    assert node.wait() == 0
    starts = "".join(record.queue for record in ledger.records("start"))
    assert sorted(starts) == ["a"] * 10 + ["b"] * 10
    # Two that end together are due together: either may be the first. The slower one ends alone.
    in_turns = starts.rstrip(starts[-1])
    assert "aaa" not in in_turns and "bbb" not in in_turns
