"""Progress: what an attempt reports of itself, to whom it shows, and for how long."""

import json
import threading
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.cache import cache
from django.db import OperationalError
from django.db.backends.signals import connection_created
from django.utils import timezone

from queuetopia import Performer, Queuetopia, Refused, action
from queuetopia.backends import backend_for, upkeep
from queuetopia.jobs import reporting
from queuetopia.models import Job, Queue
from queuetopia.monitoring.follow import Follower
from queuetopia.monitoring.status import nodes, progress_of, progress_text
from queuetopia.outside import token_of
from queuetopia.testing import drain, perform_job, wait_until
from queuetopia.worker.performing import job_of
from tests.admin.client import client_of, page, plain
from tests.commands import HOSTILE, run, run_json
from tests.nodes import PATIENCE
from tests.states import HOUR, NODE, mail_queue, put, put_node
from tests.testapp.queues import LEDGER, LedgerQueue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("J21", "J22")]

WRONG = [
    *[((value,), "fraction must be a number from 0 to 1") for value in (-0.1, 1.1, float("nan"), True, "0.4", None)],
    ((0.4, None), "text must be a str, not NoneType"),
    ((0.4, "x" * 201), "text has 201 characters, and at most 200 are kept"),
]


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    cache.clear()  # the overview's
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(path))
    return path


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue(sensitive_params=("password",))


def claim_of(queue="a", action="noop"):
    """Return the claim of a job that is running."""
    LedgerQueue.create_job(queue, action)
    backend = backend_for("default")
    upkeep.sweep(backend, LedgerQueue.scope, "")
    (claim,), _ = backend.claim([LedgerQueue.scope], 1, NODE, only=queue)
    return claim


def reported(fraction=0.4, text="page 12 of 30", fence=7):
    return {"fence": fence, "fraction": fraction, "text": text, "at": timezone.now().isoformat()}


def running(queues, queue="customer-42", **more):
    job = put(queues, "running again", queue, progress=reported(**more))
    put_node(workers=[{"pid": 1, "jobs": [job.pk]}])
    return job


def shown(job):
    """Return what is shown of the progress of a job, in words."""
    line = Queue.objects.get(scope=job.scope, name=job.queue)
    return progress_text(progress_of(Job.objects.get(pk=job.pk), line))


class TestReport:
    def test_is_stored_while_the_attempt_runs(self, declare_only):
        declare_only()
        seen = []

        class Pages(Performer):
            @action
            def count(self, job):
                job.report_progress(0.4, "page 12 of 30")
                seen.append(PagesQueue.explain(job.queue))
                job.report_progress(1)
                seen.append(PagesQueue.explain(job.queue))

        class PagesQueue(Queuetopia):
            performer = Pages
            scope = "tests.pages"

        job = PagesQueue.create_job("a", "count")
        assert [done.state for done in drain(PagesQueue)] == ["done"]
        first, second = (explained["progress"] for explained in seen)
        assert (first["fraction"], first["text"], second["fraction"], second["text"]) == (0.4, "page 12 of 30", 1, "")
        assert abs(first["at"] - timezone.now()) < HOUR
        assert ", 40 %: page 12 of 30, " in seen[0]["sentence"]
        assert shown(job) == ""

    def test_of_async_code_is_stored_too(self, ledger):
        Path(f"{ledger}.go").touch()
        job = LedgerQueue.create_job("a", "report_async", {"texts": ["one", "two"]})
        drain(LedgerQueue)
        job.refresh_from_db()
        assert (job.state, job.progress["text"], job.progress["fence"]) == ("done", "two", 1)

    @pytest.mark.parametrize(("arguments", "message"), WRONG)
    def test_that_is_none_is_refused_and_nothing_written(self, arguments, message):
        claim = claim_of()
        with pytest.raises(ValueError, match=message):
            job_of(claim).report_progress(*arguments)
        assert Job.objects.get().progress is None

    def test_of_a_job_that_no_performer_was_handed_is_refused(self):
        job = LedgerQueue.create_job("a", "noop")
        with pytest.raises(RuntimeError, match="runs nowhere here: report_progress"):
            job.report_progress(0.4)

    def test_of_an_attempt_that_has_lost_its_queue_writes_nothing(self):
        claim = claim_of()
        Queue.objects.update(fence=claim.fence + 1)
        job_of(claim).report_progress(0.4, "too late")
        assert Job.objects.get().progress is None

    def test_of_a_job_that_has_ended_writes_nothing(self):
        claim = claim_of()
        Job.objects.update(state="cancelled", done_at=timezone.now())
        job_of(claim).report_progress(0.4, "too late")
        assert Job.objects.get().progress is None

    def test_of_a_rehearsal_writes_nothing(self):
        perform_job(LedgerQueue.create_job("a", "report", {"texts": ["one"], "holds": False}))
        assert Job.objects.get().progress is None

    def test_masks_the_values_of_sensitive_params(self, queues):
        value = reporting.progress_value(queues, {"password": "hunter2"}, 1, 0.5, "logged in as hunter2")
        assert value["text"] == "logged in as ********"

    def test_of_text_that_databases_refuse_is_stored_as_they_take_it(self):
        job_of(claim_of()).report_progress(0.4, "a\x00b\ud800")
        assert Job.objects.get().progress["text"] == "a␀b\\ud800"


