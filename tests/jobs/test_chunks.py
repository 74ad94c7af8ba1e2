"""``@action(chunk=…)``: jobs that stand right behind each other are done by one attempt, or found at fault alone."""

from datetime import timedelta

import pytest
from django.utils import timezone

from queuetopia import InvalidJob, Performer, Refused, action
from queuetopia.models import Job, Queue
from queuetopia.performer import MOST_TOGETHER, method_problem
from queuetopia.signals import job_done, job_started
from queuetopia.testing import drain, perform_job
from tests.testapp.models import Note
from tests.testapp.queues import ChunkQueue

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("ledger"), pytest.mark.capability("X2")]

DAY = timedelta(days=1)


def put(count, queue="a", action="sync", **which):
    """Create jobs numbered from 1; ``which`` says how some of them end: ``_3="fail"``."""
    hows = {int(name[1:]): how for name, how in which.items()}
    created = [ChunkQueue.job(queue, action, {"n": n, "how": hows.get(n)}) for n in range(1, count + 1)]
    return ChunkQueue.create_jobs(created)


def chunks(ledger):
    """Return what each attempt was handed, as "1,2,3"."""
    lines = [line.split() for line in ledger.read_text().splitlines()] if ledger.exists() else []
    return [line[4] for line in lines if line[0] == "chunk"]


def run(days=0):
    drain(ChunkQueue, now=timezone.now() + days * DAY if days else None)


def states(jobs):
    return [Job.objects.get(pk=job.pk).state for job in jobs]


@pytest.mark.parametrize("action", ["sync", "sync-async"])
def test_the_jobs_right_behind_the_head_are_done_with_it(ledger, action):
    jobs = put(12, action=action)
    run()
    assert chunks(ledger) == ["1,2,3,4,5", "6,7,8,9,10", "11,12"]
    assert set(states(jobs)) == {"done"}
    stored = [*ChunkQueue.jobs().in_order()]
    assert {(job.attempts, job.error) for job in stored} == {(1, "")}
    assert all(job.attempted_by and job.attempted_at == job.done_at for job in stored)


def test_each_job_has_its_result_and_its_hook_and_its_signals(ledger):
    told = []

    def receive(sender, signal, job, **more):
        told.append(job.pk)

    for signal in (job_started, job_done):
        signal.connect(receive, sender=ChunkQueue)
    jobs = [*put(3), *put(2, queue="each")]
    run()
    for signal in (job_started, job_done):
        signal.disconnect(receive, sender=ChunkQueue)
    assert [Job.objects.get(pk=job.pk).result for job in jobs] == [{"jobs": 3}] * 3 + [1, 2]
    assert sorted(told) == sorted([job.pk for job in jobs] * 2)
    hooks = [int(line.split()[2]) for line in ledger.read_text().splitlines() if line.startswith("told")]
    assert sorted(hooks) == [job.pk for job in jobs]


def test_another_action_options_of_its_own_and_a_later_time_end_a_chunk(ledger):
    put(2)
    ChunkQueue.create_job("a", "noop")
    put(2)
    ChunkQueue.create_job("a", "sync", {"n": 3}, timeout=5)
    put(2)
    ChunkQueue.create_job("a", "sync", {"n": 3}, scheduled_at=timezone.now() + DAY)
    run()
    assert chunks(ledger) == ["1,2", "1,2", "3", "1,2"]


def test_jobs_that_coalesce_are_done_with_their_last_params(ledger):
    ChunkQueue.create_job("a", "sync", {"n": 0})
    for n in range(1, 4):
        ChunkQueue.create_job("a", "sync", {"n": n}, coalesce="price")
    put(1)
    run()
    assert chunks(ledger) == ["0,3,1"]
    assert not ChunkQueue.jobs().filter(coalesce_key__isnull=False).exists()


def test_a_job_at_fault_is_found_and_blocks_with_an_error_of_its_own(ledger):
    jobs = put(8, _3="fail")
    run()
    assert chunks(ledger) == ["1,2,3,4,5"]
    run(days=1)
    assert chunks(ledger)[1:] == ["1", "2", "3"]
    assert states(jobs) == ["done", "done", *["pending"] * 6]
    third = Job.objects.get(pk=jobs[2].pk)
    assert (third.attempts, third.error.strip()) == (1, "ConnectionError: cannot sync 3")
    assert [Job.objects.get(pk=job.pk).attempts for job in jobs[3:]] == [0] * 5
    assert Queue.objects.get().current_job == third.pk
    ChunkQueue.skip(third)
    run(days=2)
    assert chunks(ledger)[4:] == ["4", "5", "6,7,8"]
    assert states(jobs)[3:] == ["done"] * 5


@pytest.mark.parametrize(("how", "state"), [("halt", "halted"), ("skip", "skipped")])
def test_what_a_job_in_a_chunk_wants_to_become_of_it_becomes_of_it_alone(ledger, how, state):
    jobs = put(3, _2=how)
    run()
    assert chunks(ledger)[:3] == ["1,2,3", "1", "2"]
    assert states(jobs) == ["done", state, "pending" if how == "halt" else "done"]


