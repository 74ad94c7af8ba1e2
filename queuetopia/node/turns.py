"""When a node claims more queues, and for how long a queue goes straight on while others wait."""

from ..attempts import Claim
from ..channel import uptime
from .hands import Hands
from .pool import Pool
from .store import Store

SLICE_TIME = 0.05  # seconds a queue's jobs may run straight on while others wait, even if its slice is not used up
PATIENCE = 0.01  # seconds a wake-up waits for room for many claims, while the workers have enough to do; then …
MADE_ROOM = 16  # … so many queues that have run a job already make room for those that have just got one


class Turns:
    def __init__(self, stores: list[Store], hands: Hands, pool: Pool, slice: int):
        """slice: jobs that a queue may go straight on with while others wait."""
        self._stores, self._hands, self._pool, self._slice = stores, hands, pool, slice
        self._made_room = 0  # queues let go since the last claim because others had just got work
        self._are_over = False

    def end(self) -> None:
        """Start nothing new from now on."""
        self._are_over = True

    def room(self) -> int:
        """Return how many more queues may be claimed."""
        return self._hands.room(self._pool.room())

    def may_claim(self) -> bool:
        """True while there is room; while the workers have enough to do, enough of it to be worth two commits."""
        if self._are_over or (room := self.room()) <= 0:
            return False
        if 8 * room >= len(self._hands.in_flight) or not self._pool.is_busy():
            return True
        return self._is_waited_for()

    def note_claim(self) -> None:
        self._made_room = 0

    def may_keep(self, store: Store, claim: Claim) -> bool:
        """A queue goes straight on with its next job, but while others wait only for a bounded slice."""
        if self._are_over or not self._pool.workers or not store.may_go_on(claim):
            return False
        is_wanted_elsewhere = any(s.has_peers for s in self._stores) and self._pool.has_more_than_it_runs()
        if not (self._hands.waiting or is_wanted_elsewhere or any(other.may_have_due for other in self._stores)):
            return True
        if self._made_room < MADE_ROOM and self._is_waited_for():
            self._made_room += 1
            return False
        jobs, seconds = store.streaks.of(claim)
        return jobs < self._slice and seconds < SLICE_TIME

    def _is_waited_for(self):
        return any(uptime() >= store.woken_at + PATIENCE for store in self._stores)
