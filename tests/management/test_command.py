"""``manage.py queuetopia``: what it prints, what it refuses, and that no text in the database steers a terminal."""

import getpass
import io
import json
import subprocess
import sys
from datetime import date, datetime, timedelta

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.utils import timezone

from queuetopia import jobs
from queuetopia.management.commands import queuetopia as command
from queuetopia.models import Job, JobEvent, Queue, Scope
from queuetopia.monitoring import status
from tests.commands import HOSTILE, run, run_json
from tests.states import ENDED, WORKER_FIGURES, mail_queue, put, put_node

pytestmark = pytest.mark.django_db


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.mark.capability("E5")
class TestVerbOnJobs:
    @pytest.mark.parametrize(
        ("verb", "state", "after", "said"),
        [
            ("retry", "backing off", "pending", "is retried: attempt 3 of 20 is due now."),
            ("retry", "halted", "pending", "is retried: attempt 21 of 21 is due now."),
            ("skip", "halted", "skipped", "is skipped; its queue goes on."),
            ("mark-done", "halted", "done", "is marked as done; its queue goes on."),
            ("mark-done", "waiting", "done", "is marked as done."),
            ("move-to-end", "waiting", "pending", "is moved to the end of its queue."),
            ("run-now", "scheduled", "pending", "is due now, and starts when it is its turn."),
            ("cancel", "waiting", "cancelled", "is cancelled."),
            (
                "cancel",
                "running first",
                "pending",
                "is running and asked to stop: cancelled, unless it is done before.",
            ),
        ],
    )
    def test_does_it_and_says_so(self, queues, verb, state, after, said):
        job = put(queues, state)
        text, refused = run(verb, job.pk)
        assert text == f"Job {job.pk} (send_mail of tests.mail/customer-42) {said}\n"
        assert refused is None
        job.refresh_from_db()
        assert job.state == after

    def test_says_what_became_of_a_blocking_job_that_is_moved(self, queues):
        job = put(queues, "halted")
        text, _ = run("move-to-end", job.pk)
        copy = Job.objects.latest("pk")
        assert f"is skipped, and job {copy.pk}, its copy, waits at the end of its queue, which goes on." in text

    def test_edits_params(self, queues):
        job = put(queues, "halted")
        assert "has new params and is retried: attempt 21 of 21 is due now." in run("edit", job.pk, '{"a": [1]}')[0]
        waiting = put(queues, "waiting", queue="other")
        day = '{"day": {"__queuetopia__": "date", "value": "2026-01-31"}}'
        assert "has new params, and keeps its place in line." in run("edit", waiting.pk, day)[0]
        for edited, params in ((job, {"a": [1]}), (waiting, {"day": date(2026, 1, 31)})):
            edited.refresh_from_db()
            assert edited.params == params

    def test_keeps_a_masked_param_that_is_not_edited(self, declare_only):
        declare_only()
        job = put(mail_queue(sensitive_params=("card",)), "halted", params={"card": "4111", "amount": 1})
        run("edit", job.pk, '{"card": "********", "amount": 2}')
        job.refresh_from_db()
        assert job.params == {"card": "4111", "amount": 2}

    @pytest.mark.parametrize("wrong", ["", "{", "[]", "{'a': 1}", '{"a": NaN}', '{"self": 1}'])
    def test_refuses_params_that_are_none(self, queues, wrong):
        job = put(queues, "halted")
        text, refused = run("edit", job.pk, wrong)
        assert text == "" and "params" in refused.lower()
        assert not JobEvent.objects.exists()

    def test_says_when_a_pause_keeps_the_queue_from_going_on(self, queues):
        queues.pause("customer-42")
        assert "attempt 3 of 20 starts when its queue is resumed" in run("retry", put(queues, "backing off").pk)[0]
        assert "its queue is paused" in run("skip", Job.objects.get().pk)[0]

    @pytest.mark.parametrize(
        ("verb", "state", "reason"),
        [
            ("retry", "running first", "cannot be retried: it is running, attempt 1 since"),
            ("retry", "waiting", "never attempted. Cancel it."),
            ("skip", "done", "cannot be skipped: it is done since"),
            ("cancel", "halted", "skip it, or retry it"),
            ("cancel", "done", "cannot be cancelled: it is done since"),
            ("cancel", "cancelled", "cannot be cancelled: it is cancelled since"),
        ],
    )
    def test_refuses_with_the_reason(self, queues, verb, state, reason):
        job = put(queues, state)
        text, refused = run(verb, job.pk)
        assert text == ""
        assert f"Job {job.pk}" in refused
        assert reason in refused
        assert not JobEvent.objects.exists()

    def test_does_what_it_can_of_several_and_refuses_the_rest(self, queues):
        halted = [put(queues, "halted", f"queue-{number}") for number in range(2)]
        running = put(queues, "running first", "runs")
        text, refused = run("skip", halted[0].pk, running.pk, 99999, halted[1].pk)
        assert text.count("is skipped") == 2
        assert len(refused.splitlines()) == 2
        assert f"Job {running.pk} cannot be skipped" in refused
        assert "There is no job 99999" in refused

    def test_leaves_the_user_of_the_operating_system_if_nobody_is_named(self, queues):
        run("skip", put(queues, "halted").pk)
        assert JobEvent.objects.get().by == getpass.getuser()

    def test_leaves_a_number_for_a_user_without_a_name(self, queues, monkeypatch):
        def nobody():
            raise KeyError("getpwuid(): uid not found: 4711")

        monkeypatch.setattr(command.getpass, "getuser", nobody)
        run("skip", put(queues, "halted").pk)
        assert JobEvent.objects.get().by.startswith("uid ")

    def test_leaves_who_and_why(self, queues):
        run("skip", put(queues, "halted").pk, "--by", "ann", "--reason", "customer called")
        event = JobEvent.objects.get()
        assert (event.verb, event.by, event.reason) == ("skip", "ann", "customer called")

    def test_says_it_in_json_refusals_included(self, queues):
        job, running = put(queues, "halted"), put(queues, "running first", "runs")
        answer, refused = run_json("skip", job.pk, running.pk)
        assert answer == {
            "verb": "skip",
            "results": [
                {
                    "job": job.pk,
                    "ok": True,
                    "scope": "tests.mail",
                    "queue": "customer-42",
                    "action": "send_mail",
                    "state": "skipped",
                    "attempts": 20,
                    "answer": "skipped",
                    "message": answer["results"][0]["message"],
                },
                {"job": running.pk, "ok": False, "message": refused},
            ],
        }
        assert "cannot be skipped" in refused

    def test_answers_a_cancel_in_json(self, queues):
        ids = [put(queues, state, state).pk for state in ("waiting", "running first")]
        answer, refused = run_json("cancel", *ids)
        assert [result["answer"] for result in answer["results"]] == ["cancelled", "running"]
        assert refused is None

    @pytest.mark.parametrize("job_id", [0, 2**63, 10**30])
    def test_refuses_a_number_that_is_no_job(self, queues, job_id):
        _, refused = run("retry", job_id)
        assert refused.startswith(f"There is no job {job_id} in database default. Ended jobs are deleted")

    @pytest.mark.parametrize("wrong", ["seventeen", "1.5", ""])
    def test_refuses_what_is_no_number(self, queues, wrong):
        assert "invalid int value" in run("retry", wrong)[1]

    def test_says_nothing_when_it_shall_not(self, queues):
        assert run("skip", put(queues, "halted").pk, "--verbosity", 0) == ("", None)


