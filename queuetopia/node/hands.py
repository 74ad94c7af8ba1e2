"""Every claim of a node: waiting for a worker, handed to a worker, ended, or given back.

The scheduler's loop, the pool and the recording share this ledger. ``succession.Forgotten`` finds the claims that an
error has lost from it.
"""

import logging
from collections import deque

from .. import jobs
from ..attempts import Claim, Outcome, Verdict
from ..backends.values import Ending
from ..channel import uptime
from ..logs import fields
from ..performer import known_actions
from ..registry import by_scope
from ..repeats import Repeats
from .store import Store

logger = logging.getLogger(__name__)

MOST_HELD = 1_000  # queues held at once: PostgreSQL's lock table is finite, and full it refuses everybody


class Hands:
    def __init__(self, stores: list[Store], node: str):
        self.waiting: deque[tuple[Store, Claim]] = deque()  # claimed, not handed out
        self.in_flight: dict[int, tuple[Store, Claim]] = {}  # handed out, by ticket
        self.ended_at = 0.0  # uptime at which the first of what is to be recorded ended
        self._stores, self._node = stores, node
        self._last_ticket = 0
        self._repeats = Repeats()

    def of(self, store: Store) -> list[Claim]:
        """Return all claims of this database that wait, run, or have an ending to be recorded."""
        held = [claim for owner, claim in (*self.waiting, *self.in_flight.values()) if owner is store]
        return held + [ending.claim for ending in store.endings.all()]

    def are_empty(self) -> bool:
        """True when no claim waits, runs, or has an ending to be given back or recorded now."""
        return not (self.waiting or self.in_flight or self.to_record() or any(s.endings.returned for s in self._stores))

    def to_record(self) -> int:
        """Return how many endings wait to be recorded."""
        return sum(len(store.endings.new) for store in self._stores)

    def room(self, of_workers: int) -> int:
        """Return how many more queues may be claimed while the workers have room for so many jobs."""
        # Where something has ended, the queue's next job will be; what is put off holds its queue, but no worker.
        waiting = len(self.waiting) + self.to_record() + sum(len(store.endings.returned) for store in self._stores)
        held = waiting + len(self.in_flight) + sum(len(store.endings.put_off) for store in self._stores)
        most = min(MOST_HELD, *(store.backend.most_held for store in self._stores))
        return min(of_workers - waiting, most - held)

    def take(self, store: Store, claims: list[Claim]) -> None:
        """Take claims to hand them out; let go of those whose action this code does not have."""
        for claim in claims:
            if claim.outside is not None:  # its attempt was deferred, and is over: any worker may call the hooks
                store.endings.add(Ending(claim, jobs.settled(claim), (None, 0)))
                continue
            known = known_actions(by_scope()[claim.scope].performer)
            if known is None or claim.action in known:
                self.waiting.append((store, claim))
            else:
                self._let_go_of_unknown(store, claim)

    def _let_go_of_unknown(self, store, claim):
        self._repeats.log(
            logger, logging.ERROR, "unknown action, job left untouched node=%s %s", self._node, text_of(claim),
            cause=f"{claim.scope} {claim.action}", extra=fields(claim, "unknown action", self._node),
        )  # fmt: skip
        error = {"message": f"This code has no action {claim.action!r}; job {claim.job_id} waits for code that has."}
        outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN, delay=store.poll_interval, error=error)
        store.endings.add(Ending(claim, outcome))
        store.backend.refused.give_way(claim.queue_id, store.poll_interval)

    # To workers and back

    def hand_over(self) -> tuple[int, Store, Claim]:
        """Take the claim that has waited longest; return the ticket under which a worker has it now."""
        store, claim = self.waiting.popleft()
        self._last_ticket += 1
        self.in_flight[self._last_ticket] = store, claim
        return self._last_ticket, store, claim

    @property
    def last_ticket(self) -> int:
        return self._last_ticket

    def put_back(self, tickets: list[int]) -> None:
        """Take back claims that no worker has begun; they are handed out before all others, in their order."""
        self.waiting.extendleft(reversed([self.in_flight.pop(ticket) for ticket in tickets]))

    def end(self, ticket: int, outcome: Outcome, notifier=None) -> None:
        """Keep the ending of an attempt until it is recorded."""
        store, claim = self.in_flight.pop(ticket)
        if not self.to_record():
            self.ended_at = uptime()
        store.endings.add(store.endings.apart(Ending(claim, outcome, notifier)))

    def awaits(self, notifier) -> bool:
        """True while an ending whose hooks and receivers this worker will call is not recorded."""
        endings = (ending for store in self._stores for ending in store.endings.all())
        return any(ending.notifier and ending.notifier[0] is notifier for ending in endings)

    def drop(self, ticket: int) -> None:
        """Drop a claim after a report with a wrong fence; ``Forgotten`` then lets its queue go."""
        del self.in_flight[ticket]

    def done_with(self, store: Store, endings: list[Ending]) -> None:
        """Drop recorded endings; those that came meanwhile are gathered from now on."""
        store.endings.done_with(endings)
        self.ended_at = uptime()

    def give_back_waiting(self) -> None:
        """Let go of the claims that wait for a worker: another node may have a free one."""
        for store, claim in self.waiting:
            outcome = Outcome(claim.job_id, claim.fence, Verdict.RETURN)
            # Any worker may call the hooks, should an operator have cancelled the job meanwhile.
            store.endings.give_back(Ending(claim, outcome, (None, 0)))
        self.waiting.clear()


def text_of(claim: Claim) -> str:
    """Name a claim in a log line."""
    return f"scope={claim.scope} queue={claim.queue!r} job={claim.job_id} action={claim.action!r} fence={claim.fence}"