def test_the_last_attempt_of_a_head_is_not_used_up_by_a_job_behind_it(settings):
    settings.QUEUETOPIA = {**settings.QUEUETOPIA, "SCOPES": {"tests.chunks": {"max_attempts": 1}}}
    jobs = put(3, _2="fail")
    run()
    run(days=1)
    assert states(jobs) == ["done", "halted", "pending"]


def test_a_chunk_that_was_put_off_is_tried_as_one_again(ledger):
    put(3, _2="snooze once")
    run()
    (head,) = ChunkQueue.jobs().filter(attempted_at__isnull=False)
    assert (head.attempts, head.failed_at) == (0, None)
    assert Queue.objects.get().chunk is None


def test_the_memory_is_that_of_all_of_them(ledger):
    put(7)
    run()
    assert ChunkQueue.memory("a") == {"done": [1, 2, 3, 4, 5, 6, 7]}


def test_a_failed_chunk_leaves_the_memory_as_it_was(ledger):
    put(8, _7="fail")
    run()
    assert ChunkQueue.memory("a") == {"done": [1, 2, 3, 4, 5]}


def test_completing_the_first_completes_all(ledger):
    jobs = put(3, _3="complete")
    run()
    assert states(jobs) == ["done"] * 3
    assert {job.result for job in ChunkQueue.jobs()} == {"completed"}
    assert Note.objects.get().text == "3"


@pytest.mark.parametrize(
    ("how", "error"),
    [("complete another", "call completing() of the first of them, jobs[0]"), ("once", "Action 'sync' has a chunk")],
)
def test_what_has_no_meaning_in_a_chunk_is_a_failed_attempt(how, error):
    jobs = put(2, _1=how)
    run()
    assert error in Job.objects.get(pk=jobs[0].pk).error


@pytest.mark.parametrize(
    ("params", "error"),
    [({}, "a chunk of 3 jobs returned a list of 4"), ({"defer": True}, "has a chunk: its jobs cannot be deferred")],
)
def test_what_a_chunk_cannot_return_is_a_failed_attempt(params, error):
    ChunkQueue.create_jobs(ChunkQueue.job("a", "give", params) for _ in range(3))
    run()
    assert error in ChunkQueue.jobs().in_order()[0].error


def test_a_sensitive_param_of_any_job_is_masked_in_its_error():
    put(1)
    ChunkQueue.create_job("a", "sync", {"n": 2, "secret": "open sesame", "how": "fail"})
    run()
    assert ChunkQueue.jobs().in_order()[0].error == "ConnectionError: cannot sync 2 ********"


def test_perform_job_hands_out_one_job_as_a_chunk():
    memory = {}
    assert perform_job(ChunkQueue.job("each", "sync", {"n": 7}), memory) == [7]
    assert memory == {"done": [7]}


class TestVerbs:
    @pytest.fixture
    def running(self):
        """Return three jobs that run together, as their queue's row says."""
        jobs = put(3)
        run()
        Job.objects.update(state="pending", done_at=None, attempts=0, attempted_at=None)
        node = "00000000-0000-0000-0000-000000000001"
        chunk = {"fence": 9, "jobs": [job.pk for job in jobs[1:]]}
        Queue.objects.update(
            held_by=node, held_since=timezone.now() - DAY, current_job=jobs[0].pk, fence=9, chunk=chunk
        )
        return jobs

    @pytest.mark.parametrize("verb", ["cancel", "mark_done", "move_to_end", "run_now", "skip", "retry"])
    def test_are_refused_for_a_job_that_runs_with_another(self, running, verb):
        head, behind, _ = running
        with pytest.raises(Refused, match=f"it is done together with job {head.pk}, attempt"):
            getattr(ChunkQueue, verb)(behind)
        assert states(running) == ["pending"] * 3

    def test_it_is_not_moved(self, running):
        head, behind, _ = running
        with pytest.raises(Refused, match=f"it is done together with job {head.pk}"):
            ChunkQueue.move(behind, "b")
        assert ChunkQueue.move("a", "b") == 0

    def test_apply_to_it_when_the_chunk_is_over(self, running):
        Queue.objects.update(fence=10)
        assert ChunkQueue.cancel(running[1]) == "cancelled"

    def test_a_stop_of_the_first_stops_all(self, running):
        assert ChunkQueue.cancel(running[0]) == "running"
        assert Queue.objects.get().stop_requested

    def test_explain_says_how_many_run(self, running):
        assert f"runs job {running[0].pk} (sync) and 2 behind it, attempt" in ChunkQueue.explain("a")["sentence"]


class TestDeclaration:
    @pytest.mark.parametrize("chunk", [0, 1, -5, True, "100", 2.5, MOST_TOGETHER + 1])
    def test_a_wrong_number_is_an_error(self, chunk):
        with pytest.raises(ValueError, match="chunk is a number of jobs from 2 to 1000"):
            action(chunk=chunk)

    def test_a_method_that_cannot_be_called_so_is_told(self):
        class Wrong(Performer):
            @action(chunk=10)
            def sync(self, job):
                pass

        assert "its jobs are done in chunks, and it cannot be called as sync(jobs, params)" in method_problem(
            Wrong, "sync"
        )

    def test_params_are_any_dict(self):
        ChunkQueue.create_job("a", "sync", {"job": 1, "params": 2, "self": 3})
        with pytest.raises(InvalidJob):
            ChunkQueue.create_job("a", "sync", {"n": {1}})