class TestFindingTheJobsClass:
    def test_takes_the_scope_that_is_named(self, queues):
        other = mail_queue("tests.other")
        job = put(other, "halted")
        assert "There is no job" in run("skip", job.pk, "--scope", "tests.mail")[1]
        assert "is skipped" in run("skip", job.pk, "--scope", "tests.other")[0]

    def test_names_close_scopes_for_one_that_is_unknown(self, queues):
        _, refused = run("skip", 1, "--scope", "tests.mai")
        assert refused == "No class of this code has the scope 'tests.mai'. Did you mean tests.mail?"

    def test_refuses_a_job_whose_scope_no_code_declares_and_goes_on(self, queues, declare_only):
        stray, job = put(mail_queue("tests.mail2"), "halted"), put(queues, "halted")
        declare_only(queues)
        text, refused = run("skip", stray.pk, job.pk)
        assert refused == "No class of this code has the scope 'tests.mail2'. Did you mean tests.mail?"
        assert f"Job {job.pk}" in text

    @pytest.mark.django_db(databases=["default", "other"])
    def test_asks_for_the_database_when_two_have_such_a_job(self, queues):
        elsewhere = mail_queue("tests.elsewhere", using="other")
        here, there = put(queues, "halted", id=900), put_elsewhere(elsewhere, id=900)
        _, refused = run("cancel", 900)
        assert refused == "There is a job 900 in each of the databases default, other: add --database."
        assert "tests.elsewhere" in run("cancel", 900, "--database", "other")[0]
        there.refresh_from_db()
        here.refresh_from_db()
        assert (here.state, there.state) == ("halted", "cancelled")

    @pytest.mark.django_db(databases=["default", "other"])
    def test_finds_a_job_in_any_database(self, queues):
        job = put_elsewhere(mail_queue("tests.elsewhere", using="other"))
        assert "is cancelled" in run("cancel", job.pk)[0]
        assert "There is no job" in run("cancel", job.pk, "--database", "default")[1]

    @pytest.mark.django_db(databases=["default", "other"])
    def test_refuses_a_job_that_its_class_does_not_look_for_there(self, queues, declare_only):
        job = put(queues, "halted")
        declare_only()
        mail_queue(using="other")
        _, refused = run("skip", job.pk, "--database", "default")
        assert "where nothing serves it: MailQueue keeps its jobs in other" in refused

    def test_refuses_a_database_that_is_not_there(self, queues):
        assert "invalid choice: 'nowhere'" in run("skip", 1, "--database", "nowhere")[1]


