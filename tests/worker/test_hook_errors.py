"""What hooks and receivers raise after an attempt's end stays with the job, and says nothing of its state."""

import pytest

from queuetopia import Performer, Queuetopia, action, jobs, signals
from queuetopia.attempts import ERRORS_KEPT
from queuetopia.jobs import sending
from queuetopia.models import Job
from queuetopia.testing import drain
from tests.states import put

pytestmark = pytest.mark.django_db


class HookedPerformer(Performer):
    @action
    def send(self, job, token, fails=False):
        if fails:
            raise ConnectionError("refused")

    def handle_done_job(self, job):
        raise LookupError(f"no mailbox for {job.params['token']}")

    def handle_failed_job(self, job, exc):
        raise LookupError("no mailbox")


def receive(sender, **named):
    raise OSError("disk full")


@pytest.fixture
def queues(declare_only):
    declare_only()
    options = {"performer": HookedPerformer, "scope": "tests.hooked", "sensitive_params": ["token"]}
    made = type("HookedQueue", (Queuetopia,), options)
    signals.job_done.connect(receive, sender=made)
    yield made
    signals.job_done.disconnect(receive, sender=made)


def kept(job):
    job.refresh_from_db()
    return [(entry["kind"], entry["hook"], entry["type"], entry["message"]) for entry in job.errors if "kind" in entry]


def test_the_job_of_a_success_is_done_and_has_what_they_raised_masked(queues):
    job = queues.create_job("a", "send", {"token": "hunter2"})
    drain(queues)
    assert kept(job) == [
        ("hook", "handle_done_job", "LookupError", "no mailbox for ********"),
        ("hook", "job_done to tests.worker.test_hook_errors.receive", "OSError", "disk full"),
    ]
    assert (job.state, job.attempts, job.error) == ("done", 1, "")
    assert not any(entry["counted"] for entry in job.errors)
    assert "hunter2" not in str(job.errors)


def test_a_failed_job_is_explained_and_followed_by_its_attempt_alone(queues):
    job = queues.create_job("a", "send", {"token": "hunter2", "fails": True})
    drain(queues)
    assert kept(job) == [("hook", "handle_failed_job", "LookupError", "no mailbox")]
    assert (job.state, job.error) == ("pending", "ConnectionError: refused")
    assert "failed" in queues.explain("a")["sentence"]


def test_what_a_receiver_of_a_persons_verb_raises_is_kept_too(queues, django_capture_on_commit_callbacks):
    job = put(queues, "halted", action="send", params={"token": "hunter2"})
    with django_capture_on_commit_callbacks(execute=True):
        queues.mark_done(job)
    assert kept(job) == [("hook", "job_done to tests.worker.test_hook_errors.receive", "OSError", "disk full")]


def test_the_history_stays_bounded(queues):
    job = put(queues, "done", errors=[{"attempt": 1, "message": "x" * 100}] * ERRORS_KEPT)
    for number in range(3):
        jobs.keep_hook_error(queues, job, "handle_done_job", ValueError(number))
    assert [message for _, _, _, message in kept(job)] == ["0", "1", "2"]
    assert len(job.errors) == ERRORS_KEPT


def test_a_job_that_is_gone_or_a_database_that_is_away_costs_nothing(queues, monkeypatch, caplog):
    job = put(queues, "done")
    Job.objects.all().delete()
    jobs.keep_hook_error(queues, job, "handle_done_job", ValueError("a"))
    monkeypatch.setattr(sending, "backend_for", lambda alias: 1 / 0)
    jobs.keep_hook_error(queues, job, "handle_done_job", ValueError("b"))
    assert "not kept" in caplog.text
