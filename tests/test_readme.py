"""README.md does what it says: its Python is run, in a new project.

Each ```python block says in its first line which file it belongs to, and is added to that file of a project made by
``startproject mysite`` and ``startapp shop``. A page in docs/ with such blocks is run the same way, on top of README's
project.
"""

import os
import re
import shlex
import subprocess
import sys

import django
import pytest
from django.core.management import load_command_class

from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
BLOCK = re.compile(r"^```python\n# (?P<file>[\w/]+\.py)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [page for page in sorted(REPOSITORY.glob("docs/*.md")) if BLOCK.search(page.read_text())]
NAMED = [(block["file"], block["code"]) for block in BLOCK.finditer(README.read_text())]

ASK_THE_SECOND_VIEW = """
from django.test import RequestFactory
from django.utils import timezone
from shop.queues import MailQueue
from shop.views import open_account
post = RequestFactory().post("/", {"email": "tata@mail.com"})
assert open_account(post).status_code == 200
try:
    open_account(post)
except Exception as exc:
    print(type(exc).__name__)
job = MailQueue.jobs().get()
print(job.queue, job.max_attempts, round((job.scheduled_at - timezone.now()).total_seconds() / 3600), "h")
"""


class Project:
    """A new Django project in ``folder`` with the blocks of ``pages`` in it."""

    def __init__(self, folder, *pages):
        self.folder = folder
        self.run("-m", "django", "startproject", "mysite", ".")
        self.manage("startapp", "shop")
        for page in pages:
            for block in BLOCK.finditer(page.read_text()):
                with open(folder / block["file"], "a") as file:
                    file.write("\n" + block["code"])
        if django.VERSION < (6, 1):  # Later projects have it from startproject.
            with open(folder / "mysite/settings.py", "a") as file:
                file.write('\nEMAIL_BACKEND = "django.core.mail.backends.console.EmailBackend"\n')

    def manage(self, *arguments):
        return self.run("manage.py", *arguments)

    def python(self, code):
        return self.manage("shell", "--verbosity=0", "--command", code).strip()

    def run(self, *arguments):
        names = ("DJANGO_SETTINGS_MODULE", "PYTHONPATH", "DATABASE_URL", "OTHER_DATABASE_URL")
        environment = {name: value for name, value in os.environ.items() if name not in names}
        result = subprocess.run(
            [sys.executable, "-W", "error", *arguments],
            cwd=self.folder,
            env=environment | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path, README)


def test_every_python_block_names_its_file():
    assert len(NAMED) == README.read_text().count("```python") > 0


@pytest.mark.capability("E1")
def test_the_first_job_from_a_view_takes_at_most_15_lines():
    queues, views = (next(code for file, code in NAMED if file == f"shop/{name}.py") for name in ("queues", "views"))
    assert len([line for line in (queues + views).splitlines() if line.strip()]) <= 15


@pytest.mark.processes
class TestProject:
    @pytest.mark.capability("E1")
    def test_the_view_creates_a_job_and_a_node_does_it(self, project):
        project.manage("migrate", "--verbosity=0")
        post = 'Client().post("/sign-up/", {"email": "toto@mail.com"}, SERVER_NAME="localhost")'
        assert project.python(f"from django.test import Client; print({post}.status_code)") == "200"
        assert "To: toto@mail.com" in project.manage("run_queuetopia", "--until-empty", "--processes", "1")
        job = "from shop.queues import MailQueue; print(*MailQueue.jobs().values_list('queue', 'state').get())"
        assert project.python(job) == "toto@mail.com done"

    def test_a_job_belongs_to_the_transaction_of_its_view(self, project):
        project.manage("migrate", "--verbosity=0")
        assert project.python(ASK_THE_SECOND_VIEW) == "IntegrityError\nuser-1 5 1 h"

    def test_nothing_is_missing_for_the_system_checks(self, project):
        project.manage("migrate", "--verbosity=0")
        assert "no issues" in project.manage("check", "--database", "default", "--fail-level", "WARNING")

    @pytest.mark.capability("E24")
    @pytest.mark.parametrize("page", [README, *PAGES], ids=lambda page: page.name)
    def test_the_tests_of_a_page_pass(self, page, tmp_path):
        project = Project(tmp_path, *dict.fromkeys([README, page]))
        assert "Ran 0 tests" not in project.manage("test")


def shell_lines():
    blocks = re.findall(r"^```sh\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


class TestCommands:
    @pytest.mark.parametrize("line", [line for line in shell_lines() if line.startswith("python manage.py ")])
    def test_a_command_is_understood(self, line):
        _, script, name, *arguments = shlex.split(line, comments=True)
        package = "django.core" if name == "migrate" else "queuetopia"
        load_command_class(package, name).create_parser(script, name).parse_args(arguments)

    @pytest.mark.capability("Q20")
    @pytest.mark.parametrize("heading", ["Try it", "Run the tests"])
    def test_a_newcomers_command_is_one_line(self, heading):
        block = re.search(rf"^## {heading}\n\n```sh\n(.*)\n```$", README.read_text(), re.MULTILINE)
        assert block[1].startswith("python3 -m venv .venv && .venv/bin/pip install -q -e '.[")


def test_every_link_leads_to_something():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", README.read_text())
    assert [target for target in targets if not (REPOSITORY / target).exists()] == []
