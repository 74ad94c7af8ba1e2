"""What status says of scopes, queues and nodes, and what it costs."""

import json
import uuid
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from queuetopia import conf
from queuetopia.models import Job, Node, Queue
from queuetopia.monitoring import status
from tests.states import NODE, WORKER_FIGURES, mail_queue, put, put_node

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


def the_queue(queuetopia):
    (queue,) = queuetopia.status()["queues"]
    return queue


class TestStateOfAQueue:
    @pytest.mark.parametrize(
        ("state", "shown"),
        [
            ("waiting", "ready"),
            ("scheduled", "scheduled"),
            ("running first", "running"),
            ("running again", "running"),
            ("backing off", "backing off"),
            ("snoozed", "backing off"),
            ("halted", "halted"),
        ],
    )
    def test_follows_from_its_row_and_its_job(self, queues, state, shown):
        put(queues, state)
        assert the_queue(queues)["state"] == shown

    @pytest.mark.parametrize("state", ["waiting", "scheduled"])
    @pytest.mark.parametrize("name", [None, "customer-42"])
    def test_is_paused_when_it_or_its_scope_is(self, queues, state, name):
        put(queues, state)
        queues.pause(name, by="ann", reason="deploy")
        assert the_queue(queues)["state"] == "paused"

    @pytest.mark.parametrize(
        ("state", "shown"), [("running first", "running"), ("halted", "halted"), ("backing off", "backing off")]
    )
    def test_of_a_running_or_blocked_queue_shows_under_a_pause(self, queues, state, shown):
        put(queues, state)
        queues.pause("customer-42", by="ann", reason="deploy")
        queue = the_queue(queues)
        assert queue["state"] == shown
        assert (queue["paused"]["by"], queue["paused"]["reason"]) == ("ann", "deploy")

    @pytest.mark.parametrize("state", ["done", "skipped", "cancelled"])
    def test_without_unfinished_jobs_is_not_listed(self, queues, state):
        job = put(queues, state)
        assert queues.status()["queues"] == []
        assert status.queue_state(Queue.objects.get(name=job.queue), None, timezone.now()) == "empty"

    def test_is_that_of_the_line_when_the_row_names_a_job_that_has_ended(self, queues):
        job = put(queues, "done")
        Queue.objects.update(current_job=job.pk, due_at=timezone.now() - HOUR)
        assert the_queue(queues)["state"] == "ready"


@pytest.mark.capability("H26")
class TestQueue:
    def test_that_is_blocked_says_by_what_and_until_when(self, queues):
        job = put(queues, "backing off", max_attempts=9)
        put(queues, "done")
        oldest = job.scheduled_at
        Queue.objects.update(current_job=job.pk, fence=5)
        Job.objects.create(scope="tests.mail", queue="customer-42", action="send_mail")
        job.refresh_from_db()
        queue = the_queue(queues)
        assert (queue["queue"], queue["depth"], queue["fence"]) == ("customer-42", 2, 5)
        assert (queue["job"], queue["action"]) == (job.pk, "send_mail")
        assert (queue["attempt"], queue["max_attempts"]) == (2, 9)
        assert queue["error"] == "ValueError: boom"
        assert queue["next_attempt_at"] == job.next_attempt_at
        assert queue["since"] == job.attempted_at
        assert abs(queue["oldest"] - oldest) < timedelta(seconds=1)
        assert queue["held_by"] is None

    @pytest.mark.capability("E7")
    def test_that_runs_says_where_since_when_and_which_attempt(self, queues):
        put_node()
        job = put(queues, "running again")
        queue = the_queue(queues)
        assert (queue["held_by"], queue["fence"], queue["job"]) == ("web1:4242", 7, job.pk)
        assert (queue["attempt"], queue["max_attempts"]) == (3, 20)
        assert queue["since"] == Queue.objects.get().held_since

    def test_held_by_a_node_that_is_gone_says_so(self, queues):
        put(queues, "running first")
        assert the_queue(queues)["held_by"] == f"unknown node {NODE}"

    def test_whose_jobs_never_began_names_no_job(self, queues):
        put(queues, "waiting")
        queue = the_queue(queues)
        assert [queue[key] for key in ("job", "action", "attempt", "max_attempts", "error")] == [None] * 5

    def test_tells_its_problem_and_stands_with_the_blocked_ones(self, queues):
        put(queues, "running first", "runs")
        put(queues, "waiting", "unknown")
        Queue.objects.filter(name="unknown").update(problem="no action 'send_fax'")
        assert [(q["queue"], q["problem"]) for q in queues.status()["queues"]] == [
            ("unknown", "no action 'send_fax'"),
            ("runs", None),
        ]

    def test_whose_params_are_corrupt_is_listed_like_any_other(self, queues):
        job = put(queues, "halted")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE queuetopia_job SET params = '[1]' WHERE id = %s", [job.pk])
        assert the_queue(queues)["job"] == job.pk


