"""Damaged rows break no other queue."""

import pytest

from ...attempts import Verdict, describe, readable
from ...params import Unreadable
from .. import nodes
from .base import Contract
from .toolkit import OTHER_NODE, SCOPE, claim, claim_one, end, put, record, stored
from .vendors import write_corrupt


class Corrupt(Contract):
    @pytest.mark.parametrize(
        "text",
        [
            '{"when": {"__queuetopia__": "date", "value": "never"}}',
            '{"when": {"__queuetopia__": "os.system", "value": "true"}}',
            '{"__queuetopia__": 7}',
            "[1, 2]",
            '"text"',
            "null",
            "1e400",
            "{not json",
            "",
        ],
    )
    def test_corrupt_params_are_claimed_as_they_are_and_break_no_other_queue(self, backend, text):
        job = put()
        put("good")
        write_corrupt(job, "params", text)
        claims = {one.queue: one for one in claim(backend)}
        assert sorted(claims) == ["good", "q"]
        assert isinstance(readable(claims["q"].params), Unreadable)
        endings = [end(claims["q"], Verdict.RETRY, error=describe(ValueError())), end(claims["good"])]
        assert len(record(backend, *endings).written) == 2
        assert stored(claims["good"]).state == "done"
        assert claim_one(backend).job_id == job.pk

    @pytest.mark.parametrize("text", ['{"a": 1}', "7", "null", '"text"', "[1]", "{not json"])
    def test_a_corrupt_history_of_errors_is_begun_anew_and_breaks_no_other_queue(self, backend, node, text):
        job = put()
        put("good")
        write_corrupt(job, "errors", text)
        claims = node.claim()
        lost = nodes.lost_claims(backend, OTHER_NODE, [SCOPE], 10)
        assert len(lost) == 2
        endings = [
            end(one, Verdict.RETRY if one.queue == "q" else Verdict.SKIP, error=describe(ValueError("boom")))
            for one in claims
        ]
        assert len(node.record(*endings).written) == 2
        (*_, entry) = stored(job).errors
        assert entry["message"] == "boom"
