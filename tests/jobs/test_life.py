"""The life of a job seen by its users: where it is created, what its performer may say, what exhaustion means.

Everything here runs inline, by ``drain``; what needs processes stands in ``tests/processes``.
"""

import io
import logging
from contextvars import ContextVar, copy_context
from datetime import timedelta

import pytest
from asgiref.sync import async_to_sync
from django.core.management import call_command
from django.db import transaction
from django.db.models.signals import post_save
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone

from queuetopia import (
    Halt,
    InvalidJob,
    Performer,
    Queuetopia,
    ReadOnlyJob,
    Refused,
    Retry,
    Skip,
    Snooze,
    action,
    registry,
    signals,
)
from queuetopia.backends import backend_for
from queuetopia.models import Job, Queue
from queuetopia.testing import drain, jobs_created, perform_job
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db


@pytest.fixture
def declared():
    """Return a function that declares a Queuetopia for this test only."""

    def declare(performer, **options):
        return type("LifeQueue", (Queuetopia,), {"performer": performer, "scope": "tests.life", **options})

    with registry.only(*registry.registered()):
        yield declare


class Notes(Performer):
    @action
    def note(self, job, text):
        Note.objects.create(text=text)

    @action
    def note_twice(self, job, text):
        Note.objects.create(text=text)
        by_name("tests.life").create_job(job.queue, "note", {"text": f"{text} again"})

    @action
    def save(self, job):
        job.save()

    @action
    def answer(self, job, kind):
        return {"false": False, "none": None, "object": object(), "exception": ValueError("returned"), "list": [1]}[
            kind
        ]

    @action
    def say(self, job, verdict, delay=5):
        raise {
            "retry": Retry("later", delay=delay),
            "snooze": Snooze(delay),
            "halt": Halt("ask somebody"),
            "skip": Skip("not needed"),
            "error": ValueError("boom"),
            "exit": SystemExit(3),
        }[verdict]


def by_name(scope):
    return registry.by_scope()[scope]


def texts():
    return list(Note.objects.order_by("id").values_list("text", flat=True))


# Where jobs are created


@pytest.mark.capability("E15")
class TestJobsAreCreated:
    def test_from_a_view(self, declared):
        queue = declared(Notes)

        def view(request):
            queue.create_job("a", "note", {"text": "from a view"})
            return HttpResponse()

        view(RequestFactory().post("/"))
        drain(queue)
        assert texts() == ["from a view"]

    @pytest.mark.django_db(transaction=True)
    def test_from_an_async_view(self, declared):
        queue = declared(Notes)

        async def view(request):
            await queue.acreate_job("a", "note", {"text": "from an async view"})
            return HttpResponse()

        async_to_sync(view)(RequestFactory().post("/"))
        drain(queue)
        assert texts() == ["from an async view"]

    def test_from_a_signal_handler(self, declared):
        queue = declared(Notes)

        def created(sender, instance, **kwargs):
            if instance.text == "first":
                queue.create_job("a", "note", {"text": "from a signal handler"})

        post_save.connect(created, sender=Note)
        try:
            with transaction.atomic():
                Note.objects.create(text="first")
        finally:
            post_save.disconnect(created, sender=Note)
        drain(queue)
        assert texts() == ["first", "from a signal handler"]

    def test_from_another_job(self, declared):
        queue = declared(Notes)
        queue.create_job("a", "note_twice", {"text": "once"})
        drain(queue)
        assert texts() == ["once", "once again"]

    def test_from_the_shell(self, declared, monkeypatch):
        queue = declared(Notes)
        code = (
            "from queuetopia.registry import by_scope; "
            "by_scope()['tests.life'].create_job('a', 'note', {'text': 'from the shell'})"
        )
        call_command("shell", command=code, stdout=io.StringIO(), verbosity=0)
        drain(queue)
        assert texts() == ["from the shell"]


# What a performer may say