class TestList:
    def test_has_the_blocked_queues_first(self, queues):
        for state in ("scheduled", "waiting", "running first", "backing off", "halted"):
            put(queues, state, state)
        put(queues, "waiting", "paused")
        queues.pause("paused")
        shown = [queue["state"] for queue in queues.status()["queues"]]
        assert shown == ["halted", "backing off", "running", "paused", "ready", "scheduled"]

    def test_has_no_more_queues_than_asked_for_and_counts_them_all(self, queues):
        now = timezone.now()
        Queue.objects.bulk_create(
            Queue(scope="tests.mail", name=f"q{number}", due_at=now, current_job=number) for number in range(3000)
        )
        put(queues, "halted", "worst")
        found = queues.status(queues=7)
        assert len(found["queues"]) == 7
        assert found["queues"][0]["queue"] == "worst"
        assert found["queue_counts"]["not_empty"] == 3001
        assert len(queues.status()["queues"]) == 20

    def test_has_a_bound_whatever_is_asked_for(self, queues, monkeypatch):
        monkeypatch.setattr(status, "MOST_QUEUES", 2)
        for number in range(3):
            put(queues, "waiting", f"queue-{number}")
        assert len(queues.status(queues=10**9)["queues"]) == 2
        assert queues.status(queues=-1)["queues"] == []

    def test_has_the_queues_of_this_scope_only(self, queues):
        put(mail_queue("tests.other"), "halted")
        found = queues.status()
        assert found["queues"] == []
        assert found["jobs"]["unfinished"] == found["queue_counts"]["not_empty"] == 0


class TestScope:
    def test_counts_its_unfinished_jobs_and_its_queues(self, queues):
        for number, state in enumerate(["waiting", "running first", "backing off", "snoozed", "halted", "done"]):
            put(queues, state, f"queue-{number}")
        put(queues, "scheduled", "queue-0")
        queues.pause("queue-4")
        found = queues.status()
        oldest = found["jobs"].pop("oldest")
        assert found["jobs"] == {
            "unfinished": 6,
            "waiting": 2,
            "running": 1,
            "outside": 0,
            "backing_off": 2,
            "halted": 1,
        }
        assert oldest == min(Job.objects.unfinished().values_list("scheduled_at", flat=True))
        assert found["queue_counts"] == {
            "not_empty": 5, "blocked": 3, "backing_off": 2, "halted": 1, "outside": 0, "running": 1, "paused": 1,
            "problem": 0,
        }  # fmt: skip

    def test_without_a_job_is_all_zero(self, queues):
        found = queues.status()
        assert found["jobs"] == {
            "unfinished": 0, "waiting": 0, "running": 0, "outside": 0, "backing_off": 0, "halted": 0, "oldest": None,
        }  # fmt: skip
        assert set(found["queue_counts"].values()) == {0}

    def test_says_who_paused_it_and_why(self, queues):
        assert queues.status()["paused"] is None
        queues.pause(by="ann", reason="deploy")
        paused = queues.status()["paused"]
        assert (paused["by"], paused["reason"]) == ("ann", "deploy")
        queues.resume()
        assert queues.status()["paused"] is None

    def test_names_the_nodes_that_serve_it(self, queues):
        put_node()
        put_node(id=uuid.uuid4(), host="web2", scopes=["tests.other"])
        put_node(id=uuid.uuid4(), host="web3", last_seen=timezone.now() - HOUR)
        nodes = {node["node"]: node["alive"] for node in queues.status()["nodes"]}
        assert nodes == {"web1:4242": True, "web3:4242": False}

    def test_is_json_but_for_aware_datetimes(self, queues):
        put_node()
        put(queues, "halted")
        put(queues, "running first", "runs")
        times = []

        def keep(value):
            times.append(value)
            return str(value)

        json.dumps([queues.status(), status.nodes("default"), status.unknown_scopes("default")], default=keep)
        assert times
        assert all(isinstance(value, datetime) and timezone.is_aware(value) for value in times)

    @pytest.mark.django_db(databases=["default", "other"])
    def test_of_a_class_in_another_database_is_read_there(self, queues):
        put(queues, "halted")
        found = mail_queue("tests.mail", using="other").status()
        assert (found["database"], found["jobs"]["unfinished"]) == ("other", 0)


