"""What dies is replaced, what it ran is run again, and nothing of it stays behind."""

import contextlib
import os
import signal
import time
import uuid
from pathlib import Path

import pytest
from django.db import connection

from queuetopia.models import Job, Node, Queue
from queuetopia.testing import wait_until
from tests.faults.ledger import check
from tests.nodes import PATIENCE, is_running, kill
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

LEASE = {"QUEUETOPIA_TEST_LEASE": "3"}  # seconds, so that a test need not wait for the default's 15


def hang_once(ledger, queue="a"):
    """Create a job whose first attempt hangs, and one behind it; return the first."""
    job = LedgerQueue.create_job(queue, "hang", {"times": 1})
    LedgerQueue.create_job(queue, "write", {"seq": 1})
    return job


@pytest.mark.capability("W5", "J18")
def test_a_killed_worker_is_replaced_and_the_others_stay(nodes, ledger):
    job = hang_once(ledger)
    node = nodes.start(LedgerQueue, processes=3)
    before = set(node.workers(3))
    victim = wait_for_attempts(ledger, 1)[0].pid

    kill(victim)
    wait_for_all()

    assert set(node.workers(3)) & before == before - {victim}
    assert [error[:1] for error in errors_of(job)] == [("WorkerDied",)]


@pytest.mark.capability("W6")
def test_an_error_of_the_scheduler_does_not_take_the_workers_jobs_down(nodes, ledger):
    LedgerQueue.create_job("a", "write_when_told", {"seq": 1})
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    worker = ledger.records()[0].pid
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE queuetopia_scope RENAME TO queuetopia_gone")
    try:
        LedgerQueue.create_job("b", "noop")
        node.wait_for_log("scheduler error")
    finally:
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE queuetopia_gone RENAME TO queuetopia_scope")
    (ledger.path.parent / f"{ledger.path.name}.go").touch()
    wait_for_all()

    assert [record.pid for record in ledger.records("end")] == [worker]
    assert ledger.attempts("a") == 1


@pytest.mark.capability("E6", "E22", "W7", "E8")
def test_a_killed_scheduler_is_started_again_and_its_jobs_run_again_in_order(nodes, ledger, record_property):
    job = hang_once(ledger)
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    scheduler, workers = node.scheduler, node.workers(2)

    kill(scheduler)
    killed_at = time.monotonic()
    second = wait_for_attempts(ledger, 2)[1]
    record_property("takeover_seconds", round(second.clock - killed_at, 3))
    wait_for_all()

    assert [type for type, _, counted in errors_of(job) if counted] == ["NodeDied"]
    assert not any(is_running(pid) for pid in [scheduler, *workers])
    assert [record.number for record in ledger.records("end")] == [1]
    wait_until(lambda: Node.objects.count() == 1, PATIENCE)


def test_a_job_that_was_running_is_told_apart_from_one_that_waits_when_its_node_dies(nodes, ledger):
    waiting = [LedgerQueue.create_job(f"queue-{number}", "hang", {"times": 1}) for number in range(6)]
    node = nodes.start(LedgerQueue, processes=2)
    wait_for_attempts(ledger, 2)
    node.send_all(signal.SIGKILL)
    wait_until(node.is_gone, PATIENCE)
    wait_until(lambda: Queue.objects.filter(held_by__isnull=False).count() == 2)

    nodes.start(LedgerQueue, processes=6)
    wait_for_attempts(ledger, 8)  # the first of two that died, their second, and the first of the four others
    lost = [job for job in waiting if "NodeDied" in [error[0] for error in errors_of(job)]]
    assert len(lost) == 2


@pytest.mark.parametrize("victims", ["supervisor", "supervisor and scheduler", "all"])
@pytest.mark.capability("W7", "H15")
def test_nothing_survives_its_supervisor_and_a_new_node_takes_over_at_once(nodes, ledger, victims):
    job = hang_once(ledger)
    node = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    if victims == "all":
        node.send_all(signal.SIGKILL)
    else:
        scheduler = node.scheduler
        node.send(signal.SIGKILL)
        if "scheduler" in victims:
            with contextlib.suppress(ProcessLookupError):  # it may have died with its supervisor already
                os.kill(scheduler, signal.SIGKILL)
    wait_until(node.is_gone, PATIENCE, message="processes outlived their supervisor")

    # By its lease it would wait for minutes: it sees that all its predecessor's processes are dead.
    nodes.start(LedgerQueue, env={"QUEUETOPIA_TEST_LEASE": "600"})
    wait_for_all()

    assert [error[0] for error in errors_of(job)] == ["NodeDied"]


