"""``breaker``: an outage costs no attempts, seen by its users. What nodes do stands in ``tests/processes``."""

import uuid
from datetime import timedelta

import pytest
from django.utils import timezone

from queuetopia import (
    Breaker,
    Halt,
    JobTimeout,
    Move,
    Performer,
    Queuetopia,
    Refused,
    Retry,
    action,
    exceptions,
    signals,
)
from queuetopia.attempts import Verdict
from queuetopia.backends import backend_for
from queuetopia.jobs import failed, prune
from queuetopia.models import JobEvent, Scope
from queuetopia.monitoring import health
from queuetopia.testing import drain, jobs_created
from tests.commands import run, run_json
from tests.states import put_node

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X6")]

MINUTE = timedelta(minutes=1)


class Provider:
    down = True
    asked: list = []


class CallingPerformer(Performer):
    @action
    def call(self, job):
        if Provider.down:
            raise ConnectionRefusedError("no route to <the provider>")

    @action
    def raise_it(self, job, name):
        raise {"Retry": Retry("later", delay=7), "Halt": Halt("ask"), "ValueError": ValueError("wrong")}[name]

    def decide(self, job, exc):
        Provider.asked.append(job.pk)
        return "skip"


@pytest.fixture(autouse=True)
def provider(monkeypatch):
    monkeypatch.setattr(Provider, "down", True)
    monkeypatch.setattr(Provider, "asked", [])


@pytest.fixture
def declared(declare_only):
    declare_only()

    def declare(**options):
        options = {"breaker": Breaker(ConnectionError, OSError, after=3), "max_backoff": 0, **options}
        return type("CallQueue", (Queuetopia,), {"performer": CallingPerformer, "scope": "tests.calls", **options})

    return declare


def put(queuetopia, number, behind=0):
    for name in range(number):
        for _ in range(1 + behind):
            queuetopia.create_job(f"q{name}", "call")


def attempts(queuetopia):
    return [job.attempts for job in jobs_created(queuetopia)]


def later(minutes=1):
    return timezone.now() + minutes * MINUTE


def test_an_outage_uses_no_attempt_and_all_is_done_in_order_after_it(declared):
    queue = declared(max_attempts=2)
    put(queue, 6, behind=1)

    drain(queue)
    assert attempts(queue) == [1, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]
    for minutes in range(1, 8):
        assert len(drain(queue, now=later(minutes))) == 1
    assert sum(attempts(queue)) == 3

    Provider.down = False
    done = drain(queue, now=later(9))
    assert {job.state for job in done} == {"done"}
    assert [job.pk for job in done if job.queue == "q3"] == [job.pk for job in jobs_created(queue, "q3")]
    assert not queue.jobs().unfinished().exists()
    assert Scope.objects.get(name=queue.scope).ramp is None


def test_without_a_breaker_nothing_of_it_happens(declared):
    queue = declared(breaker=None, max_attempts=2)
    put(queue, 3)
    drain(queue)
    assert {job.state for job in jobs_created(queue)} == {"halted"}
    assert not Scope.objects.exists()


@pytest.mark.parametrize("name", ["Retry", "Halt", "ValueError"])
def test_what_is_raised_on_purpose_and_other_errors_open_nothing(declared, name):
    queue = declared(breaker=Breaker(Exception if name != "ValueError" else OSError, after=1), max_attempts=1)
    queue.create_job("a", "raise_it", {"name": name})
    drain(queue)
    assert not Scope.objects.exists()


def test_what_on_error_decides_stays_decided(declared):
    queue = declared(on_error={ConnectionRefusedError: "skip"}, breaker=Breaker(OSError, after=1))
    put(queue, 3)
    assert {job.state for job in drain(queue)} == {"skipped"}


def test_what_on_error_retries_is_of_the_kind_all_the_same(declared):
    queue = declared(on_error={ConnectionError: "retry"}, max_attempts=2)
    put(queue, 4)
    drain(queue)
    assert Scope.objects.get().ramp == 0