@pytest.mark.capability("J19", "Q10")
@pytest.mark.parametrize(
    ("kind", "kept"), [("false", False), ("none", None), ("object", None), ("exception", None), ("list", [1])]
)
def test_whatever_is_returned_is_success_and_json_is_kept(declared, kind, kept):
    queue = declared(Notes)
    queue.create_job("a", "answer", {"kind": kind})
    (job,) = drain(queue)
    assert (job.state, job.result, job.attempts) == (Job.State.DONE, kept, 1)


@pytest.mark.capability("E25", "J19", "Q1")
@pytest.mark.parametrize(("verdict", "error"), [("error", "ValueError: boom"), ("exit", "SystemExit: 3")])
def test_whatever_is_raised_is_failure(declared, verdict, error):
    queue = declared(Notes)
    queue.create_job("a", "say", {"verdict": verdict})
    (job,) = drain(queue)
    assert (job.state, job.attempts, job.error) == (Job.State.PENDING, 1, error)
    assert job.attempted_by == "drain"
    assert job.next_attempt_at - job.attempted_at == timedelta(seconds=2)


def test_retry_fails_with_its_own_delay(declared):
    queue = declared(Notes)
    queue.create_job("a", "say", {"verdict": "retry", "delay": 7.5})
    (job,) = drain(queue)
    assert (job.state, job.attempts) == (Job.State.PENDING, 1)
    assert job.next_attempt_at - job.attempted_at == timedelta(seconds=7.5)


def test_snooze_uses_no_attempt_and_holds_the_queue(declared):
    queue = declared(Notes)
    queue.create_job("a", "say", {"verdict": "snooze"})
    queue.create_job("a", "note", {"text": "waits"})
    (job,) = drain(queue)
    assert (job.state, job.attempts, job.error, job.errors) == (Job.State.PENDING, 0, "", [])
    assert job.attempted_at is not None
    assert texts() == []


def test_halt_holds_the_queue_and_skip_lets_it_go_on(declared):
    queue = declared(Notes)
    for name in ("halt", "skip"):
        queue.create_job(name, "say", {"verdict": name})
        queue.create_job(name, "note", {"text": f"behind {name}"})
    drain(queue)
    assert {job.queue: job.state for job in jobs_created(queue, action="say")} == {"halt": "halted", "skip": "skipped"}
    assert texts() == ["behind skip"]


# What exhaustion means


@pytest.mark.capability("H20", "H32", "W10")
@pytest.mark.parametrize(
    ("on_exhausted", "state", "behind"),
    [("halt", "halted", False), ("skip", "skipped", True), ("retry", "pending", False)],
)
@pytest.mark.parametrize("where", ["class", "job", "scopes"])
def test_exhaustion_halts_skips_or_retries(declared, settings, where, on_exhausted, state, behind):
    queue = declared(Notes, max_attempts=1, **({"on_exhausted": on_exhausted} if where == "class" else {}))
    if where == "scopes":
        settings.QUEUETOPIA = {"SCOPES": {"tests.life": {"on_exhausted": on_exhausted}}}
    queue.create_job("a", "say", {"verdict": "error"}, **({"on_exhausted": on_exhausted} if where == "job" else {}))
    queue.create_job("a", "note", {"text": "behind"})
    drain(queue)
    assert jobs_created(queue, action="say")[0].state == state
    assert texts() == (["behind"] if behind else [])


@pytest.mark.capability("H20")
def test_a_callable_decides_what_exhaustion_means(declared):
    asked = []

    def decide(job, exc):
        asked.append((job.queue, job.attempts, str(exc)))
        return "skip" if job.queue == "small" else "halt"

    queue = declared(Notes, max_attempts=1, on_exhausted=staticmethod(decide))
    for name in ("small", "large"):
        queue.create_job(name, "say", {"verdict": "error"})
    assert {job.queue: job.state for job in drain(queue)} == {"small": "skipped", "large": "halted"}
    assert sorted(asked) == [("large", 1, "boom"), ("small", 1, "boom")]


