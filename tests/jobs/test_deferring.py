"""Work that ends elsewhere: ``Deferred``, its token, and what may be reported when."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.cache import cache
from django.utils import timezone

from queuetopia import Deferred, InvalidJob, Refused
from queuetopia.models import Job, Queue
from queuetopia.monitoring.explain import Cause
from queuetopia.testing import drain, perform_job
from queuetopia.times import local
from tests.admin.client import client_of, page, plain
from tests.commands import run, run_json
from tests.states import put
from tests.testapp.queues import LEDGER, BookingQueue, LedgerQueue

pytestmark = [pytest.mark.django_db, pytest.mark.capability("J21", "J22")]


@pytest.fixture(autouse=True)
def ledger(tmp_path, monkeypatch):
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(path))
    return path


@pytest.fixture
def token(ledger):
    """Return a function that returns the token of a queue's last attempt."""
    return lambda queue="a": Path(f"{ledger}.token.{queue}").read_text()


def deferred(queue="a", **options):
    """Return a job whose attempt goes on outside, with another job behind it."""
    job = LedgerQueue.create_job(queue, "defer", options.pop("params", {}), **options)
    LedgerQueue.create_job(queue, "noop")
    drain(LedgerQueue)
    return job


def test_a_deferred_attempt_holds_its_queue_until_its_completion_is_reported(token):
    job = deferred()
    job.refresh_from_db()
    assert (job.state, job.attempts, job.is_outside()) == ("pending", 0, True)
    assert Queue.objects.get().held_by is None
    assert drain(LedgerQueue) == []
    LedgerQueue.complete(token(), {"pages": 30})
    first, second = drain(LedgerQueue)
    assert (first.pk, first.state, first.attempts, first.result) == (job.pk, "done", 1, {"pages": 30})
    assert (first.is_outside(), second.state) == (False, "done")


def test_a_reported_failure_is_a_failed_attempt(token):
    job = deferred(max_attempts=1, max_backoff=3600)
    LedgerQueue.fail(token(), "paper jam")
    drain(LedgerQueue)
    job.refresh_from_db()
    assert (job.state, job.attempts, job.error) == ("halted", 1, "FailedOutside: paper jam")


def test_past_its_deadline_it_is_a_failed_attempt(token):
    job = deferred(params={"timeout": 60}, max_backoff=3600)
    drain(LedgerQueue, now=timezone.now() + timedelta(seconds=61))
    job.refresh_from_db()
    assert (job.state, job.attempts) == ("pending", 1)
    assert job.error == "JobTimeout: nothing was reported from outside before the deadline"
    with pytest.raises(Refused, match="this attempt is over, by its deadline"):
        LedgerQueue.complete(token())


def test_what_is_reported_before_the_attempt_returns_is_its_end():
    job = LedgerQueue.create_job("a", "defer", {"then": "complete"})
    drain(LedgerQueue)
    job.refresh_from_db()
    assert (job.state, job.attempts, job.result) == ("done", 1, {"early": True})


class TestRefused:
    def refused(self, call, *args):
        before = list(Job.objects.values("state", "outside", "next_attempt_at"))
        with pytest.raises(Refused) as info:
            call(*args)
        assert list(Job.objects.values("state", "outside", "next_attempt_at")) == before
        return str(info.value)

    def test_twice(self, token):
        deferred()
        LedgerQueue.complete(token())
        assert "that was reported before" in self.refused(LedgerQueue.fail, token(), "no")
        drain(LedgerQueue)
        assert "it is done since" in self.refused(LedgerQueue.complete, token())

    @pytest.mark.parametrize("wrong", ["", "12.3", None, 5, "é"])
    def test_a_wrong_token(self, wrong):
        deferred()
        assert "This is no token of tests.ledger" in self.refused(LedgerQueue.complete, wrong)

    def test_a_token_that_was_changed_or_is_of_another_scope(self, token):
        deferred()
        assert "no token" in self.refused(LedgerQueue.complete, token().replace(".", "1.", 1))
        assert "no token of tests.booking" in self.refused(BookingQueue.complete, token())

    def test_of_an_attempt_that_an_operator_replaced(self, token):
        job = deferred()
        first = token()
        LedgerQueue.retry(job)
        assert "this attempt has ended" in self.refused(LedgerQueue.complete, first)
        drain(LedgerQueue)
        assert "a later one has its queue" in self.refused(LedgerQueue.complete, first)
        LedgerQueue.complete(token())
        drain(LedgerQueue)
        job.refresh_from_db()
        assert job.state == "done"

    @pytest.mark.parametrize(("verb", "state"), [("cancel", "cancelled"), ("skip", "skipped"), ("mark_done", "done")])
    def test_of_a_job_that_an_operator_ended(self, token, verb, state):
        job = deferred()
        getattr(LedgerQueue, verb)(job)
        job.refresh_from_db()
        assert (job.state, job.outside) == (state, None)
        assert f"it is {state} since" in self.refused(LedgerQueue.complete, token())
        assert [done.state for done in drain(LedgerQueue)] == ["done"]

    def test_of_a_job_that_is_gone(self, token):
        deferred()
        Job.objects.all().delete()
        assert "it was deleted" in self.refused(LedgerQueue.complete, token())


