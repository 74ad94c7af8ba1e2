"""What is said of a queue: for each cause one true sentence, with the facts it is made of, from a few look-ups."""

import json
import re
import uuid
from datetime import datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from queuetopia import conf, pause_all
from queuetopia.models import Job, Node, Queue, Scope, Statistic
from queuetopia.monitoring import explain
from queuetopia.monitoring.explain import Cause
from queuetopia.testing import drain
from tests.commands import HOSTILE, run, run_json
from tests.states import HOUR, NODE, mail_queue, put, put_node, wait_behind
from tests.testapp.queues import LEDGER, SlowRetryQueue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("H26")]

SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
NAME = "customer-42"


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def node(db):
    """A live node with two workers, one of them busy."""
    return put_node(workers=[{"pid": 11, "jobs": [1]}, {"pid": 12, "jobs": []}])


def said(queues, queue=NAME):
    """Return (the causes, the sentence)."""
    explained = queues.explain(queue)
    assert explained["cause"] == explained["causes"][0]
    return explained["causes"], explained["sentence"]


def took(queues, *, done, seconds, ago=MINUTE):
    """Note that so many jobs of the scope were done, by attempts that took so long together."""
    values = {"action": "send_mail", "node": NODE, "done": done, "run_seconds": seconds}
    Statistic.objects.create(scope=queues.scope, at=timezone.now() - ago, **values)


@pytest.mark.capability("X7")
@pytest.mark.usefixtures("node")
class TestEstimate:
    def test_of_catching_up_is_the_depth_times_what_jobs_took_in_the_last_hour(self, queues):
        put(queues, "waiting")
        wait_behind(queues, 9)
        took(queues, done=4, seconds=10.0)
        took(queues, done=1000, seconds=1.0, ago=2 * HOUR)
        explained = queues.explain(NAME)
        assert explained["catches_up_in"] == explained["waiting"] * 2.5
        assert explained["sentence"].endswith("; an estimate: it will have caught up in about 25 s.")

    def test_counts_the_job_that_runs(self, queues):
        put(queues, "running again")
        wait_behind(queues, 3)
        took(queues, done=2, seconds=2.0)
        assert queues.explain(NAME)["catches_up_in"] == 4.0

    def test_is_a_lower_bound_where_many_wait(self, queues, monkeypatch):
        monkeypatch.setattr(explain, "MOST_COUNTED", 5)
        put(queues, "waiting")
        wait_behind(queues, 9)
        took(queues, done=1, seconds=1.0)
        explained = queues.explain(NAME)
        assert (explained["waiting"], explained["catches_up_in"]) == (6, 6.0)
        assert explained["sentence"].endswith("it will have caught up in more than 6 s.")

    @pytest.mark.parametrize("state", ["backing off", "halted", "done"])
    def test_is_not_made_of_a_queue_that_does_not_go_on(self, queues, state):
        put(queues, state)
        if state != "done":
            wait_behind(queues, 3)
        took(queues, done=2, seconds=2.0)
        assert queues.explain(NAME)["catches_up_in"] is None

    def test_is_not_made_where_nothing_is_known(self, queues):
        put(queues, "waiting")
        assert queues.explain(NAME)["catches_up_in"] is None
        assert "estimate" not in queues.explain(NAME)["sentence"]

    def test_is_not_made_without_a_node(self, queues):
        Node.objects.all().delete()
        put(queues, "waiting")
        took(queues, done=2, seconds=2.0)
        assert queues.explain(NAME)["catches_up_in"] is None


