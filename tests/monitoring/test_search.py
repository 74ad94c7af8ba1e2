"""Searching jobs: by number, queue, action, error and params; nothing is a wildcard, nothing masked is found."""

from itertools import count

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import SynchronousOnlyOperation

from queuetopia.models import Job
from queuetopia.monitoring import search
from tests.states import mail_queue, put

pytestmark = [pytest.mark.django_db, pytest.mark.capability("Q21")]


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


def found(queues, text, **filters):
    return {job.queue for job in queues.list_jobs(search=text, **filters)}


def create(queues, queue, address="x", **columns):
    job = Job.objects.create(scope="tests.mail", queue=queue, action="charge", params={"address": address})
    if columns:
        Job.objects.filter(pk=job.pk).update(**columns)
    return job


def test_a_number_is_a_jobs_number(queues):
    job, _other = create(queues, "anna"), create(queues, "berta")
    assert found(queues, f" {job.pk} ") == {"anna"}
    assert found(queues, str(job.pk), queue="berta") == set()
    assert found(queues, "9" * 40) == set()


def test_a_queue_is_found_by_the_beginning_of_its_name(queues):
    for queue in ("anna", "annabel", "berta-anna"):
        create(queues, queue)
    assert found(queues, "anna") == {"anna", "annabel"}
    assert found(queues, "nna") == set()


def test_an_action_is_found_by_its_beginning(queues):
    create(queues, "a")
    assert (found(queues, "char"), found(queues, "ge")) == ({"a"}, set())


def test_an_error_is_found_by_any_part_of_it(queues):
    create(queues, "a", error="ConnectionError: mail.example refused")
    create(queues, "b", error="TimeoutError: mail.example")
    assert found(queues, "EXAMPLE ref") == {"a"}
    assert found(queues, "mail.example") == {"a", "b"}


@pytest.mark.parametrize(
    ("address", "text"), [("12 Rue d'É", "rue d'É"), ('a "quoted" one', '"quoted"'), ("back\\slash", "k\\s")]
)
def test_params_are_found_by_any_part_of_them(queues, address, text):
    create(queues, "a", address)
    create(queues, "b")
    assert found(queues, text) == {"a"}


@pytest.mark.parametrize("text", ["%", "_", "a%", "a_", "\\", "\\%", "[a]", "*", "a.", "'", '"', "a' OR 1=1 --"])
def test_no_character_is_a_wildcard(queues, text):
    numbers = count()
    for queue in ("a", "ab", "abc"):
        create(queues, queue, next(numbers))
    create(queues, f"{text} itself", next(numbers))
    assert found(queues, text, action="charge") - {"a", "ab", "abc"} == {f"{text} itself"}
    if text != '"':  # of which JSON is full
        assert found(queues, text) == {f"{text} itself"}


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_a_blank_text_finds_all(queues, text):
    create(queues, "a")
    assert found(queues, text) == {"a"}
    assert found(queues, text, queue="b") == set()


def test_params_of_a_class_with_sensitive_ones_are_not_searched(declare_only):
    declare_only()
    queues = mail_queue(sensitive_params=("card",))
    create(queues, "a", "secret")
    assert found(queues, "secret") == set()


def test_jobs_of_other_scopes_are_not_found(queues):
    put(queues, "waiting", "anna")
    Job.objects.create(scope="tests.other", queue="anna-2", action="charge", params={})
    assert found(queues, "anna") == {"anna"}


def test_what_no_index_knows_is_searched_among_the_newest_jobs(queues, monkeypatch):
    monkeypatch.setattr(search, "MOST_SEARCHED", 2)
    for queue in ("old", "older", "oldest"):
        put(queues, "done", queue, error="boom")
    put(queues, "waiting", "old-waiting", error="boom")
    for queue in ("x", "y"):
        create(queues, queue)
    assert found(queues, "boom") == set()
    assert found(queues, "old") == {"old-waiting"}  # by its queue's name, however old it is


def test_pages_of_what_is_found(queues):
    for number in range(5):
        create(queues, f"anna-{number}")
    page = queues.paginate_jobs(page=2, per_page=2, search="anna")
    assert [job.queue for job in page] == ["anna-2", "anna-3"]
    assert page.paginator.count == 5


def test_in_async_code_the_call_names_what_to_write_instead(queues):
    async def view():
        queues.list_jobs(search="anna")

    with pytest.raises(SynchronousOnlyOperation, match="await sync_to_async"):
        async_to_sync(view)()