def test_nothing_is_moved_in_an_outage(declared):
    queue = declared(max_attempts=1, on_exhausted=Move("graveyard"), breaker=Breaker(OSError, after=1))
    put(queue, 2)
    drain(queue)
    drain(queue, now=later())
    assert [job.queue for job in jobs_created(queue)] == ["graveyard", "q1"]


def test_in_an_outage_no_job_is_exhausted_and_on_exhausted_is_not_asked_of_what_is_tried(declared):
    queue = declared(max_attempts=1, on_exhausted="decide", breaker=Breaker(OSError, after=1))
    put(queue, 3)
    (opening,) = drain(queue)
    assert opening.state == "skipped"
    assert Provider.asked == [opening.pk]
    drain(queue, now=later())
    assert Provider.asked == [opening.pk]
    assert [job.state for job in jobs_created(queue)] == ["skipped", "pending", "pending"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", [JobTimeout, exceptions.WorkerDied, exceptions.NodeDied])
def test_a_kill_is_of_the_kind_if_it_is_named(declared, kind):
    queue = declared(breaker=Breaker(kind, after=2))
    put(queue, 1)
    (claim,), _ = backend_for("default").claim([queue.scope], 1, uuid.uuid4())
    assert failed(queue, claim, kind("gone")).breaker == (2, 1.0, 60.0)
    assert failed(queue, claim, ValueError("gone")).breaker is None


def test_a_success_in_between_counts_also_when_its_job_is_pruned(declared):
    queue = declared(retention=0)
    put(queue, 2)
    Scope.objects.create(name=queue.scope, failures=2, failed_at=timezone.now() - 2 * MINUTE)
    Provider.down = False
    drain(queue)
    queue.jobs().update(done_at=timezone.now() - MINUTE)
    assert Scope.objects.get().failures == 2
    assert prune(queue) == 2
    assert Scope.objects.get().failures == 0


def test_it_is_told_once(declared, caplog):
    told = []
    queue = declared()

    def opened(sender, job, exc, **kwargs):
        told.append(("opened", sender, type(exc)))

    def closed(sender, job, since, **kwargs):
        told.append(("closed", sender, since.tzinfo is not None))

    signals.breaker_opened.connect(opened)
    signals.breaker_closed.connect(closed)
    try:
        put(queue, 6)
        drain(queue)
        for minutes in range(1, 4):
            drain(queue, now=later(minutes))
        assert told == [("opened", queue, ConnectionRefusedError)]
        Provider.down = False
        drain(queue, now=later(5))
        assert told[1:] == [("closed", queue, True)]
    finally:
        signals.breaker_opened.disconnect(opened)
        signals.breaker_closed.disconnect(closed)


def test_explain_status_and_the_check_name_it_with_its_next_probe(declared):
    queue = declared(breaker=Breaker(OSError, after=3, backoff_base=60, max_backoff=60))
    put(queue, 5)
    drain(queue)
    put_node(scopes=[queue.scope])

    explained = queue.explain("q3")
    assert explained["cause"] == "outage"
    assert "the breaker of tests.calls is open since " in explained["sentence"]
    assert "next probe in 60 s" in explained["sentence"] or "next probe in 59 s" in explained["sentence"]
    assert "3 such failures in a row, the last one ConnectionRefusedError: no route to" in explained["sentence"]
    assert explained["limit"]["until"] == Scope.objects.get().probe_at

    breaker = queue.status()["breaker"]
    assert (breaker["state"], breaker["failures"], breaker["at_once"]) == ("open", 3, 1)
    assert "its breaker is open since" in run("status")[0]
    assert run_json("status")[0]["scopes"][0]["breaker"]["state"] == "open"
    assert [line["problem"] for line in health.problems([queue])] == ["outage"]


def test_explain_and_status_tell_of_catching_up(declared):
    queue = declared()
    put(queue, 5)
    drain(queue)
    put_node(scopes=[queue.scope])
    Scope.objects.update(ramp=5, failures=0)
    explained = queue.explain("q3")
    assert explained["cause"] == "catching up"
    assert "the breaker of tests.calls is catching up, 4 at a time, after it was open since" in explained["sentence"]
    assert "outage" not in [line["problem"] for line in health.problems([queue])]


def test_a_queue_that_was_tried_names_its_error_and_its_history(declared):
    queue = declared()
    put(queue, 4)
    drain(queue)
    (tried,) = drain(queue, now=later())
    assert tried.error == "ConnectionRefusedError: no route to <the provider>"
    assert tried.errors[-1]["counted"] is False
    assert "put off by its last attempt" in queue.explain(tried.queue)["sentence"]


def test_resume_closes_it_with_who_and_why(declared):
    queue = declared()
    put(queue, 5)
    drain(queue)
    queue.resume(by="ann", reason="they are back")
    event = JobEvent.objects.get()
    assert (event.verb, event.by, event.reason) == ("resume", "ann", "they are back")
    Provider.down = False
    assert len(drain(queue)) == 5
    with pytest.raises(Refused, match="is not paused"):
        queue.resume()


def test_drain_of_one_queue_tries_only_that(declared):
    queue = declared()
    put(queue, 5)
    drain(queue)
    Provider.down = False
    assert [job.queue for job in drain(queue, "q4", now=later())] == ["q4"]


def test_the_verdict_of_an_outage_is_one_that_waits_and_is_not_counted():
    from queuetopia.attempts import MEANING

    meaning = MEANING[Verdict.OUTAGE]
    assert (meaning.counted, meaning.again, meaning.is_failure) == (False, True, False)


class TestGently:
    def halted(self, queue, number=5):
        put(queue, number)
        while queue.jobs().filter(state="halted").count() != number:
            drain(queue, now=later())

    def test_it_is_the_same_ramp_by_hand(self, declared):
        queue = declared(breaker=Breaker(ConnectionError, after=100), max_attempts=1)
        self.halted(queue)
        assert queue.retry_all(gently=True, by="ann") == 5
        assert Scope.objects.get().ramp == 1
        assert queue.explain("q1")["cause"] in ("backing off", "catching up")
        assert "catching up, 1 at a time, as asked for" in queue.status()["breaker"]["sentence"]
        Provider.down = False
        assert len(drain(queue)) == 5
        assert Scope.objects.get().ramp is None

    def test_what_fails_meanwhile_opens_the_scope_and_is_not_counted(self, declared):
        queue = declared(breaker=Breaker(ConnectionError, after=100), max_attempts=1)
        self.halted(queue)
        queue.retry_all(gently=True)
        drain(queue)
        assert Scope.objects.get().ramp == 0
        assert Scope.objects.get().opened_at is not None
        assert attempts(queue) == [1] * 5
        assert not queue.jobs().filter(state="halted").exists()

    def test_an_outage_that_lasts_stays_one(self, declared):
        queue = declared()
        put(queue, 5)
        drain(queue)
        queue.retry_all(gently=True)
        assert Scope.objects.get().ramp == 0

    def test_by_the_command(self, declared):
        queue = declared(breaker=Breaker(ConnectionError, after=100), max_attempts=1)
        self.halted(queue)
        assert run("retry", "--all", "--gently", "--dry-run")[0] == "tests.calls: jobs that would be retried: 5.\n"
        assert not Scope.objects.filter(ramp__isnull=False).exists()
        assert run("retry", "--all", "--gently")[0] == "tests.calls: jobs retried: 5.\n"
        assert Scope.objects.get().ramp == 1
        assert "--gently: only together with --all" in run("retry", "1", "--gently")[1]

    def test_the_command_refuses_it_without_a_breaker(self, declared):
        queue = declared(breaker=None, max_attempts=1)
        self.halted(queue)
        assert "CallQueue has no breaker" in str(run("retry", "--all", "--gently"))
        assert queue.jobs().filter(state="halted").count() == 5

    def test_without_a_breaker_it_is_refused(self, declared):
        with pytest.raises(Refused, match="CallQueue has no breaker"):
            declared(breaker=None).retry_all(gently=True)