class TestBlocked:
    @pytest.mark.usefixtures("node")
    def test_by_a_failed_job_says_what_failed_when_it_is_tried_again_and_who_waits(self, queues):
        now = timezone.now()
        job = put(
            queues, "backing off", attempts=6, action="send_mail", error="ConnectionError: refused\nmore",
            attempted_at=now - 3 * MINUTE, next_attempt_at=now + 2 * MINUTE + timedelta(seconds=20),
        )  # fmt: skip
        wait_behind(queues, 9)
        assert said(queues) == (
            [Cause.BACKING_OFF],
            f"customer-42 is held by job {job.pk} (send_mail), attempt 6 of 20 failed 3 min ago with "
            "ConnectionError: refused; next try in 2 min; 9 jobs wait, the oldest for 2 h.",
        )

    @pytest.mark.usefixtures("node")
    def test_by_a_halted_job_says_that_a_person_has_to_decide(self, queues):
        job = put(queues, "halted")
        wait_behind(queues, 1)
        assert said(queues) == (
            [Cause.HALTED],
            f"customer-42 is held by job {job.pk} (send_mail), halted: attempt 20 of 20 failed 60 min ago with "
            "ValueError: boom; an operator must retry or skip it; 1 job waits, the oldest for 2 h.",
        )

    def test_and_halted_needs_no_node_to_be_told(self, queues):
        put(queues, "halted")
        assert said(queues)[0] == [Cause.HALTED]

    @pytest.mark.usefixtures("node")
    def test_by_a_job_that_snoozed_does_not_call_that_a_failure(self, queues):
        put(queues, "snoozed")
        sentence = said(queues)[1]
        assert "which was put off by its last attempt 60 min ago; next try in 60 min." in sentence
        assert "failed" not in sentence
        assert queues.explain(NAME)["failed_at"] is None

    @pytest.mark.usefixtures("node")
    @pytest.mark.parametrize(("at", "counted", "is_failure"), [(0, True, True), (0, False, False), (1, True, False)])
    def test_goes_by_the_history_for_how_the_last_attempt_ended(self, queues, at, counted, is_failure):
        attempted_at = timezone.now() - MINUTE
        entry = {"at": (attempted_at - at * MINUTE).isoformat(), "counted": counted, "type": "ValueError"}
        put(queues, "backing off", attempted_at=attempted_at, errors=[{}, entry])
        assert (queues.explain(NAME)["failed_at"] == attempted_at) is is_failure

    @pytest.mark.usefixtures("node")
    def test_says_that_the_next_try_is_due(self, queues):
        put(queues, "backing off", next_attempt_at=timezone.now() - MINUTE)
        Queue.objects.update(due_at=timezone.now() - MINUTE)
        assert "; its next try is due, as the next one; 1 of 2 workers were busy" in said(queues)[1]

    def test_and_paused_says_both_and_promises_no_time(self, queues, node):
        put(queues, "backing off", next_attempt_at=timezone.now() + 5 * MINUTE)
        queues.pause(NAME, by="ann", reason="provider is down")
        causes, sentence = said(queues)
        assert causes == [Cause.BACKING_OFF, Cause.PAUSED]
        assert "next try in 5 min at the earliest" in sentence
        assert sentence.endswith("; the queue is paused for 0 s by ann (provider is down).")
        queues.pause()
        Node.objects.all().delete()
        assert said(queues)[0] == [Cause.BACKING_OFF, Cause.PAUSED, Cause.SCOPE_PAUSED, Cause.NO_SCHEDULER]


class TestRunning:
    def test_says_where_since_when_and_under_which_fence(self, queues, node):
        job = put(queues, "running again")
        Queue.objects.update(held_since=timezone.now() - 3 * MINUTE)
        explained = queues.explain(NAME)
        assert explained["sentence"] == (
            f"customer-42 runs job {job.pk} (send_mail), attempt 3 of 20, on web1:4242 for 3 min, fence 7."
        )
        assert (explained["causes"], explained["held_by"], explained["fence"]) == ([Cause.RUNNING], "web1:4242", 7)
        assert 0 < explained["lease_left"] <= conf.lease().takeover
        assert explained["due_at"] is None

    def test_says_that_it_is_asked_to_stop(self, queues, node):
        queues.cancel(put(queues, "running first"))
        assert "; a stop was requested" in said(queues)[1]

    def test_on_a_node_that_misses_heartbeats_says_when_others_may_take_over(self, queues):
        put(queues, "running first")
        lease = conf.lease()
        put_node(last_seen=timezone.now() - timedelta(seconds=2 * lease.heartbeat + 1))
        causes, sentence = said(queues)
        assert causes == [Cause.NODE_SILENT]
        assert "that node has been silent for 7 s, others may take the job over in 3 s" in sentence

    @pytest.mark.parametrize(
        ("columns", "seen"),
        [
            (lambda now: {"last_seen": now - HOUR}, r"that node has sent no heartbeat for 6\d min"),
            (lambda now: {"fenced_at": now}, r"that node has sent no heartbeat for \d+ s"),
            (None, "that node is gone"),
        ],
    )
    def test_on_a_dead_node_says_that_it_is_dead(self, queues, columns, seen):
        job = put(queues, "running first")
        if columns is not None:
            put_node(**columns(timezone.now()))
        causes, sentence = said(queues)
        assert causes == [Cause.NODE_DEAD]
        assert f"runs job {job.pk} (send_mail), attempt 1 of 20, on " in sentence
        assert re.search(f"{seen}: the next live one takes the job over.", sentence)
        assert queues.explain(NAME)["lease_left"] == 0

    def test_of_a_job_whose_row_is_gone_is_told_too(self, queues, node):
        put(queues, "running first").delete()
        Queue.objects.update(held_since=timezone.now() - MINUTE)
        assert said(queues)[0] == [Cause.RUNNING]


