"""Commands where the terminal knows few characters, is closed, or nobody reads."""

import io
import itertools
import subprocess
import sys
import tempfile

import pytest

from queuetopia.management.commands.run_queuetopia import Command as RunCommand
from queuetopia.models import Job, JobEvent
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

NAME = "naïve 漢字 🙂"
TERMINALS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "locale C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
CLOSED = {"stdout": ">&-", "stderr": "2>&-", "both": ">&- 2>&-", "all": "<&- >&- 2>&-"}


@pytest.fixture
def manage(node_environment, ledger):
    """Run manage.py with a shell's redirections behind it."""

    def run(command, *, also=None, redirected="", **options):
        code = f'exec "{sys.executable}" -m django {command} {redirected}'
        environment = {**node_environment, **(also or {})}
        return subprocess.run(
            ["bash", "-o", "pipefail", "-c", code.removeprefix("exec ") if "|" in code else code],
            env=environment, capture_output=True, timeout=PATIENCE, **options,
        )  # fmt: skip

    return run


@pytest.fixture
def halted():
    """A job whose names and error have characters that no old terminal knows."""
    return LedgerQueue.create_job(NAME, "fail", {"text": f"kaputt: {NAME}"}, max_attempts=1)


def run_node(manage, **how):
    return manage("run_queuetopia tests.ledger --processes 1 --until-empty", **how)


@pytest.mark.parametrize("terminal", TERMINALS)
def test_a_terminal_that_knows_few_characters_shows_the_others_escaped(manage, halted, terminal):
    also = TERMINALS[terminal]
    ran = run_node(manage, also=also)
    halted.refresh_from_db()
    assert (ran.returncode, halted.state) == (1, "halted"), ran.stderr
    who = f"--by '{NAME}' --reason '{NAME}'"
    for command in (
        "queuetopia status",
        f"queuetopia explain tests.ledger '{NAME}'",
        f"queuetopia skip {halted.pk} {who}",
    ):
        done = manage(command, also=also)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\u6f22" in done.stdout
    assert JobEvent.objects.get().by == NAME


def test_what_a_performer_prints_fails_on_no_terminal(manage):
    job = LedgerQueue.create_job("a", "print_text", {"text": NAME})
    ran = run_node(manage, also=TERMINALS["ASCII"])
    job.refresh_from_db()
    assert (ran.returncode, job.state, job.error) == (0, "done", "")


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams_are_no_hindrance(manage, closed):
    job = LedgerQueue.create_job("a", "print_text", {"text": NAME})
    assert run_node(manage, redirected=CLOSED[closed]).returncode == 0
    job.refresh_from_db()
    assert (job.state, job.attempts) == ("done", 1)
    for command in ("queuetopia status", "queuetopia explain tests.ledger a", "queuetopia status --json"):
        done = manage(command, redirected=CLOSED[closed])
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr
    assert manage(f"queuetopia retry {job.pk}", redirected=CLOSED[closed]).returncode == 1  # it is done


GONE = "| (exec <&-; sleep 0.1)"


@pytest.mark.parametrize(
    "command",
    ["queuetopia status", "queuetopia status --json", "queuetopia explain tests.ledger a", "queuetopia --help"],
)
def test_a_reader_that_is_gone_ends_a_command_quietly(manage, command):
    LedgerQueue.create_jobs(LedgerQueue.job(f"queue {number}", "noop") for number in range(300))
    done = manage(command, redirected=GONE)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["queuetopia tail --every 100ms", "queuetopia status --watch 100ms"])
def test_a_reader_that_is_gone_ends_what_goes_on_for_ever(node_environment, command):
    pipe = f'"{sys.executable}" -m django {command} | head -1 >/dev/null'
    process = subprocess.Popen(["bash", "-c", pipe], env=dict(node_environment), stderr=subprocess.PIPE)
    changes = itertools.cycle([LedgerQueue.pause, LedgerQueue.resume])

    def has_ended():
        next(changes)("a")  # news for it to write
        return process.poll() is not None

    try:
        wait_until(has_ended, PATIENCE)
        assert process.stderr.read() == b""
    finally:
        process.kill()
        process.stderr.close()


def test_a_reader_that_is_gone_keeps_no_decision_from_being_done(manage):
    jobs = LedgerQueue.create_jobs(LedgerQueue.job(f"queue {number}", "noop") for number in range(200))
    ids = " ".join(str(job.pk) for job in jobs)
    done = manage(f"queuetopia cancel {ids}", redirected=GONE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not Job.objects.filter(pk__in=[job.pk for job in jobs]).exclude(state="cancelled").exists()


def test_a_node_without_a_temporary_folder_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc/none"])
    told = io.StringIO()
    RunCommand(stderr=told).warn_without_temporary_folder()
    assert "Set TMPDIR" in told.getvalue()


def test_a_full_disk_is_told_once(manage):
    done = manage("queuetopia status", redirected="> /dev/full")
    assert (done.returncode, done.stderr) == (1, b"Cannot write: No space left on device\n")