class Deciding(Notes):
    limit = "small"

    @action
    async def say_async(self, job):
        raise ValueError("boom")

    def setup(self):
        self.limit = "medium"

    def decide(self, job, exc):
        Note.objects.create(text=f"asked {job.queue} {job.attempts} {exc}")
        return "skip" if job.queue == self.limit else "halt"

    async def decide_async(self, job, exc):
        return "skip" if job.queue == self.limit else "halt"

    def nonsense(self, job, exc):
        return "decide"

    def broken(self, job, exc):
        raise LookupError("no idea")


@pytest.mark.capability("H20")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("action", "params"), [("say", {"verdict": "error"}), ("say_async", {})])
@pytest.mark.parametrize("name", ["decide", "decide_async"])
def test_a_method_of_the_performer_decides_what_exhaustion_means(declared, name, action, params):
    queue = declared(Deciding, max_attempts=1, on_exhausted=name)
    for line in ("medium", "large"):
        queue.create_job(line, action, params)
    assert {job.queue: job.state for job in drain(queue)} == {"medium": "skipped", "large": "halted"}
    asked = ["asked large 1 boom", "asked medium 1 boom"] if name == "decide" else []
    assert sorted(texts()) == asked


def test_the_performers_method_is_asked_after_the_last_attempt_only(declared):
    queue = declared(Deciding, max_attempts=2, max_backoff=0, on_exhausted="decide")
    queue.create_job("a", "say", {"verdict": "error"})
    assert [job.attempts for job in drain(queue)] == [2, 2]
    assert texts() == ["asked a 2 boom"]


def test_what_a_job_says_of_its_exhaustion_wins_over_the_performers_method(declared):
    queue = declared(Deciding, max_attempts=1, on_exhausted="decide")
    queue.create_job("a", "say", {"verdict": "error"}, on_exhausted="skip")
    assert [job.state for job in drain(queue)] == ["skipped"]
    assert texts() == []


@pytest.mark.parametrize("name", ["nonsense", "broken", "missing"])
def test_a_method_that_fails_or_talks_nonsense_means_halt(declared, caplog, name):
    queue = declared(Deciding, max_attempts=1, on_exhausted=name)
    queue.create_job("a", "say", {"verdict": "error"})
    assert [job.state for job in drain(queue)] == ["halted"]
    assert "on_exhausted failed" in caplog.text


def test_a_callable_that_fails_or_talks_nonsense_means_halt(declared, caplog):
    queue = declared(Notes, max_attempts=1, on_exhausted=staticmethod(lambda job, exc: "explode"))
    queue.create_job("a", "say", {"verdict": "error"})
    assert [job.state for job in drain(queue)] == ["halted"]
    assert "on_exhausted failed" in caplog.text


@pytest.mark.capability("W9", "W10")
def test_with_on_exhausted_retry_attempts_have_no_bound(declared):
    queue = declared(Notes, max_attempts=2, max_backoff=0, on_exhausted="retry")
    queue.create_job("a", "say", {"verdict": "error"})
    with pytest.raises(RuntimeError):
        drain(queue, limit=50)
    assert jobs_created(queue)[0].attempts == 50


def test_attempt_number_ten_thousand_backs_off_for_the_cap_and_no_longer(declared):
    queue = declared(Notes, max_attempts=10**6, max_backoff=timedelta(hours=24))
    job = queue.create_job("a", "say", {"verdict": "error"})
    now = timezone.now() + timedelta(minutes=1)
    Job.objects.filter(pk=job.pk).update(attempts=9_999, attempted_at=now, next_attempt_at=now)
    Queue.objects.create(scope="tests.life", name="a", current_job=job.pk, due_at=now)
    (job,) = drain(queue, now=now)
    assert job.attempts == 10_000
    assert job.next_attempt_at - job.attempted_at == timedelta(hours=24)