@pytest.mark.capability("W7")
def test_workers_have_all_that_is_locked_open_so_that_it_stays_locked_until_they_are_dead_too(nodes):
    node = nodes.start(LedgerQueue, processes=1)
    (worker,) = node.workers(1)
    shared = open_files(node.scheduler) & open_files(worker)

    assert [file for file in shared if str(Node.objects.get().pk) in file]
    session = ".queuetopia" if connection.vendor == "sqlite" else "socket:"
    assert [file for file in shared if session in file]


def open_files(pid):
    found = set()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found.add(os.readlink(file))
    return found


@pytest.mark.capability("W7", "H15")
def test_a_program_that_a_performer_left_running_dies_with_its_node_before_the_job_runs_again(nodes, ledger):
    LedgerQueue.create_job("a", "daemonise")
    node = nodes.start(LedgerQueue)
    left = ledger.path.parent / f"{ledger.path.name}.daemon1"
    wait_until(lambda: left.exists() and left.read_text(), PATIENCE)
    node.send(signal.SIGKILL)
    wait_until(lambda: [process.pid for process in node.processes()] == [int(left.read_text())], PATIENCE)

    nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 2)

    assert not is_running(int(left.read_text()))
    wait_for_all()


@pytest.mark.capability("W7", "E6")
def test_a_queue_held_in_the_name_of_a_node_that_is_nowhere_runs_again(nodes, ledger):
    """Somebody deleted the node's row by hand, say."""
    job = LedgerQueue.create_job("a", "write", {"seq": 1})
    Queue.objects.update(held_by=uuid.uuid4(), held_since=job.scheduled_at, current_job=job.pk, fence=1, attempt=1)

    nodes.start(LedgerQueue)
    wait_for_all()

    assert [error[0] for error in errors_of(job)] == ["NodeDied"]
    assert [record.fence for record in ledger.records("end")] == [2]


@pytest.mark.capability("E9", "E20", "H17")
def test_a_second_node_takes_over_what_a_killed_one_held(nodes, ledger):
    job = hang_once(ledger)
    first = nodes.start(LedgerQueue)
    wait_for_attempts(ledger, 1)
    second = nodes.start(LedgerQueue)
    second.wait_for_log("node started")

    first.send_all(signal.SIGKILL)
    wait_for_all()

    assert "taking over" in second.log()
    assert [error[0] for error in errors_of(job)] == ["NodeDied"]


@pytest.mark.capability("E18")
def test_a_frozen_scheduler_is_killed_with_its_workers_and_started_again(nodes, ledger):
    hang_once(ledger)
    node = nodes.start(LedgerQueue, env=LEASE)
    first = wait_for_attempts(ledger, 1)[0]
    scheduler = node.scheduler

    kill(scheduler, signal.SIGSTOP)
    wait_until(lambda: not is_running(scheduler) and not is_running(first.pid), PATIENCE)
    wait_for_all()

    assert "silent for the fence time" in node.log()


def test_a_node_that_was_frozen_as_a_whole_starts_nothing_before_it_is_sure_of_its_queues(nodes, ledger):
    job = hang_once(ledger)
    node = nodes.start(LedgerQueue, env=LEASE)
    frozen = wait_for_attempts(ledger, 1)[0]
    node.send_all(signal.SIGSTOP)
    other = nodes.start(LedgerQueue, env=LEASE)
    if connection.vendor == "sqlite":  # its locks are the kernel's: frozen processes keep them until they are thawed
        other.wait_for_log("node started")
        node.send_all(signal.SIGCONT)
        LedgerQueue.cancel(job)  # it goes on if it was frozen for less than the fence time
        wait_for_all()
        return
    second = wait_for_attempts(ledger, 2)[1]
    node.send_all(signal.SIGCONT)
    wait_for_all()

    assert (second.pid in other.workers(2), second.fence > frozen.fence) == (True, True)
    wait_until(lambda: not is_running(frozen.pid), PATIENCE, message="the frozen attempt goes on")
    assert "NodeDied" in [error[0] for error in errors_of(job)]