def test_a_result_that_is_no_json_is_refused(token):
    deferred()
    with pytest.raises(InvalidJob) as info:
        LedgerQueue.complete(token(), object())
    assert info.value.message_dict == {"result": ["is no JSON that can be stored: object."]}


def test_a_retry_of_all_that_is_blocked_leaves_deferred_attempts_alone():
    job = deferred()
    assert LedgerQueue.retry_all() == 0
    job.refresh_from_db()
    assert job.is_outside()


def test_explain_says_for_what_the_queue_waits(token):
    job = deferred()
    explained = LedgerQueue.explain("a")
    assert explained["cause"] == Cause.OUTSIDE
    assert explained["sentence"].startswith(
        f"a is held by job {job.pk} (defer), attempt 1, which has waited 0 s for its completion from outside, and "
        "does so for another 60 min;"
    )
    LedgerQueue.complete(token())
    assert "whose end was reported from outside" in LedgerQueue.explain("a")["sentence"]


class TestShown:
    """A deferred attempt has a word of its own, and says for what it waits and until when."""

    @pytest.fixture
    def job(self, declare_only):
        declare_only(LedgerQueue)
        cache.clear()  # the overview's
        job = deferred()
        put(LedgerQueue, "backing off", "failing")
        job.refresh_from_db()
        return job

    @pytest.fixture
    def why(self, job):
        return f"waits for outside completion since {local(job.attempted_at)}, until {local(job.next_attempt_at)}"

    def test_by_status(self, job, why):
        text, _ = run("status", "--verbosity", "2")
        assert re.search(rf"^  outside +a .*{re.escape(why)}$", text, re.MULTILINE)
        assert "3 jobs" not in text and "(1 waiting, 0 running, 1 outside, 1 backing off, 0 halted)" in text
        (scope,) = run_json("status")[0]["scopes"]
        assert {queue["queue"]: queue["state"] for queue in scope["queues"]} == {
            "a": "outside", "failing": "backing off",
        }  # fmt: skip
        counts = scope["queue_counts"]
        assert (counts["blocked"], counts["outside"], counts["backing_off"]) == (1, 1, 1)
        assert (scope["jobs"]["outside"], scope["jobs"]["backing_off"]) == (1, 1)

    def test_by_the_overview(self, job):
        text = plain(page(client_of(username="boss", is_superuser=True), "/admin/queuetopia/scope/"))
        assert re.search(r"1\s+queues backing off", text) and re.search(r"1\s+queues wait for outside completion", text)

    def test_by_the_lists_and_their_filters(self, job):
        boss = client_of(username="boss", is_superuser=True)
        for url in ("job/", "queue/"):
            for state, other in (("outside", "backing off"), ("backing off", "outside")):
                text = plain(page(boss, f"/admin/queuetopia/{url}", state=state))
                assert ("waits for outside completion since" in text) is (state == "outside")
                assert ("ValueError: boom" in text) is (other == "outside")

    def test_by_its_page_with_the_verbs_that_apply(self, job):
        boss = client_of(username="boss", is_superuser=True)
        text = page(boss, f"/admin/queuetopia/job/{job.pk}/change/")
        assert "waits for outside completion since" in plain(text)
        shown = re.findall(r'class="queuetopia-verb">([^<]+)<', text)
        assert shown == ["Retry", "Skip", "Cancel", "Mark done", "Edit", "Move to end"]
        line = Queue.objects.get(name="a")
        assert "waits for outside completion since" in plain(page(boss, f"/admin/queuetopia/queue/{line.pk}/change/"))


def test_a_token_is_of_the_job_that_a_performer_is_handed():
    job = LedgerQueue.create_job("a", "noop")
    with pytest.raises(RuntimeError, match="a token is of the attempt"):
        job.token  # noqa: B018
    assert isinstance(perform_job(LedgerQueue.job("b", "defer")), Deferred)
    with pytest.raises(ValueError, match="is not more than 0"):
        Deferred(0)


class TestExternal:
    def run(self, action, code):
        job = LedgerQueue.create_job(f"{action} {code}", action, {"code": code}, max_attempts=1)
        drain(LedgerQueue)
        job.refresh_from_db()
        return job

    @pytest.mark.parametrize("action", ["run_program", "run_program_async"])
    def test_a_program_that_exits_with_0_is_a_success(self, action):
        assert self.run(action, "pass").state == "done"

    @pytest.mark.parametrize("action", ["run_program", "run_program_async"])
    def test_any_other_end_is_a_failure_that_says_which(self, action):
        job = self.run(action, "raise SystemExit(3)")
        assert (job.state, job.error) == ("halted", "ExternalFailed: the program exited with code 3")
        job = self.run(action, "import os; os.kill(os.getpid(), 9)")
        assert job.error == "ExternalFailed: the program was killed by signal 9"
