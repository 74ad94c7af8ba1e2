"""Jobs that move to another queue: by ``Move`` after their last attempt, and by an operator, in their order."""

import pytest
from django.utils import timezone

from queuetopia import (
    Halt,
    InvalidJob,
    JobTimeout,
    Move,
    Performer,
    Queuetopia,
    Refused,
    WorkerDied,
    action,
    registry,
    signals,
)
from queuetopia.attempts import Claim
from queuetopia.jobs import carrying, failed
from queuetopia.models import Job, JobEvent, Queue
from queuetopia.monitoring.status import scope_status
from queuetopia.testing import drain
from tests.states import HOUR, mail_queue, put
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db


class Sending(Performer):
    @action
    def send(self, job):
        Note.objects.create(text=f"{job.queue} {job.pk}")

    @action
    def fail(self, job, kind="ValueError"):
        raise {"ValueError": ValueError("boom"), "OSError": OSError("no route"), "Halt": Halt("stop")}[kind]

    def to_spam(self, job, exc):
        return Move(f"spam of {job.queue}")


@pytest.fixture
def declared():
    def declare(**options):
        return type("MovingQueue", (Queuetopia,), {"performer": Sending, "scope": "tests.moving", **options})

    with registry.only(*registry.registered()):
        yield declare


def places(queues):
    return [(job.queue, job.state) for job in queues.jobs().order_by("id")]


# After the last attempt


@pytest.mark.capability("H20", "X14")
@pytest.mark.parametrize("where", ["class", "job", "text", "scopes", "callable", "method", "on_error"])
def test_an_exhausted_job_goes_to_the_other_queue_and_its_own_goes_on(declared, settings, where):
    given = {
        "class": {"on_exhausted": Move("graveyard")},
        "callable": {"on_exhausted": staticmethod(lambda job, exc: Move("graveyard"))},
        "on_error": {"on_error": {ValueError: Move("graveyard")}, "max_attempts": 7},
        "method": {"on_exhausted": "to_spam"},
    }
    queues = declared(**{"max_attempts": 1, **given.get(where, {})})
    of_job = {"job": Move("graveyard"), "text": "move:graveyard"}
    if where == "scopes":
        settings.QUEUETOPIA = {"SCOPES": {"tests.moving": {"on_exhausted": "move:graveyard"}}}
    job = queues.create_job("a", "fail", on_exhausted=of_job.get(where))
    behind = queues.create_job("a", "send")
    drain(queues)
    target = "spam of a" if where == "method" else "graveyard"
    assert places(queues) == [(target, "halted"), ("a", "done")]
    job.refresh_from_db()
    assert (job.attempts, job.error, len(job.errors), job.done_at) == (1, "ValueError: boom", 1, None)
    assert Note.objects.get().text == f"a {behind.pk}"
    event = JobEvent.objects.get()
    assert (event.verb, event.job, event.queue, event.after) == ("move", job.pk, "a", {"queue": target})
    assert event.reason == ("on_error" if where == "on_error" else "on_exhausted")


def test_a_performer_that_halts_its_job_moves_it_nowhere(declared):
    queues = declared(on_exhausted=Move("graveyard"), on_error={Exception: Move("graveyard")}, max_attempts=1)
    queues.create_job("a", "fail", {"kind": "Halt"})
    drain(queues)
    assert places(queues) == [("a", "halted")]


@pytest.mark.capability("H20")
@pytest.mark.parametrize("kind", [JobTimeout, WorkerDied])
def test_an_attempt_that_was_cut_short_moves_its_job_too(declared, kind):
    queues = declared(on_exhausted=Move("graveyard"), max_attempts=1)
    claim = Claim(**{**dict.fromkeys(Claim._fields), "job_id": 1, "fence": 1, "attempt": 1})
    for one in (claim, claim._replace(on_exhausted="move:other")):
        outcome = failed(queues, one, kind("killed"))
        assert (outcome.verdict, outcome.exhausted, outcome.delay) == ("move", True, 0.0)
        assert outcome.to == ("other" if one.on_exhausted else "graveyard")


@pytest.mark.parametrize(
    "name", ["", "x" * 256, "a\x00", "\ud800", None, 7], ids=["empty", "long", "NUL", "surrogate", "None", "number"]
)
def test_the_name_of_the_other_queue_is_checked(declared, name):
    with pytest.raises(ValueError, match=r"^Move\("):
        Move(name)
    queues = declared()
    if isinstance(name, str):
        with pytest.raises(InvalidJob) as refused:
            queues.create_job("a", "send", on_exhausted=f"move:{name}")
        assert list(refused.value.message_dict) == ["on_exhausted"]
        assert not Job.objects.exists()


def test_the_longest_name_there_is_can_be_stored(declared):
    queues = declared(max_attempts=1)
    queues.create_job("a", "fail", on_exhausted=Move("🙂" * 255))
    drain(queues)
    assert places(queues) == [("🙂" * 255, "halted")]