class TestWaiting:
    def test_for_its_turn_says_what_is_before_it(self, queues, node):
        job = put(queues, "waiting")
        assert said(queues) == (
            [Cause.READY],
            f"customer-42 is ready to run job {job.pk} (send_mail), as the next one; 1 of 2 workers were busy at the "
            "last heartbeat; 1 job waits, the oldest for 60 min.",
        )
        for number in range(3):
            put(queues, "waiting", f"earlier-{number}")
        Queue.objects.filter(name__startswith="earlier").update(due_at=timezone.now() - 2 * HOUR)
        assert ", after 3 other queues;" in said(queues)[1]
        assert queues.explain(NAME)["ahead"] == 3

    def test_for_a_place_says_how_many_run_and_may(self, queues, node):
        queues.max_running = 1
        other = put(queues, "running first", "other")
        Queue.objects.filter(name="other").update(has_place=True)
        job = put(queues, "waiting")
        causes, sentence = said(queues)
        assert causes == [Cause.NO_PLACE]
        assert sentence == (
            f"customer-42 is ready to run job {job.pk} (send_mail), as the next one; it waits for a place: 1 of 1 "
            "queues of tests.mail run (max_running); 1 job waits, the oldest for 60 min."
        )
        assert queues.explain(NAME)["limit"] == {"cause": "no place", "until": None, "taken": 1, "most": 1}
        Queue.objects.filter(name=other.queue).update(held_by=None)
        assert said(queues)[0] == [Cause.READY]

    def test_for_a_start_that_its_scopes_rate_lets_says_when_that_is(self, queues, node):
        queues.rate = (1, 3600)
        Scope.objects.create(name=queues.scope, next_start_at=timezone.now() + 31 * MINUTE)
        put(queues, "waiting")
        causes, sentence = said(queues)
        assert causes == [Cause.RATE]
        assert "; 1 job of tests.mail may start in 60 min, the next one in 30 min (rate);" in sentence

    def test_for_the_spacing_of_its_queue_says_how_long(self, queues, node):
        queues.spacing = 3600
        put(queues, "waiting")
        Queue.objects.update(spaced_until=timezone.now() + 20 * MINUTE + SECOND)
        causes, sentence = said(queues)
        assert causes == [Cause.SPACING]
        assert "; its next start may come in 20 min (spacing);" in sentence

    def test_for_the_end_of_a_snooze_of_its_scope_says_how_long(self, queues, node):
        Scope.objects.create(name=queues.scope, snoozed_until=timezone.now() + 20 * MINUTE + SECOND)
        put(queues, "waiting")
        causes, sentence = said(queues)
        assert causes == [Cause.SCOPE_SNOOZED]
        assert "; all of tests.mail is snoozed for another 20 min, by one of its jobs;" in sentence

    def test_a_blocked_queue_whose_next_try_is_due_says_what_holds_it_up(self, queues, node):
        put(queues, "backing off")
        Job.objects.update(next_attempt_at=timezone.now() - SECOND)
        Scope.objects.create(name=queues.scope, snoozed_until=timezone.now() + 20 * MINUTE + SECOND)
        causes, sentence = said(queues)
        assert causes == [Cause.BACKING_OFF, Cause.SCOPE_SNOOZED]
        assert sentence.endswith("; all of tests.mail is snoozed for another 20 min, by one of its jobs.")

    def test_without_a_node_that_serves_its_scope_says_so(self, queues):
        put_node(scopes=["tests.other"])
        put_node(id=uuid.uuid4(), last_seen=timezone.now() - HOUR)
        put(queues, "waiting")
        causes, sentence = said(queues)
        assert causes == [Cause.NO_SCHEDULER]
        assert "but no live node serves tests.mail: start one with manage.py run_queuetopia;" in sentence

    def test_for_a_later_time_says_for_which(self, queues, node):
        job = put(queues, "scheduled")
        assert said(queues) == (
            [Cause.SCHEDULED],
            f"customer-42 has nothing to do before job {job.pk} (send_mail), which is due in 60 min.",
        )

    def test_because_it_is_paused_says_by_whom_and_why(self, queues, node):
        put(queues, "waiting")
        queues.pause(NAME, by="ann", reason="deploy")
        assert said(queues) == (
            [Cause.PAUSED],
            "customer-42 is paused for 0 s by ann (deploy); 1 job waits, the oldest for 60 min.",
        )

    def test_because_its_scope_is_paused_says_so(self, queues, node):
        put(queues, "waiting")
        queues.pause(by="ann")
        causes, sentence = said(queues)
        assert causes == [Cause.SCOPE_PAUSED]
        assert sentence.startswith("customer-42 waits, because all of tests.mail is paused for 0 s by ann;")

    def test_because_everything_is_paused_says_so_and_what_else_is(self, queues, node):
        put(queues, "waiting")
        pause_all(by="ann", reason="moving")
        assert said(queues) == (
            [Cause.ALL_PAUSED],
            "customer-42 waits, because everything is paused for 0 s by ann (moving); "
            "1 job waits, the oldest for 60 min.",
        )
        queues.pause(by="bob")
        assert said(queues)[0] == [Cause.ALL_PAUSED, Cause.SCOPE_PAUSED]
        assert queues.explain(NAME)["all_paused"]["by"] == "ann"

    def test_because_no_node_was_told_says_that_the_sweep_will(self, queues, node):
        put(queues, "waiting")
        Queue.objects.update(due_at=None)
        causes, sentence = said(queues)
        assert causes == [Cause.NOT_WOKEN]
        assert "no node was notified of it: a node's sweep finds it within 60 s" in sentence
        Queue.objects.all().delete()
        assert said(queues)[0] == [Cause.NOT_WOKEN]

    def test_that_a_node_gave_back_says_why(self, queues, node):
        put(queues, "waiting")
        Queue.objects.update(problem="setup() of MailPerformer failed: no password.", due_at=timezone.now() + HOUR)
        causes, sentence = said(queues)
        assert causes == [Cause.PROBLEM]
        assert "which a node gave back: setup() of MailPerformer failed: no password; next try in 60 min" in sentence

    def test_with_an_action_that_this_code_lacks_says_so(self, queues, node):
        put(queues, "waiting", action="send_fax")
        causes, sentence = said(queues)
        assert causes == [Cause.UNKNOWN_ACTION]
        assert "this code has no action 'send_fax'" in sentence

    def test_in_a_scope_that_this_code_lacks_says_so(self, queues, declare_only):
        put(queues, "waiting")
        put(queues, "halted", "halted")
        declare_only()
        explained = explain.explain_queue("tests.mail", NAME, "default")
        assert explained["causes"] == [Cause.UNKNOWN_SCOPE, Cause.NO_SCHEDULER]
        assert "no code here knows this scope" in explained["sentence"]
        causes = explain.explain_queue("tests.mail", "halted", "default")["causes"]
        assert causes == [Cause.HALTED, Cause.UNKNOWN_SCOPE]