@pytest.mark.capability("E3", "E34")
@pytest.mark.parametrize("where", ["class", "scopes"])
def test_the_backoff_has_the_base_and_factor_of_its_options(declared, settings, where):
    options = {"backoff_base": timedelta(seconds=30), "backoff_factor": 3, "max_backoff": 100}
    queue = declared(Notes, **(options if where == "class" else {}))
    if where == "scopes":
        settings.QUEUETOPIA = {"SCOPES": {"tests.life": options}}
    queue.create_job("a", "say", {"verdict": "error"})
    waits, now = [], None
    for _ in range(3):
        (job,) = drain(queue, now=now)
        now = job.next_attempt_at
        waits.append((now - job.attempted_at).total_seconds())
    assert waits == [30, 60, 100]


class OwnBackoff(Notes):
    def backoff(self, job, exc):
        return {"seconds": 7, "none": None, "nonsense": "soon", "nan": float("nan"), "negative": -1, "huge": 10**9}[
            job.queue
        ]


@pytest.mark.capability("J11")
@pytest.mark.parametrize(
    ("answer", "seconds"), [("seconds", 7), ("none", 2), ("nonsense", 2), ("nan", 2), ("negative", 2), ("huge", 86_400)]
)
def test_a_performer_may_say_how_long_to_wait(declared, answer, seconds):
    queue = declared(OwnBackoff)
    queue.create_job(answer, "say", {"verdict": "error"})
    (job,) = drain(queue)
    assert job.next_attempt_at - job.attempted_at == timedelta(seconds=seconds)


@pytest.mark.capability("E34")
def test_jitter_adds_at_most_its_fraction(declared):
    queue = declared(Notes, jitter=0.5)
    for number in range(20):
        queue.create_job(str(number), "say", {"verdict": "error"})
    # At one moment: on a slow machine some would be due again meanwhile.
    jobs = drain(queue, now=backend_for("default").now())
    waits = {(job.next_attempt_at - job.attempted_at).total_seconds() for job in jobs}
    assert min(waits) >= 2
    assert max(waits) <= 3
    assert len(waits) > 1


# By kind of error


class Kinds(Performer):
    @action
    def fail(self, job, kind):
        raise {
            "OSError": OSError("no disk"),
            "ConnectionError": ConnectionResetError("gone"),
            "ValueError": ValueError("wrong"),
            "Exit": SystemExit(3),
            "Halt": Halt("ask somebody"),
            "Skip": Skip("not needed"),
            "Retry": Retry("later", delay=7),
        }[kind]

    @action
    async def fail_async(self, job, kind):
        self.fail(job, kind)

    @action
    def behind(self, job):
        pass


BY_KIND = {OSError: "halt", ConnectionError: "retry", ValueError: "skip"}


@pytest.mark.capability("H32")
@pytest.mark.parametrize("action", ["fail", "fail_async"])
@pytest.mark.parametrize(
    ("kind", "state", "behind"),
    [
        ("OSError", "halted", "pending"),
        ("ConnectionError", "pending", "pending"),  # more specific than OSError
        ("ValueError", "skipped", "done"),
        ("Exit", "pending", "pending"),
    ],
)
def test_the_kind_of_an_error_says_what_happens(declared, action, kind, state, behind):
    queue = declared(Kinds, on_error=BY_KIND)
    queue.create_job("a", action, {"kind": kind})
    queue.create_job("a", "behind")
    drain(queue)
    assert [(job.state, job.attempts) for job in jobs_created(queue)] == [(state, 1), (behind, int(behind == "done"))]


@pytest.mark.capability("H32")
@pytest.mark.parametrize(("kind", "state"), [("Halt", "halted"), ("Skip", "skipped"), ("Retry", "pending")])
def test_what_a_performer_raises_on_purpose_wins_over_the_kind_of_error(declared, kind, state):
    other = {"Halt": "skip", "Skip": "halt", "Retry": "halt"}[kind]
    queue = declared(Kinds, on_error={BaseException: other})
    queue.create_job("a", "fail", {"kind": kind})
    (job,) = drain(queue)
    assert job.state == state
    if kind == "Retry":
        assert job.next_attempt_at - job.attempted_at == timedelta(seconds=7)