class TestOutside:
    def deferred(self):
        job = LedgerQueue.create_job("a", "defer")
        drain(LedgerQueue)
        return job, token_of(LedgerQueue.scope, job.pk, 1)

    def test_a_deferred_attempt_is_reported_of_by_its_token(self):
        job, token = self.deferred()
        LedgerQueue.report_progress(token, 0.25, "printing")
        assert shown(job) == "25 %: printing"
        assert ", 25 %: printing, " in LedgerQueue.explain("a")["sentence"]
        assert LedgerQueue.status()["queues"][0]["progress"]["text"] == "printing"

    def test_what_was_reported_before_the_attempt_returned_stays(self):
        claim = claim_of(action="defer")
        token = token_of(LedgerQueue.scope, claim.job_id, claim.fence)
        LedgerQueue.report_progress(token, 0.1, "sent")
        assert shown(Job.objects.get()) == "10 %: sent"

    def test_a_report_is_refused_when_the_attempt_is_over(self):
        job, token = self.deferred()
        LedgerQueue.report_progress(token, 0.25, "printing")
        LedgerQueue.retry(job)
        assert shown(job) == ""
        with pytest.raises(Refused, match=f"Nothing can be reported of job {job.pk} from outside: this attempt has"):
            LedgerQueue.report_progress(token, 0.5)
        drain(LedgerQueue)
        assert shown(job) == ""  # of the attempt before
        with pytest.raises(Refused, match="a later one has its queue"):
            LedgerQueue.report_progress(token, 0.5)

    @pytest.mark.parametrize(("arguments", "message"), WRONG)
    def test_a_report_that_is_none_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            LedgerQueue.report_progress(self.deferred()[1], *arguments)

    def test_a_wrong_token_is_refused(self):
        with pytest.raises(Refused, match=r"This is no token of tests\.ledger"):
            LedgerQueue.report_progress("12.3", 0.5)


class TestShown:
    @pytest.mark.parametrize(
        ("fraction", "percent"), [(0, "0 %"), (0.29, "29 %"), (0.999, "99 %"), (1, "100 %"), (1 / 3, "33 %")]
    )
    def test_a_percentage_is_never_more_than_there_is(self, fraction, percent):
        assert progress_text({"fraction": fraction, "text": ""}) == percent

    @pytest.mark.parametrize("stored", [None, {}, [], "x", {"fence": 7}, {**reported(), "at": "x"}, reported(fence=6)])
    def test_what_is_of_an_earlier_attempt_or_no_report_is_nothing(self, queues, stored):
        put_node()
        assert shown(put(queues, "running again", progress=stored)) == ""

    @pytest.mark.parametrize("state", ["backing off", "halted", "snoozed", "done"])
    def test_nothing_is_shown_of_an_attempt_that_is_over(self, queues, state):
        job = put(queues, state, progress=reported(fence=0))
        assert shown(job) == ""

    def test_by_status_and_explain(self, queues):
        job = running(queues)
        text, _ = run("status")
        assert f"job {job.pk} (send_mail of tests.mail/customer-42), attempt 3, for " in text
        assert "web1:4242; 40 %: page 12 of 30" in text and text.count("40 %: page 12 of 30") == 2
        answer, _ = run_json("status")
        for found in (answer["nodes"][0]["workers"][0]["jobs"][0], answer["scopes"][0]["queues"][0]):
            assert (found["progress"]["fraction"], found["progress"]["text"]) == (0.4, "page 12 of 30")
        assert ", 40 %: page 12 of 30, " in queues.explain("customer-42")["sentence"]
        assert nodes("default")[0]["workers"][0]["jobs"][0]["progress"]["text"] == "page 12 of 30"

    def test_by_the_admin(self, queues):
        job = running(queues)
        boss = client_of(username="boss", is_superuser=True)
        line = Queue.objects.get()
        for url in ("job/", f"job/{job.pk}/change/", "queue/", f"queue/{line.pk}/change/", "scope/"):
            assert "40 %: page 12 of 30" in plain(page(boss, f"/admin/queuetopia/{url}")), url

    def test_hostile_text_is_escaped_everywhere(self, queues):
        job = running(queues, text=f"<script>{HOSTILE}")
        follower = Follower("default", ["tests.mail"])
        assert follower.poll() == []
        boss = client_of(username="boss", is_superuser=True)
        for url in ("job/", f"job/{job.pk}/change/", "queue/", "scope/"):
            text = page(boss, f"/admin/queuetopia/{url}")
            assert "<script>\x1b" not in text and "\x1b" not in text and r"\x1b[2J" in text
            assert "&lt;script&gt;" in text
        for command in (("status",), ("explain", "tests.mail", "customer-42")):
            text, _ = run(*command)
            assert r"\x1b[2J" in text and "\x1b" not in text and "\u202e" not in text


