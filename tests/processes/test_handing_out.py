"""A claim that no worker has begun is no running job: it is nobody's for long, and every verb reaches it."""

import pytest

from queuetopia import jobs
from queuetopia.exceptions import Refused
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.nodes import PATIENCE
from tests.processes.waiting import wait_for, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

AN_HOUR = 3600  # so that nothing is found by polling


def learn_that_jobs_are_short():
    """Run so many short jobs that nodes hand out jobs ahead from now on."""
    LedgerQueue.create_jobs([LedgerQueue.job(f"short-{number % 50}", "noop") for number in range(200)])
    wait_for_all()


@pytest.fixture
def node(nodes):
    node = nodes.start(LedgerQueue, SlowRetryQueue, processes=1, poll_interval=AN_HOUR)
    node.wait_for_log("node started")
    learn_that_jobs_are_short()
    return node


@pytest.fixture
def job(node, ledger):
    """A job that has just been claimed ahead behind one that turns out to be long."""
    LedgerQueue.create_job("long", "write_when_told", {"seq": 0})
    wait_for_attempts(ledger, 1)
    job = LedgerQueue.create_job("x", "write", {"seq": 1})
    wait_until(lambda: Queue.objects.filter(name="x", fence__gt=0).exists(), PATIENCE, message="never claimed")
    return job


@pytest.fixture(params=["at once", "later"])
def moment(request, job):
    """When something is done to the job: while it may still be in a worker's hands, and when it is in nobody's."""
    if request.param == "later":
        wait_until(lambda: not Queue.objects.filter(name="x", held_by__isnull=False).exists(), PATIENCE)


def end_the_long_one(ledger):
    ledger.go()
    wait_until(lambda: not LedgerQueue.jobs().unfinished().filter(queue="long").exists(), PATIENCE)


class TestVerbs:
    def test_cancel(self, job, moment, ledger):
        assert LedgerQueue.cancel(job) == "cancelled"
        end_the_long_one(ledger)
        wait_for_all()
        job.refresh_from_db()
        assert (job.state, job.attempts, job.attempted_at) == (Job.State.CANCELLED, 0, None)
        assert ledger.attempts("x") == 0

    def test_edit(self, job, moment, ledger):
        LedgerQueue.edit(job, {"seq": 2})
        end_the_long_one(ledger)
        wait_for_all()
        assert [record.number for record in ledger.records("start", queue="x")] == [2]

    def test_mark_done(self, job, moment, ledger):
        LedgerQueue.mark_done(job)
        end_the_long_one(ledger)
        wait_for_all()
        assert ledger.attempts("x") == 0

    def test_move_to_end(self, job, moment, ledger):
        LedgerQueue.create_job("x", "write", {"seq": 2})
        LedgerQueue.move_to_end(job)
        end_the_long_one(ledger)
        wait_for_all()
        assert [record.number for record in ledger.records("start", queue="x")] == [2, 1]

    @pytest.mark.parametrize("verb", [jobs.skip, jobs.retry])
    def test_those_for_blocked_jobs_say_that_it_waits(self, job, moment, verb):
        with pytest.raises(Refused, match="waits in line and was never attempted"):
            verb(LedgerQueue, job)

    @pytest.mark.parametrize("queue", ["x", None], ids=["queue", "scope"])
    def test_pause(self, job, moment, ledger, queue):
        LedgerQueue.pause(queue)
        end_the_long_one(ledger)
        SlowRetryQueue.create_job("y", "write", {"seq": 3})
        wait_for_all(SlowRetryQueue)  # the node had time for the paused one too
        assert ledger.attempts("x") == 0

        LedgerQueue.resume(queue)
        wait_for_all()
        assert ledger.attempts("x") == 1

    def test_a_job_that_runs_is_still_refused_and_still_stopped(self, node, ledger):
        job = LedgerQueue.create_job("x", "hang")
        wait_for_attempts(ledger, 1)
        with pytest.raises(Refused, match="it is running, attempt 1"):
            LedgerQueue.edit(job, {"times": 3})
        assert LedgerQueue.cancel(job) == "running"
        wait_for(job, lambda job: job.state == Job.State.CANCELLED)
        assert job.attempts == 1


def test_it_is_never_shown_as_running(job):
    sentences = []

    def is_ready():
        told = LedgerQueue.explain("x")
        sentences.append(told["sentence"])
        return told["state"] == "ready"

    wait_until(is_ready, PATIENCE)
    assert not [sentence for sentence in sentences if "runs job" in sentence]
    assert "1 of 1 workers" in sentences[-1] or "as the next one" in sentences[-1]


class TestAnotherNode:
    def test_runs_what_a_busy_one_has_claimed_ahead(self, node, nodes, ledger):
        LedgerQueue.create_job("long", "write_when_told", {"seq": 0})
        wait_for_attempts(ledger, 1)
        LedgerQueue.create_jobs([LedgerQueue.job(f"x-{number}", "write", {"seq": number}) for number in range(100)])
        nodes.start(LedgerQueue, processes=1, poll_interval=AN_HOUR)

        wait_until(lambda: LedgerQueue.jobs().unfinished().count() == 1, PATIENCE)
        ledger.go()
        wait_for_all()
        assert sorted(record.number for record in ledger.records("start")) == [0, *range(100)]
        assert Job.objects.exclude(attempts=1).count() == 0

    def test_gets_its_share_of_queues_that_always_have_work(self, node, nodes, ledger):
        LedgerQueue.create_jobs(
            [LedgerQueue.job(f"x-{n % 4}", "write", {"seq": n, "lasts": 0.004}) for n in range(20_000)]
        )
        wait_for_attempts(ledger, 1)
        (worker,) = nodes.start(LedgerQueue, processes=1, poll_interval=AN_HOUR).workers(1)
        wait_until(lambda: any(record.pid == worker for record in ledger.records("start")), PATIENCE)
        assert LedgerQueue.jobs().unfinished().exists()
        LedgerQueue.pause()


@pytest.mark.parametrize("concurrency", [1, 3])
def test_a_job_that_holds_the_interpreter_stalls_no_queue_beside_a_free_worker(nodes, ledger, concurrency):
    node = nodes.start(LedgerQueue, processes=2, concurrency=concurrency, poll_interval=AN_HOUR)
    node.workers(2)
    learn_that_jobs_are_short()
    LedgerQueue.create_job("long", "hang_in_c")
    wait_for_attempts(ledger, 1)

    LedgerQueue.create_jobs([LedgerQueue.job(f"x-{number}", "write", {"seq": number}) for number in range(100)])
    wait_until(lambda: LedgerQueue.jobs().unfinished().count() == 1, PATIENCE)
    assert sorted(record.number for record in ledger.records("start")) == [*range(100)]
    assert Job.objects.filter(queue__startswith="x").exclude(attempts=1).count() == 0