class TestCost:
    def ask(self, queuetopia):
        with CaptureQueriesContext(
            connection,
        ) as queries:
            queuetopia.status()
            status.nodes("default")
            status.unknown_scopes("default")
        return [query["sql"] for query in queries]

    def test_is_the_same_number_of_queries_for_any_number_of_queues(self, queues):
        put_node()
        put(queues, "running first", "a")
        few = self.ask(queues)
        for number in range(40):
            put(queues, ("halted", "running first", "waiting", "backing off")[number % 4], f"queue-{number}")
        many = self.ask(queues)
        assert len(many) == len(few) <= 14

    def test_is_no_write(self, queues):
        put(queues, "halted")
        assert all(sql.lstrip("( ").upper().startswith("SELECT") for sql in self.ask(queues))


@pytest.mark.capability("H26", "E7")
class TestNodes:
    def test_tell_their_workers_and_what_each_runs(self, queues):
        first = put(queues, "running first", "a")
        second = put(queues, "running again", "b")
        put_node(
            workers=[
                {"pid": 11, "jobs": [second.pk]},
                {"pid": 12, "jobs": [first.pk]},
                {"pid": 13, "jobs": [], "age": 7, "attempts": 40, "memory": 120, "max_memory": 512},
            ]
        )
        (node,) = status.nodes("default")
        assert (node["node"], node["host"], node["pid"], node["database"]) == ("web1:4242", "web1", 4242, "default")
        assert (node["scopes"], node["held"], node["alive"]) == (["tests.mail"], 2, True)
        assert 0 <= node["age"] < 30
        b, a, idle = node["workers"]
        assert (b["pid"], a["pid"], b["memory"]) == (11, 12, None)
        limits = {"max_attempts": None, "max_memory": 512}
        assert idle == {"pid": 13, "age": 7, "attempts": 40, "memory": 120, **limits, "jobs": []}
        assert b["jobs"] == [
            {
                "job": second.pk,
                "scope": "tests.mail",
                "queue": "b",
                "action": "send_mail",
                "attempt": 3,
                "since": Queue.objects.get(name="b").held_since,
                "progress": None,
            }
        ]
        assert [job["job"] for job in a["jobs"]] == [first.pk]

    def test_show_a_job_that_started_after_the_heartbeat_under_no_worker(self, queues):
        job = put(queues, "running first")
        put_node(workers=[{"pid": 11, "jobs": []}])
        (node,) = status.nodes("default")
        assert [(worker["pid"], [j["job"] for j in worker["jobs"]]) for worker in node["workers"]] == [
            (11, []),
            (None, [job.pk]),
        ]

    def test_leave_out_a_job_that_ended_after_the_heartbeat(self, queues):
        job = put(queues, "done")
        put_node(workers=[{"pid": 11, "jobs": [job.pk]}])
        (node,) = status.nodes("default")
        assert node["workers"] == [{"pid": 11, **dict.fromkeys(WORKER_FIGURES), "jobs": []}]  # of older code

    def test_are_alive_until_a_successor_may_take_over(self, queues):
        takeover = timedelta(seconds=conf.lease().takeover)
        put_node(last_seen=timezone.now() - takeover + timedelta(seconds=5))
        dead = put_node(id=uuid.uuid4(), host="web2", last_seen=timezone.now() - takeover - timedelta(seconds=1))
        put_node(id=uuid.uuid4(), host="web3", fenced_at=timezone.now())
        alive = {node["host"]: node["alive"] for node in status.nodes("default")}
        assert alive == {"web1": True, "web2": False, "web3": False}
        (age,) = [node["age"] for node in status.nodes("default") if node["host"] == dead.host]
        assert age > conf.lease().takeover

    def test_have_a_bound(self, queues, monkeypatch):
        monkeypatch.setattr(status, "MOST_NODES", 2)
        monkeypatch.setattr(status, "MOST_RUNNING", 1)
        for host in ("a", "b", "c"):
            put_node(id=uuid.uuid4(), host=host)
        assert len(status.nodes("default")) == 2
        node = put_node()
        Node.objects.exclude(pk=node.pk).delete()
        for name in ("a", "b"):
            put(queues, "running first", name)
        (node,) = status.nodes("default")
        assert node["held"] == 2
        assert len(node["workers"][0]["jobs"]) == 1