def put_elsewhere(queuetopia, **columns):
    job = Job(scope=queuetopia.scope, queue="a", action="send_mail", scheduled_at=timezone.now(), **columns)
    job.save(using=queuetopia.database())
    return job


def test_prioritize_gives_a_queue_a_head_start(queues):
    put(queues, "waiting")
    text, _ = run("prioritize", "tests.mail", "customer-42", "--seconds", "10m", "--reason", "a complaint")
    assert text == "tests.mail/customer-42 has a head start of 10 min in line.\n"
    assert JobEvent.objects.get().reason == "a complaint"
    assert "There is no queue nobody" in run("prioritize", "tests.mail", "nobody")[1]


@pytest.mark.capability("X4")
@pytest.mark.capability("X5")
class TestMove:
    def test_of_jobs(self, queues):
        jobs = [put(queues, "waiting"), put(queues, "done")]
        text, error = run("move", jobs[0].pk, jobs[1].pk, "--to", "b", "--by", "ann", "--reason", "one line")
        assert text == (
            f"Job {jobs[0].pk} (send_mail of tests.mail/b) is moved to the end of queue b "
            "(it has had no other job so far: is the name right?).\n"
        )
        assert error.startswith(f"Job {jobs[1].pk} cannot be moved: it is done since ")
        event = JobEvent.objects.get()
        assert (event.verb, event.by, event.reason) == ("move", "ann", "one line")

    def test_of_a_queue(self, queues):
        put(queues, "waiting")
        put(queues, "waiting")
        put(queues, "running first")
        text, _ = run("move", "--queue", "customer-42", "--scope", "tests.mail", "--to", "b")
        assert text == "tests.mail/customer-42: jobs moved to b: 2.\n"
        found, _ = run_json("move", "--queue", "customer-42", "--scope", "tests.mail", "--to", "b")
        (result,) = found["results"]
        assert (result["ok"], result["found"], result["done"], result["left"]) == (True, 0, 0, 0)

    @pytest.mark.parametrize("words", [[], ["1", "--queue", "a"], ["--queue", "a"]])
    def test_names_jobs_or_one_queue(self, queues, words):
        assert run("move", *words, "--to", "b")[1].startswith("Error: ")

    @pytest.mark.parametrize("to", ["", "x" * 256, "customer-42"])
    def test_refuses_a_wrong_name(self, queues, to):
        put(queues, "waiting")
        assert run("move", "--queue", "customer-42", "--scope", "tests.mail", "--to", to)[1]
        assert Job.objects.get().queue == "customer-42"


