"""The page that answers what ``status --check`` says."""

import pytest

from queuetopia.views import health
from tests.commands import HOSTILE
from tests.states import mail_queue, put, put_node

pytestmark = pytest.mark.django_db


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


def test_all_well_is_ok(queues, rf):
    put_node()
    response = health(rf.get("/"))
    assert (response.status_code, response.content) == (200, b"ok\n")
    assert "no-store" in response["Cache-Control"]


def test_each_problem_is_a_line_of_a_503(queues, rf):
    put_node()
    put(queues, "halted")
    response = health(rf.get("/"))
    assert (response.status_code, response.content) == (
        503, b"tests.mail: queues halted, waiting for an operator: 1\n",
    )  # fmt: skip


def test_a_machine_may_ask_for_json(queues, rf):
    put(queues, "scheduled")
    response = health(rf.get("/", headers={"accept": "application/json"}))
    assert response.status_code == 503
    assert b'"problem": "no node"' in response.content
    assert health(rf.get("/", headers={"accept": "*/*"}))["Content-Type"].startswith("text/plain")


def test_texts_of_users_are_made_visible(queues, rf):
    put_node()
    put(queues, "waiting", queue=HOSTILE)
    (line,) = health(rf.get("/")).content.decode().splitlines()
    assert line.startswith("tests.mail: a job of queue ")


def test_only_reading_is_allowed(queues, rf):
    assert health(rf.post("/")).status_code == 405
