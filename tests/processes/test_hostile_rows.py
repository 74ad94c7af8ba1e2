"""Whoever can write rows: what is in them chooses no code, and reaches neither terminal nor log as it is."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest
from django.utils import timezone

from queuetopia.models import Job, Node, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import environment, wait_for
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

FORGED = "2026-01-01 00:00:00.000+00:00 ERROR   forged"
NASTY = f"x\n{FORGED}\r\x1b]0;owned\x07\x1b[2J\u202e\u2028{FORGED}\x85{FORGED}\x9b31m\u2066<script>alert(1)</script>"
SECRET = "tok-5ecret-5ecret"

# Names that mean something to Python, to Django, to us, or to a shell.
NAMES = (
    "os.system", "subprocess.run", "builtins.eval", "antigravity", "tests.unheard_of",
    "django.core.management.call_command",
    "__init__", "__class__", "__reduce__", "__init_subclass__", "__dict__", "__doc__", "mro",
    "perform", "setup", "backoff", "handle_done_job", "handle_failed_job", "pid_at_setup", "actions", "self", "job",
    "noop ", " noop", "NOOP", "noop\n", "n\u043eop", "noop()", "noop;write", "../noop", "LedgerPerformer.noop", "",
    "%s", "{0}",
    "give_answer",  # the method's name, which is not its action's
    NASTY[:255],
)  # fmt: skip
SCOPES = ("os", "builtins", "antigravity", "tests.testapp.queues", "tests.testapp.queues.LedgerQueue", "LedgerQueue",
          "tests.ledger ", "TESTS.LEDGER", "__main__", "queuetopia", "", NASTY[:128])  # fmt: skip

# Tells at the end of each process whether something was imported that only a row names.
WATCH = """
import atexit, sys
def tell():
    found = {"antigravity", "tests.unheard_of", "this"} & set(sys.modules)
    if found:
        open(PATH, "a").write(f"{found}")
atexit.register(tell)
"""

HOOKS = """
from queuetopia import Performer, Queuetopia, action
from queuetopia.signals import job_done
from tests.testapp.queues import LedgerQueue

class SecretPerformer(Performer):
    @action
    def fail(self, job, token, text):
        raise ConnectionError(f"{text} {token}")

    @action
    def succeed(self, job, token, text):
        pass

    def handle_done_job(self, job):
        raise RuntimeError(f"{job.params['text']} {job.params['token']}")

    def handle_exhausted_job(self, job, exc):
        raise RuntimeError(f"{job.params['text']} {job.params['token']}")

class SecretQueue(LedgerQueue):
    scope = "tests.secret"
    performer = SecretPerformer
    sensitive_params = ("token",)
    max_attempts = 2

def receive(sender, job, **kwargs):
    raise ValueError(f"{job.params['text']} {job.params['token']}")

