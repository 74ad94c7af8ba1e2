"""One database of a node: what is put off, and how long other nodes have been silent."""

import contextlib
import os
import socket
import uuid
from datetime import timedelta
from functools import partial
from types import SimpleNamespace
from unittest import mock

import pytest
from django.db import DataError, IntegrityError, NotSupportedError, OperationalError, connection

from queuetopia import conf
from queuetopia.attempts import REFUSED, Verdict
from queuetopia.backends import nodes, rows
from queuetopia.backends.contract.toolkit import OTHER_NODE, end
from queuetopia.channel import Frames, GarbledChannel, encode, uptime
from queuetopia.exceptions import SessionLost, SessionRefused
from queuetopia.models import Node as NodeRow
from queuetopia.models import Queue
from queuetopia.node import chores, endings, recording, succession
from queuetopia.node import store as store_module
from queuetopia.node.chores import Parts
from queuetopia.node.endings import APART, AT_ONCE, FREE, LONGEST_APART, LONGEST_PROBLEM
from queuetopia.node.hands import Hands
from queuetopia.node.housekeeping import Housekeeping
from queuetopia.node.node_file import NodeFile
from queuetopia.node.pool import Pool
from queuetopia.node.protocol import Options
from queuetopia.node.scheduler import Scheduler
from queuetopia.node.store import Store
from queuetopia.node.succession import DeadNodes
from queuetopia.testing import wait_until
from tests.ledger import SCOPE, Node, put

pytestmark = pytest.mark.django_db(transaction=True)

HUGE, SMALL = ({"type": "E", "message": message, "traceback": ""} for message in ("huge", "small"))


@pytest.fixture
def store(transactional_db):
    store = Store("default", [SCOPE], None)
    store.backend.open_session(conf.lease())
    yield store
    store.backend.close_session()


@pytest.fixture
def before(store):
    """The session that this node had before, which the server has not given up yet."""
    with contextlib.closing(Node()) as before:
        yield before


def parts_of(store, lease=None):
    hands = Hands([store], "web1:7")
    pool = Pool(hands, size=0, slots=1, verbosity=0, node="web1:7", descriptors=list, node_ids=list)
    return Parts(store, hands, pool, lease or conf.lease(), "web1:7")


def put_off(store, ending):
    store.endings.put_off_recording([ending], seconds=0.0)
    store.endings.take_up_again()


class TestResultsPutOff:
    def test_wait_until_the_queues_lock_is_ours(self, store, before):
        put()
        (claim,) = before.claim()
        put_off(store, end(claim))
        assert (store.endings.new, store.endings.all()) == ([], [end(claim)])

        before.run(before.backend.close_session)

        def is_taken_up():  # the server needs a moment to give the lock back
            store.endings.put_off_until = 0.0
            store.endings.take_up_again()
            return store.endings.new

        assert wait_until(is_taken_up) == [end(claim)]
        assert (
            store.backend.record(store.endings.new, OTHER_NODE, "web1:7", lambda claim: False).written
            == store.endings.new
        )

    def test_are_refused_when_somebody_else_has_taken_the_queue_over(self, store, before):
        put()
        (claim,) = before.claim()
        before.record(end(claim, Verdict.RETURN))
        (taken,) = before.claim()
        put_off(store, end(claim))

        assert store.endings.new == [end(claim)]
        (stale,) = store.backend.record(store.endings.new, OTHER_NODE, "web1:7", lambda claim: False).stale
        assert stale.claim == claim
        assert before.record(end(taken)).written

    def test_are_kept_when_asking_for_them_fails(self, store, before, monkeypatch):
        put()
        (claim,) = before.claim()
        monkeypatch.setattr(rows, "still_held", mock.Mock(side_effect=OperationalError("gone")))
        with pytest.raises(OperationalError):
            put_off(store, end(claim))
        assert store.endings.all() == [end(claim)]

    def test_are_not_looked_at_before_their_time(self, store, monkeypatch):
        clock = [100.0]
        monkeypatch.setattr(endings, "uptime", lambda: clock[0])
        put()
        claims, _ = store.backend.claim([SCOPE], 1, OTHER_NODE)
        store.endings.put_off_recording([end(claims[0])])

        store.endings.take_up_again()
        assert store.endings.new == []
        assert store.endings.put_off_until in store.timers(may_claim=False)
        clock[0] += endings.LOCK_RETRY
        store.endings.take_up_again()
        assert store.endings.new == [end(claims[0])]