def test_a_decider_that_names_no_queue_means_halt(declared, caplog):
    queues = declared(max_attempts=1, on_exhausted=staticmethod(lambda job, exc: "move:"))
    queues.create_job("a", "fail")
    drain(queues)
    assert places(queues) == [("a", "halted")]
    assert "on_exhausted failed" in caplog.text


def test_hooks_signals_and_statistics_say_so(declared, django_capture_on_commit_callbacks):
    told = []

    class Telling(Sending):
        def handle_exhausted_job(self, job, exc):
            told.append(("exhausted", job.queue, job.state, str(exc)))

    queues = declared(performer=Telling, max_attempts=2, max_backoff=0, on_exhausted=Move("graveyard"))

    def tell(sender, signal, job, **more):
        told.append((names[signal], job.queue, more.get("queue")))

    names = {getattr(signals, name): name for name in ("job_halted", "queue_blocked", "queue_unblocked")}
    for signal in names:
        signal.connect(tell, sender=queues)
    queues.create_job("a", "fail")
    drain(queues)
    assert told == [
        ("queue_blocked", "a", "a"),
        ("exhausted", "graveyard", "halted", "boom"),
        ("job_halted", "graveyard", None),
        ("queue_unblocked", "graveyard", "a"),
    ]


@pytest.fixture
def graveyard(declared):
    """Three dead letters of three queues."""
    queues = declared(max_attempts=1, on_exhausted=Move("graveyard"))
    kinds = {"a": "ValueError", "b": "OSError", "c": "ValueError"}
    jobs = [queues.create_job(name, "fail", {"kind": kind}) for name, kind in kinds.items()]
    drain(queues)
    return queues, jobs


def test_explain_and_status_count_dead_letters(graveyard):
    queues, jobs = graveyard
    queues.create_job("graveyard", "send")
    found = queues.explain("graveyard")
    assert (found["cause"], found["job"], found["halted_behind"], found["waiting"]) == ("halted", jobs[0].pk, 2, 1)
    assert "; 2 more halted jobs stand behind it; 1 job waits" in found["sentence"]
    assert queues.explain("a")["cause"] == "empty"
    found = scope_status(queues)
    assert (found["jobs"]["halted"], found["jobs"]["waiting"]) == (3, 1)
    counts = found["queue_counts"]
    assert (counts["blocked"], counts["halted"], counts["backing_off"]) == (1, 1, 0)


@pytest.mark.capability("X5")
@pytest.mark.parametrize(("error", "number"), [(None, 3), ("boom", 2), ("route", 1)])
def test_all_dead_letters_of_a_queue_are_skipped_or_retried_at_once(graveyard, error, number):
    queues, _ = graveyard
    assert queues.retry_all("graveyard", error=error, by="ann") == number
    assert queues.jobs().pending().count() == number
    assert JobEvent.objects.filter(verb="retry", by="ann").count() == number
    queues.jobs().pending().update(state="halted")
    assert queues.skip_all("graveyard", error=error) == number
    assert queues.jobs().filter(state="skipped").count() == number


def test_a_dead_letter_that_fails_again_goes_to_the_end_and_the_next_one_has_its_turn(graveyard):
    queues, jobs = graveyard
    queues.retry_all("graveyard")
    assert [job.pk for job in drain(queues)] == [job.pk for job in jobs]
    assert [job.pk for job in queues.jobs().halted().in_order()] == [job.pk for job in jobs]


def test_retried_dead_letters_run_in_their_order_and_one_behind_the_head_waits_for_its_turn(graveyard):
    queues, jobs = graveyard
    queues.jobs().update(action="send", params={})
    queues.retry(jobs[1])
    assert drain(queues) == []
    assert queues.explain("graveyard")["job"] == jobs[0].pk
    queues.retry_all()
    assert [job.pk for job in drain(queues)] == [job.pk for job in jobs]
    assert not queues.jobs().unfinished().exists()
    assert Queue.objects.blocked().count() == 0


# By an operator


def put_jobs(queues, queue, number, **given):
    return queues.create_jobs([queues.job(queue, "send", **given) for _ in range(number)])


@pytest.mark.capability("X5")
@pytest.mark.parametrize("batch", [2, 500])
def test_all_jobs_of_a_queue_run_in_their_order_behind_those_of_the_other(declared, monkeypatch, batch):
    monkeypatch.setattr(carrying, "BATCH", batch)
    queues = declared()
    moved, there = put_jobs(queues, "a", 5), put_jobs(queues, "b", 2)
    Job.objects.filter(pk=moved[3].pk).update(scheduled_at=timezone.now() - HOUR)  # goes first, though created later
    order = [there[0], there[1], moved[3], moved[0], moved[1], moved[2], moved[4]]
    assert queues.move("a", "b", by="ann", reason="one line") == 5
    assert [job.pk for job in drain(queues)] == [job.pk for job in order]
    events = JobEvent.objects.filter(verb="move")
    assert {(event.by, event.reason, event.queue, event.after["queue"]) for event in events} == {
        ("ann", "one line", "a", "b")
    }
    assert len(events) == 5
    assert not Queue.objects.paused().exists()


