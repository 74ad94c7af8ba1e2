"""``queuetopia status --check`` for monitors, and ``--watch`` for people."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys

import pytest
from django.core.management import call_command
from django.core.management.base import OutputWrapper
from django.db import OperationalError
from django.utils import timezone

from queuetopia import declaration, health, status
from queuetopia.management.commands import queuetopia as command
from queuetopia.terminal import Screen, duration
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.test_command import HOSTILE, run_json
from tests.test_status import put_node
from tests.test_verbs import HOUR, mail_queue, put

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def queues(monkeypatch):
    monkeypatch.setattr(declaration, "_registry", [])
    return mail_queue()


def check(*arguments):
    """Return (exit code, lines)."""
    stdout = io.StringIO()
    try:
        call_command("queuetopia", "status", "--check", *arguments, "--no-color", stdout=stdout)
    except SystemExit as exc:
        return exc.code, stdout.getvalue().splitlines()
    return 0, stdout.getvalue().splitlines()


class TestCheck:
    @pytest.mark.parametrize("state", ["backing off", "scheduled", "running first", "done"])
    def test_is_fine_when_nothing_needs_a_person(self, queues, state):
        put_node()
        put(queues, state)
        assert check() == (0, ["ok"])

    def test_needs_no_node_without_a_job(self, queues):
        put(queues, "done")
        assert check() == (0, ["ok"])

    @pytest.mark.parametrize("columns", [None, {"scopes": ["tests.other"]}, {"last_seen": timezone.now() - HOUR}])
    def test_tells_of_jobs_that_no_live_node_serves(self, queues, columns):
        if columns:
            put_node(**columns)
        put(queues, "scheduled")
        assert check() == (1, ["tests.mail: there are unfinished jobs, and no live node serves them"])

    def test_tells_of_a_due_job_that_no_worker_takes(self, queues):
        put_node()
        put(queues, "waiting")
        line = "tests.mail: a job of queue customer-42 is due for 60 min, longer than 10 min, and no worker takes it"
        assert check() == (1, [line])
        assert check("--oldest", "2h") == (0, ["ok"])

    @pytest.mark.parametrize("name", [None, "customer-42"])
    def test_calls_nothing_late_that_is_paused(self, queues, name):
        put_node()
        put(queues, "waiting")
        queues.pause(name)
        assert check() == (0, ["ok"])

    def test_counts_halted_queues_to_a_bound(self, queues, monkeypatch):
        put_node()
        for number in range(3):
            put(queues, "halted", f"queue-{number}")
        assert check() == (1, ["tests.mail: queues halted, waiting for a person: 3"])
        monkeypatch.setattr(health, "MOST_HALTED", 2)
        assert check() == (1, ["tests.mail: queues halted, waiting for a person: more than 2"])

    def test_tells_of_scopes_that_no_code_knows_unless_scopes_are_named(self, queues, monkeypatch):
        put(mail_queue("tests.gone"), "waiting")
        monkeypatch.setattr(declaration, "_registry", [queues])
        line = "tests.gone: unfinished jobs: 1, untouched, for no code here knows this scope"
        assert check() == (1, [line])
        assert check("tests.mail") == (0, ["ok"])

    def test_tells_of_a_database_that_does_not_answer_and_of_the_others(self, queues, monkeypatch):
        def refuse(alias):
            raise OperationalError("connection refused\x1b[2J")

        put(queues, "scheduled")
        mail_queue("tests.elsewhere", using="other")
        backend_for = health.backend_for
        monkeypatch.setattr(health, "backend_for", lambda alias: (refuse if alias == "other" else backend_for)(alias))
        code, (nobody, unreachable) = check()
        assert (code, nobody.split(":")[0]) == (1, "tests.mail")
        assert unreachable.startswith("database other does not answer: The database refused: connection refused\\x1b")

    def test_is_json_for_machines(self, queues):
        put(queues, "scheduled")
        stdout = io.StringIO()
        with pytest.raises(SystemExit):
            call_command("queuetopia", "status", "--check", "--json", stdout=stdout)
        assert '"problem": "no node"' in stdout.getvalue()
        put_node()
        assert run_json("status", "--check") == ({"problems": []}, None)

    def test_refuses_to_watch_too_and_an_unknown_scope(self, queues):
        from tests.test_command import run

        assert "not allowed with" in run("status", "--check", "--watch")[1]
        assert "Did you mean tests.mail?" in run("status", "tests.mial", "--check")[1]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400), ("7d", 604_800), ("250ms", 0.25)]
)
def test_a_duration_is_read_as_it_is_written(text, seconds):
    assert duration(text) == seconds


class TestWatch:
    def watch(self, monkeypatch, looks, *arguments, stdout=None):
        """Watch for so many looks; return what was written."""
        stdout, left = stdout or io.StringIO(), [None] * (looks - 1)

        def sleep(seconds):
            if not left:
                raise KeyboardInterrupt
            left.pop()

        monkeypatch.setattr(command.time, "sleep", sleep)
        call_command("queuetopia", "status", "--watch", *arguments, stdout=stdout)
        return stdout.getvalue()

    def test_shows_the_status_again_and_again_until_ctrl_c(self, queues, monkeypatch):
        put(queues, "halted")
        text = self.watch(monkeypatch, 3)
        assert text.count("customer-42") == 3
        assert "\x1b" not in text

    def test_draws_over_the_page_on_a_terminal_and_leaves_it_as_it_was(self, queues, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setenv("NO_COLOR", "1")
        put(queues, "halted", HOSTILE)
        text = self.watch(monkeypatch, 2, stdout=Terminal())
        assert text.startswith("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[H")
        assert text.endswith("\x1b[J\x1b[?7h\x1b[?25h\x1b[?1049l")
        assert "\x1b[2J" not in text
        assert "\x1b[3" not in text  # a colour
        assert text.count("\x1b[H") == 2

    def test_cuts_the_page_to_the_height_of_the_terminal(self, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setenv("LINES", "5")
        terminal = Terminal()
        Screen(OutputWrapper(terminal)).draw("\n".join(map(str, range(20))))
        assert terminal.getvalue().count("\r\n") == 4

    def test_is_a_line_each_in_json(self, queues, monkeypatch):
        text = self.watch(monkeypatch, 2, "--json")
        assert [line[0] for line in text.splitlines() if line] == ["{", "{"]

    def test_goes_on_when_the_database_does_not_answer(self, queues, monkeypatch):
        def refuse(alias):
            raise OperationalError("connection refused")

        monkeypatch.setattr(status, "nodes", refuse)
        assert self.watch(monkeypatch, 2).count("connection refused") == 2

    def test_ends_when_its_reader_has_gone(self, queues, monkeypatch):
        class Pipe(io.StringIO):
            def flush(self):
                raise BrokenPipeError

        call_command("queuetopia", "status", "--watch", stdout=Pipe())


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_a_watch_on_a_real_terminal_ends_cleanly_on_ctrl_c(node_environment):
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "django", "queuetopia", "status", "--watch", "0.2"]
    watching = subprocess.Popen(line, env=node_environment, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    os.set_blocking(ours, False)
    seen = bytearray()

    def has_drawn(times):
        with contextlib.suppress(OSError):  # nothing there now, or nothing any more
            seen.extend(os.read(ours, 65536))
        return seen.count(b"\x1b[H") >= times

    wait_until(lambda: has_drawn(3), PATIENCE)
    watching.send_signal(signal.SIGINT)
    wait_until(lambda: has_drawn(0) and watching.poll() is not None, PATIENCE)

    assert watching.wait() == 0
    assert b"Traceback" not in seen
    os.close(ours)
