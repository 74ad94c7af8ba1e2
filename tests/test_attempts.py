"""What each verdict means is said once, in names that exist."""

import inspect
import json
import uuid
from datetime import datetime

import pytest

from queuetopia import Performer, signals
from queuetopia.attempts import MEANING, Outcome, Verdict
from queuetopia.backends.values import Ending
from queuetopia.conf import JOB_OPTIONS
from queuetopia.models import Job, Queue, Statistic
from tests.testapp.queues import LedgerQueue


@pytest.mark.parametrize("verdict", Verdict)
class TestMeaning:
    def test_every_verdict_has_one(self, verdict):
        assert MEANING[verdict].state in Job.State.values

    def test_its_hooks_are_methods_of_a_performer(self, verdict):
        assert all(inspect.isfunction(getattr(Performer, name, None)) for name in MEANING[verdict].hooks)

    def test_its_signals_exist(self, verdict):
        assert all(hasattr(signals, name) for name in MEANING[verdict].signals)

    def test_its_counters_are_columns_of_the_statistics(self, verdict):
        assert set(MEANING[verdict].counters) <= {field.name for field in Statistic._meta.fields}

    def test_an_end_and_a_next_attempt_exclude_each_other(self, verdict):
        assert not (MEANING[verdict].ends_job and MEANING[verdict].again)


def test_every_hook_and_every_signal_of_a_job_follows_some_verdict():
    hooks = {name for meaning in MEANING.values() for name in meaning.hooks}
    sent = {name for meaning in MEANING.values() for name in meaning.signals}
    assert hooks == {name for name in vars(Performer) if name.startswith("handle_")} - {"handle_start"}
    assert sent == {name for name in vars(signals) if name.startswith("job_")} - {"job_created", "job_started"}


@pytest.mark.django_db(transaction=True)
def test_a_claim_carries_each_field_of_its_job_and_queue_under_its_own_name(backend):
    given = {"timeout": 7.5, "max_backoff": 11.25, "max_attempts": 13, "on_exhausted": "skip"}
    assert given.keys() == JOB_OPTIONS.keys()
    first, second = (LedgerQueue.create_job("a", "noop", {}, **given) for _ in range(2))
    (claim,), _ = backend.claim(["tests.ledger"], 1, uuid.uuid4())
    assert_carries(claim, first)
    ending = Ending(claim, Outcome(first.pk, claim.fence, Verdict.DONE))
    (following,) = backend.record([ending], Queue.objects.get().held_by, "node", keep=lambda claim: True).claims
    assert_carries(following, second)


def assert_carries(claim, job):
    job.refresh_from_db()
    queue = Queue.objects.get()
    assert (claim.job_id, claim.queue_id, claim.scope, claim.queue) == (job.pk, queue.pk, job.scope, queue.name)
    assert (claim.action, json.loads(claim.params), claim.attempt) == (job.action, job.params, 1)
    assert (claim.fence, claim.rev) == (queue.fence, queue.rev)
    assert datetime.fromisoformat(claim.scheduled_at) == job.scheduled_at
    assert {name: getattr(claim, name) for name in JOB_OPTIONS} == {name: getattr(job, name) for name in JOB_OPTIONS}
    assert (claim.attempted, claim.failed_at) == (False, None)
