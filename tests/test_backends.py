"""The storage contract, one class for every database, and below it what is special to one vendor.

``TestBackendContract`` runs on the database that the settings call ``default``; the suite is run once for each. A
backend from elsewhere is held to it by a class of its own, in a project whose settings have that database::

    from tests.test_backends import TestBackendContract

    class TestMyBackend(TestBackendContract):
        pass

Django's connections belong to a thread, so a second node, or a web process, is a thread here (``Node``,
``Elsewhere``); the test's own thread has the session under test and beside it the usual connection.
"""

import contextlib
import fcntl
import itertools
import json
import math
import os
import random
import select
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import timedelta
from functools import partial
from pathlib import Path
from unittest import mock

import pytest
from django.db import DatabaseError, OperationalError, close_old_connections, connection, connections, transaction
from hypothesis import given
from hypothesis import strategies as st

from queuetopia import conf
from queuetopia.attempts import ERRORS_KEPT, Outcome, Verdict, backoff, describe, readable
from queuetopia.backends import backend_for, base, postgresql
from queuetopia.backends.base import Ending
from queuetopia.exceptions import Refused, SessionLost, SessionRefused
from queuetopia.models import Job, JobEvent, Queue, Scope
from queuetopia.models import Node as NodeRow
from queuetopia.params import Unreadable
from queuetopia.testing import wait_until
from tests.pages import blocks
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

SCOPE = LedgerQueue.scope
NODE, OTHER_NODE = uuid.UUID(int=1), uuid.UUID(int=2)
PATIENCE = 60  # seconds after which something is taken to wait for ever
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)

Dice = random.Random
is_sqlite = connection.vendor == "sqlite"
one_writer = pytest.mark.skipif(is_sqlite, reason="SQLite has one writer at a time: a second transaction waits")


class Elsewhere:
    """A thread with connections of its own: another process, as far as the database can tell."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1)

    def start(self, function, *args, **kwargs):
        return self._thread.submit(function, *args, **kwargs)

    def run(self, function, *args, **kwargs):
        return self.start(function, *args, **kwargs).result(PATIENCE)

    def close(self):
        self.run(connections.close_all)
        self._thread.shutdown()


class Node(Elsewhere):
    """A thread with a session of its own."""

    def __init__(self, node_id=OTHER_NODE):
        super().__init__()
        self.id = node_id
        self.backend = backend_for("default")
        self.run(self.backend.open_session, conf.lease())

    def claim(self, limit=10, **options):
        return self.run(claim, self.backend, limit, holder=self.id, **options)

    def record(self, *endings, **options):
        return self.run(record, self.backend, *endings, holder=self.id, **options)

    def close(self):
        self.run(self.backend.close_session)
        super().close()


@pytest.fixture
def serializable(transactional_db, monkeypatch):
    """Every new connection isolates its transactions as far as the database can, because settings and server say so."""
    options, level = connections.settings["default"]["OPTIONS"], "serializable"
    if connection.vendor == "postgresql":
        from psycopg import IsolationLevel

        level = IsolationLevel.SERIALIZABLE
        with connection.cursor() as cursor:
            cursor.execute(
                f"ALTER DATABASE {connection.settings_dict['NAME']} SET default_transaction_isolation TO serializable"
            )
    monkeypatch.setitem(options, "isolation_level", level)
    yield
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER DATABASE {connection.settings_dict['NAME']} RESET default_transaction_isolation")


@pytest.fixture
def node(backend):
    """A second node."""
    with contextlib.closing(Node()) as node:
        yield node


@pytest.fixture
def elsewhere(transactional_db):
    """A function that returns a new thread without a session, as a web process is."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(Elsewhere()))


def put(queue="q", *, queuetopia=LedgerQueue, **options) -> Job:
    return queuetopia.create_job(queue, "noop", **options)


def put_row(queue="q", **columns) -> Job:
    """Write a job's row, and wake nobody."""
    return Job.objects.create(scope=SCOPE, queue=queue, action="noop", **columns)


def claim(backend, limit=10, *, scopes=(SCOPE,), holder=NODE, **options):
    claims, _ = backend.claim(list(scopes), limit, holder, **options)
    return claims


def claim_one(backend, **options):
    (one,) = claim(backend, **options)
    return one


def end(claim, verdict=Verdict.DONE, **outcome) -> Ending:
    return Ending(claim, Outcome(claim.job_id, claim.fence, verdict, **outcome))


def record(backend, *endings, keep=False, holder=NODE, **options):
    return backend.record(list(endings), holder, "web1:7", lambda claim: keep, **options)


def finish(backend, claim, verdict=Verdict.DONE, *, keep=False, now=None, **outcome):
    """Record the end of one attempt, which must not be stale; return what came of it."""
    recorded = record(backend, end(claim, verdict, **outcome), keep=keep, now=now)
    assert [ending.claim for ending in recorded.written] == [claim]
    return recorded


def names(claims):
    return [claim.queue for claim in claims]


def stored(job) -> Job:
    return Job.objects.get(pk=getattr(job, "job_id", None) or job.pk)


def line(queue="q") -> Queue:
    return Queue.objects.get(scope=SCOPE, name=queue)


def rows():
    """Everything that is stored, to compare."""
    return [list(model.objects.order_by("pk").values()) for model in (Job, Queue, Scope, JobEvent, NodeRow)]


def before(backend, method, do):
    """Have ``do()`` done once, just before ``backend.method`` is called the next time."""
    original = getattr(backend, method)

    def wrapper(*args, **kwargs):
        setattr(backend, method, original)
        do()
        return original(*args, **kwargs)

    setattr(backend, method, wrapper)


def barrier(parties):
    return threading.Barrier(parties, timeout=PATIENCE / 2)


def join(futures):
    """Wait until all have returned; raise what the first to fail has raised."""
    done, waiting = wait(futures, PATIENCE, FIRST_EXCEPTION)
    for future in done:
        future.result()
    assert not waiting


def is_waiting():
    """True while a statement waits for a row somebody else has locked; SQLite cannot tell."""
    sql = {
        "postgresql": "SELECT 1, count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND datname = current_database()",
        # Of the whole server: whoever asks innodb_trx more often than ten times a second gets the same answer for ever.
        "mysql": "SHOW GLOBAL STATUS LIKE 'Innodb_row_lock_current_waits'",
        "sqlite": "SELECT 1, 1",
    }[connection.vendor]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":  # in a transaction it would give the first answer for ever
            cursor.execute("SELECT pg_stat_clear_snapshot()")
        cursor.execute(sql)
        return int(cursor.fetchone()[1]) > 0


class Hammer:
    """Creators, two nodes and a person at work on a few queues; every claim is checked against what ran before."""

    QUEUES = tuple(f"q{number}" for number in range(10))
    VERDICTS = (*[Verdict.DONE] * 16, Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT, Verdict.RETURN, Verdict.SKIP,
                Verdict.HALT)  # fmt: skip

    def __init__(self, seconds, *, isolated=False):
        self.until = time.monotonic() + seconds
        self.isolated = isolated  # transactions are broken off by others that wrote what they have read
        self.created = 0
        self.done = Counter()
        self._drained = threading.Event()
        self._lock = threading.Lock()
        self._running = {}  # queue -> claim
        self._fences = {}  # queue -> the highest seen
        self._blocking = {}  # queue -> the attempted job that holds it

    def run(self, backend, node, elsewhere):
        others = [elsewhere().start(self.create, seed) for seed in range(3)] + [elsewhere().start(self.meddle)]
        nodes = [node.start(self.serve, node.backend, node.id)]
        nodes.append(elsewhere().start(self.watch, others))
        try:
            self.serve(backend, NODE)
        finally:
            self._drained.set()
        join(others + nodes)
        lost = list(Job.objects.unfinished())
        assert not lost, f"{len(lost)} of {self.created} jobs were never run: {lost[:5]}"
        assert self.created == Job.objects.count() > 100
        assert set(self.done.values()) == {1}
        assert not Queue.objects.held().exists()

    def is_over(self):
        return time.monotonic() > self.until

    # Who creates

    def create(self, seed):
        dice = Dice(seed)
        while not self.is_over():
            number = dice.choice((1, 1, 1, 5))
            in_transaction = dice.random() < 0.3
            times = dice.choice((1, 2)) if in_transaction else 1
            try:
                with transaction.atomic() if in_transaction else contextlib.nullcontext():
                    for _ in range(times):
                        self.put(dice, number)
            except OperationalError as exc:  # is the creator's, who tries again
                assert self.isolated and backend_for("default").is_deadlock(exc), exc
                continue
            with self._lock:
                self.created += times * number
                backlog = self.created - sum(self.done.values())
            if backlog > 200:
                self._drained.wait(0.01)

    def put(self, dice, number):
        at = None if dice.random() < 0.8 else backend_for("default").now() + dice.uniform(-0.2, 0.2) * SECOND
        new = [LedgerQueue.job(dice.choice(self.QUEUES), "noop", scheduled_at=at) for _ in range(number)]
        LedgerQueue.create_jobs(new)

    # Who meddles

    def meddle(self):
        dice = Dice(8)
        while not self.is_over():
            with contextlib.suppress(Refused):
                self.do_something(dice)
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
        LedgerQueue.pause(queue if verb == "pause" else None)
        self._drained.wait(0.01)
        LedgerQueue.resume(queue if verb == "pause" else None)

    def watch(self, others):
        """When all has been created: let halted jobs go on until every job has ended, or nothing moves any more."""
        for future in others:
            future.result()
        left, since = None, time.monotonic()
        while (now_left := Job.objects.unfinished().count()) and time.monotonic() - since < PATIENCE / 2:
            if now_left != left:
                left, since = now_left, time.monotonic()
            for job in Job.objects.unfinished().halted():
                LedgerQueue.retry(job)
            self._drained.wait(0.02)
        self._drained.set()

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


JOB_VERBS = ("cancel", "skip", "retry", "mark_done", "edit", "move_to_end")
EDITED = {"edited": True}