@pytest.mark.capability("X5")
def test_reschedule_gives_a_job_another_time(queues):
    job = put(queues, "waiting")
    text, _ = run("reschedule", job.pk, "--at", "2042-01-31T08:00+01:00")
    assert text.startswith(f"Job {job.pk} (send_mail of tests.mail/customer-42) is scheduled for 2042-01-31")
    assert Job.objects.get().scheduled_at.isoformat() == "2042-01-31T07:00:00+00:00"
    assert "is no time; write" in run("reschedule", job.pk, "--at", "2042-13-31")[1]
    assert "is over" in run("reschedule", job.pk, "--at", "2020-01-31T08:00")[1]


def test_edit_memory_gives_a_queue_another_one(declare_only):
    declare_only()
    queues = mail_queue(sensitive_params=("token",))
    run("edit-memory", "tests.mail", "customer-42", '{"token": "open sesame", "sum": 1}')
    new = '{"token": "********", "sum": 2}'
    text, _ = run("edit-memory", "tests.mail", "customer-42", new, "--by", "ann", "--reason", "a gap")
    assert text == "tests.mail/customer-42 has another memory, for its next attempt.\n"
    assert queues.memory("customer-42") == {"token": "open sesame", "sum": 2}
    event = JobEvent.objects.order_by("-pk")[0]
    assert (event.verb, event.by, event.reason) == ("edit_memory", "ann", "a gap")
    assert "MEMORY is no JSON object: " in run("edit-memory", "tests.mail", "customer-42", "[1]")[1]


@pytest.mark.capability("H29")
class TestPauseAndResume:
    def test_of_a_queue(self, queues):
        put(queues, "waiting")
        text, _ = run("pause", "tests.mail", "customer-42", "--by", "ann", "--reason", "deploy")
        assert text == "tests.mail/customer-42 is paused: what runs finishes, nothing new starts.\n"
        line = Queue.objects.get()
        assert (line.paused_by, line.paused_reason) == ("ann", "deploy")
        assert run("resume", "tests.mail", "customer-42")[0] == "tests.mail/customer-42 is resumed.\n"
        assert Queue.objects.get().paused_at is None
        assert [event.by for event in JobEvent.objects.order_by("id")] == ["ann", getpass.getuser()]

    def test_of_a_scope(self, queues):
        assert run("pause", "tests.mail")[0].startswith("tests.mail is paused")
        assert Scope.objects.get().paused_at is not None
        assert run("resume", "tests.mail")[0] == "tests.mail is resumed.\n"

    def test_of_a_queue_that_nobody_knows_ask_if_it_is_meant(self, queues):
        put(queues, "waiting")
        text, _ = run("pause", "tests.mail", "custmer-42")
        assert "It has had no job so far: is the name right?" in text
        assert "so far" not in run("pause", "tests.mail", "customer-42")[0]

    def test_say_that_the_scope_is_paused_still(self, queues):
        queues.pause()
        queues.pause("a")
        assert run("resume", "tests.mail", "a")[0] == "tests.mail/a is resumed, but all of tests.mail is paused.\n"

    def test_of_everything(self, queues):
        text, _ = run("pause", "--all", "--by", "ann", "--reason", "moving")
        assert text == "Everything in database default is paused: what runs finishes, nothing new starts.\n"
        assert "everything is paused since" in (shown := run("status")[0]) and "by ann: moving" in shown
        queues.pause("a")
        assert run("resume", "tests.mail", "a")[0] == "tests.mail/a is resumed, but everything is paused.\n"
        assert run("resume", "--all", "--database", "default")[0] == "Everything in database default is resumed.\n"
        assert "is paused" not in run("status")[0]
        assert "Everything is not paused in any database" in run("resume", "--all")[1]

    @pytest.mark.parametrize("words", [(), ("tests.mail", "--all"), ("tests.mail", "--database", "default")])
    def test_want_a_scope_or_all(self, queues, words):
        assert "name a scope, or say --all" in run("pause", *words)[1]
        assert not Scope.objects.exists()

    def test_refuse_to_resume_what_is_not_paused(self, queues):
        assert run("resume", "tests.mail") == ("", "tests.mail is not paused.")
        assert run("resume", "tests.mail", "a") == ("", "tests.mail/a is not paused.")

    def test_refuse_what_is_no_name_of_a_queue(self, queues):
        assert run("pause", "tests.mail", "x" * 300)[1] == "queue has 300 characters; a queue's name has 1 to 255."
        assert "has 0 characters" in run("pause", "tests.mail", "")[1]

    @pytest.mark.parametrize("verb", ["pause", "resume", "status", "prune"])
    def test_refuse_an_unknown_scope_with_those_that_are_close_or_all(self, queues, verb):
        mail_queue("shop.sms")
        assert "Did you mean tests.mail?" in run(verb, "test.mail")[1]
        assert "Known are: shop.sms, tests.mail." in run(verb, "zzz")[1]

    def test_say_it_in_json(self, queues):
        answer, _ = run_json("pause", "tests.mail", "a")
        (result,) = answer["results"]
        assert (answer["verb"], result["scope"], result["queue"], result["ok"]) == ("pause", "tests.mail", "a", True)
        answer, refused = run_json("resume", "tests.mail")
        assert answer["results"] == [{"scope": "tests.mail", "queue": None, "ok": False, "message": refused}]


