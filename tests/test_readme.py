"""README.md does what it says: its Python is run, in a new project (see ``tests/pages.py``)."""

import re
import shlex

import pytest
from django.core.management import load_command_class

from tests.conftest import REPOSITORY
from tests.pages import Project, blocks

README = REPOSITORY / "README.md"
PYTHON = [block for block in blocks(README) if block.language == "python"]

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


@pytest.fixture
def project(tmp_path):
    project = Project.new(tmp_path)
    for block in PYTHON:
        project.add(block)
    return project


def test_every_python_block_names_its_file():
    assert [block for block in PYTHON if not block.file] == []
    assert len(PYTHON) == README.read_text().count("```python") > 0


@pytest.mark.capability("E1")
def test_the_first_job_from_a_view_takes_at_most_15_lines():
    first = {block.file: block.code for block in reversed(PYTHON)}
    code = first["shop/queues.py"] + first["shop/views.py"]
    assert len([line for line in code.splitlines() if line.strip()]) <= 15


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
    def test_its_tests_pass(self, project):
        assert "Ran 0 tests" not in project.manage("test")


def shell_lines():
    return [line for block in blocks(README) if block.language == "sh" for line in block.text.splitlines()]


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