# What a queue row and a job row hold after each verdict on attempt 3: (job, queue). "now" is the clock that record()
# was given, "later" 40 s after it; "job" the job's id.
ENDED = {"current_job": None, "due_at": None}
UNCHANGED = {"state": "pending", "attempts": 2, "done_at": None}
AFTER = {
    Verdict.DONE: ({"state": "done", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.SKIP: ({"state": "skipped", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.CANCEL: ({"state": "cancelled", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.RETRY: (
        {"state": "pending", "attempts": 3, "done_at": None, "next_attempt_at": "later"},
        {"current_job": "job", "due_at": "later"},
    ),
    Verdict.HALT: (
        {"state": "halted", "attempts": 3, "done_at": None, "next_attempt_at": None},
        {"current_job": "job", "due_at": None},
    ),
    Verdict.SNOOZE: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.INTERRUPT: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.RETURN: (UNCHANGED, {"current_job": "job", "due_at": "later"}),
}
FAILED = (Verdict.RETRY, Verdict.HALT, Verdict.SKIP)
HOLDING = (Verdict.RETRY, Verdict.HALT, Verdict.SNOOZE, Verdict.INTERRUPT)
ENDING = (Verdict.DONE, Verdict.SKIP, Verdict.CANCEL)

ODD_NAMES = (
    "a", "A", "a ", " a", "á", "a\u0301", "ä", "ß", "ss", "i", "\u0131", "🙂", "🙃", "a🙂", "ﬁ", "fi", "½", "0", "00",
    "%", "_", "\\", "'", '"', "x'; DROP TABLE queuetopia_job; --", "%s", "%(scope)s", "{0}", "\n", "\t", "\x7f",
    "\u200b", "-", "\u202eab", "ǆ", "Z", "z", "é", "e\u0301", "\U0010ffff", "\ufffd", "x" * 255, "🙂" * 255,
)  # fmt: skip


@pytest.mark.capability("E23", "H1", "J6")
@pytest.mark.django_db(transaction=True)
class TestBackendContract:
    """Every promise of ``backends/base.py``, on one backend.

    It needs a ``default`` database whose alias ``backend_for`` knows, with the migrations applied, and the
    Queuetopias of ``tests.testapp``. Override the fixture ``backend`` to open the session otherwise.
    """

    # Claim

    def test_a_claim_is_the_head_of_its_queue_with_all_that_a_worker_needs(self, backend):
        job = LedgerQueue.create_job(
            "q", "write", {"seq": 1}, timeout=7, max_backoff=8, max_attempts=9, on_exhausted="skip"
        )
        one = claim_one(backend)
        assert (one.job_id, one.queue_id, one.scope, one.queue, one.action) == (job.pk, line().pk, SCOPE, "q", "write")
        assert (one.timeout, one.max_backoff, one.max_attempts, one.on_exhausted) == (7, 8, 9, "skip")
        assert (one.attempt, one.fence, one.rev, one.attempted, one.failed_at) == (1, 1, 0, False, None)
        assert readable(one.params) == {"seq": 1}

    def test_a_claim_is_written_on_the_queue_and_not_on_the_job(self, backend):
        job = put()
        before_claim, now = stored(job).__dict__, backend.now()
        one = claim_one(backend, now=now)
        held = line()
        assert (held.held_by, held.held_since, held.current_job) == (NODE, now, job.pk)
        assert (held.attempt, held.fence) == (1, one.fence)
        assert stored(job).__dict__ | {"_state": None} == before_claim | {"_state": None}

    def test_a_claim_says_whether_the_job_was_attempted_and_whether_it_failed(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.SNOOZE)
        snoozed = claim_one(backend)
        assert (snoozed.attempt, snoozed.attempted, snoozed.failed_at) == (1, True, None)
        finish(backend, snoozed, Verdict.RETRY, error=describe(ValueError()))
        failed = claim_one(backend)
        assert (failed.attempt, failed.attempted, bool(failed.failed_at)) == (2, True, True)

    @pytest.mark.capability("E16", "E33", "Q6")
    def test_a_queue_is_claimed_by_one_of_two_nodes_at_once(self, backend, node):
        LedgerQueue.create_jobs([LedgerQueue.job(f"q{number}", "noop") for number in range(20)])
        both = barrier(2)

        def claim_all(backend, holder):
            both.wait()
            return list(itertools.chain.from_iterable(claim(backend, 7, holder=holder) for _ in range(10)))

        theirs = node.start(claim_all, node.backend, node.id)
        ours = claim_all(backend, NODE)
        claims = ours + theirs.result(PATIENCE)
        assert sorted(names(claims)) == sorted(f"q{number}" for number in range(20))
        for one in ours:
            assert line(one.queue).held_by == NODE

    def test_a_held_queue_is_not_claimed_again(self, backend, node):
        put()
        put()
        claim_one(backend)
        assert claim(backend) == [] == node.claim()

    @pytest.mark.capability("E33")
    def test_each_claim_of_a_queue_has_a_higher_fence(self, backend, node):
        put()
        put()
        fences = [line().fence]
        for verdict in (Verdict.RETURN, Verdict.INTERRUPT, Verdict.SNOOZE, Verdict.RETRY):
            (theirs,) = node.claim()
            node.record(end(theirs, verdict))
            ours = claim_one(backend)
            finish(backend, ours, verdict)
            fences += [theirs.fence, ours.fence]
        one = claim_one(backend)
        (following,) = finish(backend, one, keep=True).claims
        fences += [one.fence, following.fence]
        assert line().fence == fences[-1]
        assert all(earlier < later for earlier, later in itertools.pairwise(fences))

    @pytest.mark.capability("E33", "W9")
    @pytest.mark.parametrize("keep", [False, True])
    def test_jobs_of_a_queue_are_claimed_by_time_and_then_in_order_of_creation(self, backend, keep):
        now = backend.now()
        created = [put_row(scheduled_at=now + offset * SECOND) for offset in (2, 2, 1, 3, 1, 2)]
        backend.wake([(SCOPE, "q", now)])
        seen, kept = [], []
        for _ in created:
            one = kept[0] if kept else claim_one(backend, now=now + HOUR)
            seen.append(one.job_id)
            kept = finish(backend, one, keep=keep, now=now + HOUR).claims
        assert seen == [created[index].pk for index in (2, 4, 0, 1, 5, 3)]
        assert claim(backend, now=now + HOUR) == []

    def test_jobs_created_without_a_time_run_in_order_of_creation(self, backend):
        jobs_in_order = [put() for _ in range(3)]
        jobs_in_order += LedgerQueue.create_jobs([LedgerQueue.job("q", "noop") for _ in range(3)])
        for job in jobs_in_order:
            one = claim_one(backend)
            assert one.job_id == job.pk
            finish(backend, one)

    def test_only_the_head_is_claimed(self, backend):
        first = put()
        put()
        put("p")
        assert sorted(names(claim(backend))) == ["p", "q"]
        assert line().current_job == first.pk

    def test_a_job_for_later_is_not_claimed_before_its_time_and_holds_nobody_back(self, backend):
        now = backend.now()
        later = put(scheduled_at=now + HOUR)
        assert claim(backend) == []
        due = put()
        one = claim_one(backend)
        assert one.job_id == due.pk
        finish(backend, one)
        assert line().due_at == now + HOUR
        assert claim(backend) == [] == claim(backend, now=now + HOUR - SECOND)
        assert claim_one(backend, now=now + HOUR).job_id == later.pk

    @pytest.mark.capability("Q2", "E16", "E33")
    @pytest.mark.parametrize("verdict", HOLDING)
    def test_an_attempted_job_holds_back_all_others_whatever_their_time(self, backend, verdict):
        now = backend.now()
        attempted = put()
        delay = 0.0 if verdict in (Verdict.HALT, Verdict.INTERRUPT) else 40.0
        finish(backend, claim_one(backend), verdict, now=now, delay=delay)
        put(scheduled_at=now - HOUR)
        assert line().current_job == attempted.pk
        if verdict == Verdict.HALT:
            assert claim(backend, now=now + 1_000 * HOUR) == []
            return
        if delay:
            assert claim(backend, now=now + 39 * SECOND) == []
        assert claim_one(backend, now=now + 40 * SECOND).job_id == attempted.pk

    def test_a_job_given_back_before_its_first_attempt_holds_nobody_back(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETURN)
        earlier = put(scheduled_at=backend.now() - HOUR)
        assert claim_one(backend).job_id == earlier.pk

    def test_the_limit_is_respected_and_more_is_told(self, backend):
        LedgerQueue.create_jobs([LedgerQueue.job(f"q{number}", "noop") for number in range(5)])
        sizes, hints = [], []
        for limit in (2, 2, 2, 2):
            claims, more = backend.claim([SCOPE], limit, NODE)
            sizes.append(len(claims))
            hints.append(more)
        assert sizes == [2, 2, 1, 0]
        assert hints[:2] == [True, True]
        assert hints[3] is False

    @pytest.mark.capability("H24", "H14")
    def test_the_queue_that_has_been_due_longest_comes_first(self, backend):
        now = backend.now()
        for name, age in (("b", 2), ("c", 1), ("a", 3)):
            put(name, scheduled_at=now - age * HOUR)
        put("d", queuetopia=SlowRetryQueue, scheduled_at=now - 2.5 * HOUR)
        scopes = [SCOPE, SlowRetryQueue.scope]
        assert [claim_one(backend, limit=1, scopes=scopes).queue for _ in range(4)] == ["a", "d", "b", "c"]

    @pytest.mark.capability("J9", "E31", "E14", "H16")
    def test_only_the_scopes_asked_for_are_claimed_each_with_its_own_queue_of_a_name(self, backend):
        ours, theirs = put(), put(queuetopia=SlowRetryQueue)
        assert [one.job_id for one in claim(backend, scopes=[SlowRetryQueue.scope])] == [theirs.pk]
        assert claim(backend, scopes=[]) == []
        one = claim_one(backend)
        assert one.job_id == ours.pk
        finish(backend, one)
        assert Queue.objects.get(scope=SlowRetryQueue.scope).held_by == NODE

    def test_one_queue_alone_can_be_claimed(self, backend):
        put("a")
        put("b")
        assert names(claim(backend, only="b")) == ["b"]
        assert claim(backend, only="b") == []

    @pytest.mark.capability("H29")
    def test_a_paused_queue_is_not_claimed_until_it_is_resumed(self, backend):
        put("a")
        put("b")
        LedgerQueue.pause("a", by="ann")
        assert names(claim(backend)) == ["b"]
        put("a")
        assert claim(backend) == []
        LedgerQueue.resume("a")
        assert names(claim(backend)) == ["a"]

    @pytest.mark.capability("H29")
    def test_a_paused_scope_is_not_claimed_until_it_is_resumed(self, backend):
        put()
        put("other", queuetopia=SlowRetryQueue)
        scopes = [SCOPE, SlowRetryQueue.scope]
        LedgerQueue.pause()
        assert names(claim(backend, scopes=scopes)) == ["other"]
        LedgerQueue.resume()
        assert names(claim(backend, scopes=scopes)) == ["q"]

    def test_a_queue_that_is_due_and_empty_is_cleared(self, backend):
        put()
        Job.objects.all().delete()
        assert claim(backend) == []
        assert (line().due_at, line().current_job, line().held_by) == (None, None, None)

    def test_a_queue_that_is_due_too_early_waits_for_its_job(self, backend):
        now = backend.now()
        put_row(scheduled_at=now + HOUR)
        Queue.objects.create(scope=SCOPE, name="q", due_at=now)
        assert claim(backend) == []
        assert line().due_at == now + HOUR

    def test_a_halted_head_is_not_passed_over_even_if_its_queue_does_not_know_it(self, backend):
        halted = put_row(state="halted")
        put_row()
        Queue.objects.create(scope=SCOPE, name="q", due_at=backend.now())
        assert claim(backend) == []
        assert (line().current_job, line().due_at) == (halted.pk, None)

    def test_a_queue_whose_current_job_has_vanished_goes_on_with_the_next(self, backend):
        gone, following = put(), put()
        finish(backend, claim_one(backend), Verdict.RETRY)
        Job.objects.filter(pk=gone.pk).delete()
        assert claim_one(backend).job_id == following.pk

    def test_a_queue_whose_running_job_vanishes_goes_on_with_the_next(self, backend):
        put()
        one = claim_one(backend)
        Job.objects.filter(pk=one.job_id).delete()
        following = put()
        finish(backend, one)
        assert claim_one(backend).job_id == following.pk

    def test_attempts_are_counted_beyond_ten_thousand(self, backend):
        put()
        for attempts in (10_000, 2**31 - 2):
            Job.objects.update(attempts=attempts)
            one = claim_one(backend)
            assert (one.attempt, line().attempt) == (attempts + 1, attempts + 1)
            finish(backend, one, Verdict.RETRY, error=describe(ValueError()))
            assert stored(one).attempts == attempts + 1
            assert stored(one).errors[-1]["attempt"] == attempts + 1

    @pytest.mark.capability("J10")
    @pytest.mark.parametrize("keep", [False, True])
    def test_a_count_of_attempts_at_its_end_breaks_no_other_queue(self, backend, keep):
        first, corrupt = put(), put()
        put("good")
        Job.objects.filter(pk=corrupt.pk).update(attempts=2**31 - 1)
        claims = {one.queue: one for one in claim(backend)}
        recorded = record(backend, *(end(one) for one in claims.values()), keep=keep)
        assert len(recorded.written) == 2
        (one,) = recorded.claims or claim(backend)
        assert (one.job_id, one.attempt) == (corrupt.pk, 2**31 - 1)
        finish(backend, one, Verdict.RETRY, error=describe(ValueError()))
        assert stored(first).state == stored(claims["good"]).state == "done"

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.SNOOZE, Verdict.RETURN])
    def test_a_wait_longer_than_time_itself_breaks_nothing(self, backend, verdict):
        put()
        put("other")
        one, other = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        recorded = record(backend, end(one, verdict, delay=1e300), end(other))
        assert len(recorded.written) == 2
        assert line().due_at > backend.now() + 100 * 24 * HOUR
        assert stored(other).state == "done"

    # A lock says nothing about what was seen before it was taken

    def test_a_job_finished_between_pick_and_lock_is_not_run_twice(self, backend, node):
        put()
        following = put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        assert len(picked) == 1
        node.record(end(node.claim()[0]))
        claims, _ = backend.start_heads(backend.try_lock(picked), NODE)
        assert [one.job_id for one in claims] == [following.pk]

    def test_a_job_finished_between_pick_and_lock_leaves_an_empty_queue(self, backend, node):
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        node.record(end(node.claim()[0]))
        claims, rest = backend.start_heads(backend.try_lock(picked), NODE)
        assert (claims, rest) == ([], picked)

    def test_a_queue_whose_new_holder_lost_its_lock_again_between_pick_and_lock_is_left_alone(self, backend, node):
        """Its workers may be alive: who takes over has to wait for that, a free lock is not enough."""
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        theirs = node.claim()[0]
        node.run(node.backend.close_session)
        locked = wait_until(lambda: backend.try_lock(picked))  # the server needs a moment to give it back
        assert backend.start_heads(locked, NODE) == ([], picked)
        assert (line().held_by, line().fence) == (node.id, theirs.fence)

    def test_a_queue_claimed_between_pick_and_lock_is_left_alone(self, backend, node):
        put()
        picked = backend.due_queues([SCOPE], 10, backend.now())
        theirs = node.claim()[0]
        assert backend.try_lock(picked) == []
        assert line().held_by == node.id
        node.record(end(theirs, Verdict.RETRY, delay=40))
        claims, _ = backend.start_heads(backend.try_lock(picked), NODE)
        assert claims == []
        assert line().current_job == theirs.job_id

    @pytest.mark.capability("E5", "E27")
    @pytest.mark.parametrize("verb", [*JOB_VERBS, "pause", "pause scope"])
    def test_a_verb_between_lock_and_mark_is_obeyed(self, backend, verb):
        job, _ = put(), put()
        if verb in ("skip", "retry"):
            finish(backend, claim_one(backend), Verdict.RETRY)
        before(backend, "start_heads", lambda: do_verb(verb, job))
        claims = claim(backend)
        passed = ("cancel", "skip", "mark_done", "move_to_end")
        following = [2] if verb in passed else [] if verb.startswith("pause") else [1]
        first = Job.objects.earliest("id").pk
        assert [one.job_id - first + 1 for one in claims] == following
        if verb == "edit":
            assert json.loads(claims[0].params) == EDITED
        if not claims:
            LedgerQueue.resume(None if verb == "pause scope" else "q")
            assert claim_one(backend).job_id == job.pk

    @pytest.mark.parametrize("verb", ["cancel", "skip", "mark_done", "move_to_end", "pause"])
    def test_a_verb_that_is_not_yet_committed_when_its_queue_is_claimed_is_obeyed(self, backend, node, verb):
        job, following = put(), put()
        if verb == "skip":
            finish(backend, claim_one(backend), Verdict.RETRY)
        picked, goes_on = threading.Event(), threading.Event()

        def wait():
            picked.set()
            assert goes_on.wait(PATIENCE)

        before(node.backend, "start_heads", wait)
        theirs = node.start(claim, node.backend, holder=node.id)
        assert picked.wait(PATIENCE)
        with transaction.atomic():
            do_verb(verb, job)
            goes_on.set()
            wait_until(lambda: theirs.done() or is_waiting(), PATIENCE)
        claims = theirs.result(PATIENCE) or node.claim()
        assert [one.job_id for one in claims] == ([] if verb == "pause" else [following.pk])

    # Record

    @pytest.mark.capability("Q1", "H18", "E3", "E8")
    @pytest.mark.parametrize("verdict", Verdict)
    def test_the_rows_after_each_verdict(self, backend, verdict):
        put()
        Job.objects.update(attempts=2, attempted_at=backend.now() - HOUR, attempted_by="other")
        one, now = claim_one(backend), backend.now()
        (written,) = finish(backend, one, verdict, now=now, delay=40.0).written
        assert written.outcome.verdict == verdict
        means = {"now": now, "later": now + 40 * SECOND, "job": one.job_id}
        job_after, line_after = AFTER[verdict]
        job, queue = stored(one), line()
        assert {name: getattr(job, name) for name in job_after} == {
            name: means.get(value, value) for name, value in job_after.items()
        }
        assert {name: getattr(queue, name) for name in line_after} == {
            name: means.get(value, value) for name, value in line_after.items()
        }
        assert (queue.held_by, queue.held_since, queue.attempt, queue.fence) == (None, None, 0, one.fence)
        attempted = (now, "web1:7") if verdict != Verdict.RETURN else (now - HOUR, "other")
        assert job.attempted_by == attempted[1]
        assert abs(job.attempted_at - attempted[0]) < SECOND

    def test_a_job_given_back_unattempted_is_as_it_was(self, backend):
        put()
        untouched = rows()[0]
        now = backend.now()
        finish(backend, claim_one(backend), Verdict.RETURN, now=now, delay=40)
        assert rows()[0] == untouched
        assert (line().current_job, line().due_at) == (None, now + 40 * SECOND)

    @pytest.mark.capability("E3")
    @pytest.mark.parametrize("delay", [0.0, 0.000001, 2.0, 86_400.0])
    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT])
    def test_the_next_attempt_comes_after_exactly_the_delay(self, backend, verdict, delay):
        put()
        finish(backend, claim_one(backend), verdict, delay=delay)
        job = stored(Job.objects.get())
        assert job.next_attempt_at - job.attempted_at == timedelta(seconds=delay)
        assert line().due_at == job.next_attempt_at

    @pytest.mark.capability("J15", "Q1")
    @pytest.mark.parametrize("verdict", FAILED)
    def test_each_failure_leaves_an_entry(self, backend, verdict):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, error=describe(KeyError("first")), duration=1.5)
        now = backend.now()
        finish(backend, claim_one(backend), verdict, error=describe(OSError("second ␀ 🙂")), duration=0.25, now=now)
        job = stored(Job.objects.get())
        first, second = job.errors
        assert (first["attempt"], first["type"], first["message"], first["duration"]) == (1, "KeyError", "'first'", 1.5)
        assert second == {
            "attempt": 2, "at": now.isoformat(), "by": "web1:7", "duration": 0.25, "counted": True,
            **describe(OSError("second ␀ 🙂")),
        }  # fmt: skip
        assert job.error == "OSError: second ␀ 🙂"

    @pytest.mark.capability("J15")
    def test_an_interrupted_attempt_leaves_an_entry_that_does_not_count(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.INTERRUPT, error=describe(KeyError()))
        job = stored(Job.objects.get())
        assert (job.errors[0]["attempt"], job.errors[0]["counted"]) == (1, False)
        assert (job.error, job.attempts) == ("", 0)

    @pytest.mark.capability("J15")
    def test_only_the_newest_errors_are_kept(self, backend):
        put()
        for attempt in range(1, ERRORS_KEPT + 4):
            finish(backend, claim_one(backend), Verdict.RETRY, error=describe(ValueError(attempt)))
        entries = stored(Job.objects.get()).errors
        assert [entry["attempt"] for entry in entries] == list(range(4, ERRORS_KEPT + 4))
        assert entries[-1]["message"] == str(ERRORS_KEPT + 3)

    def test_success_keeps_the_errors_and_clears_the_next_attempt(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, error=describe(ValueError("boom")))
        finish(backend, claim_one(backend))
        job = stored(Job.objects.get())
        assert (job.state, job.attempts, job.next_attempt_at, len(job.errors)) == ("done", 2, None, 1)
        assert job.error == "ValueError: boom"

    @pytest.mark.parametrize(
        "result", [None, 0, False, "", "text", 1.5, [], [1, None], {"a": {"b": "🙂"}}, 2**53, "x" * 100_000]
    )
    def test_a_result_is_kept(self, backend, result):
        put()
        finish(backend, claim_one(backend), result=None if result is None else json.dumps(result))
        assert stored(Job.objects.get()).result == result

    @pytest.mark.capability("Q2", "E33")
    def test_a_kept_queue_goes_on_with_its_next_job_under_a_higher_fence(self, backend, node, elsewhere):
        first, second = put(), put()
        one = claim_one(backend)
        recorded = finish(backend, one, keep=True)
        (following,) = recorded.claims
        assert (following.job_id, following.attempt) == (second.pk, 1)
        assert following.fence > one.fence
        assert recorded.released_due is False
        assert elsewhere().run(stored, first).state == "done"
        assert (line().held_by, line().current_job, line().fence) == (NODE, second.pk, following.fence)
        assert node.claim() == []

    @pytest.mark.parametrize("verdict", ENDING)
    def test_a_queue_is_kept_after_whatever_ends_its_job(self, backend, verdict):
        put()
        second = put()
        assert [one.job_id for one in finish(backend, claim_one(backend), verdict, keep=True).claims] == [second.pk]

    @pytest.mark.parametrize("verdict", sorted(set(Verdict) - set(ENDING)))
    def test_a_queue_is_not_kept_while_its_job_has_not_ended(self, backend, verdict):
        put()
        put()
        assert finish(backend, claim_one(backend), verdict, keep=True, delay=40).claims == []
        assert line().held_by is None

    def test_a_kept_queue_without_a_due_job_is_let_go(self, backend):
        now = backend.now()
        put("empty")
        put("later")
        put("later", scheduled_at=now + HOUR)
        recorded = record(backend, *map(end, claim(backend)), keep=True)
        assert (recorded.claims, recorded.released_due) == ([], False)
        assert [line(name).due_at for name in ("empty", "later")] == [None, now + HOUR]
        assert not Queue.objects.held().exists()

    def test_a_kept_queue_does_not_pass_a_halted_job(self, backend):
        put()
        one = claim_one(backend)
        halted = put_row(state="halted", scheduled_at=backend.now() - HOUR)
        assert finish(backend, one, keep=True).claims == []
        assert (line().current_job, line().due_at) == (halted.pk, None)

    def test_a_released_queue_goes_to_the_end_of_the_line(self, backend):
        now = backend.now()
        for name, age in (("long due", 3), ("waiting", 2)):
            put(name, scheduled_at=now - age * HOUR)
            put(name, scheduled_at=now - age * HOUR)
        one = claim_one(backend, limit=1)
        assert one.queue == "long due"
        recorded = finish(backend, one)
        assert (recorded.claims, recorded.released_due) == ([], True)
        assert line("long due").due_at >= now
        assert [claim_one(backend, limit=1).queue for _ in range(2)] == ["waiting", "long due"]

    @pytest.mark.capability("E33", "H18")
    @pytest.mark.parametrize("keep", [False, True])
    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_stale_result_changes_nothing(self, backend, node, verdict, keep):
        put()
        stale = claim_one(backend)
        finish(backend, stale, Verdict.RETURN)
        (current,) = node.claim()
        put()
        state = rows()
        outcome = {"delay": 3.0, "error": describe(ValueError()), "result": "1"}
        recorded = record(backend, end(stale, verdict, **outcome), keep=keep)
        assert [ending.claim for ending in recorded.stale] == [stale]
        assert (recorded.written, recorded.claims, recorded.released_due) == ([], [], False)
        assert rows() == state
        assert node.record(end(current)).stale == []

    @pytest.mark.capability("E33")
    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_result_recorded_twice_is_stale_the_second_time(self, backend, verdict):
        put()
        put()
        ending = end(claim_one(backend), verdict)
        assert record(backend, ending).stale == []
        state = rows()
        assert [stale.claim for stale in record(backend, ending).stale] == [ending.claim]
        assert rows() == state

    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.SKIP])
    def test_a_result_recorded_twice_does_not_disturb_the_job_that_follows(self, backend, node, verdict):
        put()
        put()
        ending = end(claim_one(backend), verdict)
        (following,) = record(backend, ending, keep=True).claims
        assert [stale.claim for stale in record(backend, ending, keep=True).stale] == [ending.claim]
        assert line().current_job == following.job_id
        assert node.run(node.backend.try_lock, [following.queue_id]) == []
        finish(backend, following)

    def test_a_batch_records_each_attempt_by_its_own_verdict(self, backend):
        verdicts = {str(verdict): verdict for verdict in Verdict}
        for name in verdicts:
            put(name)
            put(name)
        put("stale")
        claims = {one.queue: one for one in claim(backend, 20)}
        finish(backend, claims["stale"], Verdict.RETURN)
        endings = [
            end(one, verdicts.get(one.queue, Verdict.DONE), delay=40, error=describe(ValueError(one.queue)))
            for one in claims.values()
        ]
        recorded = record(backend, *endings, keep=True)
        assert {ending.claim.queue: ending.outcome.verdict for ending in recorded.written} == verdicts
        assert [ending.claim.queue for ending in recorded.stale] == ["stale"]
        assert sorted(names(recorded.claims)) == sorted(map(str, ENDING))
        for verdict in Verdict:
            expected = AFTER[verdict][0]["state"]
            assert stored(claims[str(verdict)]).state == expected

    def test_a_batch_is_recorded_whole_or_not_at_all(self, backend):
        for name in ("good", "bad"):
            put(name)
            put(name)
        good, bad = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        fails = mock.patch.object(base.Backend, "_write_job", side_effect=DatabaseError("cannot store that"))
        with fails, pytest.raises(DatabaseError):
            record(backend, end(good), end(bad, Verdict.RETRY), keep=True)
        assert {line(name).held_by for name in ("good", "bad")} == {NODE}
        recorded = record(backend, end(good), end(bad, Verdict.RETRY), keep=True)
        assert len(recorded.written) == 2
        assert names(recorded.claims) == ["good"]

    # What people do meanwhile

    @pytest.mark.capability("E5", "E27", "H18")
    def test_a_running_job_is_left_alone_by_every_verb_but_cancel(self, backend):
        job = put()
        one = claim_one(backend)
        for verb in set(JOB_VERBS) - {"cancel"}:
            with pytest.raises(Refused, match="running"):
                do_verb(verb, job)
        assert stored(finish(backend, one).written[0].claim).state == "done"

    @pytest.mark.capability("H34", "H18")
    @pytest.mark.parametrize("verdict", Verdict)
    def test_a_request_to_stop_turns_what_has_not_ended_into_cancelled(self, backend, verdict):
        job = put()
        following = put()
        one = claim_one(backend)
        assert LedgerQueue.cancel(job) == "running"
        recorded = record(backend, end(one, verdict, delay=40, error=describe(ValueError("boom"))), keep=True)
        becomes = verdict if verdict in ENDING else Verdict.CANCEL
        assert [ending.outcome.verdict for ending in recorded.written] == [becomes]
        assert stored(job).state == AFTER[becomes][0]["state"]
        assert [one.job_id for one in recorded.claims] == [following.pk]
        assert line().stop_requested is False

    def test_requests_to_stop_are_told_for_our_own_running_jobs(self, backend, node):
        for name in ("a", "b", "waiting"):
            put(name)
        claims = claim(backend, only="a") + claim(backend, only="b")
        assert backend.stop_requests(claims) == set()
        assert backend.stop_requests([]) == set()
        LedgerQueue.cancel(claims[1].job_id)
        assert backend.stop_requests(claims) == {claims[1].job_id}
        assert backend.stop_requests(claims[:1]) == set()
        record(backend, *map(end, claims))
        assert backend.stop_requests(claims) == set()

    @pytest.mark.capability("H29")
    @pytest.mark.parametrize("verdict", ENDING)
    @pytest.mark.parametrize("what", ["q", None])
    def test_a_queue_paused_while_its_job_runs_finishes_it_and_starts_nothing(self, backend, verdict, what):
        put()
        put()
        one = claim_one(backend)
        LedgerQueue.pause(what)
        recorded = finish(backend, one, verdict, keep=True)
        assert recorded.claims == [] == claim(backend)
        LedgerQueue.resume(what)
        assert len(claim(backend)) == 1

    @pytest.mark.parametrize("verdict", ENDING)
    def test_a_job_cancelled_in_line_is_not_started_after_the_one_before_it(self, backend, verdict):
        put()
        cancelled, following = put(), put()
        one = claim_one(backend)
        assert LedgerQueue.cancel(cancelled) == "cancelled"
        (after,) = finish(backend, one, verdict, keep=True).claims
        assert after.job_id == following.pk
        assert after.rev > one.rev
        assert stored(cancelled).state == "cancelled"

    @pytest.mark.parametrize("verdict", ENDING)
    def test_a_cancel_not_yet_committed_when_its_turn_comes_is_obeyed(self, backend, node, verdict):
        put()
        cancelled, following = put(), put()
        (one,) = node.claim()
        with transaction.atomic():
            assert LedgerQueue.cancel(cancelled) == "cancelled"
            recorded = node.record(end(one, verdict), keep=True)
        recorded = node.record(*recorded.locked, keep=True)
        assert [ending.claim for ending in recorded.written] == [one]
        assert [after.job_id for after in recorded.claims] == [following.pk]
        assert stored(cancelled).state == "cancelled"

    @pytest.mark.parametrize("verdict", ENDING)
    @pytest.mark.parametrize(("verb", "order"), [("edit", [1, 2]), ("mark_done", [2]), ("move_to_end", [2, 1])])
    def test_a_verb_on_a_job_in_line_counts_when_its_turn_comes(self, backend, verb, order, verdict):
        put()
        jobs = put(), put()
        one = claim_one(backend)
        do_verb(verb, jobs[0])
        for number in order:
            (one,) = finish(backend, one, verdict, keep=True).claims
            assert one.job_id == jobs[number - 1].pk
        if verb == "edit":
            assert stored(jobs[0]).params == EDITED
        assert finish(backend, one, verdict, keep=True).claims == []

    @pytest.mark.parametrize("verb", sorted(set(JOB_VERBS) - {"cancel"}))
    def test_a_verb_on_a_halted_job_is_followed_at_once(self, backend, verb):
        job, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        do_verb(verb, job)
        one = claim_one(backend)
        assert one.job_id == (job if verb in ("retry", "edit") else following).pk

    def test_what_is_moved_to_the_end_runs_when_nobody_else_is_left(self, backend):
        job, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        copy = LedgerQueue.move_to_end(job)
        finish(backend, claim_one(backend))
        assert stored(following).state == "done"
        again = claim_one(backend)
        assert (again.job_id, again.attempt) == (copy.pk, 1)
        assert claim(backend) == []

    # Wake-ups

    def test_creating_a_job_makes_its_queue_due_at_its_time(self, backend):
        now = backend.now()
        put(scheduled_at=now + HOUR)
        assert line().due_at == now + HOUR

    def test_a_wake_lowers_the_time_and_never_raises_it(self, backend):
        now = backend.now()
        for offset, expected in ((2, 2), (3, 2), (1, 1), (1, 1)):
            backend.wake([(SCOPE, "q", now + offset * HOUR)])
            assert line().due_at == now + expected * HOUR

    @pytest.mark.parametrize("verdict", [None, *HOLDING])
    def test_a_wake_leaves_a_queue_alone_that_runs_or_is_blocked(self, backend, verdict):
        put()
        one = claim_one(backend)
        if verdict is not None:
            finish(backend, one, verdict, delay=40)
        state = rows()
        backend.wake([(SCOPE, "q", backend.now() - HOUR)])
        assert rows() == state

    def test_a_wake_of_many_queues_makes_rows_for_the_new_ones(self, backend):
        now = backend.now()
        put("known", scheduled_at=now + HOUR)
        known = line("known").pk
        backend.wake([(SCOPE, name, now) for name in ("new 1", "known", "new 2")])
        assert set(Queue.objects.due(now).values_list("name", flat=True)) == {"new 1", "known", "new 2"}
        assert line("known").pk == known

    def test_waking_known_queues_uses_up_no_ids(self, backend):
        put("a")
        for _ in range(5):
            backend.wake([(SCOPE, "a", backend.now() - HOUR)])
        put("b")
        assert line("b").pk == line("a").pk + 1

    @pytest.mark.capability("Q19", "H13", "E19")
    def test_creating_a_job_touches_no_queue_before_the_commit(self, backend):
        with transaction.atomic():
            put()
            assert not Queue.objects.exists()
        assert Queue.objects.count() == 1
        with contextlib.suppress(ZeroDivisionError), transaction.atomic():
            put("rolled back")
            raise ZeroDivisionError
        assert names(claim(backend)) == ["q"]

    @one_writer
    @pytest.mark.capability("E18")
    @pytest.mark.parametrize("known", [False, True])
    def test_transactions_that_create_in_opposite_order_do_not_wait_for_each_other(self, backend, elsewhere, known):
        if known:
            put("a")
            put("b")
        both = barrier(2)

        def create(*queues):
            with transaction.atomic():
                for name in queues:
                    put(name)
                    both.wait()  # the other has created its job too and has not committed

        running = [elsewhere().start(create, "a", "b"), elsewhere().start(create, "b", "a")]
        join(running)
        assert sorted(names(claim(backend))) == ["a", "b"]

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_transaction_that_creates_jobs_delays_no_scheduler(self, backend):
        put("known")
        one = claim_one(backend)
        with transaction.atomic():
            put("known")
            put("new")
            assert finish(backend, one).released_due is False
            assert claim(backend) == []
        assert sorted(names(claim(backend))) == ["known", "new"]

    @one_writer
    @pytest.mark.capability("E15")
    def test_a_transaction_with_one_snapshot_creates_jobs_while_their_queue_is_served(self, backend):
        """REPEATABLE READ: creating reads and writes nothing that a scheduler changes."""
        put()
        with repeatable_read():
            assert Job.objects.count() == 1
            put()
            finish(backend, claim_one(backend))
            put()
        assert claim_one(backend).job_id == Job.objects.earliest("id").pk + 1

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_claimed(self, backend):
        put("a")
        put("b")
        with transaction.atomic():
            LedgerQueue.pause("a")
            assert names(claim(backend)) == ["b"]
        assert claim(backend) == []
        LedgerQueue.resume("a")
        assert names(claim(backend)) == ["a"]

    @one_writer
    @pytest.mark.capability("E18")
    @pytest.mark.parametrize("verdict", [Verdict.DONE, Verdict.RETRY, Verdict.RETURN])
    @pytest.mark.parametrize("locked", ["queue", "job"])
    def test_a_persons_open_transaction_keeps_only_its_own_queue_from_being_recorded(
        self, backend, node, locked, verdict
    ):
        job = put("a")
        put("a")
        put("b")
        error = describe(ValueError("no")) if verdict == Verdict.RETRY else None
        endings = [end(one, verdict if one.queue == "a" else Verdict.DONE, error=error) for one in node.claim()]
        passed = ["a"] if locked == "queue" or verdict != Verdict.RETURN else []
        with transaction.atomic():
            if locked == "queue":
                LedgerQueue.pause("a")
            else:
                Job.objects.filter(pk=job.pk).update(timeout=7)
            recorded = node.record(*endings)
            assert names(ending.claim for ending in recorded.locked) == passed
            assert "b" in names(ending.claim for ending in recorded.written)
            assert line("b").held_by is None
            if passed:
                assert node.record(*recorded.locked).locked == recorded.locked
        if passed:
            (ending,) = node.record(*recorded.locked).written
            assert ending.outcome.verdict == verdict
        assert line("a").held_by is None
        assert stored(job).is_ended() == (verdict == Verdict.DONE)

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_result_that_is_no_longer_ours_is_stale_though_somebody_has_its_row_locked(self, backend, node):
        put("a")
        old = claim_one(backend)
        finish(backend, old, Verdict.RETURN)
        claim_one(backend)
        with transaction.atomic():
            LedgerQueue.pause("a")
            assert names(ending.claim for ending in node.record(end(old)).stale) == ["a"]

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_job_created_while_a_persons_transaction_is_open_waits_for_it_no_longer_than_that(
        self, backend, elsewhere
    ):
        """Neither its creator nor the scheduler waits; who had the row locked looks for jobs after the commit."""
        put("a", scheduled_at=backend.now() + HOUR)
        with transaction.atomic():
            LedgerQueue.pause("a")
            LedgerQueue.resume("a")
            elsewhere().run(put, "a")
            assert claim(backend) == []
        assert names(claim(backend)) == ["a"]

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_due_queue_that_is_locked_does_not_stand_before_the_others(self, backend, elsewhere):
        now = backend.now()
        put("a", scheduled_at=now - HOUR)
        put("b")
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="a")
            assert names(claim(backend, 1)) == ["b"]

    @one_writer
    @pytest.mark.capability("E18")
    @pytest.mark.parametrize("in_session", [False, True])
    def test_a_wake_of_many_queues_wakes_those_that_are_not_locked(self, backend, elsewhere, in_session):
        now = backend.now()
        queues = ["x", "y", "z"]
        backend.wake([(SCOPE, name, now + HOUR) for name in queues])
        waker = backend if in_session else backend_for("default")
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="x")
            with contextlib.nullcontext() if in_session else pytest.raises(OperationalError):
                wake = waker.wake if in_session else partial(elsewhere().run, waker.wake)
                wake([(SCOPE, name, now) for name in queues])
        assert sorted(Queue.objects.due(now).values_list("name", flat=True)) == ["y", "z"]

    @pytest.mark.capability("H5")
    def test_a_job_cancelled_between_its_claim_and_its_start_has_no_attempt(self, backend):
        job = put()
        one = claim_one(backend)
        assert LedgerQueue.cancel(job) == "running"
        finish(backend, one, Verdict.RETURN)
        job.refresh_from_db()
        assert (job.state, job.attempts, job.attempted_at) == ("cancelled", 0, None)
        assert line().current_job is None

    def test_two_ends_of_one_queue_in_a_batch_give_its_lock_back_once(self, backend):
        put()
        one = claim_one(backend)
        recorded = record(backend, end(one, Verdict.RETURN), end(one, Verdict.CANCEL))
        assert (len(recorded.written), len(recorded.stale)) == (1, 1)
        assert len(claim(backend)) == 1

    @one_writer
    @pytest.mark.capability("E18")
    def test_the_second_look_comes_back_to_a_queue_that_was_locked(self, backend, elsewhere):
        put("a")
        one, creator, opened = claim_one(backend), elsewhere(), threading.Event()
        released = threading.Event()

        def lock_row():
            put_row("a")
            with transaction.atomic():
                Queue.objects.select_for_update().get(name="a")
                opened.set()
                assert released.wait(PATIENCE)

        before(backend, "look_again", lambda: (creators.append(creator.start(lock_row)), opened.wait(PATIENCE)))
        creators = []
        assert finish(backend, one).released_due is False
        assert backend.unseen == {one.queue_id}
        assert backend.look_again([]) is False
        released.set()
        join(creators)
        assert backend.look_again([]) is True
        assert backend.unseen == set()
        assert names(claim(backend)) == ["a"]

    @pytest.mark.capability("E18")
    def test_wakes_of_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(30)]
        now = backend.now()
        together = barrier(4)

        def wake(seed):
            dice = Dice(seed)
            for round_ in range(10):
                together.wait()
                due_at = now - (round_ + dice.random()) * HOUR
                backend_for("default").wake([(SCOPE, name, due_at) for name in dice.sample(queues, len(queues))])

        join([elsewhere().start(wake, seed) for seed in range(4)])
        assert Queue.objects.filter(due_at__lt=now - 9 * HOUR).count() == len(queues)

    @pytest.mark.capability("E18")
    def test_wakes_and_the_second_look_at_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(30)]
        put_rows = [Job(scope=SCOPE, queue=name, action="noop") for name in queues]
        Job.objects.bulk_create(put_rows)
        now = backend.now()
        backend.wake([(SCOPE, name, now) for name in queues])
        ids = list(Queue.objects.order_by("-id").values_list("id", flat=True))
        together = barrier(2)

        def wake():
            for _ in range(50):
                together.wait()
                backend_for("default").wake([(SCOPE, name, now - HOUR) for name in queues])
                together.wait()

        waking = elsewhere().start(wake)
        for _ in range(50):
            Queue.objects.update(due_at=None)
            together.wait()
            backend.look_again(random.sample(ids, len(ids)))
            together.wait()
        waking.result(PATIENCE)

    @pytest.mark.capability("E18")
    def test_claims_and_wakes_of_the_same_queues_do_not_deadlock(self, backend, elsewhere):
        queues = [f"q{number}" for number in range(20)]
        LedgerQueue.create_jobs([LedgerQueue.job(name, "noop") for name in reversed(queues)])
        now, rounds = backend.now(), 30
        together = barrier(3)

        def wake(seed):
            dice = Dice(seed)
            for round_ in range(rounds):
                together.wait()
                due_at = now - (round_ + dice.random()) * SECOND
                try:
                    backend_for("default").wake([(SCOPE, name, due_at) for name in dice.sample(queues, len(queues))])
                except OperationalError as exc:  # on a slow machine it may have to wait for longer than it would
                    assert not backend.is_deadlock(exc)
                    assert backend.is_busy(exc)

        waking = [elsewhere().start(wake, seed) for seed in range(2)]
        for _ in range(rounds):
            together.wait()
            claims = claim(backend, 20)
            random.shuffle(claims)
            assert record(backend, *(end(one, Verdict.RETURN) for one in claims)).stale == []
        join(waking)

    @pytest.mark.capability("E18")
    def test_verbs_of_many_people_on_a_new_queue_do_not_deadlock(self, elsewhere):
        together = barrier(5)

        def pause():
            for number in range(5):
                together.wait()
                LedgerQueue.pause(f"q{number}")

        join([elsewhere().start(pause) for _ in range(5)])
        assert Queue.objects.paused().count() == 5

    @one_writer
    @pytest.mark.capability("E18")
    def test_a_verb_that_a_deadlock_rolls_back_is_done_again(self, backend, elsewhere):
        job = halted(backend)
        person = deadlock(elsewhere(), job, partial(LedgerQueue.retry, job, by="ann"))
        assert person.result(PATIENCE).state == "pending"
        (event,) = JobEvent.objects.all()
        assert (event.verb, event.by) == ("retry", "ann")
        assert claim_one(backend).job_id == job.pk

    @one_writer
    def test_a_verb_inside_a_transaction_is_not_done_again_after_a_deadlock(self, backend, elsewhere):
        job = halted(backend)

        def act():
            with transaction.atomic():
                LedgerQueue.create_job("other", "noop")
                LedgerQueue.retry(job)

        with pytest.raises(OperationalError):
            deadlock(elsewhere(), job, act).result(PATIENCE)
        assert stored(job).state == "halted"
        assert Job.objects.count() == 1

    def test_creators_in_commit_order_wait_for_each_other(self, backend, elsewhere):
        """``commit_ordered``: jobs of one queue run in the order in which their transactions committed."""
        waits = threading.Event()

        def create_second():
            waits.set()
            with transaction.atomic():
                backend_for("default").lock_order(SCOPE, {"q"})
                return put().pk

        with transaction.atomic():
            backend_for("default").lock_order(SCOPE, {"q"})
            second = elsewhere().start(create_second)
            assert waits.wait(PATIENCE)
            wait_until(is_waiting)
            assert not second.done()
            first = put().pk
        assert first < second.result(PATIENCE)
        assert claim_one(backend).job_id == first

    @pytest.mark.capability("E18")
    @pytest.mark.parametrize("known", [False, True])
    def test_creators_in_commit_order_do_not_deadlock(self, elsewhere, known):
        if known:
            put("a")
            put("b")
        together = barrier(5)

        def create(seed):
            dice = Dice(seed)
            for _ in range(5):
                together.wait()
                with transaction.atomic():
                    backend_for("default").lock_order(SCOPE, set(dice.sample(["a", "b"], 2)))
                    put("a")

        join([elsewhere().start(create, seed) for seed in range(5)])
        assert Job.objects.filter(queue="a").count() == 25 + known

    # No wake-up is lost

    def test_a_job_created_between_clearing_and_the_second_look_is_found(self, backend, elsewhere):
        put()
        one = claim_one(backend)
        creator = elsewhere()
        before(backend, "look_again", lambda: creator.run(put_row))
        assert finish(backend, one).released_due is True
        assert len(claim(backend)) == 1

    def test_a_job_created_while_an_empty_queue_is_cleared_by_a_claim_is_found(self, backend, elsewhere):
        put()
        Job.objects.all().delete()
        creator = elsewhere()
        before(backend, "look_again", lambda: creator.run(put_row))
        assert claim(backend) == []
        assert len(claim(backend)) == 1

    def test_a_job_for_later_created_between_clearing_and_the_second_look_is_found(self, backend, elsewhere):
        put()
        one, creator, now = claim_one(backend), elsewhere(), backend.now()
        before(backend, "look_again", lambda: creator.run(put_row, scheduled_at=now + HOUR))
        finish(backend, one)
        assert line().due_at == now + HOUR

    def test_the_second_look_leaves_a_queue_alone_that_others_made_due_hold_or_block(self, backend):
        now = backend.now()
        for name in ("due", "held", "blocked"):
            put(name, scheduled_at=now - HOUR)
        for one in claim(backend, only="held") + claim(backend, only="blocked"):
            if one.queue == "blocked":
                finish(backend, one, Verdict.HALT)
        state = rows()
        assert backend.look_again(list(Queue.objects.values_list("id", flat=True))) is False
        assert rows() == state

    def test_a_wake_while_the_queue_is_being_cleared_is_not_lost(self, backend, elsewhere):
        """The creator's wake meets the held queue, and the record that lets it go has not committed."""
        put()
        one, creator = claim_one(backend), elsewhere()
        waking = []

        def create(claim):
            waking.append(creator.start(put))  # may wait for our commit, as on SQLite
            if not is_sqlite:
                wait_until(lambda: waking[0].done() or is_waiting())
            return False

        backend.record([end(one)], NODE, "web1:7", create)
        job = waking[0].result(PATIENCE)
        assert claim_one(backend).job_id == job.pk

    @pytest.mark.slow
    @pytest.mark.capability("E18", "E33", "Q6", "H22")
    @pytest.mark.timeout(300)
    def test_no_wake_up_is_lost_and_no_queue_runs_twice_under_fire(self, backend, node, elsewhere):
        """Creators, two nodes that never sweep, and a person's verbs; QUEUETOPIA_HAMMER_SECONDS for longer."""
        Hammer(seconds=float(os.environ.get("QUEUETOPIA_HAMMER_SECONDS", "5"))).run(backend, node, elsewhere)

    @one_writer
    @pytest.mark.slow
    @pytest.mark.capability("E18")
    def test_nothing_is_lost_or_run_twice_where_transactions_are_serializable_by_default(
        self, serializable, backend, node, elsewhere
    ):
        Hammer(seconds=4, isolated=True).run(backend, node, elsewhere)

    @one_writer
    def test_a_wake_that_another_transaction_breaks_off_is_done_again(self, serializable, backend, elsewhere):
        put()
        finish(backend, claim_one(backend))
        creator = elsewhere()
        with transaction.atomic():
            Queue.objects.update(rev=9)
            waking = creator.start(put)
            wait_until(lambda: waking.done() or is_waiting(), PATIENCE)
        join([waking])
        assert claim_one(backend).job_id == waking.result().pk

    # The safety net

    def test_the_sweep_repairs_jobs_whose_queue_has_no_row_and_idle_queues(self, backend):
        put("idle")
        finish(backend, claim_one(backend))
        for name in ("idle", "unknown"):
            put_row(name)
        assert claim(backend) == []
        assert backend.sweep(SCOPE, "") == (2, None)
        assert sorted(names(claim(backend))) == ["idle", "unknown"]

    def test_the_sweep_repairs_a_queue_that_only_knows_of_a_job_for_later(self, backend):
        now = backend.now()
        put(scheduled_at=now + HOUR)
        due = put_row()
        assert claim(backend) == []
        assert backend.sweep(SCOPE, "") == (1, None)
        assert claim_one(backend).job_id == due.pk

    def test_the_sweep_repairs_a_blocked_queue_whose_head_has_vanished(self, backend):
        gone, following = put(), put()
        finish(backend, claim_one(backend), Verdict.HALT)
        Job.objects.filter(pk=gone.pk).delete()
        assert claim(backend) == []
        assert backend.sweep(SCOPE, "") == (1, None)
        assert claim_one(backend).job_id == following.pk

    def test_the_sweep_leaves_alone_what_is_well(self, backend):
        now = backend.now()
        put("due")
        put("later", scheduled_at=now + HOUR)
        put("paused")
        LedgerQueue.pause("paused")
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
        assert backend.sweep(SCOPE, "") == (0, None)
        assert rows() == state

    def test_the_sweep_repairs_its_own_scope_only(self, backend):
        put_row()
        assert backend.sweep(SlowRetryQueue.scope, "") == (0, None)
        assert backend.sweep(SCOPE, "") == (1, None)

    @pytest.mark.capability("Q3")
    @pytest.mark.parametrize("limit", [1, 3, 7, 500])
    def test_the_sweep_goes_through_all_names_in_chunks(self, backend, limit):
        for name in ODD_NAMES:
            put_row(name)
            put_row(name)
        repaired, steps, after = 0, 0, ""
        while after is not None:
            number, after = backend.sweep(SCOPE, after, limit)
            repaired += number
            steps += 1
        assert repaired == len(ODD_NAMES)
        assert steps <= len(ODD_NAMES) // limit + 1
        assert sorted(names(claim(backend, 100))) == sorted(ODD_NAMES)

    # Names

    @pytest.mark.capability("Q3", "H16")
    def test_names_that_look_alike_are_different_queues(self, backend):
        created = {name: put(name).pk for name in ODD_NAMES}
        claims = claim(backend, 100)
        assert {one.queue: one.job_id for one in claims} == created
        assert len({one.queue_id for one in claims}) == len(ODD_NAMES)
        record(backend, *map(end, claims))
        again = {name: put(name).pk for name in reversed(ODD_NAMES)}
        assert {name: claim_one(backend, only=name).job_id for name in ODD_NAMES} == again
        assert Queue.objects.count() == len(ODD_NAMES)

    @pytest.mark.capability("H16")
    def test_scopes_that_look_alike_are_different(self, backend):
        scopes = ["tests.a", "tests.A", "tests.a ", "tests.á"]
        backend.wake([(scope, "q", backend.now()) for scope in scopes])
        for scope in scopes:
            Job.objects.create(scope=scope, queue="q", action="noop")
            Scope.objects.create(name=scope)
        Scope.objects.filter(name="tests.A").update(paused_at=backend.now())
        assert [len(claim(backend, scopes=[scope])) for scope in scopes] == [1, 0, 1, 1]

    @pytest.mark.capability("Q3")
    def test_a_hundred_new_names_need_nothing_but_their_first_job(self, backend):
        LedgerQueue.create_jobs([LedgerQueue.job(f"customer-{number}", "noop") for number in range(100)])
        claims = claim(backend, 1_000)
        assert len(set(names(claims))) == 100
        assert len(record(backend, *map(end, claims)).written) == 100

    # What is next, and whether anything is left

    def test_the_next_due_time_is_told(self, backend):
        now = backend.now()
        assert backend.next_due([SCOPE]) is None
        for name, hours in (("a", 3), ("b", 1), ("c", 2)):
            put(name, scheduled_at=now + hours * HOUR)
        put("d", queuetopia=SlowRetryQueue, scheduled_at=now + 0.5 * HOUR)
        assert 3590 < backend.next_due([SCOPE]) <= 3600
        assert 1790 < backend.next_due([SCOPE, SlowRetryQueue.scope]) <= 1800
        assert backend.next_due([]) is None
        LedgerQueue.pause("b")
        assert 7190 < backend.next_due([SCOPE]) <= 7200
        LedgerQueue.pause()
        assert backend.next_due([SCOPE]) is None

    def test_the_next_due_time_does_not_tell_of_queues_that_run_or_are_halted(self, backend):
        for name in ("held", "halted", "empty"):
            put(name)
        claims = {one.queue: one for one in claim(backend)}
        record(backend, end(claims["halted"], Verdict.HALT), end(claims["empty"]))
        assert backend.next_due([SCOPE]) is None

    def test_a_backoff_is_the_next_due_time(self, backend):
        put()
        finish(backend, claim_one(backend), Verdict.RETRY, delay=100)
        assert 90 < backend.next_due([SCOPE]) <= 100

    def test_a_queue_that_became_due_since_the_last_claim_is_not_forgotten(self, backend):
        """Between a claim's look and next_due() time goes on: what fell due there must be told."""
        now = backend.now()
        put(scheduled_at=now - SECOND)
        assert claim(backend, now=now - 2 * SECOND) == []
        assert 0 <= backend.next_due([SCOPE]) < 1

    @pytest.mark.parametrize(
        ("verdict", "delay", "is_work"),
        [
            (Verdict.DONE, 0, False),
            (Verdict.SKIP, 0, False),
            (Verdict.HALT, 0, False),
            (Verdict.RETRY, 40, True),
            (Verdict.SNOOZE, 40, True),
            (Verdict.INTERRUPT, 0, True),
            (Verdict.RETURN, 0, True),
        ],
    )
    def test_what_until_empty_waits_for(self, backend, verdict, delay, is_work):
        assert not backend.has_work([SCOPE])
        put()
        assert backend.has_work([SCOPE])
        assert not backend.has_work([SlowRetryQueue.scope])
        one = claim_one(backend)
        assert backend.has_work([SCOPE])
        finish(backend, one, verdict, delay=delay)
        assert backend.has_work([SCOPE]) is is_work

    def test_until_empty_waits_neither_for_what_is_paused_nor_for_what_is_for_later(self, backend):
        put("later", scheduled_at=backend.now() + HOUR)
        put("paused")
        LedgerQueue.pause("paused")
        assert not backend.has_work([SCOPE])
        LedgerQueue.resume("paused")
        assert backend.has_work([SCOPE])
        LedgerQueue.pause()
        assert not backend.has_work([SCOPE])

    # Nodes

    @pytest.mark.capability("H26", "E7")
    def test_a_node_is_registered_beats_and_goes(self, backend):
        backend.register(NODE, "web1", 7, [SCOPE])
        row = NodeRow.objects.get()
        assert (row.host, row.pid, row.scopes, row.workers, row.fenced_at) == ("web1", 7, [SCOPE], [], None)
        NodeRow.objects.update(last_seen=row.last_seen - HOUR)
        assert backend.beat(NODE, [{"pid": 8}]) is True
        row = NodeRow.objects.get()
        assert row.workers == [{"pid": 8}]
        assert abs(row.last_seen - backend.now()) < 10 * SECOND
        backend.unregister(NODE)
        assert not NodeRow.objects.exists()

    def test_a_node_that_goes_while_it_holds_a_queue_is_fenced_and_not_forgotten(self, backend):
        backend.register(NODE, "web1", 7, [SCOPE])
        put()
        one = claim_one(backend)
        backend.unregister(NODE)
        assert NodeRow.objects.get().fenced_at is not None
        finish(backend, one)
        backend.unregister(NODE)
        assert not NodeRow.objects.exists()

    def test_the_other_nodes_are_told(self, backend):
        backend.register(NODE, "web1", 7, [SCOPE])
        backend.register(OTHER_NODE, "web2", 8, [])
        assert [row.id for row in backend.other_nodes(NODE)] == [OTHER_NODE]
        assert len(backend.other_nodes(uuid.uuid4())) == 2

    @pytest.mark.capability("E33")
    def test_a_fenced_node_is_refused_and_stays_fenced(self, backend):
        backend.register(NODE, "web1", 7, [SCOPE])
        backend.fence(NODE)
        fenced_at = NodeRow.objects.get().fenced_at
        seen = NodeRow.objects.get().last_seen
        assert backend.beat(NODE, []) is False
        assert backend.beat(uuid.uuid4(), []) is False
        assert NodeRow.objects.get().last_seen == seen
        backend.fence(NODE)
        assert NodeRow.objects.get().fenced_at == fenced_at
        assert abs(fenced_at - backend.now()) < 10 * SECOND

    @pytest.mark.capability("E9", "E20")
    def test_the_claims_of_a_dead_node_are_told_and_counted(self, backend, node):
        for name in ("a", "b", "c"):
            put(name)
        put("elsewhere", queuetopia=SlowRetryQueue)
        theirs = {one.queue: one for one in node.claim(scopes=[SCOPE, SlowRetryQueue.scope])}
        node.record(end(theirs["c"], Verdict.RETRY, error=describe(KeyError())))
        (theirs["c"],) = node.claim()
        lost = {one.queue: (one, error) for one, error in backend.lost_claims(OTHER_NODE, [SCOPE], 10)}
        assert sorted(lost) == ["a", "b", "c"]
        assert {name: error for name, (_, error) in lost.items()} == {"a": "", "b": "", "c": "KeyError"}
        for name, (one, _) in lost.items():
            held = theirs[name]
            assert (one.job_id, one.fence, one.attempt) == (held.job_id, held.fence, held.attempt)
        assert len(backend.lost_claims(OTHER_NODE, [SCOPE], 2)) == 2
        assert backend.lost_claims(NODE, [SCOPE], 10) == []

        node.run(node.backend.close_session)
        ids = sorted(one.queue_id for one, _ in lost.values())
        wait_until(lambda: sorted(backend.try_lock(ids)) == ids)
        record(backend, *(end(one, Verdict.RETRY, error=describe(OSError())) for one, _ in lost.values()))
        assert {name: stored(theirs[name]).attempts for name in lost} == {"a": 1, "b": 1, "c": 2}
        assert backend.lost_claims(OTHER_NODE, [SCOPE], 10) == []
        node.run(node.backend.open_session, conf.lease())
        stale = node.record(*(end(theirs[name]) for name in lost))
        assert len(stale.stale) == 3

    def test_a_dead_nodes_queue_whose_job_has_vanished_is_let_go(self, backend, node):
        put()
        node.claim()
        Job.objects.all().delete()
        put()
        assert backend.lost_claims(OTHER_NODE, [SCOPE], 10) == []
        node.run(node.backend.close_session)
        assert len(wait_until(lambda: claim(backend))) == 1
        node.run(node.backend.open_session, conf.lease())

    def test_whether_a_node_holds_something(self, backend, node):
        assert backend.holds_nothing(OTHER_NODE)
        put()
        (one,) = node.claim()
        assert not backend.holds_nothing(OTHER_NODE)
        assert backend.holds_nothing(NODE)
        node.record(end(one))
        assert backend.holds_nothing(OTHER_NODE)

    # Problems

    @pytest.mark.capability("E30", "J10")
    def test_a_problem_stays_on_its_queue_until_the_next_claim(self, backend):
        put()
        put("fine")
        one, fine = sorted(claim(backend), key=lambda claim: claim.queue, reverse=True)
        error = {"message": f"no action {one.action!r}" + "!" * 1_000}
        record(backend, end(one, Verdict.RETURN, delay=40, error=error), end(fine))
        assert line().problem.startswith("no action 'noop'!!!")
        assert line("fine").problem == ""
        claim_one(backend, now=backend.now() + HOUR)
        assert line().problem == ""

    def test_a_problem_noted_too_late_is_dropped(self, backend):
        put()
        stale = claim_one(backend)
        finish(backend, stale, Verdict.RETURN)
        claim_one(backend)
        recorded = record(backend, end(stale, Verdict.RETURN, error={"message": "old"}))
        assert recorded.stale
        assert line().problem == ""

    @pytest.mark.capability("E30")
    def test_a_new_node_tries_queues_with_a_problem_at_once(self, backend):
        for name in ("problem", "theirs", "none"):
            put(name, queuetopia=SlowRetryQueue if name == "theirs" else LedgerQueue)
        for one in claim(backend, scopes=[SCOPE, SlowRetryQueue.scope]):
            error = None if one.queue == "none" else {"message": "no such action"}
            finish(backend, one, Verdict.RETURN, delay=3600, error=error)
        assert claim(backend) == []
        backend.forget_problems([SCOPE])
        assert names(claim(backend, scopes=[SCOPE, SlowRetryQueue.scope])) == ["problem"]

    # Corrupt rows

    @pytest.mark.capability("J10")
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

    @pytest.mark.capability("J10")
    @pytest.mark.parametrize("text", ['{"a": 1}', "7", "null", '"text"', "[1]", "{not json"])
    def test_a_corrupt_history_of_errors_is_begun_anew_and_breaks_no_other_queue(self, backend, node, text):
        job = put()
        put("good")
        write_corrupt(job, "errors", text)
        claims = node.claim()
        lost = backend.lost_claims(OTHER_NODE, [SCOPE], 10)
        assert len(lost) == 2
        endings = [
            end(one, Verdict.RETRY if one.queue == "q" else Verdict.SKIP, error=describe(ValueError("boom")))
            for one in claims
        ]
        assert len(node.record(*endings).written) == 2
        (*_, entry) = stored(job).errors
        assert entry["message"] == "boom"

    # Locks

    def test_locks_are_held_while_a_job_runs_and_no_longer(self, backend, node):
        """A random walk: after each step the server knows exactly the locks that the backend believes it holds."""
        dice = Dice(4)
        queues = [f"q{number}" for number in range(6)]
        running = {}
        for _ in range(60):
            put(dice.choice(queues))
            for one in claim(backend, dice.randint(0, 3)):
                running[one.queue_id] = one
            chosen = dice.sample(sorted(running), min(len(running), dice.randint(0, 3)))
            endings = [end(running.pop(queue_id), dice.choice(list(Verdict))) for queue_id in chosen]
            for following in record(backend, *endings, keep=dice.random() < 0.5).claims:
                running[following.queue_id] = following
            for halted in Job.objects.halted():
                LedgerQueue.skip(halted)
            held = set(Queue.objects.held().values_list("id", flat=True))
            assert backend.held == set(running) == held
            free = set(Queue.objects.values_list("id", flat=True)) - held
            locked_elsewhere = set(node.run(node.backend.try_lock, sorted(free | held)))
            node.run(node.backend.unlock, locked_elsewhere)
            assert locked_elsewhere == free

    def test_a_lock_is_exclusive_until_it_is_given_back(self, backend, node):
        assert backend.try_lock([1, 2]) == [1, 2]
        assert node.run(node.backend.try_lock, [1, 2, 3]) == [3]
        backend.unlock([1])
        assert node.run(node.backend.try_lock, [1, 2]) == [1]
        node.run(node.backend.unlock, [1, 3])
        backend.unlock([2])
        backend.unlock([2, 5])
        assert backend.held == set() == node.backend.held

    def test_a_lock_taken_twice_is_given_back_by_one_unlock(self, backend, node):
        backend.try_lock([1])
        backend.try_lock([1])
        backend.unlock([1])
        assert node.run(node.backend.try_lock, [1]) == [1]

    def test_a_closed_session_leaves_no_locks(self, backend, node):
        put()
        (one,) = node.claim()
        assert backend.try_lock([one.queue_id]) == []
        node.run(node.backend.close_session)
        assert wait_until(lambda: backend.try_lock([one.queue_id])) == [one.queue_id]
        assert node.backend.held == set()
        node.run(node.backend.open_session, conf.lease())

    def test_what_user_code_does_to_its_connections_does_not_touch_the_session(self, backend, node):
        put()
        one = claim_one(backend)
        close_old_connections()
        connections.close_all()
        assert backend.is_alive()
        assert node.run(node.backend.try_lock, [one.queue_id]) == []
        finish(backend, one)

    def test_a_database_that_cannot_be_reached_is_an_error_of_djangos_and_not_of_the_driver(self, monkeypatch):
        """What opens a session again and again after a lost one waits for those."""
        nowhere = {
            "postgresql": {"HOST": "/nowhere"},
            "mysql": {"OPTIONS": {**connection.settings_dict["OPTIONS"], "unix_socket": "/nowhere"}, "HOST": ""},
            "sqlite": {"NAME": "/nowhere/database"},
        }[connection.vendor]
        for name, value in nowhere.items():
            monkeypatch.setitem(connections.settings["default"], name, value)
        backend = backend_for("default")
        with pytest.raises(OperationalError):
            backend.open_session(conf.lease())
        backend.close_session()

    def test_a_session_can_be_closed_twice_and_opened_again(self, backend):
        put()
        assert backend.in_session
        backend.close_session()
        backend.close_session()
        assert not backend.in_session
        backend.open_session(conf.lease())
        assert backend.is_alive()
        assert len(claim(backend)) == 1

    @pytest.mark.capability("E14")
    def test_a_queue_whose_lock_somebody_else_has_is_passed_over_and_claimed_later(self, backend, node):
        now = backend.now()
        put("locked", scheduled_at=now - HOUR)
        put("free")
        locked = line("locked").pk
        node.run(node.backend.try_lock, [locked])
        claims, more = backend.claim([SCOPE], 1, NODE)
        assert names(claims) == ["free"], "a lock at the head of the line must not keep the others from running"
        claims, more = backend.claim([SCOPE], 1, NODE)
        assert (claims, more) == ([], True)
        node.run(node.backend.unlock, [locked])
        assert names(claim(backend, limit=1)) == ["locked"]

    def test_a_claim_that_fails_half_way_loses_no_queue(self, backend, node):
        """Locked, and then the mark fails, as on a deadlock: this node or another must get the queue."""
        put("a")
        put("b")
        before(backend, "start_heads", fail)
        with pytest.raises(OperationalError):
            claim(backend)
        (one, *_) = claims = claim(backend)
        assert sorted(names(claims)) == ["a", "b"]
        record(backend, *map(end, claims))
        assert backend.held == set()
        assert node.run(node.backend.try_lock, [one.queue_id]) == [one.queue_id]

    def test_a_record_that_fails_after_its_commit_loses_no_queue(self, backend, node):
        put()
        put()
        one = claim_one(backend)
        before(backend, "look_again", fail)
        with pytest.raises(OperationalError):
            record(backend, end(one))
        assert len(record(backend, end(one)).stale) == 1
        following = claim_one(backend)
        assert following.fence > one.fence
        finish(backend, following)
        assert backend.held == set()
        assert node.run(node.backend.try_lock, [one.queue_id]) == [one.queue_id]

    def test_without_a_session_no_locks_are_taken(self, backend):
        put()
        plain = backend_for("default")
        assert not plain.in_session
        one = claim_one(plain)
        assert backend.try_lock([one.queue_id]) == [one.queue_id]
        finish(plain, one)
        assert stored(one).state == "done"

    # Wake-ups from outside

    @pytest.mark.capability("J3")
    def test_a_session_hears_of_a_new_job(self, backend, elsewhere):
        backend.has_news()
        elsewhere().run(put)
        assert wait_until(backend.has_news)
        assert backend.looks_every is not None or backend.fileno() is not None

    def test_a_session_hears_of_verbs(self, backend, elsewhere):
        job = put()
        person = elsewhere()
        for verb in (LedgerQueue.pause, LedgerQueue.resume):
            while backend.looks_every is None and backend.has_news():
                pass
            backend.has_news()
            person.run(verb)
            assert wait_until(backend.has_news)
        backend.has_news()
        person.run(LedgerQueue.cancel, job)
        assert wait_until(backend.has_news)

    # Alerts and statistics

    def test_each_alert_is_one_nodes(self, backend, node):
        LedgerQueue.create_jobs([LedgerQueue.job(f"queue-{number}", "noop") for number in range(20)])
        record(backend, *(end(claim, Verdict.HALT) for claim in claim(backend, 20)))
        Job.objects.update(failed_at=backend.now() - 2 * HOUR)
        Queue.objects.update(alert_at=backend.now() - HOUR)
        start = barrier(2)

        def take(session):
            start.wait()
            return [alert.claim.job_id for _ in range(20) for alert in session.due_alerts([SCOPE], limit=3)]

        theirs = node.start(take, node.backend)
        ours = take(backend)
        told = ours + theirs.result(PATIENCE) + [alert.claim.job_id for alert in backend.due_alerts([SCOPE])]
        assert sorted(told) == sorted(Job.objects.values_list("pk", flat=True))

    @one_writer
    def test_an_alert_whose_row_is_locked_is_passed_over_and_comes_later(self, backend):
        put("locked")
        put("free")
        record(backend, *(end(claim, Verdict.HALT) for claim in claim(backend)))
        Job.objects.update(failed_at=backend.now() - 2 * HOUR)
        Queue.objects.update(alert_at=backend.now() - HOUR)
        with transaction.atomic():
            Queue.objects.select_for_update().get(name="locked")
            assert [alert.claim.queue for alert in backend.due_alerts([SCOPE])] == ["free"]
        assert [alert.claim.queue for alert in backend.due_alerts([SCOPE])] == ["locked"]

    def test_a_chore_is_one_nodes(self, backend, node):
        start = barrier(2)

        def take(session):
            start.wait()
            return session.is_turn("mail", 3600)

        theirs = node.start(take, node.backend)
        assert [take(backend), theirs.result(PATIENCE)].count(True) == 1


