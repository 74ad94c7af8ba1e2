"""Creators, two nodes and an operator at work at once; each claim is checked against what ran before."""

import contextlib
import logging
import os
import threading
import time
from collections import Counter
from functools import partial

from django.db import OperationalError, connection, transaction

from ...attempts import Verdict
from ...exceptions import Refused
from ...models import Job, Queue
from .. import backend_for, upkeep
from .base import Contract, several_writers
from .toolkit import HOLDING, JOB_VERBS, NODE, PATIENCE, SECOND, ContractQueue, Dice, claim, do_verb, end, join, record

FEWEST = 100  # jobs, however slow the machine is


class Left(logging.Handler):
    """Notes that a creator has left a wake-up to the sweep, because rows or tables were locked for too long."""

    is_notified = False

    def emit(self, record):
        self.is_notified = self.is_notified or "the sweep finds the jobs" in record.msg

    def __enter__(self):
        logging.getLogger("queuetopia.jobs").addHandler(self)
        return self

    def __exit__(self, *exc_info):
        logging.getLogger("queuetopia.jobs").removeHandler(self)


class Hammer:
    """Creators, two nodes and an operator at work on a few queues; every claim is checked against what ran before.

    Nobody sweeps, unless a creator says that it has left a wake-up to the sweep.
    """

    QUEUES = tuple(f"q{number}" for number in range(10))
    VERDICTS = (*[Verdict.DONE] * 16, Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT, Verdict.RETURN, Verdict.SKIP,
                Verdict.HALT)  # fmt: skip

    def __init__(self, seconds, *, isolated=False):
        self.until = time.monotonic() + seconds
        self.isolated = isolated  # transactions are broken off by others that wrote what they have read
        self.created = 0
        self.done = Counter()
        self._drained = threading.Event()
        self._left = Left()
        self._lock = threading.Lock()
        self._running = {}  # queue -> claim
        self._fences = {}  # queue -> the highest seen
        self._blocking = {}  # queue -> the attempted job that holds it

    def run(self, backend, node, elsewhere):
        others = [elsewhere().start(self.create, seed) for seed in range(3)] + [elsewhere().start(self.meddle)]
        nodes = [node.start(self.serve, node.backend, node.id)]
        nodes.append(elsewhere().start(self.watch, others))
        with self._left:
            try:
                self.serve(backend, NODE)
            finally:
                self._drained.set()
            join(others + nodes)
        lost = list(Job.objects.unfinished())
        assert not lost, f"{len(lost)} of {self.created} jobs were never run: {lost[:5]}"
        assert self.created == Job.objects.count()
        assert set(self.done.values()) == {1}
        assert not Queue.objects.held().exists()

    def is_over(self):
        return time.monotonic() > self.until and self.created > FEWEST

    # Who creates

    def create(self, seed):
        dice = Dice(seed)
        while not self.is_over():
            number = dice.choice((1, 1, 1, 5))
            in_transaction = dice.random() < 0.3
            times = dice.choice((1, 2)) if in_transaction else 1
            if not self.is_done(partial(self.put_all, dice, number, times, in_transaction), may_deadlock=self.isolated):
                continue
            with self._lock:
                self.created += times * number
                backlog = self.created - sum(self.done.values())
            if backlog > 200:
                self._drained.wait(0.01)

    def put_all(self, dice, number, times, in_transaction):
        with transaction.atomic() if in_transaction else contextlib.nullcontext():
            for _ in range(times):
                self.put(dice, number)

    def put(self, dice, number):
        at = None if dice.random() < 0.8 else backend_for("default").now() + dice.uniform(-0.2, 0.2) * SECOND
        new = [ContractQueue.job(dice.choice(self.QUEUES), "noop", scheduled_at=at) for _ in range(number)]
        ContractQueue.create_jobs(new)

    # Who meddles

    def meddle(self):
        dice = Dice(8)
        while not self.is_over():
            with contextlib.suppress(Refused):
                self.is_done(partial(self.do_something, dice))
            self._drained.wait(0.01)

    def do_something(self, dice):
        verb, queue = dice.choice(("pause", "pause all", "job", "job", "job")), dice.choice(self.QUEUES)
        if verb == "job":
            job = Job.objects.unfinished().filter(queue=queue).in_order()[: dice.choice((1, 4))].first()
            if job:
                copies = do_verb(dice.choice(JOB_VERBS), job)
                with self._lock:
                    self.created += copies
            return
        ContractQueue.pause(queue if verb == "pause" else None)
        self._drained.wait(0.01)
        while not self.is_done(partial(ContractQueue.resume, queue if verb == "pause" else None)):
            pass

    def watch(self, others):
        """When all has been created: let halted jobs go on until every job has ended, or nothing moves any more."""
        try:
            for future in others:
                future.result()
            left, since = None, time.monotonic()
            while (now_left := Job.objects.unfinished().count()) and time.monotonic() - since < PATIENCE / 2:
                if now_left != left:
                    left, since = now_left, time.monotonic()
                for job in Job.objects.unfinished().halted():
                    self.is_done(partial(ContractQueue.retry, job))
                if self._left.is_notified:
                    self.sweep()
                self._drained.wait(0.02)
        finally:
            self._drained.set()  # those who serve would go on for ever

    def sweep(self):
        self.is_done(partial(upkeep.sweep, backend_for("default"), ContractQueue.scope, ""))

    # Everyone

    def is_done(self, act, *, may_deadlock=False):
        """Act; return False if it is to be tried again. Where there is one writer, one may wait for too long."""
        backend = backend_for("default")
        try:
            act()
        except OperationalError as exc:
            is_starved = not connection.features.has_select_for_update and backend.is_busy(exc)
            assert is_starved or (may_deadlock and backend.is_deadlock(exc)), exc
            return False
        return True

    # Who serves

    def serve(self, backend, holder):
        dice = Dice(str(holder))
        claims, locked = [], []
        while claims or locked or not self._drained.is_set():
            claims += self.begun(claim(backend, dice.randint(1, 8), holder=holder))
            if not claims:
                self._drained.wait(0.002)
            dice.shuffle(claims)
            cut = dice.randint(0, len(claims))
            endings = locked + [self.ended(one, dice) for one in claims[:cut]]
            recorded = record(backend, *endings, holder=holder, keep=dice.random() < 0.5)
            assert not recorded.stale
            claims, locked = claims[cut:] + self.begun(recorded.claims), recorded.locked

    def begun(self, claims):
        with self._lock:
            for one in claims:
                assert one.queue not in self._running, "a queue is run twice at once"
                assert one.fence > self._fences.get(one.queue, 0)
                holder = self._blocking.get(one.queue, one.job_id)
                assert holder == one.job_id or Job.objects.get(pk=holder).is_ended(), "a blocked queue went on"
                assert not self.done[one.job_id], "a job that is done runs again"
                self._running[one.queue], self._fences[one.queue] = one, one.fence
        return claims

    def ended(self, one, dice):
        verdict = dice.choice(self.VERDICTS) if not self.is_over() else Verdict.DONE
        with self._lock:
            del self._running[one.queue]
            self._blocking.pop(one.queue, None)
            if verdict in HOLDING:
                self._blocking[one.queue] = one.job_id
            if verdict == Verdict.DONE:
                self.done[one.job_id] += 1
        return end(one, verdict, delay=dice.uniform(0, 0.05) if verdict in (Verdict.RETRY, Verdict.SNOOZE) else 0.0)


class UnderFire(Contract):
    def test_no_wake_up_is_lost_and_no_queue_runs_twice_under_fire(self, backend, node, elsewhere):
        """Creators, two nodes that never sweep, and an operator's verbs; QUEUETOPIA_HAMMER_SECONDS for longer."""
        Hammer(seconds=float(os.environ.get("QUEUETOPIA_HAMMER_SECONDS", "5"))).run(backend, node, elsewhere)

    @several_writers
    def test_nothing_is_lost_or_run_twice_where_transactions_are_serializable_by_default(
        self, serializable, backend, node, elsewhere
    ):
        Hammer(seconds=4, isolated=True).run(backend, node, elsewhere)
