"""What a node has in its hands, how much more it takes, and who gets its turn."""

import pytest
from django.db import OperationalError

from queuetopia import conf
from queuetopia.attempts import Verdict
from queuetopia.backends import nodes
from queuetopia.backends.contract.toolkit import end
from queuetopia.channel import uptime
from queuetopia.exceptions import SessionLost
from queuetopia.models import Node
from queuetopia.node.chores import Parts
from queuetopia.node.protocol import Options
from queuetopia.node.scheduler import Scheduler
from queuetopia.node.succession import Forgotten
from queuetopia.node.turns import MADE_ROOM, PATIENCE
from tests.ledger import SCOPE, put
from tests.node.test_worker_process import worker_with

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def scheduler(transactional_db):
    scheduler = Scheduler(Options(scopes=[SCOPE]))
    yield scheduler
    scheduler.signals.restore()


@pytest.fixture
def store(scheduler):
    """The scheduler's only database, with a session."""
    (store,) = scheduler.stores
    store.backend.open_session(conf.lease())
    store.register("web1:7")
    yield store
    nodes.unregister(store.backend, store.node_id)
    store.backend.close_session()


@pytest.fixture
def forgotten(scheduler, store):
    """The chore that lets go of claims that are nowhere."""
    return Forgotten(Parts(store, scheduler.hands, scheduler.pool, scheduler.lease, scheduler.node))


@pytest.fixture
def claim(store):
    put()
    (claim,), _ = store.backend.claim([SCOPE], 1, store.node_id)
    return claim


@pytest.fixture(params=["waiting", "returned by a worker", "ended", "to be given back", "put off"])
def on_its_way(request, scheduler, store, claim):
    """A claim that is in no worker's hands any more, or not yet: where it is."""
    hands = scheduler.hands
    hands.take(store, [claim])
    match request.param:
        case "returned by a worker":
            ticket, *_ = hands.hand_over()
            hands.put_back([ticket])
        case "ended":
            ticket, *_ = hands.hand_over()
            hands.end(ticket, end(claim).outcome)
        case "to be given back":
            hands.give_back_waiting()
        case "put off":
            hands.waiting.clear()
            store.endings.put_off_recording([end(claim)])
    return request.param


class TestClaimsInHand:
    def test_are_seen_wherever_they_are_on_their_way(self, scheduler, store, claim, on_its_way, forgotten):
        assert scheduler.hands.of(store) == [claim]
        before = store.endings.all()
        forgotten.run()
        assert store.endings.all() == before

    def test_are_seen_in_a_workers_hands(self, scheduler, store, claim, forgotten):
        scheduler.hands.take(store, [claim])
        scheduler.hands.hand_over()
        assert scheduler.hands.of(store) == [claim]
        forgotten.run()
        assert store.endings.all() == []

    def test_keep_a_stopping_node_from_its_end(self, scheduler, on_its_way):
        scheduler.stop()
        assert not scheduler.is_finished()

    def test_take_the_room_of_others(self, scheduler, on_its_way):
        """But for what is put off, which waits for somebody else and needs no worker."""
        with worker_with(slots=3, seconds=1.0) as worker:
            scheduler.pool.workers = [worker]
            assert scheduler.turns.room() == (3 if on_its_way == "put off" else 2)

    def test_are_let_go_of_if_they_are_nowhere(self, store, claim, forgotten):
        forgotten.run()
        assert [(ending.claim.job_id, ending.outcome.verdict) for ending in store.endings.new] == [
            (claim.job_id, Verdict.RETURN)
        ]


class TestTurns:
    @pytest.fixture
    def busy(self, scheduler, store, claim):
        """A node whose only worker has enough to do, while others wait that had their turn before."""
        with worker_with(slots=1, seconds=0.0) as worker:
            scheduler.pool.workers = [worker]
            for ticket in range(100):
                worker.assigned[ticket] = scheduler.hands.in_flight[ticket] = None
            store.claim_soon()
            store.streaks.count([end(claim)])
            yield scheduler
            scheduler.pool.workers = []

    def test_go_on_for_a_slice(self, busy, store, claim):
        for _ in range(busy.options.slice - 1):
            assert busy.turns.may_keep(store, claim)
            store.streaks.count([end(claim)])
        assert not busy.turns.may_keep(store, claim)

    def test_end_sooner_for_some_when_a_queue_that_has_just_got_work_finds_no_room(self, busy, store, claim):
        store.woken_at = uptime() - 2 * PATIENCE
        kept = [busy.turns.may_keep(store, claim) for _ in range(MADE_ROOM + 2)]
        assert kept == [False] * MADE_ROOM + [True, True]

        busy.claim()
        store.claim_soon()
        assert busy.turns.may_keep(store, claim)  # whoever waits has waited for longer
        store.woken_at = uptime() - 2 * PATIENCE
        assert not busy.turns.may_keep(store, claim)

    def test_a_claim_of_few_is_put_off_but_not_when_somebody_has_been_woken(self, busy, store):
        worker = busy.pool.workers[0]
        taken = worker.room() - 1
        for ticket in range(100, 100 + taken):
            worker.assigned[ticket] = busy.hands.in_flight[ticket] = None
        assert busy.turns.room() == 1
        assert not busy.turns.may_claim()
        store.woken_at = uptime() - 2 * PATIENCE
        assert busy.turns.may_claim()
        store.woken_at = uptime() + 1
        assert not busy.turns.may_claim()


class TestErrorsOfTheLoop:
    """They end a session that is lost, and no other before the fence's time is over."""

    @pytest.fixture
    def erring(self, scheduler, store, monkeypatch):
        """A scheduler that does not wait; a function that lets a loop fail so many times, so many seconds in all."""
        monkeypatch.setattr(scheduler.signals, "wait", lambda seconds: [])
        now = uptime()

        def fail(exc, times, seconds=0.0):
            for number in range(times):
                at = now + seconds * number / max(times - 1, 1)
                monkeypatch.setattr("queuetopia.node.scheduler.uptime", lambda at=at: at)
                scheduler.survive_error(exc)

        return fail

    def test_many_at_once_end_nothing(self, erring):
        erring(OperationalError("the table is locked"), times=100, seconds=1.0)

    def test_nothing_but_errors_for_the_fences_time_begin_all_anew(self, scheduler, erring):
        with pytest.raises(SessionLost, match="nothing but errors for 9 s"):
            erring(ValueError(), times=4, seconds=scheduler.lease.fence)

    def test_those_of_the_operating_system_end_no_session(self, scheduler, erring):
        erring(OSError(24, "Too many open files"), times=4, seconds=2 * scheduler.lease.fence)

    def test_the_heart_beats_on(self, scheduler, erring, store):
        last_seen = Node.objects.get(pk=store.node_id).last_seen
        erring(ValueError(), times=1)
        assert Node.objects.get(pk=store.node_id).last_seen > last_seen
        assert scheduler.pool.deadline > uptime()

    def test_a_lost_session_is_lost_at_once(self, scheduler, erring, store):
        store.backend.connection.close()
        with pytest.raises(SessionLost):
            erring(OperationalError("gone"), times=1)