def halted(backend) -> Job:
    """Return a halted job, which is the head of its queue."""
    job = put()
    finish(backend, claim_one(backend), Verdict.HALT, error=describe(ValueError("boom")))
    return job


def deadlock(person, job, act):
    """Have ``act``, which locks the queue's row and then the job's, broken off for us, who go the other way.

    MySQL breaks off whoever has written less, PostgreSQL who looks for a deadlock first.
    """
    person.run(look_for_deadlocks_after, 3)
    look_for_deadlocks_after(60)
    try:
        with transaction.atomic():
            Scope.objects.bulk_create([Scope(name=f"written {number}") for number in range(100)])
            Job.objects.select_for_update().get(pk=job.pk)
            acting = person.start(act)
            wait_until(is_waiting, PATIENCE)
            Queue.objects.select_for_update().get(scope=job.scope, name=job.queue)
    finally:
        look_for_deadlocks_after(1)
    return acting


def look_for_deadlocks_after(seconds):
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('deadlock_timeout', %s, false)", [f"{seconds}s"])


def do_verb(verb, job) -> int:
    """Say the verb; return how many jobs it created."""
    if verb == "pause scope":
        LedgerQueue.pause()
    elif verb == "pause":
        LedgerQueue.pause(job.queue)
    elif verb == "edit":
        LedgerQueue.edit(job, EDITED)
    elif verb == "move_to_end":
        return int(LedgerQueue.move_to_end(job).pk != job.pk)
    else:
        getattr(LedgerQueue, verb)(job)
    return 0


