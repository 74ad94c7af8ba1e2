"""Independent jobs, ``ordered = False``: each is a line of its own under the name it was given."""

import copy
import html
import pickle
import re
from collections import Counter
from datetime import timedelta

import pytest
from django.core import checks
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from queuetopia import Every, InvalidJob, Move, Performer, Queuetopia, Refused, action
from queuetopia.jobs import delete_ended, prune
from queuetopia.lines import LONGEST_GIVEN, given_name, is_own, own_name
from queuetopia.models import Job, JobEvent, Once, Queue
from queuetopia.monitoring import status
from queuetopia.testing import assert_job_created, capture_events, create_due_jobs, drain, jobs_created
from tests.admin.client import client_of, page, plain
from tests.commands import run
from tests.states import HOUR, put, put_node

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X12")]

ran = []


class ThumbnailPerformer(Performer):
    @action
    def make(self, job, number=0, fails=False):
        ran.append((job.queue, number))
        if fails:
            raise OSError("no such picture")


@pytest.fixture
def thumbnails(declare_only):
    declare_only()
    ran.clear()
    return declared(ordered=False)


def declared(**options):
    values = {"performer": ThumbnailPerformer, "scope": "tests.thumbnails", **options}
    return type("ThumbnailQueue", (Queuetopia,), values)


def rows():
    return Queue.objects.filter(scope="tests.thumbnails")


# Creating and finding


def test_a_job_has_the_name_it_was_given_and_a_queue_of_its_own(thumbnails):
    first, second = (thumbnails.create_job("pictures", "make", {"number": number}) for number in range(2))
    assert first.queue == second.queue == "pictures"
    assert is_own(first.row_name) and is_own(second.row_name) and first.row_name != second.row_name
    assert {job.queue for job in thumbnails.jobs()} == {"pictures"}
    assert {job.row_name for job in thumbnails.jobs()} == {first.row_name, second.row_name}
    assert set(Job.objects.values_list("queue", flat=True)) == {first.row_name, second.row_name}


def test_the_jobs_of_an_ordered_class_are_stored_as_ever(declare_only):
    declare_only()
    job = declared().create_job("pictures", "make")
    assert (job.row_name, type(job.queue)) == ("pictures", str)
    assert Job.objects.values_list("queue", flat=True).get() == "pictures"
    assert type(Job.objects.get().queue) is str


def test_jobs_in_bulk_have_queues_of_their_own_in_their_order(thumbnails):
    jobs = thumbnails.create_jobs([thumbnails.job("pictures", "make", {"number": n}) for n in range(5)])
    assert len({job.row_name for job in jobs}) == 5
    stored = thumbnails.jobs().in_order()
    assert [(job.pk, job.row_name) for job in stored] == [(job.pk, job.row_name) for job in jobs]
    assert [job.params["number"] for job in stored] == [0, 1, 2, 3, 4]


def test_without_a_name_a_job_has_that_of_its_action(thumbnails, declare_only):
    assert thumbnails.create_job(None, "make").queue == "make"
    assert_job_created(thumbnails, "make", "make")
    with pytest.raises(InvalidJob, match="must be a str, not NoneType"):
        declared(scope="tests.ordered").create_job(None, "make")


def test_jobs_are_found_by_the_name_they_were_given(thumbnails):
    for name in ("a", "A", "a#job-", "ab", "a%", "ä", "a"):
        thumbnails.create_job(name, "make")
    for name, count in {"a": 2, "A": 1, "a#job-": 1, "a%": 1, "ä": 1, "b": 0}.items():
        assert thumbnails.jobs().filter(queue=name).count() == count, name
        assert thumbnails.list_jobs(queue=name).count() == count
        assert thumbnails.jobs().exclude(queue=name).count() == 7 - count
        assert len(jobs_created(thumbnails, name)) == count
    assert thumbnails.jobs().filter(queue__in=["ab", "ä"], state="pending").count() == 2
    assert thumbnails.jobs().filter(queue__in=[]).count() == 0
    assert thumbnails.jobs().get(queue="ab").queue == "ab"
    one = thumbnails.jobs().filter(queue="a").first()
    assert thumbnails.jobs().get(queue=one.queue) == one  # what a job says of itself is its own queue
    assert Job.objects.get(queue=one.row_name) == one


def test_a_job_keeps_its_queue_however_it_is_read_and_written(thumbnails):
    job = thumbnails.create_job("pictures", "make")
    name = job.row_name
    for same in (
        Job.objects.get(),
        Job.objects.defer("queue").get(),
        copy.deepcopy(job),
        pickle.loads(pickle.dumps(job)),  # noqa: S301 - our own
    ):
        assert (same.queue, same.row_name) == ("pictures", name)
        same.refresh_from_db()
        same.save()
        assert (same.queue, same.row_name) == ("pictures", name)
    assert Job.objects.values_list("queue", flat=True).get() == name