class TestUnknownScopes:
    def test_are_those_with_unfinished_jobs_that_no_class_declares(self, queues, declare_only):
        put(queues, "waiting")
        gone = mail_queue("tests.gone")
        job = put(gone, "waiting")
        put(gone, "done")
        put(mail_queue("tests.over"), "done")
        declare_only(queues)
        (found,) = status.unknown_scopes("default")
        job.refresh_from_db()
        assert found == {
            "scope": "tests.gone",
            "database": "default",
            "unfinished": 1,
            "oldest": job.scheduled_at,
            "problem": "no code here knows this scope",
        }

    def test_are_those_whose_class_has_moved_to_another_database(self, queues, declare_only):
        moved = mail_queue("tests.moved")
        put(moved, "waiting")
        declare_only()
        mail_queue("tests.moved", using="other")
        (found,) = status.unknown_scopes("default")
        assert "looks for its jobs in database 'other'" in found["problem"]


def test_databases_are_those_in_which_this_code_keeps_jobs(queues):
    assert status.databases() == ["default"]
    mail_queue("tests.elsewhere", using="other")
    assert status.databases() == ["default", "other"]


def test_is_paused_is_true_for_a_paused_queue_and_all_of_a_paused_scope(queues):
    assert not status.is_paused(queues, "a")
    queues.pause("a")
    assert status.is_paused(queues, "a")
    assert not status.is_paused(queues, "b")
    queues.pause()
    assert status.is_paused(queues, "b")


@pytest.mark.capability("Q21")
class TestLooking:
    """jobs(), list_jobs() and paginate_jobs() of the class."""

    def test_has_the_jobs_of_the_scope_in_order_of_their_time(self, queues):
        put(mail_queue("tests.other"), "waiting")
        later = put(queues, "scheduled")
        sooner = put(queues, "halted")
        assert set(queues.jobs()) == {later, sooner}
        assert list(queues.list_jobs()) == [sooner, later]

    def test_takes_look_ups_searches_and_orders(self, queues):
        first, second = (put(queues, state, state) for state in ("halted", "backing off"))
        assert list(queues.list_jobs(state="halted")) == [first]
        assert list(queues.list_jobs(queue__startswith="back")) == [second]
        assert list(queues.list_jobs(error__icontains="BOOM").order_by("-id")) == [second, first]
        assert list(queues.jobs().halted()) == [first]

    def test_paginates_and_takes_the_last_page_for_one_out_of_range(self, queues):
        put(mail_queue("tests.other"), "waiting")
        all_jobs = [put(queues, "waiting", f"queue-{number}") for number in range(5)]
        assert list(queues.paginate_jobs(page=1, per_page=2)) == all_jobs[:2]
        assert list(queues.paginate_jobs(page=3, per_page=2)) == all_jobs[4:]
        assert list(queues.paginate_jobs(page=99, per_page=2)) == all_jobs[4:]
        assert list(queues.paginate_jobs(queue="queue-1")) == [all_jobs[1]]
        assert queues.paginate_jobs(per_page=2).paginator.num_pages == 3
