"""Following what happens: each end once, in whatever order rows become visible."""

import json
import select
import selectors
from datetime import timedelta

import pytest
from django.db import OperationalError, connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from queuetopia import conf
from queuetopia.backends import postgresql
from queuetopia.channel import uptime
from queuetopia.management.commands import queuetopia as command
from queuetopia.models import Job, Queue
from queuetopia.monitoring import follow
from queuetopia.monitoring.follow import ASK, UNNOTIFIED, Follower, wait_for_news
from queuetopia.node.store import Store
from queuetopia.testing import drain, wait_until
from tests.commands import HOSTILE, run
from tests.nodes import PATIENCE
from tests.states import mail_queue, put, put_node
from tests.testapp.queues import LEDGER, SlowRetryQueue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("J4", "J23", "J25")]

SECOND = timedelta(seconds=1)


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))


def seen(follower):
    return [(event["event"], event["job"]) for event in follower.poll()]


def end(queues, queue="customer-42", at=None, state="done", **columns):
    return put(queues, state, queue, done_at=at or timezone.now() + SECOND, **columns)


class TestEnds:
    def test_are_told_once_each(self, queues):
        end(queues, "before", at=timezone.now() - SECOND)
        follower = Follower("default", ["tests.mail"])
        assert seen(follower) == []
        jobs = [end(queues, state, state=state) for state in ("done", "skipped", "cancelled")]
        assert sorted(seen(follower)) == sorted((job.state, job.pk) for job in jobs)
        assert seen(follower) == []

    def test_that_become_visible_late_are_told_too(self, queues):
        follower = Follower("default", ["tests.mail"])
        now = timezone.now()
        newer = end(queues, "newer", at=now + 8 * SECOND)
        assert seen(follower) == [("done", newer.pk)]
        older = end(queues, "older", at=now + 2 * SECOND)
        assert [event["job"] for event in follower.poll(uptime() + UNNOTIFIED)] == [older.pk]
        assert seen(follower) == []

    def test_that_become_visible_a_little_late_are_told_at_the_next_look(self, queues):
        follower = Follower("default", ["tests.mail"])
        now = timezone.now()
        end(queues, "newer", at=now + 8 * SECOND)
        follower.poll()
        older = end(queues, "older", at=now + 7.5 * SECOND)
        assert seen(follower) == [("done", older.pk)]

    def test_of_one_moment_are_told_all_page_after_page(self, queues, monkeypatch):
        monkeypatch.setattr(follow, "PAGE", 3)
        follower = Follower("default", ["tests.mail"])
        moment = timezone.now() + SECOND
        jobs = [end(queues, f"queue-{number}", at=moment).pk for number in range(10)]
        assert sorted(job for _, job in seen(follower)) == jobs
        assert seen(follower) == []

    def test_are_those_of_the_scopes_followed(self, queues):
        other = mail_queue("tests.other")
        follower = Follower("default", ["tests.mail"])
        end(other)
        assert seen(follower) == []

    def test_do_not_pile_up_in_memory(self, queues):
        follower = Follower("default", ["tests.mail", "tests.other"])
        for number in range(5):
            end(queues, f"queue-{number}", at=timezone.now() + number * 60 * SECOND)
            follower.poll()
        assert len(follower.ends["tests.mail"]) == 1


class TestFailures:
    def test_are_told_each_with_its_error(self, ledger):
        SlowRetryQueue.create_job("a", "say", {"verdict": "halt"})
        job = SlowRetryQueue.create_job("b", "say", {"verdict": "retry", "delay": 0})
        follower = Follower("default", [SlowRetryQueue.scope])
        drain(SlowRetryQueue)
        told = [event for event in follower.poll() if event["job"] == job.pk]
        assert [(event["event"], event["attempt"], event["error"]) for event in told] == [
            ("failed", 1, "Retry: later"), ("failed", 2, "Retry: later"), ("halted", 3, "Retry: later"),
        ]  # fmt: skip
        assert follower.poll() == []

    def test_that_nobody_saw_the_job_blocked_for_are_told_before_its_end(self, ledger):
        job = SlowRetryQueue.create_job("a", "fail", {"times": 2}, max_backoff=0)
        follower = Follower("default", [SlowRetryQueue.scope])
        drain(SlowRetryQueue)
        assert seen(follower) == [("failed", job.pk), ("failed", job.pk), ("done", job.pk)]

    def test_from_before_are_left_out(self, ledger):
        job = SlowRetryQueue.create_job("a", "say", {"verdict": "halt"})
        drain(SlowRetryQueue)
        follower = Follower("default", [SlowRetryQueue.scope])
        assert seen(follower) == []
        SlowRetryQueue.retry(job)
        drain(SlowRetryQueue)
        assert seen(follower) == [("retry", job.pk), ("halted", job.pk)]


class TestVerbs:
    def test_say_who_and_why(self, queues):
        job = put(queues, "halted")
        queues.pause("before")
        follower = Follower("default", ["tests.mail"])
        queues.pause("a", by="ann", reason="deploy")
        queues.skip(job, by="bob")
        told = follower.poll()
        said = {event["event"]: (event["queue"], event["by"], event["reason"]) for event in told}
        assert said["pause"] == ("a", "ann", "deploy")
        assert said["skip"] == ("customer-42", "bob", None)
        assert sorted(event["event"] for event in told) == ["pause", "skip", "skipped"]
        assert follower.poll() == []


