"""A worker process that cannot be trusted any more is replaced before it costs other queues an attempt."""

import pytest

from queuetopia.models import Job
from tests.processes.waiting import environment, wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

SPOILS = """
import os, sys, time

from queuetopia import action
from tests.testapp.queues import LedgerPerformer

broken = False
leaked = []

def spoil(self, job, value):
    global broken
    if value == "what only the job knows":
        broken = True
    if value == "modules":
        sys.modules.clear()
    if value == "time":
        time.monotonic = lambda: 0.0
    if value == "stdout":
        os.close(1)
    if value == "descriptors":
        while True:
            try:
                leaked.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                return

def noop(self, job, edited=None):
    if broken:
        raise ValueError("broken by another job")

LedgerPerformer.give_answer = action("answer")(spoil)
LedgerPerformer.noop = action(noop)
"""


@pytest.mark.parametrize("value", ["modules", "time", "stdout", "descriptors"])
@pytest.mark.parametrize("concurrency", [1, 4])
def test_one_in_which_something_changed_for_good_begins_no_other_job(nodes, tmp_path, value, concurrency):
    jobs = [LedgerQueue.job(f"queue-{number}", "noop") for number in range(40)]
    jobs.insert(20, LedgerQueue.job("spoils", "answer", {"value": value}))
    LedgerQueue.create_jobs(jobs)

    node = nodes.start(LedgerQueue, processes=1, concurrency=concurrency, env=environment(tmp_path, SPOILS))
    node.wait_for_log("worker replaced")
    wait_for_all()

    assert not Job.objects.exclude(attempts=1).exists()
    assert node.log().count("worker replaced") == 1
    assert concurrency > 1 or "because action 'answer' changed " in node.log()


def test_one_in_which_several_queues_fail_after_others_succeeded_is_replaced(nodes, tmp_path):
    node = nodes.start(LedgerQueue, processes=1, env=environment(tmp_path, SPOILS))
    LedgerQueue.create_job("spoils", "answer", {"value": "what only the job knows"})
    wait_for_all()

    LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{number}", "noop") for number in range(10)])
    wait_for_all()

    assert node.log().count("worker replaced") == 1
    assert "failed in it one after the other" in node.log()


def test_one_is_not_replaced_again_and_again_where_the_fault_is_not_its_own(nodes, ledger):
    first = LedgerQueue.create_job("a", "noop")
    LedgerQueue.create_jobs([LedgerQueue.job(f"q-{number}", "fail", {"times": 8}) for number in range(10)])

    node = nodes.start(LedgerQueue, processes=1)
    wait_for_attempts(ledger, 80)
    wait_for_all()

    assert Job.objects.get(pk=first.pk).attempts == 1
    assert node.log().count("worker replaced") <= 1


NO_THREADS = """
import os, sys, threading

if sys.argv[1] == "worker" and not os.path.exists(os.environ["SPOILT"]):
    open(os.environ["SPOILT"], "w").close()
    start = threading.Thread.start

    def start_news_only(thread):
        if thread.name != "queuetopia-news":
            threading.stack_size(2**47)  # which no machine has
        start(thread)

    threading.Thread.start = start_news_only
"""


@pytest.mark.parametrize(("action", "params"), [("write", {"seq": 1}), ("sleep_async", {"seq": 1})])
def test_one_that_can_start_no_thread_gives_its_jobs_back_uncounted(nodes, ledger, tmp_path, action, params):
    job = LedgerQueue.create_job("a", action, params, max_attempts=1)
    env = {**environment(tmp_path, NO_THREADS), "SPOILT": str(tmp_path / "spoilt")}

    node = nodes.start(LedgerQueue, processes=1, env=env)
    wait_for_all()

    job.refresh_from_db()
    assert (job.state, job.attempts, job.errors) == ("done", 1, [])
    assert "it cannot begin a job: RuntimeError" in node.log()