def test_a_job_for_later_keeps_its_time(declared):
    queues = declared()
    later = queues.create_job("a", "send", scheduled_at=timezone.now() + HOUR)
    assert queues.move(later.pk, "b") == 1
    moved = Job.objects.get()
    assert (moved.queue, moved.scheduled_at) == ("b", later.scheduled_at)


def test_a_halted_job_moves_as_it_is_and_its_queue_goes_on(declared):
    queues = declared(max_attempts=1)
    halted, behind = queues.create_job("a", "fail"), queues.create_job("a", "send")
    drain(queues)
    there = queues.create_job("b", "send")
    assert queues.move(halted, "b") == 1
    assert [job.pk for job in drain(queues)] in ([behind.pk, there.pk], [there.pk, behind.pk])
    assert queues.explain("b")["cause"] == "halted"
    halted.refresh_from_db()
    assert (halted.state, halted.attempts, halted.error) == ("halted", 1, "ValueError: boom")


def test_a_job_that_backs_off_goes_first_of_its_queue_and_is_tried_when_its_turn_comes(declared):
    queues = declared(max_backoff=HOUR)
    failing, behind = queues.create_job("a", "fail"), queues.create_job("a", "send")
    Job.objects.filter(pk=failing.pk).update(scheduled_at=timezone.now())  # it holds its queue whatever its time
    Queue.objects.update(due_at=timezone.now())
    Job.objects.filter(pk=behind.pk).update(scheduled_at=timezone.now() + HOUR)
    drain(queues)
    Job.objects.filter(pk=behind.pk).update(scheduled_at=failing.scheduled_at - HOUR)
    Job.objects.filter(pk=failing.pk).update(action="send", params={})
    assert queues.move("a", "b") == 2
    assert [job.pk for job in drain(queues)] == [failing.pk, behind.pk]


@pytest.mark.parametrize("state", ["running first", "running again", "done"])
def test_a_job_that_runs_or_has_ended_is_left_with_the_reason(state):
    queues = mail_queue("tests.moving.left")
    job, other = put(queues, state), put(queues, "waiting", queue="other")
    with pytest.raises(Refused, match=f"^Job {job.pk} cannot be moved: it is (running|done)"):
        queues.move(job, "b")
    assert queues.move([job, other], "b") == 1
    assert queues.move("customer-42", "b") == 0
    assert Job.objects.get(pk=job.pk).queue == "customer-42"
    assert list(JobEvent.objects.values_list("job", flat=True)) == [other.pk]


@pytest.mark.parametrize(
    ("what", "to", "error"),
    [
        ("a", "", InvalidJob),
        ("a", "x" * 256, InvalidJob),
        ("", "b", InvalidJob),
        ("a", "a", Refused),
        (999, "b", Refused),
        ([None], "b", Refused),
    ],
)
def test_what_is_wrong_is_said_before_anything_moves(declared, what, to, error):
    queues = declared()
    queues.create_job("a", "send")
    with pytest.raises(error):
        queues.move(what, to)
    assert Job.objects.get().queue == "a"


@pytest.mark.django_db(transaction=True)
@pytest.mark.capability("X5")
def test_a_move_that_was_cut_off_holds_the_queue_and_the_same_call_goes_on(declared, monkeypatch):
    monkeypatch.setattr(carrying, "BATCH", 2)
    queues = declared()
    jobs = put_jobs(queues, "a", 5)
    parts = carrying.moves(queues, carrying.movable(queues, "a", "b"), "b", by="ann", reason="one line")
    assert len(next(parts)[1]) == 2
    del parts  # as after a kill
    late = queues.create_job("a", "send")
    assert [job.pk for job in drain(queues)] == [job.pk for job in jobs[:2]]  # nothing overtakes in the old place
    assert queues.explain("a")["paused"]["reason"] == "its jobs are being moved to 'b': one line"
    assert queues.move("a", "b") == 4
    assert not Queue.objects.paused().exists()
    assert [job.pk for job in drain(queues)] == [job.pk for job in [*jobs[2:], late]]


def test_a_queue_that_an_operator_paused_stays_so(declared, monkeypatch):
    monkeypatch.setattr(carrying, "BATCH", 2)
    queues = declared()
    put_jobs(queues, "a", 5)
    queues.pause("a", by="bob", reason="to be looked at")
    assert queues.move("a", "b") == 5
    assert Queue.objects.paused().get().paused_by == "bob"


def test_keys_stay_behind_when_a_job_moves(declared):
    queues = declared()
    first = queues.create_job("a", "send", unique="k")
    queues.create_job("b", "send", unique="k")
    assert queues.move("a", "b") == 1
    first.refresh_from_db()
    assert (first.queue, first.unique_key) == ("b", None)


def test_independent_jobs_are_lines_of_their_own_and_move_nowhere(declared):
    queues = declared(ordered=False, on_exhausted=Move("graveyard"), max_attempts=1)
    job, other = queues.create_job("a", "fail"), queues.create_job("a", "send")
    drain(queues)
    assert [Job.objects.get(pk=one.pk).state for one in (job, other)] == ["halted", "done"]
    assert not JobEvent.objects.exists()
    with pytest.raises(Refused, match="are independent"):
        queues.move(job, "b")
