"""Whatever holds up supervisor and scheduler, together too: no queue runs twice at the same moment."""

import fcntl
import os
import signal
import socket
import sys
from datetime import timedelta
from pathlib import Path

import django
import psutil
import pytest

from queuetopia.models import Job, Node
from queuetopia.testing import wait_until
from tests.mails import ADMINS
from tests.nodes import PATIENCE, is_running, kill
from tests.processes.waiting import errors_of, wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

SECONDS = 3
LEASE = {"QUEUETOPIA_TEST_LEASE": str(SECONDS)}


def create_long_job(**options):
    """A job that shows in the ledger, again and again, that it still runs."""
    return LedgerQueue.create_job("a", "fail_at_random", {"seq": 1, "chance": 0, "lasts": 3600}, **options)


def assert_no_overlap(ledger):
    """The first attempt gave its last sign of life before the second one started."""
    first, second = ledger.records("start", "a")[:2]
    signs = [record.clock for record in ledger.records(queue="a") if record.fence == first.fence]
    assert max(signs) < second.clock


def test_a_stopped_supervisor_and_scheduler_do_not_leave_a_worker_running_into_another_nodes_attempt(nodes, ledger):
    job = create_long_job()
    first = nodes.start(LedgerQueue, processes=1, env=LEASE)
    worker = wait_for_attempts(ledger, 1)[0].pid
    second = nodes.start(LedgerQueue, processes=1, env=LEASE)
    second.wait_for_log("node started")

    scheduler = first.scheduler
    first.send(signal.SIGSTOP)
    kill(scheduler, signal.SIGSTOP)
    wait_for_attempts(ledger, 2)

    assert not is_running(worker)
    assert_no_overlap(ledger)
    LedgerQueue.cancel(job)
    wait_for_all()


def test_ctrl_z_stops_the_jobs_too_which_are_not_counted_and_run_again_elsewhere_or_after_sigcont(nodes, ledger):
    job = create_long_job(max_attempts=1)
    first = nodes.start(LedgerQueue, processes=1, env=LEASE)
    wait_for_attempts(ledger, 1)
    second = nodes.start(LedgerQueue, processes=1, env=LEASE)
    second.wait_for_log("node started")

    scheduler = first.scheduler
    for pid in (first.supervisor, scheduler):  # those in the terminal's foreground group
        kill(pid, signal.SIGTSTP)
    wait_for_attempts(ledger, 2)
    wait_until(lambda: psutil.Process(first.supervisor).status() == psutil.STATUS_STOPPED, PATIENCE)
    assert [process.pid for process in first.processes()] == [first.supervisor]
    assert_no_overlap(ledger)
    assert [(kind, counted) for kind, _, counted in errors_of(job)] == [("JobInterrupted", False)]

    first.send(signal.SIGCONT)
    first.wait_for_log("node started", times=2)
    LedgerQueue.cancel(job)
    wait_for_all()


def test_a_node_that_is_continued_before_it_has_stopped_goes_on(nodes, ledger):
    node = nodes.start(LedgerQueue, processes=1, env=LEASE)
    node.wait_for_log("node started")
    scheduler = node.scheduler

    kill(scheduler, signal.SIGSTOP)  # so that the node cannot stop yet
    node.send(signal.SIGTSTP)
    wait_until(lambda: signal_is_handled(node.supervisor, signal.SIGTSTP), PATIENCE)
    node.send(signal.SIGCONT)
    node.wait_for_log("node started", times=2)
    assert node.stop() == 0


def signal_is_handled(pid, number):
    """True when the process has none of these signals pending."""
    status = Path(f"/proc/{pid}/status").read_text()
    pending = int(status.partition("ShdPnd:")[2].split()[0], 16) | int(status.partition("SigPnd:")[2].split()[0], 16)
    return not pending >> (number - 1) & 1


def test_a_terminal_that_wants_its_background_processes_to_stop_stops_no_node(nodes, ledger):
    LedgerQueue.create_job("a", "write", {"seq": 1})
    node = nodes.start(LedgerQueue, processes=1, env=LEASE)
    wait_for_all()
    scheduler = node.scheduler

    for number in (signal.SIGTTIN, signal.SIGTTOU):
        kill(node.supervisor, number)
        kill(scheduler, number)
    LedgerQueue.create_job("a", "write", {"seq": 2})
    wait_for_all()

    assert node.scheduler == scheduler
    assert node.stop() == 0


def mail_server_that_never_answers(folder):
    """Return the environment of a node that mails each error to a server that accepts and says nothing."""
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()
    values = {"EMAIL_HOST": host, "EMAIL_PORT": port, "EMAIL_BACKEND": "django.core.mail.backends.smtp.EmailBackend"}
    if django.VERSION >= (6, 1):
        options = {"host": host, "port": port}
        values = {"MAILERS": {"default": {"BACKEND": values["EMAIL_BACKEND"], "OPTIONS": options}}}
    handler = {"class": "django.utils.log.AdminEmailHandler", "level": "ERROR"}
    values["ADMINS"] = ADMINS
    values["LOGGING"] = {
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"mail": handler},
        "root": {"handlers": ["mail"], "level": "INFO"},
    }
    (folder / "mail_settings.py").write_text(
        "from tests.settings import *\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())
    )
    return server


@pytest.mark.parametrize("what", ["a mail server", "a full pipe"])
def test_a_log_handler_that_blocks_holds_up_no_heartbeat_and_no_stop(nodes, ledger, tmp_path, what):
    job = create_long_job()
    if what == "a mail server":
        held = mail_server_that_never_answers(tmp_path)
        path = os.pathsep.join([str(tmp_path), nodes.environment["PYTHONPATH"]])
        env = {**LEASE, "DJANGO_SETTINGS_MODULE": "mail_settings", "PYTHONPATH": path}
        first = nodes.start(LedgerQueue, processes=2, env=env)
    else:
        held = full_pipe(tmp_path / "pipe")
        command = [sys.executable, "-m", "django", "run_queuetopia", LedgerQueue.scope, "--processes=2", "--grace=0"]
        first = nodes.run(["sh", "-c", f'exec "$@" 2<>{tmp_path / "pipe"}', "sh", *command], env=LEASE)
    with held:
        wait_for_attempts(ledger, 1)
        node = Node.objects.get()
        wait_for(LedgerQueue.create_job("x", "fail", max_attempts=1), lambda job: job.state == Job.State.HALTED)
        nodes.start(LedgerQueue, processes=1, env=LEASE).wait_for_log("node started")

        node.refresh_from_db()
        enough = node.last_seen + timedelta(seconds=2 * SECONDS)
        wait_until(lambda: Node.objects.filter(pk=node.pk, last_seen__gt=enough).exists(), PATIENCE)
        assert ledger.attempts("a") == 1

        assert first.stop() == 0
        wait_for_attempts(ledger, 2, "a")
        assert_no_overlap(ledger)
        LedgerQueue.cancel(job)
        wait_for(job, lambda job: job.is_ended())


def full_pipe(path):
    """Make a named pipe that nobody reads, and fill it; return it open."""
    os.mkfifo(path)
    pipe = open(os.open(path, os.O_RDWR), "r+b", buffering=0)  # noqa: SIM115 - the caller closes it
    flags = fcntl.fcntl(pipe, fcntl.F_GETFL)
    fcntl.fcntl(pipe, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    while pipe.write(b"x" * 4096):
        pass
    while pipe.write(b"x"):
        pass
    return pipe