class TestEmpty:
    @pytest.mark.parametrize("state", ["done", "skipped", "cancelled"])
    def test_is_said_when_all_has_ended(self, queues, state):
        put(queues, state)
        assert said(queues) == ([Cause.EMPTY], "customer-42 is empty: it has no unfinished job.")

    def test_names_the_pause_that_is_there(self, queues):
        put(queues, "done")
        queues.pause(by="ann")
        assert said(queues)[0] == [Cause.SCOPE_PAUSED]
        queues.pause(NAME, by="bob")
        assert said(queues) == (
            [Cause.PAUSED, Cause.SCOPE_PAUSED],
            "customer-42 is empty, and paused for 0 s by bob: it has no unfinished job; all of tests.mail is paused "
            "for 0 s by ann.",
        )

    def test_says_when_there_was_never_a_job(self, queues):
        assert said(queues)[1] == ("customer-42 is empty: no job of tests.mail was ever created in it.")


class TestCorrupt:
    def test_params_are_told_and_not_shown(self, queues, node):
        job = put(queues, "backing off")
        with connection.cursor() as cursor:
            text = json.dumps({"__queuetopia__": "secret"})
            cursor.execute("UPDATE queuetopia_job SET params = %s WHERE id = %s", [text, job.pk])
        causes, sentence = said(queues)
        assert causes == [Cause.BACKING_OFF, Cause.CORRUPT]
        assert f"the stored params of job {job.pk} (send_mail) cannot be read" in sentence
        assert "secret" not in sentence

    @pytest.mark.parametrize(("state", "what"), [("halted", "does not exist"), ("done", "has ended")])
    def test_head_is_told(self, queues, node, state, what):
        job = put(queues, state)
        Queue.objects.update(current_job=job.pk)
        if state == "halted":
            job.delete()
        wait_behind(queues, 1)
        causes, sentence = said(queues)
        assert causes == [Cause.CORRUPT]
        assert f"which {what}: a node's sweep mends it" in sentence


