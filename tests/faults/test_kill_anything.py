"""SIGKILL of supervisor, scheduler or worker at any point: nothing lost, nothing out of order, nothing twice at once.

The seed of a round is printed; ``QUEUETOPIA_FAULT_SEED`` repeats it, ``QUEUETOPIA_FAULT_ROUNDS`` makes more of them.
"""

import os
import random

import pytest

from queuetopia.models import Job, Node, Queue
from queuetopia.testing import wait_until
from tests.nodes import kill
from tests.testapp.queues import LedgerQueue

from .ledger import Record, check

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

QUEUES, JOBS_EACH = 50, 10
ROUNDS = int(os.environ.get("QUEUETOPIA_FAULT_ROUNDS", "3"))
SEED = int(os.environ.get("QUEUETOPIA_FAULT_SEED", str(random.SystemRandom().randrange(10**6))))
KILLS = 5  # in one round, beside the workers that kill themselves


@pytest.mark.django_db(transaction=True)
@pytest.mark.capability("W7", "E6", "E16", "J18", "W5")
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_whatever_is_killed_nothing_is_lost_or_out_of_order_or_runs_twice_at_once(nodes, ledger, round_):
    seed = SEED + round_
    dice = random.Random(seed)
    created = {f"queue-{number}": list(range(JOBS_EACH)) for number in range(QUEUES)}
    LedgerQueue.create_jobs(
        [
            LedgerQueue.job(queue, "fail_at_random", {"seq": seq, "chance": 0.12, "lasts": 0.01})
            for seq in range(JOBS_EACH)
            for queue in created
        ]
    )
    killed = []
    node = nodes.start(LedgerQueue)
    for _ in range(KILLS):
        begun = ledger.attempts() + dice.randrange(5, 60)
        wait_until(lambda least=begun: ledger.attempts() >= least or is_empty(), 60, message="no attempt begins")
        killed.append(kill_one_of(node, dice))
        if killed[-1] == "supervisor":
            wait_until(node.is_gone, 10, message="processes outlived their supervisor")
            node = nodes.start(LedgerQueue)  # what an init system does
    wait_until(is_empty, 120, message="unfinished jobs")
    assert node.stop() == 0

    findings = check(ledger.records(), created)
    print(f"seed {seed}: {QUEUES * JOBS_EACH} jobs, {ledger.attempts()} attempts, killed {killed}, {findings}")
    assert findings.wrong == []
    assert LedgerQueue.jobs().filter(state=Job.State.DONE).count() == QUEUES * JOBS_EACH
    assert not Queue.objects.filter(held_by__isnull=False).exists()
    assert not Node.objects.exists()


def is_empty():
    return not LedgerQueue.jobs().unfinished().exists()


def kill_one_of(node, dice):
    """Kill the supervisor, the scheduler or a worker; say which."""
    roles = {
        "supervisor": [node.supervisor],
        "scheduler": node._with_role("scheduler"),
        "worker": node._with_role("worker"),
    }
    role = dice.choice([role for role, pids in roles.items() if pids])
    try:
        kill(dice.choice(roles[role]))
    except ProcessLookupError:
        return f"{role}, dead already"
    return role


# The checker bites


def record(event, number, fence, clock, queue="a", pid=1):
    return Record(event, queue, number, fence, clock, pid)


GOOD = [record("start", 0, 1, 1.0), record("end", 0, 1, 2.0), record("start", 1, 2, 3.0), record("end", 1, 2, 4.0)]


def test_the_checker_is_content_with_a_good_ledger():
    assert check(GOOD, {"a": [0, 1]}) == ([], 0)


@pytest.mark.parametrize(
    ("records", "sentence"),
    [
        (GOOD[:2], "job 1 is lost"),
        ([*GOOD[:1], GOOD[2], GOOD[1], GOOD[3]], None),
        (
            [record("start", 0, 1, 1.0), record("start", 1, 2, 1.5, pid=2), record("end", 0, 1, 2.0), GOOD[3]],
            "began in attempt",
        ),
        (
            [
                record("start", 1, 1, 1.0),
                record("end", 1, 1, 2.0),
                record("start", 0, 2, 3.0),
                record("end", 0, 2, 4.0),
            ],
            "before the end",
        ),
        ([*GOOD[:2], record("start", 1, 1, 3.0, pid=2), record("end", 1, 1, 4.0, pid=2)], "began after attempt 1"),
    ],
)
def test_the_checker_finds_what_is_wrong(records, sentence):
    wrong = check(records, {"a": [0, 1]}).wrong
    if sentence is None:  # the same records in another order of the file: the clock decides
        assert wrong == []
    else:
        assert any(sentence in found for found in wrong), wrong


def test_the_checker_counts_what_ended_twice():
    twice = [*GOOD, record("start", 1, 3, 5.0), record("end", 1, 3, 6.0)]
    assert check(twice, {"a": [0, 1]}) == ([], 1)