@pytest.mark.capability("H32")
@pytest.mark.parametrize(
    ("kind", "state"), [("OSError", "halted"), ("ConnectionError", "skipped"), ("Exit", "skipped")]
)
def test_the_last_attempt_asks_on_exhausted_unless_the_kind_of_error_has_decided(declared, kind, state):
    queue = declared(Kinds, on_error=BY_KIND, max_attempts=1, on_exhausted="skip")
    queue.create_job("a", "fail", {"kind": kind})
    assert [job.state for job in drain(queue)] == [state]


def test_what_the_kind_of_error_ends_is_not_told_as_exhausted(declared):
    told = []

    class Told(Kinds):
        def handle_failed_job(self, job, exc):
            told.append(("failed", str(exc)))

        def handle_exhausted_job(self, job, exc):
            told.append(("exhausted", str(exc)))

    queue = declared(Told, on_error=BY_KIND, max_attempts=1)
    queue.create_job("a", "fail", {"kind": "OSError"})
    drain(queue)
    assert told == [("failed", "no disk")]


# What is kept from eyes


def test_sensitive_params_are_masked_in_errors(declared):
    class Leaky(Performer):
        @action
        def pay(self, job, card):
            raise ValueError(f"card {card['number']} refused")

    queue = declared(Leaky, sensitive_params=["card"])
    queue.create_job("a", "pay", {"card": {"number": "4111111111111111"}})
    (job,) = drain(queue)
    assert job.error == "ValueError: card ******** refused"
    assert "4111" not in str(job.errors)


# Errors people see


@pytest.mark.capability("E12")
@pytest.mark.parametrize(
    ("raising", "error", "cause", "remedy"),
    [
        (lambda q: q.create_job("", "note", {"text": ""}), InvalidJob, "0 characters", "1 to 255"),
        (lambda q: q.create_job("a", "not", {"text": ""}), InvalidJob, "no action 'not'", "did you mean 'note'"),
        (lambda q: q.create_job("a", "note"), InvalidJob, "missing param 'text'", "it takes: text"),
        (lambda q: q.create_job("a", "note", {"text": ""}, timeout=0), InvalidJob, "not more than 0", "Leave it out"),
        (lambda q: q.retry(4711), Refused, "There is no job 4711", "tests.life"),
        (lambda q: q.resume("a"), Refused, "tests.life/a", "is not paused"),
        (lambda q: q.skip(q.create_job("a", "note", {"text": ""})), Refused, "never attempted", "Cancel it"),
        (lambda q: perform_job(q.create_job("a", "save")), ReadOnlyJob, "race", "model of your own"),
    ],
)
def test_errors_name_cause_and_remedy(declared, raising, error, cause, remedy):
    queue = declared(Notes)
    with pytest.raises(error) as caught:
        raising(queue)
    assert cause in str(caught.value)
    assert remedy in str(caught.value)


@pytest.mark.capability("E16")
def test_a_payment_never_starts_before_its_invoice_is_done(declared):
    class Billing(Performer):
        @action
        def register_invoice(self, job):
            Note.objects.create(text=f"invoice, attempt {job.attempts}")
            if job.attempts < 3:
                raise ConnectionError

        @action
        def charge(self, job):
            Note.objects.create(text="payment")

    queue = declared(Billing)
    queue.create_job("invoice-7", "register_invoice")
    queue.create_job("invoice-7", "charge")
    now = timezone.now() + timedelta(minutes=1)
    for _ in range(10):
        drain(queue, now=now)
        now += timedelta(seconds=1)
    assert texts() == ["invoice, attempt 1", "invoice, attempt 2", "invoice, attempt 3", "payment"]