def test_it_is_true_of_what_a_scheduler_wrote(tmp_path, monkeypatch):
    monkeypatch.setenv(LEDGER, str(tmp_path / "ledger"))
    SlowRetryQueue.create_job("a", "say", {"verdict": "retry", "delay": 300})
    drain(SlowRetryQueue)
    explained = SlowRetryQueue.explain("a")
    assert explained["cause"] == Cause.BACKING_OFF
    assert "attempt 1 of 3 failed 0 s ago with Retry: later; next try in 5 min at " in explained["sentence"]
    drain(SlowRetryQueue, now=timezone.now() + HOUR)
    assert "attempt 2 of 3 failed" in SlowRetryQueue.explain("a")["sentence"]
    SlowRetryQueue.create_job("b", "say", {"verdict": "snooze", "delay": 600})
    drain(SlowRetryQueue)
    assert "put off by its last attempt 0 s ago; next try in 10 min" in SlowRetryQueue.explain("b")["sentence"]


class TestFacts:
    def test_are_json_but_for_aware_datetimes_and_the_same_keys_for_every_queue(self, queues, node):
        states = ("waiting", "scheduled", "running again", "backing off", "snoozed", "halted", "done")
        for state in states:
            put(queues, state, state)
        times, keys = [], set()

        def keep(value):
            times.append(value)
            return str(value)

        for state in (*states, "unheard of"):
            explained = queues.explain(state)
            keys.add(tuple(explained))
            json.dumps(explained, default=keep)
        assert len(keys) == 1
        assert times
        assert all(isinstance(value, datetime) and timezone.is_aware(value) for value in times)

    def test_count_to_a_bound(self, queues, node, monkeypatch):
        monkeypatch.setattr(explain, "MOST_COUNTED", 3)
        put(queues, "halted")
        wait_behind(queues, 5)
        assert "more than 3 jobs wait, the oldest for 2 h" in said(queues)[1]

    def test_hold_no_params(self, queues, node):
        put(queues, "backing off", params={"body": "private"})
        assert "private" not in json.dumps(queues.explain(NAME), default=str)

    def test_cut_a_long_error_in_the_sentence_only(self, queues, node):
        put(queues, "backing off", error="E" * 2000)
        explained = queues.explain(NAME)
        assert len(explained["sentence"]) < 600
        assert len(explained["error"]) == 2000

    @pytest.mark.django_db(databases=["default", "other"])
    def test_are_read_where_the_class_keeps_its_jobs(self, queues):
        put(queues, "halted")
        explained = mail_queue("tests.mail", using="other").explain(NAME)
        assert (explained["database"], explained["cause"]) == ("other", Cause.EMPTY)

    @pytest.mark.parametrize("state", ["waiting", "running again", "backing off", "halted", "done"])
    def test_take_a_few_reads(self, queues, node, state):
        put(queues, state)
        wait_behind(queues, 2)
        took(queues, done=4, seconds=2.0)
        with CaptureQueriesContext(connection) as queries:
            queues.explain(NAME)
        assert len(queries) <= 9
        assert all(query["sql"].lstrip("( ").upper().startswith("SELECT") for query in queries)


class TestCommand:
    def test_prints_the_sentence(self, queues, node):
        put(queues, "halted")
        assert run("explain", "tests.mail", NAME) == (queues.explain(NAME)["sentence"] + "\n", None)

    def test_prints_the_facts_for_machines(self, queues, node):
        job = put(queues, "halted")
        answer, refused = run_json("explain", "tests.mail", NAME)
        assert refused is None
        assert (answer["cause"], answer["job"]) == ("halted", job.pk)
        assert NODE.hex not in json.dumps(answer)

    def test_refuses_an_unknown_scope_with_what_is_known(self, queues):
        text, refused = run("explain", "tests.mai1", NAME)
        assert text == ""
        assert refused == "No class of this code has the scope 'tests.mai1'. Did you mean tests.mail?"

    def test_escapes_what_could_steer_a_terminal(self, queues):
        put(queues, "halted", HOSTILE, error=HOSTILE, action=HOSTILE)
        queues.pause(HOSTILE, by=HOSTILE, reason=HOSTILE)
        text, _ = run("explain", "tests.mail", HOSTILE)
        assert all(char.isprintable() or char == "\n" for char in text)
        assert text.count("\n") == 1
