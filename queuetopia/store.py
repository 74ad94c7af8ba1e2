"""One database of a node: its session, the node's identity in it, and what is to be done there next."""

import logging
import os
import selectors
import socket
import uuid
from datetime import datetime

from django.db import DatabaseError, OperationalError

from . import exceptions
from .attempts import Claim
from .backends import backend_for
from .backends.base import Ending
from .channel import uptime
from .declaration import by_scope
from .models import Node
from .node_file import NodeFile
from .repeats import Repeats
from .tally import Tally

logger = logging.getLogger(__name__)

TELL = 0.1  # seconds between two words to followers at least
LOCK_RETRY = 0.1  # seconds until something is tried again that somebody had locked


class Store:
    def __init__(self, alias: str, scopes: list[str], poll_interval: float | None):
        self.scopes = scopes
        self.database = alias  # as the project knows it; the session has an alias of its own
        self.backend = backend_for(alias)
        self.node_id: uuid.UUID | None = None
        self.poll_interval = poll_interval or min(by_scope()[scope].option("poll_interval") for scope in scopes)
        self.endings: list[Ending] = []  # ended, to be recorded
        self.put_off: list[Ending] = []  # ended; somebody else has the queue's lock or the rows locked
        self.put_off_until = 0.0  # uptime
        self.streaks: dict[int, tuple[int, float]] = {}  # by queue: jobs run in a row, seconds they took
        self.may_have_due = True  # something may be due: claim
        self.claim_at = float("inf")  # uptime at which the next queue becomes due by time
        self.knows_next = False  # claim_at is right
        self.news_at = 0.0  # uptime at which to look for a wake-up
        self.woken_at = float("inf")  # uptime of the first wake-up since the last claim
        self.poll_at = 0.0
        self.peers_at = 0.0
        self.step_at = 0.0  # the next step of sweeping or pruning
        self.sweeping: list[tuple[str, str]] = []  # (scope, queue after which to go on)
        self.pruning: list[str] = []  # scopes
        self.tally = Tally()
        self.alerts_at = 0.0
        self.census_at = 0.0
        self.has_told_all = True  # followers know of what has been recorded
        self.tell_at = 0.0
        self.mail_at = 0.0
        self.has_peers = False
        self.repeats = Repeats()
        self._seen: dict[uuid.UUID, tuple[datetime, float]] = {}  # by node: its last_seen, since when we know it
        self._file: NodeFile | None = None

    @property
    def alias(self):
        return self.backend.alias

    # The session

    def open(self, lease, selector) -> None:
        self.backend.open_session(lease)
        if (descriptor := self.backend.fileno()) is not None:
            selector.register(descriptor, selectors.EVENT_READ, self)

    def register(self, node: str) -> None:
        """Announce a new node; the one we were in the last session is dead, for we killed its workers."""
        if self.node_id is not None:
            self.backend.fence(self.node_id)
        self.node_id = uuid.uuid4()
        self._file = NodeFile.create(self.node_id)
        self.tally = Tally()  # what the last node counted is written under its id, but for the last seconds
        self.tally.set_clock(self.backend.now())
        self.backend.register(self.node_id, socket.gethostname(), os.getpid(), self.scopes)
        self.backend.forget_problems(self.scopes)
        self.backend.tell_followers()  # who then asks us, too, to tell
        self.may_have_due, self.poll_at, self.peers_at = True, 0.0, 0.0

    def beat(self, workers: list[dict]) -> None:
        if not self.backend.beat(self.node_id, workers):
            raise exceptions.SessionLost("a successor has fenced this node")
        self.note_for_followers()

    def unregister(self, selector) -> None:
        try:
            if self.node_id is not None:
                self.backend.unregister(self.node_id)
            self.backend.notify()  # whoever waits for our queues may have them now
        except DatabaseError as exc:
            logger.warning("node's row left to its successors alias=%s cause=%r", self.alias, str(exc))
        self.close(selector)

    def close(self, selector) -> None:
        for key in [key for key in selector.get_map().values() if key.data is self]:
            selector.unregister(key.fd)
        self.backend.close_session()
        if self._file is not None:
            self._file.remove()
            self._file = None

    def refuse_if_lost(self) -> None:
        """Raise SessionLost unless the session that took the locks still stands."""
        try:
            alive = self.backend.is_alive()
        except Exception as exc:
            raise exceptions.SessionLost(f"the session on {self.alias} is gone: {exc}") from exc
        if not alive:
            raise exceptions.SessionLost(f"the session on {self.alias} is gone")

    def descriptors(self) -> list[int]:
        """What the workers inherit: while they live, the locks and the node's file stay locked."""
        return [*self.backend.descriptors(), *(self._file.descriptors() if self._file else [])]

    # Other nodes

    def other_nodes(self) -> list[tuple[Node, float]]:
        """Return each other node and for how many seconds it has been silent, by our own clock.

        Not by the database's: one that is put forward would make everybody look dead.
        """
        nodes, seen, self._seen = self.backend.other_nodes(self.node_id), self._seen, {}
        for node in nodes:
            last_seen, since = seen.get(node.id, (None, 0.0))
            self._seen[node.id] = (node.last_seen, since if last_seen == node.last_seen else uptime())
        return [(node, uptime() - self._seen[node.id][1]) for node in nodes]

    # What has ended

    def unrecorded(self) -> list[Ending]:
        return self.endings + self.put_off

    def put_off_recording(self, endings: list[Ending], seconds: float = LOCK_RETRY) -> None:
        """Record these later: what has ended must not be lost, and not hold up the others."""
        if endings:
            self.put_off += endings
            self.put_off_until = uptime() + seconds

    def take_up_again(self) -> None:
        """Have what was put off recorded, if it is time and the queues' locks are ours."""
        if not self.put_off or uptime() < self.put_off_until:
            return
        endings = self.put_off
        locked = set(self.backend.try_lock([ending.claim.queue_id for ending in endings]))
        others = [ending for ending in endings if ending.claim.queue_id not in locked]
        standing = self.backend.still_held([ending.claim for ending in others])
        self.put_off = []
        self.put_off_recording([ending for ending in others if ending.claim.queue_id in standing])
        # What others have taken over is refused as stale.
        self.endings += [ending for ending in endings if ending.claim.queue_id not in standing]

    # Followers

    def note_for_followers(self) -> None:
        """Note that something is written that followers look at."""
        self.has_told_all = self.has_told_all and not self.backend.is_followed()

    def tell_followers(self) -> None:
        if not self.has_told_all and uptime() >= self.tell_at:
            self.backend.tell_followers()
            self.has_told_all, self.tell_at = True, uptime() + TELL

    # What is to be done

    def listen(self) -> None:
        """Look for a wake-up if it is time to."""
        now = uptime()
        if now < self.news_at:
            return
        self.news_at = now + (self.backend.looks_every or 0.0)
        if self.backend.has_news():
            self.may_have_due = True
            self.woken_at = min(self.woken_at, now)

    def timers(self, *, may_claim: bool):
        """Yield the uptimes at which something is to be done here."""
        if may_claim:
            if not self.knows_next:
                self._ask_when_next_is_due()
            yield from (self.claim_at, self.poll_at)
            if self.sweeping or self.pruning:
                yield self.step_at
        if self.put_off:
            yield self.put_off_until
        if not self.has_told_all:
            yield self.tell_at
        yield self.peers_at
        if self.backend.looks_every is not None:
            yield self.news_at
        if self.backend.was_notified:
            yield 0.0

    def _ask_when_next_is_due(self):
        try:
            seconds = self.backend.next_due(self.scopes)
        except OperationalError as exc:
            if not self.backend.is_busy(exc):
                raise
            seconds = LOCK_RETRY
        if seconds is not None:
            self.claim_at = min(self.claim_at, uptime() + seconds)
        self.knows_next = True

    def claim_later(self) -> None:
        """Claim again when somebody may have given back what is locked."""
        self.may_have_due = False
        self.claim_at = min(self.claim_at, uptime() + LOCK_RETRY)

    def wake_by_time(self) -> None:
        """Claim again when a queue has become due by the clock."""
        if uptime() >= self.claim_at:
            self.may_have_due, self.claim_at, self.knows_next = True, float("inf"), False

    def note_due(self, recorded) -> None:
        """Take from a record what became due, at once or later."""
        if recorded.released_due:
            self.may_have_due = True
            if self.has_peers:
                self.backend.notify()
        if len(recorded.claims) < len(recorded.written):
            self.knows_next = False  # a queue was let go: its head may be due later

    def count_streaks(self, endings: list[Ending]) -> None:
        for ending in endings:
            jobs, seconds = self.streaks.get(ending.claim.queue_id, (0, 0.0))
            self.streaks[ending.claim.queue_id] = jobs + 1, seconds + ending.outcome.duration

    def end_streaks(self, endings: list[Ending], claims: list[Claim]) -> None:
        kept = {claim.queue_id for claim in claims}
        for ending in endings:
            if ending.claim.queue_id not in kept:
                self.streaks.pop(ending.claim.queue_id, None)
