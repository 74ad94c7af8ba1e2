"""``queuetopia status --check`` for monitors, and ``--watch`` for people."""

import contextlib
import io
import os
import pty
import signal
import subprocess
import sys
import uuid

import pytest
from django.core.management import call_command
from django.core.management.base import OutputWrapper
from django.db import OperationalError, connection
from django.utils import timezone

from queuetopia import pause_all
from queuetopia.backends import nodes
from queuetopia.backends.nodes import DEATHS
from queuetopia.management.commands import queuetopia as command
from queuetopia.models import Chore, Job, Node, Queue, Scope
from queuetopia.monitoring import health, status
from queuetopia.terminal import Screen, duration
from queuetopia.testing import wait_until
from tests.commands import HOSTILE, check, run_json
from tests.nodes import PATIENCE
from tests.states import HOUR, MINUTE, NODE, mail_queue, put, put_node

pytestmark = [pytest.mark.django_db]


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


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

    @pytest.mark.parametrize("has_row", [True, False])
    def test_tells_of_due_jobs_that_no_node_was_told_of(self, queues, has_row):
        put_node()
        put(queues, "waiting")
        put(queues, "waiting", "b")
        put(queues, "scheduled", "later")
        put(queues, "done", "empty")
        rows = Queue.objects.exclude(name="later")
        rows.update(due_at=None) if has_row else rows.delete()
        code, lines = check()
        assert code == 1 and lines == [
            "tests.mail: queues with jobs due for longer than 10 min that no node was notified of: 2 (b, …): "
            "a wake-up was lost, and no sweep has come by"
        ]
        assert check("--oldest", "2h") == (0, ["ok"])
        queues.pause()
        assert check() == (0, ["ok"])

    @pytest.mark.parametrize("has_jobs", [True, False])
    def test_tells_of_a_scope_whose_only_nodes_wait_for_their_turn(self, queues, backend, has_jobs):
        put_node(scopes=["tests.other"])
        if has_jobs:
            put(queues, "scheduled")
        nodes.note_standby(backend, NODE, "web2:7", ["tests.mail", "tests.other"])
        what = "there are unfinished jobs, and no live node serves them" if has_jobs else "no live node serves it"
        why = "started with --standby, and waiting while other nodes serve some of their scopes: web2:7"
        assert check() == (1, [f"tests.mail: {what}; {why}"])
        Node.objects.update(scopes=["tests.other", "tests.mail"])
        assert check() == (0, ["ok"])

    @pytest.mark.parametrize("ends", ["forgotten", "silent"])
    def test_tells_of_no_standby_that_waits_no_more(self, queues, backend, ends):
        nodes.note_standby(backend, NODE, "web2:7", ["tests.mail"])
        assert check()[0] == 1
        if ends == "forgotten":
            nodes.forget_standby(backend, NODE)
            assert not Chore.objects.exists()
        else:
            Chore.objects.update(done_at=timezone.now() - MINUTE)
        assert check() == (0, ["ok"])

    @pytest.mark.parametrize("name", [None, "customer-42"])
    def test_calls_nothing_late_that_is_paused(self, queues, name):
        put_node()
        put(queues, "waiting")
        queues.pause(name)
        assert check() == (0, ["ok"])

    def test_counts_halted_queues(self, queues):
        put_node()
        for number in range(3):
            put(queues, "halted", f"queue-{number}")
        assert check() == (1, ["tests.mail: queues halted, waiting for an operator: 3"])

    def test_tells_of_queues_that_are_blocked_for_long_even_if_they_try_for_ever(self, queues):
        put_node()
        put(queues, "backing off", failed_at=timezone.now() - HOUR / 2)
        put(queues, "backing off", "other", failed_at=timezone.now() - 5 * HOUR, on_exhausted="retry")
        put(queues, "running again", "runs", failed_at=timezone.now() - 5 * HOUR)
        assert check() == (1, ["tests.mail: queues blocked for longer than 60 min: 1, the first for 5 h"])
        assert check("--blocked", "6h") == (0, ["ok"])
        assert check("--blocked", "20m")[1] == [
            "tests.mail: queues blocked for longer than 20 min: 2, the first for 5 h"
        ]

    def test_tells_of_what_nodes_give_back_and_why(self, queues):
        put_node()
        for name in "ab":
            put(queues, "waiting", name)
        Queue.objects.update(problem="This code has no action 'send_mail'.")
        line = "tests.mail: queues given back by nodes: 2 (a, …): This code has no action 'send_mail'."
        assert check() == (1, [line])

    @pytest.mark.parametrize("name", [None, "customer-42"])
    def test_tells_of_what_is_paused_for_long(self, queues, name):
        put_node()
        put(queues, "waiting")
        queues.pause(name, by="ann", reason="deploy")
        assert check("--paused", "1h") == (0, ["ok"])
        assert check("--paused", "0.001")[0] == 1
        (Queue if name else Scope).objects.update(paused_at=timezone.now() - 25 * HOUR)
        lines = {
            None: "tests.mail: paused for 25 h, longer than 24 h, by ann: deploy",
            "customer-42": "tests.mail: queues paused for longer than 24 h: 1",
        }
        assert check() == (1, [lines[name]])

    def test_tells_of_everything_that_is_paused_for_long_and_calls_nothing_late(self, queues):
        put_node()
        job = put(queues, "waiting")
        pause_all(by="ann", reason="moving")
        Job.objects.filter(pk=job.pk).update(scheduled_at=timezone.now() - 25 * HOUR)
        Queue.objects.update(due_at=timezone.now() - 25 * HOUR)
        assert check() == (0, ["ok"])
        Scope.objects.update(paused_at=timezone.now() - 25 * HOUR)
        line = "database default: everything is paused for 25 h, longer than 24 h, by ann: moving"
        assert check() == (1, [line])

    def test_tells_of_nodes_that_die_again_and_again(self, queues, backend):
        put_node()
        now = timezone.now()
        for host, minutes in (("web1", 1), ("web1", 2), ("web2", 3), ("web1", 30)):
            monkey = [(now - minutes * MINUTE).isoformat(), host]
            nodes.note_death(backend, host)
            marks = Chore.objects.get(name=DEATHS).marks["deaths"]
            Chore.objects.filter(name=DEATHS).update(marks={"deaths": [*marks[:-1], monkey]})
        assert check() == (0, ["ok"])
        put_node(id=uuid.uuid4(), last_seen=now - 5 * MINUTE)
        assert check() == (1, ["database default: nodes of web1 died 3 times within 10 min"])

    def test_counts_what_ends_many_nodes_at_once_as_one_death(self, queues, backend):
        for _ in range(9):
            nodes.note_death(backend, "web1")
        deaths = Chore.objects.get(name=DEATHS).marks["deaths"]
        Chore.objects.update(marks={"deaths": [[deaths[0][0], "web1"]] * len(deaths)})
        assert check() == (0, ["ok"])

    def test_a_late_queue_without_a_job_is_none(self, queues):
        put_node()
        job = put(queues, "waiting")
        queues.cancel(job)
        Queue.objects.update(due_at=timezone.now() - HOUR)
        assert check() == (0, ["ok"])

    def test_tells_of_clocks_that_are_apart(self, queues, monkeypatch):
        later = timezone.now() + HOUR
        monkeypatch.setattr(health.timezone, "now", lambda: later)
        assert check() == (1, ["database default: its clock is 60 min behind this machine's"])

    def test_tells_of_a_sequence_behind_its_table(self, queues):
        if connection.vendor != "postgresql":
            pytest.skip("has no sequences")
        put_node()
        put(queues, "scheduled")
        with connection.cursor() as cursor:
            cursor.execute("SELECT setval('queuetopia_queue_id_seq', 1, false)")
        code, (line,) = check()
        assert (code, line.split(" get ")[0]) == (1, "database default: new rows of queuetopia_queue")
        assert "sqlsequencereset queuetopia" in line

    def test_tells_of_scopes_that_no_code_knows_unless_scopes_are_named(self, queues, declare_only):
        put(mail_queue("tests.gone"), "waiting")
        declare_only(queues)
        line = "tests.gone: unfinished jobs: 1, untouched, because no code here knows this scope"
        assert check() == (1, [line])
        assert check("tests.mail") == (0, ["ok"])

    def test_tells_of_a_database_that_does_not_answer_and_of_the_others(self, queues, monkeypatch):
        def refuse(alias, *more):
            raise OperationalError("connection refused\x1b[2J")

        put(queues, "scheduled")
        mail_queue("tests.elsewhere", using="other")
        look = health.read
        monkeypatch.setattr(health, "read", lambda alias, *more: (refuse if alias == "other" else look)(alias, *more))
        code, (nobody, unreachable) = check()
        assert (code, nobody.split(":")[0]) == (1, "tests.mail")
        assert unreachable.startswith("database other: The database cannot be reached: connection refused\\x1b")

    def test_is_json_for_machines(self, queues):
        put(queues, "scheduled")
        stdout = io.StringIO()
        with pytest.raises(SystemExit):
            call_command("queuetopia", "status", "--check", "--json", stdout=stdout)
        assert '"problem": "no node"' in stdout.getvalue()
        put_node()
        assert run_json("status", "--check") == ({"problems": []}, None)

    def test_refuses_to_watch_too_and_an_unknown_scope(self, queues):
        from tests.commands import run

        assert "not allowed with" in run("status", "--check", "--watch")[1]
        assert "Did you mean tests.mail?" in run("status", "tests.mai1", "--check")[1]


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