class TestSilence:
    def test_is_measured_by_our_own_clock(self, store, monkeypatch):
        """An NTP step of the database's clock must not make every node look dead."""
        clock = [100.0]
        monkeypatch.setattr(store_module, "uptime", lambda: clock[0])
        nodes.register(store.backend, OTHER_NODE, "web2", 7, [SCOPE])
        NodeRow.objects.update(last_seen=store.backend.now() - timedelta(days=1))

        assert silence(store) == 0
        clock[0] += 8
        assert silence(store) == 8
        nodes.beat(store.backend, OTHER_NODE, [])
        assert silence(store) == 0
        clock[0] += 3
        assert silence(store) == 3


def silence(store):
    ((_, silent),) = store.other_nodes()
    return silent


class TestSessions:
    @pytest.mark.parametrize("has_served", [False, True])
    def test_a_standby_is_refused_at_the_start_and_waited_for_during_a_failover(self, monkeypatch, has_served):
        scheduler = Scheduler(Options())
        opened = []

        def open_session(self):
            opened.append(len(opened))
            if len(opened) == (2 if has_served else 1):
                raise SessionRefused("a read-only standby")

        def serve(self):
            if len(opened) == 1:
                raise store_module.exceptions.SessionLost("failover")

        for name, method in {"open": open_session, "serve": serve, "close": lambda self: None}.items():
            monkeypatch.setattr(Scheduler, name, method)
        monkeypatch.setattr(Scheduler, "_is_stopped_within", lambda self, seconds: False)
        try:
            if has_served:
                assert scheduler.run() == 0
                assert len(opened) == 3
            else:
                with pytest.raises(SessionRefused):
                    scheduler.run()
        finally:
            scheduler.signals.restore()

    @pytest.mark.skipif(connection.vendor != "sqlite", reason="elsewhere a row is locked, not the database")
    def test_a_long_writer_costs_a_node_on_sqlite_no_heartbeat(self, store, before):
        nodes.register(store.backend, OTHER_NODE, "web1", 7, [SCOPE])
        put()
        claims, _ = store.backend.claim([SCOPE], 1, OTHER_NODE)
        with writing(before):
            assert nodes.beat(store.backend, OTHER_NODE, []) is True
            assert store.backend.record([end(claims[0])], OTHER_NODE, "web1:7", lambda claim: False).locked
            assert store.backend.claim([SCOPE], 1, OTHER_NODE) == ([], False)
        assert store.backend.record([end(claims[0])], OTHER_NODE, "web1:7", lambda claim: False).written


@contextlib.contextmanager
def writing(node):
    def execute(sql):
        with node.backend.connection.cursor() as cursor:
            cursor.execute(sql)

    node.run(execute, "BEGIN IMMEDIATE")
    yield
    node.run(execute, "ROLLBACK")


