"""A database that is away, not migrated or closed to its user: each is said as what it is, everywhere."""

from functools import partial

import pytest
from django.core.management import CommandError, call_command
from django.db import Error

from queuetopia.backends.trouble import Kind, database_trouble
from queuetopia.exceptions import SessionLost
from queuetopia.registry import registered
from tests.broken import broken_database
from tests.commands import check, run, run_json
from tests.states import mail_queue

pytestmark = pytest.mark.django_db(transaction=True, databases=["default", "other"])

SAYS = {
    Kind.UNREACHABLE: "The database cannot be reached: ",
    Kind.NOT_MIGRATED: "The database lacks tables or columns of Queuetopia: ",
    Kind.NO_RIGHTS: "Rights are missing in the database: ",
}


@pytest.fixture(params=[*SAYS], ids=str)
def trouble(request, declare_only, tmp_path):
    declare_only()
    with broken_database(request.param, tmp_path) as alias:
        mail_queue(using=alias)
        yield request.param


@pytest.mark.parametrize(
    "verb",
    [
        ("status", "tests.mail"), ("explain", "tests.mail", "a"), ("statistics", "tests.mail"), ("retry", 1),
        ("cancel", 1, "--scope", "tests.mail"), ("pause", "tests.mail"), ("resume", "tests.mail", "a"),
        ("prune", "tests.mail"),
    ],
    ids=lambda verb: verb[0],
)  # fmt: skip
def test_every_verb_says_what_is_wrong_and_nothing_else(trouble, verb):
    if verb[0] == "retry":
        verb = (*verb, "--database", "other")
    text, refused = run(*verb)
    assert text == ""
    assert SAYS[trouble] in refused
    assert [said for said in SAYS.values() if said in refused] == [SAYS[trouble]]


def test_the_check_has_a_word_for_each(trouble):
    code, (line,) = check("tests.mail")
    assert (code, line.startswith(f"database other: {SAYS[trouble]}")) == (1, True)
    answer, _refused = run_json("status", "tests.mail")
    assert [each["problem"] for each in answer["unreachable"]] == [trouble]


def test_a_node_is_not_started(trouble, monkeypatch):
    with pytest.raises(CommandError) as refused:
        call_command("run_queuetopia", "tests.mail", until_empty=True)
    if trouble is not Kind.NOT_MIGRATED:
        assert SAYS[trouble] in str(refused.value)
    else:
        assert "lacks Queuetopia's" in str(refused.value) and "manage.py migrate" in str(refused.value)


def test_the_trouble_behind_a_lost_session_is_found(trouble):
    from queuetopia.models import Node

    try:
        try:
            Node.objects.using("other").first()
        except Exception as exc:
            raise SessionLost("10 errors in a row") from exc
    except SessionLost as lost:
        assert database_trouble(lost).kind is trouble


def test_any_other_error_is_only_told():
    assert database_trouble(ValueError("boom.")) == (Kind.REFUSED, "The database refused: boom.")


def test_an_error_of_a_class_has_the_remedy_as_a_note(trouble):
    (queues,) = registered()
    for act in (partial(queues.create_job, "a", "send_mail"), queues.status):
        with pytest.raises(Error) as caught:
            act()
        (note,) = caught.value.__notes__
        assert note.startswith(f"Database {queues.database()}: {SAYS[trouble]}")