@pytest.mark.capability("Q22")
class TestPrune:
    def put_ended(self, queuetopia, count, days):
        done_at = timezone.now() - timedelta(days=days)
        for number in range(count):
            put(queuetopia, ENDED[number % 3], done_at=done_at)

    def test_deletes_batch_by_batch_and_says_how_many_per_scope(self, queues, monkeypatch):
        monkeypatch.setattr(command, "PRUNE_BATCH", 2)
        other = mail_queue("tests.other")
        self.put_ended(queues, 5, days=8)
        self.put_ended(queues, 1, days=6)
        self.put_ended(other, 4, days=8)
        put(queues, "halted")
        text, refused = run("prune")
        assert text == "tests.mail: ended jobs deleted: 5.\ntests.other: ended jobs deleted: 4.\n"
        assert refused is None
        assert Job.objects.count() == 2

    def test_takes_scopes_and_days(self, queues):
        other = mail_queue("tests.other")
        for queuetopia in (queues, other):
            self.put_ended(queuetopia, 1, days=2.5)
        assert run("prune", "tests.mail", "--older-than", "3")[0] == "tests.mail: ended jobs deleted: 0.\n"
        assert run("prune", "tests.mail", "--older-than", "2.4")[0] == "tests.mail: ended jobs deleted: 1.\n"
        assert other.jobs().count() == 1

    def test_says_which_scope_keeps_its_jobs_for_ever(self, queues):
        self.put_ended(mail_queue("tests.ever", retention=None), 1, days=900)
        text, _ = run("prune", "tests.ever")
        assert text == "tests.ever: ended jobs deleted: 0; its retention is None, for ever.\n"
        assert run("prune", "tests.ever", "--older-than", "800")[0] == "tests.ever: ended jobs deleted: 1.\n"

    @pytest.mark.parametrize("wrong", ["-1", "nan", "inf", "1e9"])
    def test_refuses_what_is_no_time(self, queues, wrong):
        self.put_ended(queues, 1, days=9)
        assert run("prune", f"--older-than={wrong}")[1].startswith("--older-than: ")
        assert Job.objects.count() == 1

    def test_says_it_in_json(self, queues):
        self.put_ended(queues, 3, days=8)
        answer, _ = run_json("prune")
        assert answer["results"] == [
            {"scope": "tests.mail", "ok": True, "deleted": 3, "message": "tests.mail: ended jobs deleted: 3."}
        ]