job_done.connect(receive, sender=SecretQueue, weak=False)
"""


def lines_of(log):
    return log.split("\n")


def assert_fit_to_be_read(log):
    """Nothing in it steers a terminal, turns the direction of writing, or poses as a record of the log."""
    # The hints of Django's own checks begin with a tab.
    assert [line for line in lines_of(log) if not line.removeprefix("\t").isprintable()] == []
    assert [line for line in lines_of(log) if line.startswith(FORGED[:10])] == []


@pytest.mark.capability("E30", "J10")
def test_a_name_in_the_database_chooses_among_what_is_declared_and_nothing_else(nodes, ledger, tmp_path):
    told = tmp_path / "imported"
    code = environment(tmp_path, WATCH.replace("PATH", repr(str(told))))
    params = {"times": 0, "command": f"touch {told}", "__class__": "os"}
    rows = [
        *(Job(scope=LedgerQueue.scope, queue=f"action {number}", action=name, params=params)
          for number, name in enumerate(NAMES)),
        *(Job(scope=scope, queue=f"scope {number}", action="noop") for number, scope in enumerate(SCOPES)),
    ]  # fmt: skip
    Job.objects.bulk_create(rows)
    good = LedgerQueue.create_job("good", "write", {"seq": 1})

    node = nodes.start(LedgerQueue, until_empty=True, env=code)
    assert node.wait() == 1  # there is something left that this code cannot run

    good.refresh_from_db()
    assert good.state == "done"
    assert not told.exists()
    assert ledger.attempts() == 1
    untouched = Job.objects.exclude(pk=good.pk)
    assert set(untouched.values_list("state", "attempts", "attempted_at", "error")) == {("pending", 0, None, "")}
    assert untouched.count() == len(rows)
    problems = dict(Queue.objects.filter(scope=LedgerQueue.scope).exclude(problem="").values_list("name", "problem"))
    assert len(problems) == len(NAMES)
    assert all("no action" in problem for problem in problems.values()), problems
    assert_fit_to_be_read(node.log())


@pytest.mark.capability("E30")
def test_what_users_write_reaches_the_log_escaped_and_without_secrets(nodes, tmp_path):
    code = environment(tmp_path, HOOKS)
    params = {"token": SECRET, "text": NASTY}
    failing = Job.objects.create(scope="tests.secret", queue=NASTY[:255], action="fail", params=params)
    done = Job.objects.create(scope="tests.secret", queue="done", action="succeed", params=params)
    dead = Node.objects.create(host=NASTY[:255], pid=1, scopes=[LedgerQueue.scope])
    Node.objects.filter(pk=dead.pk).update(last_seen=timezone.now() - timedelta(days=1))
    node = nodes.start(env=code)
    node.wait_for_log("dead node removed")
    wait_for(failing, lambda job: job.state == "halted")
    wait_for(done, lambda job: job.state == "done")
    hooks = ("hook failed hook=handle_done_job", "hook failed hook=handle_exhausted_job", "receiver failed")
    for text in ("attempt failed", "job halted", *hooks):
        node.wait_for_log(text)
    node.stop()

    assert_fit_to_be_read(node.log())
    assert SECRET not in node.log()
    assert SECRET not in failing.error + json.dumps(failing.errors)


@pytest.mark.capability("E30")
def test_what_users_write_reaches_the_terminal_escaped(nodes, node_environment, tmp_path):
    code = environment(tmp_path, HOOKS)
    failing = Job.objects.create(
        scope="tests.secret", queue=NASTY[:255], action="fail", params={"token": SECRET, "text": NASTY}
    )
    Job.objects.create(scope=NASTY[:128], queue="a", action="noop")
    LedgerQueue.pause(NASTY[:255], by=NASTY[:255], reason=NASTY)
    nodes.start(env=code)
    wait_for(failing, lambda job: job.state == "halted")
    wait_until(lambda: Queue.objects.blocked().exists(), PATIENCE)

    def manage(*arguments):
        command = [sys.executable, "-m", "django", "queuetopia", *arguments]
        result = subprocess.run(command, env={**node_environment, **code}, capture_output=True, timeout=PATIENCE)
        assert result.returncode in (0, 1), result.stderr
        return (result.stdout + result.stderr).decode()

    who = ("--by", NASTY, "--reason", NASTY)
    printed = [
        manage("status"),
        manage("status", "-v2"),
        manage("status", "--force-color"),
        manage("pause", "tests.secret", NASTY[:255], *who),
        manage("retry", str(failing.pk), *who),
        manage("resume", NASTY[:128], *who),
        manage("skip", "--scope", NASTY[:128], str(failing.pk), *who),
    ]
    for text in printed:
        assert_fit_to_be_read(text.replace("\x1b[", "") if text == printed[2] else text)
        assert SECRET not in text
    as_json = manage("status", "--json")
    assert as_json.isascii()
    assert SECRET not in as_json
    assert_fit_to_be_read(as_json)
    assert NASTY[:255] in {queue["queue"] for scope in json.loads(as_json)["scopes"] for queue in scope["queues"]}