@contextlib.contextmanager
def repeatable_read():
    """A transaction of the usual connection that sees one snapshot."""
    level = "TRANSACTION ISOLATION LEVEL"
    with connection.cursor() as cursor, contextlib.ExitStack() as stack:
        if connection.vendor == "mysql":
            cursor.execute(f"SET SESSION {level} REPEATABLE READ")
            stack.callback(cursor.execute, f"SET SESSION {level} READ COMMITTED")
        with transaction.atomic():
            if connection.vendor == "postgresql":
                cursor.execute(f"SET {level} REPEATABLE READ")
            yield


def write_corrupt(job, column, text):
    """Write text into a JSON column, past the database's own check where that is possible; else skip the test."""
    off, on = {
        "sqlite": ("PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF"),
        "mysql": ("SET check_constraint_checks = 0", "SET check_constraint_checks = 1"),
        "postgresql": ("SELECT 1", "SELECT 1"),
    }[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(off)
        try:
            cursor.execute(f"UPDATE queuetopia_job SET {column} = %s WHERE id = %s", [text, job.pk])  # noqa: S608
        except DatabaseError:
            pytest.skip("this database stores no such thing")
        finally:
            cursor.execute(on)


@pytest.mark.capability("Q4", "E3")
@given(attempt=st.integers(1, 10**6), cap=st.floats(0, 366 * 86_400))
def test_the_backoff_doubles_up_to_its_cap_whatever_the_attempt(attempt, cap):
    seconds = backoff(attempt, cap)
    assert isinstance(seconds, float)
    assert seconds == min(2 ** min(attempt - 1, 100) + 1, cap)
    assert seconds <= backoff(attempt + 1, cap) <= cap


@pytest.mark.parametrize("lease", [3, 4.5, 15, 3600])
def test_a_session_ends_after_its_nodes_processes_and_before_the_lease(lease):
    times = conf.Lease(lease)
    assert 2 * times.heartbeat <= times.fence < times.takeover < times.session < lease
    assert math.ceil(times.session) <= math.ceil(lease)  # MySQL's, in whole seconds


@pytest.mark.capability("Q4", "Q12")
def test_the_first_backoffs_are_those_of_the_original():
    day = conf.OPTIONS["max_backoff"].default
    assert [backoff(attempt, day) for attempt in range(1, 7)] == [2, 3, 5, 9, 17, 33]
    assert backoff(18, day) == day == 86_400


@pytest.mark.parametrize(
    ("setting", "expected"),
    [(None, "default"), ("other", "other"), ({"default": "other"}, "other"), ({"other": "default"}, "default")],
)
def test_the_locks_may_have_an_alias_of_their_own(settings, setting, expected):
    settings.QUEUETOPIA = {"LOCK_DATABASE": setting}
    assert base.lock_alias("default") == base.lock_alias("default" + base.PRIVATE) == expected


def test_a_session_is_neither_pooled_nor_closed_by_age():
    settings = {"OPTIONS": {"pool": True}, "CONN_MAX_AGE": 60, "CONN_HEALTH_CHECKS": True, "AUTOCOMMIT": False}
    session = base.Backend("default").session_settings(settings, conf.lease())
    assert session == {"OPTIONS": {}, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True}


def ask(backend, sql, *arguments):
    """Return the first row of the answer to a question asked on the backend's session."""
    with backend.connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return cursor.fetchone()


def random_walk(backend, check):
    """Claim, record and fail at random; call ``check()`` after each step."""
    dice, running = Dice(5), {}
    for _ in range(40):
        put(dice.choice("abcdef"))
        if dice.random() < 0.2:
            before(backend, dice.choice(["start_heads", "look_again"]), fail)
        with contextlib.suppress(OperationalError):
            for one in claim(backend, dice.randint(1, 3)):
                running[one.queue_id] = one
        check()
        chosen = dice.sample(sorted(running), min(len(running), dice.randint(0, 3)))
        endings = [end(running.pop(queue_id), dice.choice([*ENDING, Verdict.RETRY])) for queue_id in chosen]
        for following in record(backend, *endings, keep=dice.random() < 0.5).claims:
            running[following.queue_id] = following
        check()
    for name in ("start_heads", "look_again"):
        vars(backend).pop(name, None)
    for one, _ in backend.lost_claims(NODE, [SCOPE], 100):  # those whose claim failed after its commit too
        record(backend, end(one, Verdict.RETURN))
    while claims := claim(backend, now=backend.now() + HOUR):
        record(backend, *map(end, claims))
        check()
    assert not backend.held


def fail():
    raise OperationalError("as after a deadlock")


class EndsSilentSessions:
    """What a server promises; SQLite has none."""

    @pytest.mark.faults
    def test_a_silent_session_is_ended_by_the_server_and_its_queue_is_free(self, backend, elsewhere):
        put()
        silent = backend_for("default")
        thread = elsewhere()
        thread.run(silent.open_session, conf.Lease(1))
        (one,) = thread.run(claim, silent)
        assert backend.try_lock([one.queue_id]) == []
        assert wait_until(lambda: backend.try_lock([one.queue_id])) == [one.queue_id]
        assert thread.run(is_lost, silent)
        thread.run(silent.close_session)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL only")
@pytest.mark.django_db(transaction=True)
class TestPostgreSQL(EndsSilentSessions):
    LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"

    def test_the_statements_of_the_docs_are_understood(self, backend):
        page = Path(__file__).parents[1] / "docs" / "guides" / "months.md"
        statements = [block.text for block in blocks(page) if block.language == "sql"]
        assert len(statements) == 4
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            transaction.set_rollback(True)

    def test_each_statement_of_a_session_sees_what_is_committed(self, serializable, backend):
        for begin in (contextlib.nullcontext, partial(transaction.atomic, using=backend.alias)):
            with begin():
                assert ask(backend, "SHOW transaction_isolation") == ("read committed",)

    def test_something_else_is_done_while_the_server_writes_a_batch(self, backend):
        for number in range(postgresql._WORTH_A_PIPELINE):
            put(f"queue-{number}")
        claims = claim(backend)
        with backend.connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 0")

        def is_writing():  # it waits for the row that we have locked
            with connection.cursor() as cursor:
                cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [backend._pid])
                return cursor.fetchone()[0]

        def unlock():
            wait_until(is_writing)
            transaction.rollback()

        backend.meanwhile = mock.Mock(side_effect=unlock)
        transaction.set_autocommit(False)
        try:
            Queue.objects.select_for_update().get(name="queue-0")
            recorded = record(backend, *map(end, claims))
        finally:
            transaction.set_autocommit(True)
        assert len(recorded.written) == len(claims)
        backend.meanwhile.assert_called_once_with()

    def test_the_server_enforces_the_lease(self, backend):
        lease = conf.Lease(15)
        expected = {
            "idle_session_timeout": "12500ms",
            "idle_in_transaction_session_timeout": "12500ms",
            "statement_timeout": "4500ms",
            "tcp_user_timeout": f"{int(lease.session * 1000)}ms",
            "application_name": "queuetopia",
        }
        set_ = {name: ask(backend, "SELECT current_setting(%s)", name)[0] for name in expected}
        # A socket file has no TCP options.
        assert {**set_, "tcp_user_timeout": expected["tcp_user_timeout"]} == expected

    @pytest.mark.faults
    def test_a_terminated_session_is_noticed(self, backend):
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [backend._pid])
        wait_until(lambda: is_deaf(backend))
        assert is_lost(backend)

    def test_there_are_never_more_locks_than_the_backend_holds(self, backend):
        def check():
            assert ask(backend, self.LOCKS) == (len(backend.held),)

        random_walk(backend, check)
        assert ask(backend, self.LOCKS) == (0,)

    def test_a_claim_locks_what_it_takes_and_nothing_else(self, backend):
        LedgerQueue.create_jobs([LedgerQueue.job(f"q{number}", "noop") for number in range(1_000)])
        for limit, locks in ((1, 1), (3, 4), (10, 14)):
            assert len(claim(backend, limit)) == limit
            assert ask(backend, self.LOCKS) == (locks,)

    def test_a_lock_that_was_not_ours_any_more_is_a_lost_session(self, backend):
        put()
        one = claim_one(backend)
        ask(backend, "SELECT pg_advisory_unlock_all()")
        with pytest.raises(SessionLost):
            finish(backend, one)

    def test_the_key_of_a_lock_is_the_number_of_its_queue_in_our_namespace(self, backend):
        put()
        one = claim_one(backend)
        key = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"
        assert ask(backend, key, backend._pid) == (postgresql.lock_key(one.queue_id),)
        assert postgresql.lock_key(2**40 - 1) < 2**63
        assert postgresql.lock_key(1) - postgresql.lock_key(0) == 1

    @pytest.mark.capability("E33")
    @pytest.mark.parametrize("more", [True, False])
    def test_a_job_finished_while_a_claim_looks_with_an_older_snapshot_is_not_run_twice(self, backend, node, more):
        """Z11 in one statement: its snapshot is older than a whole run of the queue's head."""
        put()
        following = [put().pk] if more else []
        run, gate = node.backend._run, 4711
        scan = "WHERE q.scope = s.scope"
        gated = f"WHERE (SELECT pg_advisory_xact_lock_shared({gate})::text) = '' AND q.scope = s.scope"
        node.backend._run = lambda sql, arguments: run(sql.replace(scan, gated), arguments)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [gate])
            theirs = node.start(claim, node.backend, holder=node.id, now=backend.now() + HOUR)
            wait_until(lambda: theirs.done() or is_waiting(), PATIENCE)
            assert not theirs.done()
            first = claim_one(backend)
            finish(backend, first)
            cursor.execute("SELECT pg_advisory_unlock(%s)", [gate])
        assert [one.job_id for one in theirs.result(PATIENCE)] == following

    def test_a_wake_that_changes_nothing_notifies_nobody(self, backend):
        put("a")
        claim(backend)
        wait_until(backend.has_news)
        assert not backend.has_news()
        backend_for("default").wake([(SCOPE, "a", backend.now())])  # it runs
        ask(backend, "SELECT 1")
        assert not backend.has_news()

    @pytest.mark.capability("J3")
    def test_a_job_for_later_notifies_too(self, backend):
        put(scheduled_at=backend.now() + HOUR)
        assert wait_until(backend.has_news)

    def test_a_notification_read_by_another_statement_is_not_swallowed(self, backend):
        put()
        for _ in range(3):
            backend.now()
        assert wait_until(backend.has_news)
        assert not backend.has_news()

    def test_a_descriptor_tells_of_a_notification(self, backend, elsewhere):
        while backend.has_news():
            pass
        elsewhere().run(put)
        readable, _, _ = select.select([backend.fileno()], [], [], PATIENCE)
        assert readable
        assert backend.has_news()

    def test_a_queue_that_had_nothing_to_do_goes_ahead_of_one_that_had_its_turn(self, backend):
        for _ in range(3):
            put("busy")
        finish(backend, claim_one(backend, limit=1))
        put("new")
        assert claim_one(backend, limit=1).queue == "new"

    def test_a_queue_does_not_get_ahead_by_new_jobs_while_it_has_some(self, backend):
        for name in ("first", "second"):
            put(name)
            put(name)
        first = claim_one(backend, limit=1)
        finish(backend, first)
        put(first.queue)
        assert claim_one(backend, limit=1).queue != first.queue

    @pytest.mark.parametrize("many", [False, True])
    def test_a_job_for_later_is_not_due_before_its_time(self, backend, many):
        later = backend.now() + timedelta(seconds=2)
        backend.wake([(SCOPE, name, later) for name in ("a", "b")[: 1 + many]])
        assert set(Queue.objects.values_list("due_at", flat=True)) == {later}

    def test_a_wake_passes_over_a_row_that_is_locked_and_comes_back_to_it(self, backend, elsewhere):
        now = backend.now()
        for name in ("a", "b", "c"):
            put(name, scheduled_at=now + HOUR)
        with transaction.atomic():
            LedgerQueue.pause("b")
            wakes = [(SCOPE, name, now) for name in ("a", "b", "c", "d")]
            waking = elsewhere().start(lambda: backend_for("default").wake(wakes))
            wait_until(lambda: waking.done() or is_waiting(), PATIENCE)
            assert set(Queue.objects.due(now).values_list("name", flat=True)) == {"a", "c", "d"}
        join([waking])
        assert line("b").due_at == now