@pytest.mark.parametrize("name", ["x" * LONGEST_GIVEN, "🙂" * LONGEST_GIVEN, " ", "a#job-0", "#job-"])
def test_any_name_that_leaves_room_for_the_number_is_taken(thumbnails, name):
    job = thumbnails.create_job(name, "make")
    job.refresh_from_db()
    assert job.queue == name
    assert [done.queue for done in drain(thumbnails, name)] == [name]


def test_a_name_that_leaves_no_room_and_one_that_looks_like_a_rows_are_refused(thumbnails):
    with pytest.raises(
        InvalidJob, match=f"has {LONGEST_GIVEN + 1} characters; a queue's name has 1 to {LONGEST_GIVEN}"
    ):
        thumbnails.create_job("x" * (LONGEST_GIVEN + 1), "make")
    for queues in (thumbnails, declared(scope="tests.ordered")):
        with pytest.raises(InvalidJob, match="is how the queue of an independent job is named"):
            queues.create_job(own_name("x").row_name, "make")
    assert not Job.objects.exists()


def test_jobs_by_the_clock_are_independent_too(declare_only):
    declare_only()
    hourly = Every("hourly", hours=1, queue="q", action="make", missed="all", pile_up=True)
    queues = declared(ordered=False, schedules=[hourly])
    start = timezone.now()
    create_due_jobs(queues, now=start)
    jobs = create_due_jobs(queues, now=start + 3 * HOUR)
    assert [job.queue for job in jobs] == ["q"] * 3
    assert set(rows().values_list("name", flat=True)) == {job.row_name for job in jobs}
    assert len({job.row_name for job in jobs}) == 3


@pytest.mark.parametrize("key", ["unique", "coalesce"])
def test_keys_of_one_queue_are_refused(thumbnails, key):
    with pytest.raises(InvalidJob, match="with ordered = False each has its own"):
        thumbnails.create_job("pictures", "make", **{key: "a"})


# Running


def test_one_that_fails_delays_no_other_of_its_name(thumbnails):
    failing = thumbnails.create_job("pictures", "make", {"fails": True})
    others = [thumbnails.create_job("pictures", "make", {"number": number}) for number in range(1, 4)]
    drain(thumbnails)
    assert {job.state for job in thumbnails.jobs().filter(pk__in=[job.pk for job in others])} == {"done"}
    failing.refresh_from_db()
    assert (failing.state, failing.attempts, failing.is_backing_off()) == ("pending", 1, True)
    (again,) = drain(thumbnails, now=timezone.now() + timedelta(minutes=1), limit=1)[:1]
    assert (again.pk, again.attempts) == (failing.pk, 2)


def test_one_name_is_drained_alone(thumbnails):
    thumbnails.create_job("pictures", "make", {"number": 1})
    thumbnails.create_job("films", "make", {"number": 2})
    thumbnails.create_job("films", "make", {"number": 3})
    assert [job.queue for job in drain(thumbnails, "films")] == ["films", "films"]
    assert sorted(ran) == [("films", 2), ("films", 3)]


# What operators do


@pytest.mark.parametrize("verb", ["pause", "resume", "prioritize"])
def test_a_name_of_many_queues_is_no_queue_to_decide_about(thumbnails, verb):
    job = thumbnails.create_job("pictures", "make")
    with pytest.raises(Refused, match=r"pictures is no queue.*Name that one \(job.row_name\)"):
        getattr(thumbnails, verb)("pictures")
    with pytest.raises(Refused, match="pictures is no queue"):
        thumbnails.edit_memory("pictures", {"page": 2})
    assert not rows().filter(name="pictures").exists()
    thumbnails.pause(job.queue)
    assert drain(thumbnails) == []
    thumbnails.resume(job.row_name)
    assert len(drain(thumbnails)) == 1


def test_verbs_on_jobs_are_those_of_any_job(thumbnails):
    one, two, three = (
        put(thumbnails, state, own_name("pictures").row_name) for state in ("halted", "halted", "waiting")
    )
    assert thumbnails.retry(one).state == "pending"
    assert thumbnails.skip(two).state == "skipped"
    assert thumbnails.cancel(three) == "cancelled"
    assert {event.queue for event in JobEvent.objects.all()} == {job.queue for job in (one, two, three)}


def test_all_of_a_name_are_retried_and_skipped(thumbnails):
    for name in ("pictures", "pictures", "films"):
        put(thumbnails, "halted", own_name(name).row_name)
    assert thumbnails.retry_all("pictures") == 2
    assert thumbnails.skip_all("films") == 1
    assert sorted(thumbnails.jobs().values_list("state", flat=True)) == ["pending", "pending", "skipped"]