def test_failures_of_hooks_are_logged_and_change_nothing(declared, caplog):
    class Broken(Notes):
        def handle_done_job(self, job):
            raise RuntimeError("hook")

    queue = declared(Broken)
    queue.create_job("a", "note", {"text": "done"})
    with caplog.at_level(logging.ERROR):
        assert [job.state for job in drain(queue)] == ["done"]
    assert "hook failed hook=handle_done_job" in caplog.text


# What hooks and signals are given

FIELDS = ("state", "result", "error", "attempts", "attempted_at", "next_attempt_at", "done_at")


@pytest.mark.parametrize("verdict", ["done", "error", "halt", "skip", "retry"])
def test_hooks_and_signals_get_the_job_as_it_is_stored(declared, verdict):
    given = []

    def note(job):
        stored = Job.objects.get(pk=job.pk)
        given.append([(name, getattr(job, name), getattr(stored, name)) for name in (*FIELDS, "errors")])
        with pytest.raises(ReadOnlyJob):
            job.save()

    class Hooked(Notes):
        def handle_done_job(self, job):
            note(job)

        def handle_failed_job(self, job, exc):
            note(job)

    def receive(sender, job, **more):
        note(job)

    names = {"done": ["job_done"], "halt": ["job_failed", "job_halted"], "skip": ["job_failed", "job_skipped"]}
    queue = declared(Hooked)
    used = [getattr(signals, name) for name in names.get(verdict, ["job_failed", "queue_blocked"])]
    for signal in used:
        signal.connect(receive, sender=queue)
    try:
        queue.create_job("a", *(("answer", {"kind": "list"}) if verdict == "done" else ("say", {"verdict": verdict})))
        (job,) = drain(queue)
    finally:
        for signal in used:
            signal.disconnect(receive, sender=queue)

    assert len(given) == 1 + len(used)
    for fields in given:
        for name, was_given, stored in fields:
            assert (name, was_given) == (name, stored)
    assert dict((name, value) for name, value, _ in given[0])["state"] == job.state
    assert job.result == ([1] if verdict == "done" else None)


def test_a_job_that_is_done_after_failures_has_no_error_and_keeps_its_history(declared):
    class Flaky(Performer):
        @action
        def run(self, job):
            if job.attempts == 1:
                raise ConnectionError("no route")

    queue = declared(Flaky, max_backoff=0)
    queue.create_job("a", "run")
    job = drain(queue)[-1]
    assert (job.state, job.error) == (Job.State.DONE, "")
    assert [entry["message"] for entry in job.errors] == ["no route"]


# Before each attempt

tenant = ContextVar("tenant", default="none")


class Tenants(Performer):
    def handle_start(self, job):
        Note.objects.count()
        if job.queue == "later":
            raise Snooze(5)
        if job.queue != "none":
            tenant.set(job.queue)

    @action
    def run(self, job):
        return tenant.get()

    @action
    async def run_async(self, job):
        return tenant.get()


class AsyncTenants(Tenants):
    async def handle_start(self, job):
        await Note.objects.acount()
        if job.queue != "none":
            tenant.set(job.queue)


@pytest.mark.parametrize("performer", [Tenants, AsyncTenants])
@pytest.mark.parametrize("name", ["run", "run_async"])
def test_what_handle_start_sets_holds_for_its_attempt_alone(declared, performer, name):
    queue = declared(performer)
    for customer in ("acme", "none"):
        queue.create_job(customer, name)
    assert {job.queue: job.result for job in drain(queue)} == {"acme": "acme", "none": "none"}
    assert copy_context().run(perform_job, queue.job("acme", name)) == "acme"


@pytest.mark.parametrize("name", ["run", "run_async"])
def test_what_handle_start_raises_ends_the_attempt(declared, name):
    queue = declared(Tenants)
    queue.create_job("later", name)
    (job,) = drain(queue)
    assert (job.state, job.attempts, job.result) == (Job.State.PENDING, 0, None)
    assert job.attempted_at is not None