@pytest.mark.skipif(connection.vendor != "mysql", reason="MySQL and MariaDB only")
@pytest.mark.django_db(transaction=True)
class TestMySQL(EndsSilentSessions):
    def test_the_server_enforces_the_lease(self, backend):
        assert ask(backend, "SELECT @@SESSION.wait_timeout, @@SESSION.innodb_lock_wait_timeout") == (13, 1)

    def test_each_statement_of_a_session_sees_what_is_committed(self, serializable, backend):
        assert ask(backend, "SELECT @@SESSION.tx_isolation") == ("READ-COMMITTED",)

    def test_the_server_knows_the_locks_that_the_backend_holds(self, backend):
        def check():
            ours = {queue.pk for queue in Queue.objects.all() if is_ours(queue.pk)}
            assert ours == backend.held

        def is_ours(queue_id):
            return ask(backend, "SELECT IS_USED_LOCK(%s) = CONNECTION_ID()", backend._name(queue_id)) == (1,)

        random_walk(backend, check)

    def test_a_lock_that_was_not_ours_any_more_is_a_lost_session(self, backend):
        put()
        one = claim_one(backend)
        ask(backend, "SELECT RELEASE_LOCK(%s)", backend._name(one.queue_id))
        with pytest.raises(SessionLost):
            finish(backend, one)

    def test_the_name_of_a_lock_is_short_and_names_the_database(self, backend):
        name = backend._name(2**63 - 1)
        assert len(name) <= 64
        backend.connection.settings_dict = {**backend.connection.settings_dict, "NAME": "another"}
        assert backend._name(2**63 - 1) != name

    @pytest.mark.faults
    def test_a_killed_session_is_noticed(self, backend):
        (thread,) = ask(backend, "SELECT CONNECTION_ID()")
        with connection.cursor() as cursor:
            cursor.execute("KILL %s", [thread])
        wait_until(lambda: is_lost(backend))


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite only")
@pytest.mark.django_db(transaction=True)
class TestSQLite:
    @pytest.fixture
    def is_locked(self, backend):
        """A function that says whether somebody has the lock of a queue, asked through another descriptor."""
        with open(f"{connection.settings_dict['NAME']}.queuetopia", "r+b") as file:

            def is_locked(queue_id):
                lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, queue_id, 1, 0)
                return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK

            yield is_locked

    def test_the_file_is_locked_for_the_queues_that_the_backend_holds(self, backend, is_locked):
        def check():
            assert {queue.pk for queue in Queue.objects.all() if is_locked(queue.pk)} == backend.held

        random_walk(backend, check)

    @pytest.mark.processes
    def test_a_child_that_has_the_descriptor_keeps_the_lock_until_it_is_dead(self, backend, is_locked):
        put()
        one = claim_one(backend)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=backend.descriptors(),
        )
        try:
            backend.close_session()
            assert is_locked(one.queue_id)
            backend.open_session(conf.lease())
            assert backend.try_lock([one.queue_id]) == []
        finally:
            child.kill()
            child.communicate()
        assert not is_locked(one.queue_id)
        assert backend.try_lock([one.queue_id]) == [one.queue_id]

    def test_a_database_in_memory_is_refused(self, backend):
        in_memory = mock.patch.dict(connection.settings_dict, NAME="file:memorydb_default?mode=memory&cache=shared")
        with in_memory, pytest.raises(SessionRefused, match="use a file"):
            backend_for("default").open_session(conf.lease())

    def test_only_what_others_commit_is_news(self, backend, elsewhere):
        assert backend.has_news()
        assert not backend.has_news()
        backend.register(NODE, "web1", 7, [SCOPE])
        assert not backend.has_news()
        elsewhere().run(put)
        assert backend.has_news()
        assert not backend.has_news()


def is_deaf(backend):
    """True when a look for news finds that the server has gone."""
    try:
        backend.has_news()
    except OperationalError:
        return True
    return False


def is_lost(backend):
    try:
        return not backend.is_alive()
    except DatabaseError:
        return True
