"""``max_depth``: a queue that has so many unfinished jobs takes no more from creators."""

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from queuetopia import InvalidJob, QueueFull, Queuetopia
from queuetopia.models import Job
from queuetopia.testing import drain
from tests.testapp.queues import LedgerPerformer

pytestmark = pytest.mark.django_db


@pytest.fixture
def short(declare_only):
    declare_only()
    return declared()


def declared(**options):
    return type("Short", (Queuetopia,), {"scope": "depth", "performer": LedgerPerformer, "max_depth": 3, **options})


def put(queuetopia, queue="a", **options):
    return queuetopia.create_job(queue, "noop", **options)


@pytest.mark.capability("X13")
def test_a_full_queue_takes_no_more_until_a_job_of_it_has_ended(short):
    first, *_ = (put(short) for _ in range(3))
    with pytest.raises(QueueFull) as caught:
        put(short)
    assert isinstance(caught.value, InvalidJob)
    assert caught.value.message_dict == {
        "queue": [
            "'a' has 3 unfinished jobs, of 3 that Short lets it have (max_depth). "
            "Nothing was created; try again when some have ended."
        ]
    }
    assert Job.objects.count() == 3
    put(short, "b")
    short.cancel(first)
    put(short)
    assert len(drain(short)) == 4


def test_jobs_in_bulk_are_created_all_or_none(short):
    put(short)
    new = [short.job(queue, "noop") for queue in "abaab"]
    with pytest.raises(QueueFull) as caught:
        short.create_jobs(new)
    assert list(caught.value.message_dict) == ["jobs[3].queue"]
    assert Job.objects.count() == 1
    assert len(short.create_jobs(new[:3])) == 3


@pytest.mark.parametrize("kind", ["unique", "coalesce"])
def test_a_job_that_is_there_is_returned_by_a_full_queue_too(short, kind):
    job = put(short, **{kind: "key"})
    put(short), put(short)
    again = put(short, **{kind: "key"})
    assert (again.pk, again.is_new) == (job.pk, False)
    with pytest.raises(QueueFull):
        put(short, **{kind: "other"})


def test_verbs_are_not_refused_by_a_full_queue(short):
    jobs = [put(short) for _ in range(3)]
    short.move_to_end(jobs[0])
    assert [job.pk for job in drain(short)] == [jobs[1].pk, jobs[2].pk, jobs[0].pk]


def test_without_the_option_nothing_is_counted(declare_only):
    declare_only()
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        put(declared(max_depth=None))
    assert [query["sql"] for query in queries if "COUNT" in query["sql"].upper()] == []


@pytest.mark.django_db(transaction=True)
def test_the_count_reads_no_more_jobs_than_the_queue_may_have(short):
    Job.objects.bulk_create(Job(scope="depth", queue="a", action="noop") for _ in range(50))
    with CaptureQueriesContext(connection) as queries, pytest.raises(QueueFull):
        put(short)
    (counted,) = (query["sql"] for query in queries if "COUNT" in query["sql"].upper())
    assert "LIMIT 3" in counted


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3"])
def test_a_depth_that_no_queue_can_have_is_named(declare_only, value):
    declare_only()
    with pytest.raises(Exception, match=r"max_depth .* is not a whole number from 1 on"):
        put(declared(max_depth=value))
