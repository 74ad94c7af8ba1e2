"""One database of a node: its session, the node's identity in it, and what is to be done there next."""

import logging
import os
import selectors
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import partial

from django.db import DatabaseError, InterfaceError, OperationalError

from .. import conf, exceptions
from ..attempts import Claim
from ..backends import backend_for, breakers, nodes, upkeep
from ..backends.limits import Limits
from ..channel import uptime
from ..models import Node
from ..registry import by_scope
from ..repeats import Repeats
from ..text import brief
from .endings import LOCK_RETRY, Endings, Streaks
from .node_file import NodeFile
from .tally import Tally

logger = logging.getLogger(__name__)

NOTIFY_EVERY = 0.1  # seconds between two notifications of followers, at least


class Store:
    def __init__(self, alias: str, scopes: list[str], poll_interval: float | None):
        self.scopes = scopes
        self.database = alias  # as the project knows it; the session has an alias of its own
        self.backend = backend_for(alias)
        self.node_id: uuid.UUID = None  # type: ignore[assignment]  # until ``register``
        self._limits = {scope: limits for scope in sorted(scopes) if any(limits := Limits.of(by_scope()[scope]))}
        self._breaking = [scope for scope, limits in self._limits.items() if not limits.hold_always]
        self._dispatch = conf.dispatch()({scope: by_scope()[scope].option("priority") for scope in scopes})
        self._turn = 0  # of limited scopes that are claimed from together, which one is the first
        self.poll_interval = poll_interval or min(by_scope()[scope].option("poll_interval") for scope in scopes)
        self.endings = Endings(self.backend)
        self.streaks = Streaks()
        self.tally = Tally()
        self.repeats = Repeats()
        self.may_have_due = True  # something may be due: claim
        self.woken_at = float("inf")  # uptime of the first wake-up since the last claim
        self.has_peers = False  # other nodes serve the database
        self._claim_at = float("inf")  # uptime at which the next queue becomes due by time
        self._knows_next = False  # that is right
        self._news_at = 0.0  # uptime at which to poll for a wake-up
        self.has_notified_all = True  # followers know of what has been recorded
        self._notify_at = 0.0  # uptime
        self._seen: dict[uuid.UUID, tuple[datetime, float]] = {}  # by node: its last_seen, since when we know it
        self._file: NodeFile | None = None

    @property
    def alias(self):
        return self.backend.alias

    # The session

    def open(self, lease, selector, beat_aside: Callable[["Store", str], None]) -> None:
        """beat_aside: called, with an alias to beat through, while a commit waits for a standby; it must not raise."""
        self.backend.open_session(lease)
        self.backend.beat_while_waiting(partial(beat_aside, self), every=lease.heartbeat / 2)
        if (descriptor := self.backend.fileno()) is not None:
            selector.register(descriptor, selectors.EVENT_READ, self)

    def register(self, node: str) -> None:
        """Announce a new node; the one we were in the last session is dead, for we killed its workers."""
        if self.node_id is not None:
            nodes.fence(self.backend, self.node_id)
        self.node_id = uuid.uuid4()
        self._file = NodeFile.create(self.node_id)
        self.tally = Tally()  # what the last node counted is written under its id, but for the last seconds
        self.tally.set_clock(self.backend.now())
        nodes.register(self.backend, self.node_id, socket.gethostname(), os.getpid(), self.scopes)
        upkeep.forget_problems(self.backend, self.scopes)
        self.backend.notify_followers()  # who then ask this node, too, to notify them
        self.may_have_due = True

    def beat(self, workers: list[dict], alias: str | None = None) -> None:
        """alias: the connection to beat through; None means the session."""
        if not nodes.beat(self.backend, self.node_id, workers, alias):
            raise exceptions.SessionLost("a successor has fenced this node")
        if self._file is not None:
            self._file.keep()
        self.note_for_followers()

    def unregister(self, selector) -> None:
        try:
            if self.node_id is not None:
                nodes.unregister(self.backend, self.node_id)
            self.backend.notify()  # other nodes may claim our queues now
        except DatabaseError as exc:
            logger.warning("node's row left to its successors alias=%s cause=%r", self.alias, brief(exc))
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

    @contextmanager
    def session(self):
        """Turn any error that leaves the session dead into SessionLost; others are the caller's."""
        try:
            yield
        except (OperationalError, InterfaceError):
            self.refuse_if_lost()
            raise

    @contextmanager
    def unless_busy(self):
        """Run the block in the session; if another transaction has locked what it needs, retry later."""
        try:
            with self.session():
                yield
        except OperationalError as exc:
            if not self.backend.is_busy(exc):
                raise
            logger.info("locked by another transaction, retrying later alias=%s cause=%r", self.alias, brief(exc))
            self.claim_later()

    def descriptors(self) -> list[int]:
        """What the workers inherit: while they live, the locks and the node's file stay locked."""
        return [*self.backend.descriptors(), *(self._file.descriptors() if self._file else [])]

    # Other nodes

    def other_nodes(self) -> list[tuple[Node, float]]:
        """Return each other node and for how many seconds it has been silent, by our own clock.

        Not by the database's clock: if that is put forward, every node would seem dead.
        """
        others, seen, self._seen = nodes.other_nodes(self.backend, self.node_id), self._seen, {}
        for node in others:
            last_seen, since = seen.get(node.id, (None, 0.0))
            self._seen[node.id] = (node.last_seen, since if last_seen == node.last_seen else uptime())
        return [(node, uptime() - self._seen[node.id][1]) for node in others]

    def note_peers(self, has_peers: bool) -> None:
        self.has_peers = has_peers

    # Followers

    def note_for_followers(self) -> None:
        """Note that rows have changed that followers poll."""
        self.has_notified_all = self.has_notified_all and not self.backend.is_followed()

    def notify_followers(self) -> None:
        if not self.has_notified_all and uptime() >= self._notify_at:
            self.backend.notify_followers()
            self.has_notified_all, self._notify_at = True, uptime() + NOTIFY_EVERY

    # What is to be done

    def listen(self) -> None:
        """Poll for a wake-up if it is due."""
        now = uptime()
        if now < self._news_at:
            return
        self._news_at = now + (self.backend.polls_every or 0.0)
        if self.backend.has_news():
            self.may_have_due = True
            self.woken_at = min(self.woken_at, now)

    def timers(self, *, may_claim: bool):
        """Yield the uptimes at which this database needs the loop."""
        if may_claim:
            if not self._knows_next:
                self._ask_when_next_is_due()
            yield self._claim_at
        yield from self.endings.timers()
        if not self.has_notified_all:
            yield self._notify_at
        if self.backend.polls_every is not None:
            yield self._news_at
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
            self._claim_at = min(self._claim_at, uptime() + seconds)
        self._knows_next = True

    def claim_later(self) -> None:
        """Claim again when the other transaction may have ended."""
        self.may_have_due = False
        self._claim_at = min(self._claim_at, uptime() + LOCK_RETRY)

    def wake_by_time(self) -> None:
        """Claim again when a queue has become due by the clock."""
        if uptime() >= self._claim_at:
            self.may_have_due, self._claim_at, self._knows_next = True, float("inf"), False

    def claim_soon(self) -> None:
        """Claim at the next turn: a queue may be due without a wake-up."""
        self.may_have_due = True

    def claim(self, limit: int) -> Iterator[list[Claim]]:
        """Claim up to ``limit`` due queues, in the order that the dispatch says; yield the claims of each statement."""
        self.woken_at = float("inf")
        any_claims = is_left = False
        closed = self._closed_breakers()
        self._turn += 1
        turns = self._dispatch.turns(limit)
        turn = next(turns, None)
        while turn and limit > 0:
            (scopes, most), claimed = turn, 0
            for group in self._groups_of(scopes, closed):
                if (room := min(limit, most - claimed)) <= 0:
                    is_left = True
                    break
                limits = None if group[0] in closed else self._limits.get(group[0])
                claims, more = self.backend.claim(group, room, self.node_id, limits=limits)
                limit, claimed = limit - len(claims), claimed + len(claims)
                any_claims, is_left = any_claims or bool(claims), is_left or more
                yield claims
            turn = _next_turn(turns, claimed)
        self.may_have_due, self._knows_next = is_left and any_claims, False
        if is_left and not any_claims:
            self.claim_later()

    def close_unused_breakers(self) -> None:
        """Have nothing rest because of a breaker that its class had before: no claim of ours would try it."""
        scopes = [scope for scope in self.scopes if scope not in self._limits or not self._limits[scope].breaker]
        if breakers.close(self.backend.alias, scopes):
            self.may_have_due = True

    def _closed_breakers(self) -> set[str]:
        """Return the scopes whose only limit is a breaker, and that is closed: nothing bounds what starts of them."""
        if not self._breaking:
            return set()
        return set(self._breaking) - breakers.tripped(self.backend.alias, self._breaking)

    def _groups_of(self, scopes, closed) -> list[list[str]]:
        """Return the scopes that are claimed from by one statement each: those without limits, and each with limits."""
        limited = [[scope] for scope in scopes if scope in self._limits and scope not in closed]
        unlimited = [scope for scope in scopes if scope not in self._limits or scope in closed]
        groups = limited + ([unlimited] if unlimited else [])
        first = self._turn % len(groups) if groups else 0  # each is the first in its turn
        return groups[first:] + groups[:first]

    def may_go_on(self, claim: Claim) -> bool:
        """True if the claim's queue may go straight on with its next job: no limit of its scope is about starts."""
        limits = self._limits.get(claim.scope)
        return limits is None or not limits.counts_starts

    def note_recorded(self, recorded) -> None:
        """Note what became due by these endings, count them, and notify followers."""
        if recorded.released_due:
            self.may_have_due = True
            if self.has_peers:
                self.backend.notify()
        if len(recorded.claims) < len(recorded.written):
            self._knows_next = False  # a queue was let go: its head may be due later
            self._note_places(ending.claim for ending in recorded.written)
        if any(ending.outcome.outage for ending in recorded.written) and self.has_peers:
            self.backend.notify()
        self.tally.add(recorded.written)
        self.note_for_followers()

    def _note_places(self, claims):
        """After queues of a scope with a limit were let go: others may run now."""
        if self._limits and any(claim.trial or self._is_bounded(claim.scope) for claim in claims):
            self.may_have_due = True
            if self.has_peers:
                self.backend.notify()

    def _is_bounded(self, scope) -> bool:
        return scope in self._limits and self._limits[scope].hold_always

    def give_back(self) -> None:
        """Let go of claims that no worker has begun, so that other nodes can take them; record those that cannot be."""
        if not (returned := self.endings.take_returned()):
            return
        given: set[int] = set()
        try:
            given = self.backend.give_back([ending.claim for ending in returned], self.node_id)
        finally:
            for ending in returned:
                if ending.claim.queue_id not in given:
                    self.endings.add(ending)
        self.may_have_due, self._knows_next = True, False
        self.backend.notify()


def _next_turn(turns, claimed):
    """Send a dispatch what its last turn brought; return the next (scopes, most), None at the end."""
    try:
        return turns.send(claimed)
    except StopIteration:
        return None
