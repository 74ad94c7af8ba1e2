"""One database of a node: its session, the node's identity in it, and what is to be done there next."""

import logging
import os
import selectors
import socket
import uuid
from datetime import datetime

from django.db import DatabaseError, OperationalError

from .. import exceptions
from ..attempts import Claim, Verdict
from ..backends import backend_for, nodes, rows, upkeep
from ..backends.values import Ending
from ..channel import uptime
from ..models import Node
from ..registry import by_scope
from ..repeats import Repeats, pause
from ..text import brief
from .node_file import NodeFile
from .tally import Tally

logger = logging.getLogger(__name__)

_AGAIN = {Verdict.RETRY, Verdict.SNOOZE, Verdict.RETURN}

TELL = 0.1  # seconds between two words to followers at least
FREE = 10  # attempts of a queue that may follow each other at once, because their pauses are shorter than …
AT_ONCE = 0.1  # … these seconds; then they are …
APART = 1.0  # … so many seconds apart: what fails or is put off for ever must not spin
LONGEST_APART = 5.0  # seconds between two tries to hand out what a worker gave back …
LONGEST_PROBLEM = 30.0  # … and what it could not run, because of an unknown action or a setup() that fails
LOCK_RETRY = 0.1  # seconds until a retry of what another transaction had locked
LONGEST_LOCK_RETRY = 1.0  # the same when it has been locked for some seconds