@pytest.mark.capability("H26", "E7")
class TestStatus:
    def test_shows_nodes_workers_and_what_each_runs(self, queues):
        job = put(queues, "running again")
        idle = {"jobs": [], "age": 90, "attempts": 7}
        limited = {"pid": 13, "memory": 120, "max_attempts": 1000, "max_memory": 512}
        put_node(workers=[{"pid": 11, "jobs": [job.pk]}, {"pid": 12, **idle}, {**idle, **limited}])
        text, _ = run("status")
        assert "node web1:4242 (database default): alive, last seen 0 s ago, started " in text
        assert "queues held: 1, serves tests.mail" in text
        assert f"  worker 11:\n    job {job.pk} (send_mail of tests.mail/customer-42), attempt 3, for 0 s\n" in text
        assert "  worker 12 (for 90 s, attempts: 7): idle\n" in text
        assert "  worker 13 (for 90 s, attempts: 7 of 1000, 120 of 512 MB): idle\n" in text

    def test_says_how_to_start_a_node_when_there_is_none(self, queues):
        assert run("status")[0].startswith("No node is running. Start one: manage.py run_queuetopia\n")

    def test_shows_a_node_that_is_not_seen_any_more(self, queues):
        put_node(last_seen=timezone.now() - timedelta(hours=3))
        assert "silent, last seen 3 h ago" in run("status")[0]

    def test_shows_blocked_queues_first_with_what_blocks_them(self, queues):
        put(queues, "waiting", "ready")
        halted = put(queues, "halted", "stuck")
        put(queues, "backing off", "waits")
        put_node()
        put(queues, "running first", "runs")
        text, _ = run("status")
        lines = text[text.index("tests.mail (") :].splitlines()
        assert lines[0] == "tests.mail (tests.states.MailQueue, database default)"
        counts = "1 waiting, 1 running, 1 backing off, 1 halted"
        assert f"unfinished jobs: 4 ({counts}); the oldest is due for 60 min" in lines[1]
        assert "queues with work: 4 (2 blocked, 1 running, 0 paused, 0 with a problem)" in lines[2]
        assert lines[3].split() == list(command.COLUMNS)
        columns = [" ".join(line.split()) for line in lines[4:]]
        assert columns[0] == f"halted stuck 1 60 min {halted.pk} send_mail 20/20 60 min ValueError: boom"
        assert columns[1].startswith("backing off waits 1 60 min")
        assert columns[1].endswith("2/20 60 min in 60 min ValueError: boom")
        assert columns[2].endswith("1/20 0 s on web1:4242")
        assert columns[3] == "ready ready 1 60 min now"

    def test_shows_pauses_and_problems(self, queues):
        put(queues, "waiting", "a")
        queues.pause("a", by="ann", reason="provider is down")
        put(queues, "waiting", "b")
        Queue.objects.filter(name="b").update(problem="no action 'send_fax'")
        queues.pause(by="bob")
        text, _ = run("status")
        assert "  paused since " in text
        assert " by bob\n" in text
        assert "by ann: provider is down" in text
        assert "no action 'send_fax'" in text

    def test_lists_as_many_queues_as_asked_for_and_counts_the_rest(self, queues):
        for number in range(5):
            put(queues, "waiting", f"queue-{number}")
        text, _ = run("status", "--queues", 2)
        assert text.count("queue-") == 2
        assert "and 3 more; --queues N" in text

    def test_shows_the_scopes_that_are_named_only(self, queues):
        put(mail_queue("tests.other"), "halted", "elsewhere")
        text, _ = run("status", "tests.mail")
        assert "elsewhere" not in text
        assert "elsewhere" in run("status")[0]

    def test_shows_scopes_that_no_code_knows(self, queues, declare_only):
        put(mail_queue("tests.gone"), "waiting")
        declare_only(queues)
        assert (
            "tests.gone (database default): unfinished jobs: 1, untouched, because no code here knows"
            in run("status")[0]
        )

    def test_cuts_long_texts_unless_all_is_asked_for(self, queues):
        put(queues, "halted", "q" * 255, error="E" * 2000)
        text, _ = run("status")
        assert "q" * 39 + "…" in text
        assert "E" * 99 + "…" in text
        assert max(map(len, text.splitlines())) < 300
        text, _ = run("status", "-v", 2)
        assert "q" * 255 in text
        assert "E" * 2000 in text

    def test_is_json_for_machines(self, queues, declare_only):
        job = put(queues, "halted")
        put_node(workers=[{"pid": 11, "jobs": []}])
        put(mail_queue("tests.gone"), "waiting")
        declare_only(queues)
        answer, refused = run_json("status")
        assert refused is None
        assert list(answer) == ["nodes", "scopes", "unknown_scopes", "unreachable"]
        (scope,) = answer["scopes"]
        assert scope["queues"][0]["job"] == job.pk
        assert timezone.is_aware(datetime.fromisoformat(scope["queues"][0]["oldest"]))
        assert answer["nodes"][0]["workers"] == [{"pid": 11, **dict.fromkeys(WORKER_FIGURES), "jobs": []}]
        assert answer["unknown_scopes"][0]["scope"] == "tests.gone"

    def test_has_no_colours_when_they_are_not_wanted(self, queues):
        put(queues, "halted")
        assert "\x1b" not in run("status")[0]

    def test_has_colours_when_they_are(self, queues):
        put(queues, "halted")
        stdout = io.StringIO()
        call_command("queuetopia", "status", "--force-color", stdout=stdout)
        line = next(line for line in stdout.getvalue().splitlines() if "boom" in line)
        assert line.startswith("\x1b[")
        assert line.endswith("\x1b[0m")