def test_a_terminated_database_session_costs_no_attempt_and_no_order(nodes, ledger):
    terminate = {
        "postgresql": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'queuetopia'"
        " AND datname = current_database()",
        "mysql": "SELECT concat('KILL ', id) FROM information_schema.processlist WHERE id <> connection_id()"
        " AND db = database()",
    }.get(connection.vendor)
    if terminate is None:
        return  # SQLite has no sessions: its locks are files
    job = hang_once(ledger)
    node = nodes.start(LedgerQueue)
    first = wait_for_attempts(ledger, 1)[0]
    with connection.cursor() as cursor:
        cursor.execute(terminate)
        kills = [row[0] for row in cursor.fetchall() if isinstance(row[0], str)]
        for statement in kills:
            cursor.execute(statement)
    wait_for_attempts(ledger, 2)
    assert not is_running(first.pid)
    LedgerQueue.cancel(job) if not job.is_ended() else None
    wait_for(job, lambda job: job.is_ended())
    wait_for_all()

    assert "no database session" in node.log()
    assert [(kind, counted) for kind, _, counted in errors_of(job)][:1] == [("JobInterrupted", False)]


def test_a_worker_that_cannot_start_is_told_and_does_not_spin(nodes, tmp_path):
    (tmp_path / "broken_code.py").write_text(
        "import sys\nif 'worker' in sys.argv:\n    raise ImportError('a module of the project is broken')\n"
    )
    environment = {"QUEUETOPIA_TEST_CODE": "broken_code", "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"}
    node = nodes.start(LedgerQueue, processes=1, env=environment)
    node.wait_for_log("a module of the project is broken", times=4)

    [told] = [line for line in node.log().splitlines() if "worker did not start" in line]
    assert told.endswith("exited with code 1 before it reported a result; next try in 0.5 s")


def test_while_workers_die_at_their_start_one_at_a_time_tries_whether_they_still_do(nodes, tmp_path):
    (tmp_path / "broken_code.py").write_text(
        "import os, sys, time\n"
        "def start():\n"
        f"    with open({str(tmp_path / 'starts')!r}, 'a+') as starts:\n"
        "        starts.write('.')\n"
        "        return starts.tell()\n"
        "if 'worker' in sys.argv and start() <= 3:\n    os._exit(1)\n"
        "while 'worker' in sys.argv:\n    time.sleep(0.05)\n"
    )
    environment = {"QUEUETOPIA_TEST_CODE": "broken_code", "PYTHONPATH": f"{tmp_path}:{os.environ['PYTHONPATH']}"}
    node = nodes.start(LedgerQueue, processes=3, env=environment)
    wait_until(lambda: (tmp_path / "starts").exists() and len((tmp_path / "starts").read_text()) >= 4, PATIENCE)

    assert len(node.workers(1)) == 1
    node.wait_for_log("worker did not start")


@pytest.mark.capability("H13", "E33")
def test_jobs_handed_out_behind_one_that_turns_out_long_are_run_by_another_node(nodes, ledger):
    for node in (nodes.start(LedgerQueue, processes=1), nodes.start(LedgerQueue, processes=1)):
        node.wait_for_log("node started")
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{number % 50}", "noop") for number in range(500)])
    wait_for_all()  # both know now that jobs are short, and hand them out ahead

    actions = [("write_when_told", {"seq": 1}), *[("noop", {})] * 100]
    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{n}", *action) for n, action in enumerate(actions)])
    wait_until(lambda: LedgerQueue.jobs().unfinished().count() == 1, PATIENCE)

    ledger.go()
    wait_for_all()
    assert Job.objects.exclude(attempts=1).count() == 0


def test_two_nodes_run_each_job_once_and_never_two_of_a_queue_at_once(nodes, ledger):
    created = {f"queue-{number}": list(range(8)) for number in range(40)}
    for node in (nodes.start(LedgerQueue), nodes.start(LedgerQueue)):
        node.wait_for_log("node started")
    LedgerQueue.create_jobs(
        [LedgerQueue.job(queue, "write", {"seq": seq, "lasts": 0.03}) for seq in range(8) for queue in created]
    )
    wait_for_all()

    assert check(ledger.records(), created) == ([], 0)
    assert len({record.pid for record in ledger.records("end")}) > 2
    assert Job.objects.exclude(attempts=1).count() == 0