def test_a_blocking_job_moved_to_the_end_gets_a_queue_of_its_own_again(thumbnails):
    job = put(thumbnails, "halted", own_name("pictures").row_name)
    copied = thumbnails.move_to_end(job)
    assert copied.queue == "pictures"
    assert copied.row_name not in ("pictures", job.queue)


def test_a_job_that_moves_once_its_class_has_an_order_leaves_no_row_behind(thumbnails, declare_only):
    job = thumbnails.create_job("films", "make", {"fails": True}, max_attempts=1, on_exhausted=Move("graveyard"))
    declare_only()
    ordered = declared()
    drain(ordered)
    job.refresh_from_db()
    assert (job.queue, job.state) == ("graveyard", "halted")
    assert {row.name for row in rows()} <= {"graveyard"}


# Looking


def test_status_lists_names_and_the_job_of_each_that_is_in_most_trouble(thumbnails):
    for name, states in {
        "pictures": ("waiting", "waiting", "halted", "backing off"),
        "films": ("waiting", "done"),
    }.items():
        for state in states:
            put(thumbnails, state, own_name(name).row_name)
    found = thumbnails.status()
    assert found["ordered"] is False
    listed = [(queue["queue"], queue["state"], queue["depth"]) for queue in found["queues"]]
    assert listed == [("pictures", "halted", 4), ("films", "ready", 1)]
    halted = thumbnails.jobs().halted().get()
    assert found["queues"][0]["job"] == halted.pk
    assert [queue["queue"] for queue in thumbnails.status(queues=1)["queues"]] == ["pictures"]


def test_a_name_is_explained_by_the_job_that_is_in_most_trouble(thumbnails):
    put_node(scopes=[thumbnails.scope])
    for state in ("waiting", "halted", "waiting"):
        put(thumbnails, state, own_name("pictures").row_name)
    halted = thumbnails.jobs().halted().get()
    found = thumbnails.explain("pictures")
    assert (found["cause"], found["job"], found["jobs"], found["queue"]) == ("halted", halted.pk, 3, "pictures")
    assert found["sentence"].startswith(
        f"pictures is the name of 3 jobs that need no order. One of them: pictures is held by job {halted.pk}"
    )
    assert thumbnails.explain(halted.queue)["sentence"].startswith(f"pictures is held by job {halted.pk} (")
    assert thumbnails.explain(halted.row_name)["job"] == halted.pk
    assert thumbnails.explain("films")["cause"] == "empty"
    run("explain", "tests.thumbnails", "pictures")


def test_a_job_that_no_node_was_notified_of_is_explained(thumbnails):
    put_node(scopes=[thumbnails.scope])
    job = thumbnails.create_job("pictures", "make")  # in the test's transaction: nothing was woken
    found = thumbnails.explain("pictures")
    assert (found["cause"], found["job"]) == ("not woken", job.pk)


def test_statistics_and_events_are_of_the_names_that_were_given(thumbnails):
    with capture_events(thumbnails) as events:
        for name in ("pictures", "pictures", "films"):
            thumbnails.create_job(name, "make")
        halted = put(thumbnails, "halted", own_name("pictures").row_name)
        drain(thumbnails)
        thumbnails.skip(halted)
    found = thumbnails.statistics(by="queue")["rows"]
    assert {row["queue"]: row["created"] for row in found} == {"pictures": 3, "films": 1}
    assert Counter(event.queue for event in events if event.event == "done") == {"pictures": 2, "films": 1}
    assert {event.queue for event in events if event.event in ("skip", "skipped")} == {"pictures"}


def test_what_runs_is_shown_under_the_name_it_was_given(thumbnails):
    put_node(scopes=[thumbnails.scope])
    job = put(thumbnails, "running first", own_name("pictures").row_name)
    (node,) = status.nodes("default")
    assert [(run["job"], run["queue"]) for worker in node["workers"] for run in worker["jobs"]] == [
        (job.pk, "pictures")
    ]


def test_the_admin_names_them_and_lists_all_of_a_name(thumbnails):
    jobs = [put(thumbnails, state, own_name("pictures").row_name) for state in ("halted", "waiting")]
    jobs.append(put(thumbnails, "waiting", own_name("films").row_name))
    client = client_of("view_job", "view_queue")
    listed = "/admin/queuetopia/job/"
    assert plain(page(client, listed)).count("tests.thumbnails/pictures") == 2
    details = page(client, f"{listed}{jobs[0].pk}/change/")
    assert f"pictures is held by job {jobs[0].pk} (send_mail), halted" in plain(details)
    (link,) = re.findall(r'href="([^"]*queue=pictures)"', html.unescape(details))
    assert plain(page(client, link)).count("tests.thumbnails/pictures") == 2
    row = rows().get(name=jobs[0].queue)
    assert f"tests.thumbnails/{row.name}" in plain(page(client, "/admin/queuetopia/queue/"))
    assert "pictures is held by job" in plain(page(client, f"/admin/queuetopia/queue/{row.pk}/change/"))
    overview = page(client_of("view_scope", "view_job", "view_queue", username="bob"), "/admin/queuetopia/scope/")
    assert "tests.thumbnails" in overview