class TestChores:
    def test_a_prune_that_fails_keeps_nothing_else_from_being_done(self, store, monkeypatch):
        """A row of the project's refers to the job, say."""
        prune = mock.Mock(side_effect=IntegrityError("shop_order"))
        monkeypatch.setattr(chores.jobs, "prune", prune)
        queue = put()
        Queue.objects.filter(name=queue.queue).delete()  # only a sweep finds the job
        all_chores = Housekeeping([parts_of(store)])
        wait_until(lambda: all_chores.run(is_stopping=False) or (prune.called and Queue.objects.exists()))
        calls = prune.call_count
        wait_until(lambda: all_chores.run(is_stopping=False) or min(all_chores.timers(is_stopping=False)) > uptime())
        assert prune.call_count == calls  # its next try is at the next poll

    @pytest.mark.parametrize(("error", "is_of_the_value"), [(DataError, True), (NotSupportedError, False)])
    def test_only_what_a_value_can_cause_fails_the_attempt(self, store, monkeypatch, error, is_of_the_value):
        """A statement planned before a migration is no reason to run a job again."""
        job = put()
        claims, _ = store.backend.claim([SCOPE], 1, OTHER_NODE)
        original, calls = store.backend.record, []

        def record(endings, *args, **kwargs):
            calls.append(endings)
            if len(calls) == 1:
                raise error("no")
            return original(endings, *args, **kwargs)

        monkeypatch.setattr(store.backend, "record", record)
        store.node_id = OTHER_NODE
        recording.record_storable(store, [end(claims[0])], "web1:7", lambda claim: False)
        job.refresh_from_db()
        assert bool(job.error) == is_of_the_value
        assert [ending.claim for ending in store.endings.all()] == ([] if is_of_the_value else claims)

    def test_what_ends_the_session_each_time_it_is_written_is_written_as_a_constant_text(self, store, monkeypatch):
        """It is larger than the server takes, say."""
        store.node_id = OTHER_NODE
        jobs = [put(name) for name in ("bad", "good")]
        claims, _ = store.backend.claim([SCOPE], 2, OTHER_NODE)
        original = store.backend.record

        def record(endings, *args, **kwargs):
            if any(ending.outcome.error == HUGE for ending in endings):
                raise OperationalError(2006, "Server has gone away")
            return original(endings, *args, **kwargs)

        monkeypatch.setattr(store.backend, "record", record)
        monkeypatch.setattr(store.backend, "is_alive", lambda: False)
        ended = [end(claim, Verdict.HALT, error=HUGE if claim.queue == "bad" else SMALL) for claim in claims]
        for _ in range(recording.MOST_LOSSES):
            with pytest.raises(SessionLost):
                recording.record_storable(store, ended, "web1:7", lambda claim: False)
        recorded = recording.record_storable(store, ended, "web1:7", lambda claim: False)
        for job in jobs:
            job.refresh_from_db()
        assert [job.error for job in jobs] == [f"AttemptEnded: {REFUSED}", "E: small"]
        assert len(recorded.written) + len(recorded.stale) == 2

    def test_no_process_of_a_node_that_may_live_is_killed(self, store, monkeypatch):
        """A copy of the database has its row too, on the same host."""
        store.node_id, living = uuid.uuid4(), uuid.uuid4()
        nodes.register(store.backend, living, socket.gethostname(), 7, [SCOPE])
        killed = []
        monkeypatch.setattr(succession, "kill_marked", killed.append)
        file = NodeFile.create(living)
        try:
            lease = SimpleNamespace(takeover=0.0)  # silent for long enough
            dead_nodes = DeadNodes(parts_of(store, lease))
            dead_nodes.run()
            assert killed == []
            is_alive = connection.vendor == "sqlite"  # whose locks are the kernel's
            assert NodeRow.objects.filter(pk=living).exists() == is_alive
        finally:
            os.close(*file.descriptors())
        if is_alive:
            dead_nodes.run()
            assert killed == [str(living)]


class TestFrames:
    def test_of_a_scheduler_may_be_of_any_size_and_those_of_a_worker_not(self):
        message = ["run", "x" * 1000]
        assert list(Frames().feed(encode(message))) == [message]
        with pytest.raises(GarbledChannel, match="frame of"):
            list(Frames(500).feed(encode(message)))


class TestApart:
    """What is due at once again, time after time, must not spin."""

    @pytest.fixture
    def ending(self, store):
        put()
        (claim,), _ = store.backend.claim([SCOPE], 1, uuid.uuid4())
        return partial(end, claim)

    @pytest.mark.parametrize("verdict", [Verdict.RETRY, Verdict.SNOOZE])
    def test_attempts_without_a_pause_are_a_second_apart_after_the_first_ones(self, store, ending, verdict):
        delays = [store.endings.apart(ending(verdict)).outcome.delay for _ in range(FREE + 3)]
        assert delays == [0.0] * FREE + [APART] * 3

    def test_what_a_worker_gave_back_waits_ever_longer(self, store, ending):
        delays = [store.endings.apart(ending(Verdict.RETURN)).outcome.delay for _ in range(8)]
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LONGEST_APART, LONGEST_APART]

    def test_what_could_not_run_waits_ever_longer(self, store, ending):
        delays = [store.endings.apart(ending(Verdict.RETURN, delay=5.0)).outcome.delay for _ in range(5)]
        assert delays == [5.0, 10.0, 20.0, LONGEST_PROBLEM, LONGEST_PROBLEM]

    def test_what_could_not_run_waits_as_long_as_its_class_says(self, store, ending):
        """The option ``setup_retry``."""
        delays = [store.endings.apart(ending(Verdict.RETURN, delay=90.0)).outcome.delay for _ in range(2)]
        assert delays == [90.0, 90.0]

    @pytest.mark.parametrize("other", [(Verdict.DONE, 0.0), (Verdict.RETRY, AT_ONCE), (Verdict.INTERRUPT, 0.0)])
    def test_anything_else_in_between_begins_anew(self, store, ending, other):
        verdict, delay = other
        for _ in range(FREE):
            store.endings.apart(ending(Verdict.RETRY))
        assert store.endings.apart(ending(verdict, delay=delay)).outcome.delay == delay
        assert store.endings.apart(ending(Verdict.RETRY)).outcome.delay == 0.0
