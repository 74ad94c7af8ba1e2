"""The sweep finds the jobs whose wake-up was lost."""

import pytest

from ...attempts import Verdict
from ...models import Job
from .. import upkeep
from .base import Contract
from .toolkit import (
    HOUR,
    ODD_NAMES,
    SCOPE,
    ContractQueue,
    OtherQueue,
    claim,
    claim_one,
    finish,
    names,
    put,
    put_row,
    rows,
)


class Sweeping(Contract):
    def test_the_sweep_repairs_jobs_whose_queue_has_no_row_and_idle_queues(self, backend):
        put("idle")
        finish(backend, claim_one(backend))
        for name in ("idle", "unknown"):
            put_row(name)
        assert claim(backend) == []
        assert upkeep.sweep(backend, SCOPE, "") == (2, None)
        assert sorted(names(claim(backend))) == ["idle", "unknown"]

    def test_the_sweep_repairs_a_queue_that_only_knows_of_a_job_for_later(self, backend):
        now = backend.now()
        put(scheduled_at=now + HOUR)
        due = put_row()
        assert claim(backend) == []
        assert upkeep.sweep(backend, SCOPE, "") == (1, None)
        assert claim_one(backend).job_id == due.pk

    def test_the_sweep_repairs_a_blocked_queue_whose_head_has_vanished(self, backend):
        gone, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        Job.objects.filter(pk=gone.pk).delete()
        assert claim(backend) == []
        assert upkeep.sweep(backend, SCOPE, "") == (1, None)
        assert claim_one(backend).job_id == following.pk

    def test_the_sweep_leaves_alone_what_is_well(self, backend):
        now = backend.now()
        put("due")
        put("later", scheduled_at=now + HOUR)
        put("paused")
        ContractQueue.pause("paused")
        put("ended")
        for name, verdict in (
            ("ended", Verdict.DONE),
            ("held", None),
            ("halted", Verdict.HALT),
            ("slow", Verdict.RETRY),
        ):
            put(name)
            for one in claim(backend, only=name):
                if verdict:
                    finish(backend, one, verdict, delay=40)
        put_row(queue="held")
        put_row(queue="halted")
        state = rows()
        assert upkeep.sweep(backend, SCOPE, "") == (0, None)
        assert rows() == state

    def test_the_sweep_repairs_its_own_scope_only(self, backend):
        put_row()
        assert upkeep.sweep(backend, OtherQueue.scope, "") == (0, None)
        assert upkeep.sweep(backend, SCOPE, "") == (1, None)

    @pytest.mark.parametrize("limit", [1, 3, 7, 500])
    def test_the_sweep_goes_through_all_names_in_chunks(self, backend, limit):
        for name in ODD_NAMES:
            put_row(name)
            put_row(name)
        repaired, steps, after = 0, 0, ""
        while after is not None:
            number, after = upkeep.sweep(backend, SCOPE, after, limit)
            repaired += number
            steps += 1
        assert repaired == len(ODD_NAMES)
        assert steps <= len(ODD_NAMES) // limit + 1
        assert sorted(names(claim(backend, 100))) == sorted(ODD_NAMES)