class TestFollowed:
    def events(self, follower):
        return [(event["event"], event["progress"]["text"]) for event in follower.poll() if event["progress"]]

    def test_each_report_is_an_event(self, queues):
        job = put(queues, "running again")
        put_node(workers=[{"pid": 1, "jobs": [job.pk]}])
        follower = Follower("default", ["tests.mail"])
        assert self.events(follower) == []
        for text in ("one", "two"):
            Job.objects.filter(pk=job.pk).update(progress=reported(text=text))
            (event,) = follower.poll()
            assert (event["event"], event["attempt"], event["progress"]["text"]) == ("progress", 3, text)
        assert follower.poll() == []

    def test_what_was_reported_before_is_none(self, queues):
        job = put(queues, "running again", progress=reported())
        put_node(workers=[{"pid": 1, "jobs": [job.pk]}])
        assert self.events(Follower("default", ["tests.mail"])) == []
        since = timezone.now() - HOUR
        assert self.events(Follower("default", ["tests.mail"], since)) == [("progress", "page 12 of 30")]

    def test_reports_of_a_deferred_attempt_are_events(self):
        job = LedgerQueue.create_job("a", "defer")
        drain(LedgerQueue)
        follower = Follower("default", [LedgerQueue.scope])
        LedgerQueue.report_progress(token_of(LedgerQueue.scope, job.pk, 1), 0.25, "printing")
        assert self.events(follower) == [("progress", "printing")]

    def test_tail_says_so(self, queues, capsys):
        from queuetopia.management.commands.queuetopia import Command

        job = running(queues)
        event = {**Follower("default", ["tests.mail"], timezone.now() - timedelta(days=1)).poll()[0]}
        assert json.dumps(event, default=str)
        assert event["event"] == "progress" and event["job"] == job.pk
        command = Command()
        command.as_json, command.is_reading, command.verbosity = False, False, 1
        command.print_event(event)
        assert f"job {job.pk} (send_mail), attempt 3: 40 %: page 12 of 30" in capsys.readouterr().out


@contextmanager
def statements_of_the_thread(execute):
    """Have ``execute`` run what the thread sends to the database."""

    def wrap(connection, **kwargs):
        connection.execute_wrappers.append(execute)

    connection_created.connect(wrap)
    try:
        yield
    finally:
        connection_created.disconnect(wrap)


def is_writing():
    return any(thread.name == "queuetopia-progress" for thread in threading.enumerate())


@pytest.mark.django_db(transaction=True)
class TestInTheBackground:
    @pytest.fixture
    def reports(self, monkeypatch):
        monkeypatch.setattr(reporting, "IDLE", 0.01)
        reports = reporting.Reports()
        reports.write_in_background()
        yield reports
        wait_until(lambda: not is_writing(), PATIENCE)  # its connections are closed

    def text(self):
        return (Job.objects.get().progress or {}).get("text")

    def put(self, reports, claim, text):
        reports.put(claim, reported(text=text, fence=claim.fence))

    def test_the_last_report_is_written_and_at_most_one_in_a_second(self, reports):
        updates = []

        def count(execute, sql, params, many, context):
            updates.append(sql)
            return execute(sql, params, many, context)

        claim = claim_of()
        began = time.monotonic()
        with statements_of_the_thread(count):
            for number in range(2_000):
                self.put(reports, claim, f"page {number}")
            wait_until(lambda: self.text() == "page 1999", PATIENCE)
        updates = [sql for sql in updates if sql.startswith("UPDATE")]
        assert 1 <= len(updates) <= 2 + (time.monotonic() - began) / reporting.EVERY

    def test_a_database_that_is_away_is_no_error_and_the_report_is_written_later(self, reports, caplog):
        failures = []

        def fail(execute, sql, params, many, context):
            if sql.startswith("UPDATE") and len(failures) < 2:
                failures.append(sql)
                raise OperationalError("the server is away")
            return execute(sql, params, many, context)

        claim = claim_of()
        with statements_of_the_thread(fail):
            self.put(reports, claim, "page 1")
            wait_until(lambda: self.text() == "page 1", PATIENCE)
        assert len(failures) == 2
        assert [record.getMessage() for record in caplog.records if "progress" in record.getMessage()] == [
            "progress not written error=OperationalError('the server is away')"
        ]

    def test_a_thread_without_reports_ends_and_the_next_report_starts_another(self, reports):
        claim = claim_of()
        for text in ("one", "two"):
            self.put(reports, claim, text)
            wait_until(lambda text=text: self.text() == text, PATIENCE)
            wait_until(lambda: not is_writing(), PATIENCE)
