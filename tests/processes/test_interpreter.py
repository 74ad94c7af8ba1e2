"""Children run as their parent does: its options, its modules. What performers start is the user's own affair."""

import json
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.processes.waiting import environment, wait_for
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True, databases=["default", "other"])]

TELL = """
import json, os, subprocess, sys
from queuetopia import action
from tests.testapp.queues import LedgerPerformer

def ask(code, **how):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **how).stdout

def run(self, job, value=None):
    return {
        "path": os.environ.get("PYTHONPATH"),
        "path of a shell": subprocess.getoutput("printenv PYTHONPATH"),
        "ours": [name for name in os.environ if name.startswith("QUEUETOPIA_PYTHON") or name == "RUN_MAIN"],
        "sys.path of another": json.loads(ask("import json, re, sys; print(json.dumps(sys.path))", cwd="/")),
        "flags": [sys.flags.optimize, sys.flags.dev_mode, sys.flags.utf8_mode, sys.flags.isolated],
        "warnings": sys.warnoptions,
        "unbuffered": sys.stdout.write_through,
    }

LedgerPerformer.give_answer = action("answer")(run)
"""


def test_what_a_performer_starts_has_the_users_python_path_and_not_ours(nodes, tmp_path):
    more = environment(tmp_path, TELL)
    job = LedgerQueue.create_job("a", "answer")
    nodes.start(LedgerQueue, env=more)

    told = wait_for(job, lambda job: job.done_at).result

    assert told["path"] == told["path of a shell"] == more["PYTHONPATH"]
    assert told["ours"] == []
    ask = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.path))"]
    answer = subprocess.run(ask, env={**nodes.environment, **more}, cwd="/", capture_output=True, check=True).stdout
    assert told["sys.path of another"] == json.loads(answer)


def test_without_a_python_path_of_the_users_there_is_none(nodes, tmp_path):
    more = {**environment(tmp_path, TELL), "PYTHONPATH": "", "RUN_MAIN": "true"}
    code = (
        f"import sys; sys.path[:0] = {[str(tmp_path), str(REPOSITORY)]}\n"
        "from django.core.management import execute_from_command_line as execute\n"
        f"execute(['manage.py', 'run_queuetopia', {LedgerQueue.scope!r}])"
    )
    job = LedgerQueue.create_job("a", "answer")
    nodes.run([sys.executable, "-c", code], env=more)

    told = wait_for(job, lambda job: job.done_at).result

    assert (told["path"], told["path of a shell"], told["ours"]) == (None, "", [])
    assert str(tmp_path) not in told["sys.path of another"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["-O", "-X", "dev", "-Xutf8", "-W", "ignore::UserWarning", "-u"], [1, True, 1, 0]),
        (["-OOI"], [2, False, 0, 1]),
    ],
)
def test_workers_run_with_the_options_of_the_interpreter(nodes, tmp_path, flags, expected):
    more = {**environment(tmp_path, TELL), "PYTHONDEVMODE": ""}
    runner = tmp_path / "runner.py"
    runner.write_text(
        f"import sys; sys.path[:0] = {[str(tmp_path), str(REPOSITORY)]}\n"
        "from django.core.management import execute_from_command_line as execute\n"
        f"execute(['manage.py', 'run_queuetopia', {LedgerQueue.scope!r}])"
    )
    job = LedgerQueue.create_job("a", "answer")
    nodes.run([sys.executable, *flags, str(runner)], env=more)

    told = wait_for(job, lambda job: job.done_at).result

    assert told["flags"] == expected
    assert told["unbuffered"] == ("-u" in flags)
    assert ("ignore::UserWarning" in told["warnings"]) == ("-W" in flags)