# Pruning


def test_a_row_goes_with_its_job_and_no_other_ever_does(thumbnails):
    jobs = thumbnails.create_jobs([thumbnails.job("pictures", "make", {"number": n}) for n in range(3)])
    jobs.append(thumbnails.create_job("pictures", "make", {"fails": True}))
    drain(thumbnails)
    ordered = put(declared(scope="tests.ordered"), "done", "pictures")
    Once.objects.create(scope=thumbnails.scope, queue=jobs[0].row_name)
    assert rows().count() == 4
    assert prune(thumbnails, older_than=0) == 3
    assert [row.name for row in rows()] == [jobs[3].row_name]
    assert not Once.objects.exists()
    for queues in (thumbnails, declared(scope="tests.ordered")):
        prune(queues, older_than=0)
    assert not Job.objects.filter(pk=ordered.pk).exists()
    assert Queue.objects.filter(scope="tests.ordered", name="pictures").exists()


def test_a_job_whose_queue_is_still_held_stays_until_it_is_let_go(thumbnails):
    job = put(thumbnails, "done", own_name("pictures").row_name, done_at=timezone.now() - HOUR)
    other = put(thumbnails, "done", own_name("pictures").row_name, done_at=timezone.now() - HOUR)
    put_node()
    rows().filter(name=job.queue).update(held_by="00000000-0000-0000-0000-000000000007", current_job=job.pk)
    assert prune(thumbnails, older_than=60) == 1
    assert delete_ended(job.pk, alias="default") is False
    assert list(thumbnails.jobs()) == [job]
    assert not rows().filter(name=other.queue).exists()
    rows().update(held_by=None, current_job=None)
    assert prune(thumbnails, older_than=60) == 1
    assert not rows().exists()


def test_a_job_deleted_by_hand_takes_its_row_along(thumbnails):
    job = put(thumbnails, "skipped", own_name("pictures").row_name)
    assert delete_ended(job.pk, alias="default") is True
    assert not rows().exists()


def test_pruning_an_ordered_class_asks_for_no_queues(declare_only):
    declare_only()
    ordered = declared(scope="tests.ordered")
    put(ordered, "done", "pictures", done_at=timezone.now() - HOUR)
    with CaptureQueriesContext(connection) as captured:
        assert prune(ordered, older_than=60) == 1
    statements = " ".join(query["sql"] for query in captured)
    assert Queue._meta.db_table not in statements  # nor needs the right to delete any
    assert Once._meta.db_table not in statements


# From one kind to the other


def test_jobs_keep_the_kind_of_queue_in_which_they_were_created(declare_only):
    declare_only()
    ordered = declared()
    for number in range(2):
        ordered.create_job("pictures", "make", {"number": number})
    declare_only()
    independent = declared(ordered=False)
    for number in range(2, 4):
        independent.create_job("pictures", "make", {"number": number})
    assert independent.jobs().filter(queue="pictures").count() == 4
    independent.pause("pictures")
    assert sorted(job.params["number"] for job in drain(independent)) == [2, 3]
    independent.create_job("pictures", "make", {"number": 4})
    independent.resume("pictures")
    declare_only()
    ordered = declared()
    ordered.create_job("pictures", "make", {"number": 5})
    assert {job.queue for job in ordered.jobs()} == {"pictures"}
    done = [job.params["number"] for job in drain(ordered)]
    assert sorted(done) == [0, 1, 4, 5]
    assert [number for number in done if number != 4] == [0, 1, 5]
    prune(ordered, older_than=0)
    assert [row.name for row in rows()] == ["pictures"]


# Checks and names


def test_options_about_order_contradict_it(declare_only):
    declare_only()
    declared(ordered=False, commit_ordered=True, spacing=5)
    found = {problem.id: problem for problem in checks.run_checks(tags=["queuetopia"])}
    assert "asks for an order" in found["queuetopia.E018"].msg
    assert "each has its own" in found["queuetopia.W013"].msg
    declare_only()
    declared(ordered=False)
    assert not {"queuetopia.E018", "queuetopia.W013"} & {
        problem.id for problem in checks.run_checks(tags=["queuetopia"])
    }


@pytest.mark.parametrize(
    "name",
    [
        "",
        "a",
        "#job-",
        "a#job-0123456789abcde",
        "a#job-0123456789abcdeg",
        "a#job-0123456789ABCDEF",
        "a#job-0123456789abcdef\n",
    ],
)
def test_other_names_are_their_own(name):
    assert given_name(name) is name
