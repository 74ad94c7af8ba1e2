"""What the other tests stand on: child processes reach the databases that the tests use."""

import subprocess
import sys

import pytest
from django.db import connections

from tests.database import url_of_database
from tests.testapp.models import Note

ANSWER = """
import django
django.setup()
from tests.testapp.models import Note
note = Note.objects.using({alias!r}).get()
Note.objects.using({alias!r}).create(text=note.text + " answered")
"""


def ask_a_child(alias, **how):
    subprocess.run([sys.executable, "-c", ANSWER.format(alias=alias)], check=True, timeout=60, **how)


@pytest.mark.processes
@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("alias", ["default", "other"])
class TestChild:
    def test_reads_what_the_test_wrote_and_the_test_its_answer(self, alias, node_environment, tmp_path):
        Note.objects.using(alias).create(text="hello")
        ask_a_child(alias, env=node_environment, cwd=tmp_path)
        assert Note.objects.using(alias).filter(text="hello answered").exists()

    def test_needs_no_environment_of_its_own(self, alias, tmp_path):
        Note.objects.using(alias).create(text="hello")
        ask_a_child(alias, cwd=tmp_path)
        assert Note.objects.using(alias).filter(text="hello answered").exists()


@pytest.mark.django_db(databases=["default", "other"])
def test_the_other_database_is_another_one_and_sqlite():
    Note.objects.using("default").create(text="hello")
    assert not Note.objects.using("other").exists()
    assert connections["other"].vendor == "sqlite"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://postgres:@/queuetopia?host=/tmp/x", "postgresql://postgres:@/test?host=/tmp/x"),
        ("postgres:///queuetopia", "postgres:///test"),
        ("mysql://root@127.0.0.1:3306/queuetopia", "mysql://root@127.0.0.1:3306/test"),
        ("sqlite:////tmp/x/queuetopia.sqlite3", "sqlite:///test"),
    ],
)
def test_a_url_keeps_its_server_when_its_database_changes(url, expected):
    assert url_of_database(url, "test") == expected