class TestHostileText:
    """Whoever may create jobs or fail in them must not write on an operator's terminal."""

    @pytest.fixture
    def hostile(self, queues):
        queues.pause(HOSTILE, by=HOSTILE, reason=HOSTILE)
        queues.pause(by=HOSTILE, reason=HOSTILE)
        job = put(queues, "halted", HOSTILE, error=HOSTILE, action=HOSTILE)
        Queue.objects.update(problem=HOSTILE)
        put(queues, "running first", f"{HOSTILE}2", action=HOSTILE)
        put_node(host=HOSTILE, scopes=["tests.mail", HOSTILE])
        return job

    def assert_harmless(self, text):
        assert all(char.isprintable() or char == "\n" for char in text)
        assert "fake line" not in [line.strip() for line in text.splitlines()]

    @pytest.mark.parametrize("arguments", [["status"], ["status", "-v", "2"], ["status", "--json"]])
    def test_is_escaped_in_status(self, hostile, arguments):
        text, _ = run(*arguments)
        self.assert_harmless(text)
        assert "x1b[2J" in text or "u001b[2J" in text

    @pytest.mark.parametrize("verb", ["retry", "skip", "cancel"])
    def test_is_escaped_in_what_a_verb_says(self, hostile, verb):
        text, refused = run(verb, hostile.pk)
        self.assert_harmless(text + (refused or ""))

    @pytest.mark.parametrize("arguments", [["resume", "tests.mail", HOSTILE], ["pause", "tests.mail", HOSTILE]])
    def test_is_escaped_in_the_name_of_a_queue(self, hostile, arguments):
        text, _ = run(*arguments)
        self.assert_harmless(text)
        assert "\\x1b[2J" in text

    def test_is_escaped_in_an_unknown_scope_of_a_job(self, queues, declare_only):
        job = put(mail_queue(HOSTILE), "halted")
        declare_only()
        text, refused = run("skip", job.pk)
        self.assert_harmless(text + refused)
        self.assert_harmless(run("status")[0])

    def test_is_kept_whole_in_json(self, hostile):
        answer, _ = run_json("status")
        assert answer["scopes"][0]["queues"][0]["error"] == HOSTILE