class Store:
    def __init__(self, alias: str, scopes: list[str], poll_interval: float | None):
        self.scopes = scopes
        self.database = alias  # as the project knows it; the session has an alias of its own
        self.backend = backend_for(alias)
        self.node_id: uuid.UUID = None  # type: ignore[assignment]  # until ``register``
        self.poll_interval = poll_interval or min(by_scope()[scope].option("poll_interval") for scope in scopes)
        self.endings: list[Ending] = []  # ended, to be recorded
        self.returned: list[Ending] = []  # claims that no worker has begun, to be given back
        self.put_off: list[Ending] = []  # ended; another session has the queue's lock or the rows locked
        self.put_off_until = 0.0  # uptime
        self._locked_since = 0.0  # uptime at which the first of them was put off
        self.refused: list[tuple[float, Ending]] = []  # (uptime of the next try, ended); the database refuses the row
        self._times_refused: dict[tuple[int, int], int] = {}  # by job and fence
        self._losses: dict[tuple[int, int], int] = {}  # by job and fence: sessions lost while it was written
        self._repeated: dict[int, int] = {}  # by queue: attempts in a row that were to follow each other at once
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
            nodes.fence(self.backend, self.node_id)
        self.node_id = uuid.uuid4()
        self._file = NodeFile.create(self.node_id)
        self.tally = Tally()  # what the last node counted is written under its id, but for the last seconds
        self.tally.set_clock(self.backend.now())
        nodes.register(self.backend, self.node_id, socket.gethostname(), os.getpid(), self.scopes)
        upkeep.forget_problems(self.backend, self.scopes)
        self.backend.tell_followers()  # who then asks us, too, to tell
        self.may_have_due, self.poll_at, self.peers_at = True, 0.0, 0.0

    def beat(self, workers: list[dict]) -> None:
        if not nodes.beat(self.backend, self.node_id, workers):
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

    def descriptors(self) -> list[int]:
        """What the workers inherit: while they live, the locks and the node's file stay locked."""
        return [*self.backend.descriptors(), *(self._file.descriptors() if self._file else [])]

    # Other nodes

    def other_nodes(self) -> list[tuple[Node, float]]:
        """Return each other node and for how many seconds it has been silent, by our own clock.

        Not by the database's: one that is put forward would make everybody look dead.
        """
        others, seen, self._seen = nodes.other_nodes(self.backend, self.node_id), self._seen, {}
        for node in others:
            last_seen, since = seen.get(node.id, (None, 0.0))
            self._seen[node.id] = (node.last_seen, since if last_seen == node.last_seen else uptime())
        return [(node, uptime() - self._seen[node.id][1]) for node in others]

    # What has ended

    def unrecorded(self) -> list[Ending]:
        return [*self.endings, *self.returned, *self.put_off, *(ending for _, ending in self.refused)]

    def refuse(self, ending: Ending, seconds: float) -> None:
        """Keep an ending that the database refuses out of the way of the others; record it again after ``seconds``."""
        self._times_refused[_attempt(ending)] = self.times_refused(ending) + 1
        self.refused.append((uptime() + seconds, ending))

    def times_refused(self, ending: Ending) -> int:
        return self._times_refused.get(_attempt(ending), 0)

    def note_loss(self, endings: list[Ending]) -> None:
        for ending in endings:
            self._losses[_attempt(ending)] = self.losses(ending) + 1

    def losses(self, ending: Ending) -> int:
        return self._losses.get(_attempt(ending), 0)

    def is_suspect(self, ending: Ending) -> bool:
        """True for what is to be recorded alone, because its row may be what the database refuses."""
        return _attempt(ending) in self._times_refused or _attempt(ending) in self._losses

    def forget_refusals(self, endings: list[Ending]) -> None:
        if self._times_refused or self._losses:
            for ending in endings:
                self._times_refused.pop(_attempt(ending), None)
                self._losses.pop(_attempt(ending), None)

    def put_off_recording(self, endings: list[Ending], seconds: float | None = None) -> None:
        """Record these later: what has ended must not be lost, and not hold up the others.

        seconds: None means a pause that grows as long as rows are locked, from LOCK_RETRY to LONGEST_LOCK_RETRY.
        """
        if not endings:
            return
        self.put_off += endings
        now = uptime()
        if now > self.put_off_until + LONGEST_LOCK_RETRY:
            self._locked_since = now
        if seconds is None:
            seconds = min(max(LOCK_RETRY, (now - self._locked_since) / 4), LONGEST_LOCK_RETRY)
        self.put_off_until = now + seconds

    def take_up_again(self) -> None:
        """Have what was put off recorded, if it is time and the queues' locks are ours."""
        now = uptime()
        if due := [ending for at, ending in self.refused if at <= now]:
            self.refused = [(at, ending) for at, ending in self.refused if at > now]
            self.put_off_recording(due, seconds=0.0)
        if not self.put_off or now < self.put_off_until:
            return
        endings = self.put_off
        locked = set(self.backend.try_lock([ending.claim.queue_id for ending in endings]))
        others = [ending for ending in endings if ending.claim.queue_id not in locked]
        standing = rows.still_held(self.backend.alias, [ending.claim for ending in others])
        self.put_off = []
        self.put_off_recording([ending for ending in others if ending.claim.queue_id in standing])
        # What others have taken over is refused as stale.
        self.endings += [ending for ending in endings if ending.claim.queue_id not in standing]

    def apart(self, ending: Ending) -> Ending:
        """Return the ending; with a pause, if its queue would be due at once again, as it has been time after time."""
        queue_id, outcome = ending.claim.queue_id, ending.outcome
        is_long = outcome.delay >= AT_ONCE and outcome.verdict != Verdict.RETURN
        if outcome.verdict not in _AGAIN or is_long:
            self._repeated.pop(queue_id, None)
            return ending
        times = self._repeated[queue_id] = self._repeated.get(queue_id, 0) + 1
        if outcome.verdict == Verdict.RETURN:
            delay = pause(times - 1, max(outcome.delay, AT_ONCE), LONGEST_PROBLEM if outcome.delay else LONGEST_APART)
        elif times > FREE:
            delay = APART
        else:
            return ending
        return ending._replace(outcome=outcome._replace(delay=delay))

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
        if self.refused:
            yield min(at for at, _ in self.refused)
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
        """Claim again when the other transaction may have ended."""
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

    def give_back(self) -> None:
        """Let go of what no worker has begun, so that another node can have it; what cannot be is to be recorded."""
        returned, self.returned = self.returned, []
        given: set[int] = set()
        try:
            given = self.backend.give_back([ending.claim for ending in returned], self.node_id)
        finally:
            self.endings += [ending for ending in returned if ending.claim.queue_id not in given]
        self.may_have_due, self.knows_next = True, False
        self.backend.notify()

    def count_streaks(self, endings: list[Ending]) -> None:
        for ending in endings:
            jobs, seconds = self.streaks.get(ending.claim.queue_id, (0, 0.0))
            self.streaks[ending.claim.queue_id] = jobs + 1, seconds + ending.outcome.duration

    def end_streaks(self, endings: list[Ending], claims: list[Claim]) -> None:
        kept = {claim.queue_id for claim in claims}
        for ending in endings:
            if ending.claim.queue_id not in kept:
                self.streaks.pop(ending.claim.queue_id, None)


def _attempt(ending):
    return ending.claim.job_id, ending.claim.fence