class TestStarts:
    def test_are_those_that_a_heartbeat_saw(self, queues):
        follower = Follower("default", ["tests.mail"])
        job = put(queues, "running again")
        put_node(workers=[{"pid": 11, "jobs": [job.pk, 10**9]}])
        (event,) = follower.poll()
        assert (event["event"], event["job"], event["attempt"], event["node"]) == ("started", job.pk, 3, "web1:4242")
        assert event["at"] == Queue.objects.get().held_since
        assert follower.poll() == []

    def test_from_before_are_left_out(self, queues):
        put_node(workers=[{"pid": 11, "jobs": [put(queues, "running first").pk]}])
        assert seen(Follower("default", ["tests.mail"])) == []


def test_a_look_costs_a_few_reads(queues):
    follower = Follower("default", ["tests.mail"])
    for number in range(20):
        put(queues, ("halted", "running first", "waiting", "done")[number % 4], f"queue-{number}")
    with CaptureQueriesContext(connection) as queries:
        follower.poll()
    assert len(queries) <= 8
    assert all(query["sql"].lstrip("( ").upper().startswith("SELECT") for query in queries)


@pytest.mark.django_db(transaction=True)
class TestNews:
    @pytest.fixture
    def follower(self, queues):
        follower = Follower("default", ["tests.mail"])
        yield follower
        follower.close()

    @pytest.fixture
    def told(self, follower):
        """A follower that hears what happens."""
        if connection.vendor != "postgresql":
            pytest.skip("LISTEN and NOTIFY are PostgreSQL's")
        follower.listen()
        wait_until(lambda: follower.has_news() or follower.is_notified())
        return follower

    @pytest.fixture
    def node(self, told):
        """A node's session, as the scheduler has it."""
        store = Store("default", ["tests.mail"], 60)
        with selectors.DefaultSelector() as selector:
            store.open(conf.lease(), selector, lambda store, alias: None)
            yield store
            store.close(selector)

    def test_are_waited_for_without_a_look_in_between(self, told, queues):
        assert not told.has_news()
        queues.pause("a")
        select.select([told.fileno()], [], [], PATIENCE)
        assert told.has_news()
        assert not told.has_news()

    def test_are_told_by_a_node_while_somebody_follows_and_not_for_long(self, told, node, monkeypatch):
        node.note_for_followers()
        assert node.has_notified_all
        told.listen(uptime() + ASK)
        wait_until(lambda: node.backend.has_news() or node.backend.is_followed())
        node.note_for_followers()
        node.note_for_followers()
        with CaptureQueriesContext(node.backend.connection) as queries:
            node.notify_followers()
            node.notify_followers()
        assert len(queries) == 1
        assert wait_until(told.has_news)
        monkeypatch.setattr(postgresql, "uptime", lambda: uptime() + PATIENCE)
        assert not node.backend.is_followed()

    def test_of_a_new_node_are_told_so_that_it_is_asked_too(self, told, node):
        told.has_news()
        node.register("web1:7")
        assert wait_until(told.has_news)

    @pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL tells")
    def test_are_looked_for_every_so_often_where_nothing_tells(self, follower):
        wait_for_news([follower], every=0.05)
        assert not follower.is_notified()

    def test_are_asked_for_anew_after_the_session_was_lost(self, told):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND query LIKE %s AND pid <> pg_backend_pid()",
                ["%pg_notify%"],
            )
        wait_until(told.has_news)  # whatever may have been missed
        assert not told.is_notified()
        told.listen(uptime() + UNNOTIFIED)
        wait_until(lambda: told.has_news() or told.is_notified())


class TestCommand:
    def tail(self, monkeypatch, happens, *arguments):
        """Follow while all this happens; return what was written."""
        left = list(happens)

        def wait_for_news(followers, every, pause):
            if not left:
                raise KeyboardInterrupt
            left.pop(0)()

        monkeypatch.setattr(command, "wait_for_news", wait_for_news)
        return run("tail", *arguments)[0]

    def test_prints_a_line_for_each_event(self, queues, monkeypatch):
        text = self.tail(monkeypatch, [lambda: end(queues, attempted_by="web1:1"), lambda: queues.pause(by="ann")])
        done, pause = text.splitlines()
        job = Job.objects.get()
        assert done.endswith(f"  done       tests.mail/customer-42 job {job.pk} (send_mail), attempt 1 on web1:1")
        assert pause.endswith("  pause      tests.mail by ann")

    def test_prints_json_lines_for_machines(self, queues, monkeypatch):
        text = self.tail(monkeypatch, [lambda: end(queues)] * 1, "--json", "tests.mail")
        (event,) = map(json.loads, text.splitlines())
        assert (event["event"], event["queue"]) == ("done", "customer-42")

    def test_escapes_what_could_steer_a_terminal(self, queues, monkeypatch):
        def happens():
            end(queues, HOSTILE, action=HOSTILE, state="skipped", error=HOSTILE)
            queues.pause(HOSTILE, by=HOSTILE, reason=HOSTILE)

        text = self.tail(monkeypatch, [happens])
        assert all(char.isprintable() or char == "\n" for char in text)
        assert len(text.splitlines()) == 2

    def test_goes_on_when_the_database_does_not_answer_for_a_while(self, queues, monkeypatch):
        poll = Follower.poll

        def refuse(follower):
            monkeypatch.setattr(Follower, "poll", poll)
            raise OperationalError("connection refused")

        monkeypatch.setattr(Follower, "poll", refuse)
        monkeypatch.setattr(command, "close_old_connections", lambda: None)  # it would end the test's transaction
        assert " done " in self.tail(monkeypatch, [lambda: end(queues)])

    def test_refuses_an_unknown_scope(self, queues):
        assert "Did you mean tests.mail?" in run("tail", "tests.mai1")[1]