class TestErrors:
    @pytest.mark.parametrize(
        "arguments",
        [[], ["explode"], ["retry"], ["pause"], ["status", "--queues", "many"], ["prune", "--older-than", "x"]],
    )
    def test_of_usage_are_told_as_such(self, queues, arguments):
        assert run(*arguments)[1].startswith("Error: ")

    @pytest.mark.parametrize("arguments", [["status"], ["retry", "1"], ["pause", "tests.mail"], ["prune"]])
    def test_of_the_database_come_with_a_remedy(self, queues, monkeypatch, arguments):
        def broken(alias):
            raise OperationalError("no such table: queuetopia_job\x1b[2J")

        for module in (jobs.deciding, jobs.retention, status):
            monkeypatch.setattr(module, "backend_for", broken)
        monkeypatch.setattr(status, "databases", lambda: broken("default"))
        _, refused = run(*arguments)
        assert "no such table: queuetopia_job\\x1b[2J" in refused
        assert "manage.py migrate" in refused

    def test_of_one_database_leave_the_status_of_the_others(self, queues, monkeypatch):
        put(queues, "halted")
        nodes = status.nodes
        monkeypatch.setattr(status, "databases", lambda: ["default", "other"])
        monkeypatch.setattr(status, "nodes", lambda alias: nodes(alias) if alias == "default" else refuse())

        def refuse():
            raise OperationalError("connection refused")

        text, refused = run("status")
        assert "tests.mail" in text
        assert refused.startswith("database other: The database cannot be reached: connection refused.")
        answer, refused = run_json("status")
        assert [each["database"] for each in answer["unreachable"]] == ["other"]

    def test_of_options_are_told(self, queues):
        mail_queue("tests.wrong", using="nowhere")
        assert "Option using in" in run("status")[1]

    @pytest.mark.parametrize("order", ["before", "after"])
    def test_are_those_of_django_for_its_own_options(self, queues, order):
        clash = ["--no-color", "--force-color"]
        arguments = [*clash, "status"] if order == "before" else ["status", *clash]
        with pytest.raises(CommandError, match="can't be used together"):
            call_command("queuetopia", *arguments)


@pytest.mark.processes
@pytest.mark.django_db(transaction=True)
def test_from_a_shell_a_refusal_is_on_stderr_with_exit_code_1_and_no_traceback(node_environment):
    def shell(*arguments):
        command_line = [sys.executable, "-m", "django", "queuetopia", *arguments]
        return subprocess.run(command_line, env=node_environment, capture_output=True, text=True, timeout=60)

    refused = shell("retry", "99999", "--verbosity", "2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("CommandError: There is no job 99999 in database ")
    assert "Traceback" not in refused.stderr
    fine = shell("status", "--json")
    assert (fine.returncode, fine.stderr) == (0, "")
    assert json.loads(fine.stdout)["nodes"] == []


class TestAll:
    @pytest.fixture
    def jobs(self, queues):
        return [put(queues, "halted", name, error=f"OSError: {name}") for name in "abc"]

    def test_are_counted_retried_and_skipped(self, queues, jobs):
        assert run("retry", "--all", "--dry-run") == ("tests.mail: jobs that would be retried: 3.\n", None)
        assert Job.objects.halted().count() == 3
        assert run("skip", "--all", "--error", "oserror: a", "--by", "ann")[0] == "tests.mail: jobs skipped: 1.\n"
        assert run("retry", "--all", "--scope", "tests.mail", "--queue", "b")[0] == "tests.mail: jobs retried: 1.\n"
        answer, _ = run_json("retry", "--all")
        assert [(found["scope"], found["done"], found["left"]) for found in answer["results"]] == [("tests.mail", 1, 0)]
        assert [event.verb for event in JobEvent.objects.order_by("pk")] == ["skip", "retry", "retry"]

    def test_need_to_be_meant(self, queues, jobs):
        assert "or say --all" in run("retry")[1]
        assert "not both" in run("skip", "--all", jobs[0].pk)[1]
        assert "only together with --all" in run("skip", jobs[0].pk, "--error", "x")[1]
        assert Job.objects.halted().count() == 3

    def test_show_a_bar_on_a_terminal(self, queues, jobs, monkeypatch):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        monkeypatch.setattr(command.sys, "stderr", terminal := Terminal())
        run("retry", "--all")
        assert terminal.getvalue().endswith("] 3/3 jobs\n")
