"""Dead nodes: which have certainly died, how their queues run again, and when a standby takes over."""

import binascii
import logging
import socket
import uuid
from collections.abc import Callable

from .. import exceptions, jobs
from ..attempts import Outcome, Verdict
from ..backends import nodes
from ..backends.values import Ending
from ..channel import uptime
from ..conf import Lease
from ..models import Node
from ..processes import kill_marked
from ..registry import by_scope
from . import node_file
from .chores import Chore
from .store import Store

logger = logging.getLogger(__name__)

TAKEN_AT_ONCE = 500  # queues of a dead node that one step takes over


class DeadNodes(Chore):
    """Fence nodes that are certainly dead, and make the queues they held run again.

    Certainly dead: fenced already; on this host with its file unlocked; or silent for longer than its processes
    can have lived. The lost attempt is counted, from the queue's row.
    """

    def run(self):
        has_peers, is_left = False, False
        for node, silent in self.store.other_nodes():
            if died_here := _died_here(node):
                kill_marked(str(node.id))  # its workers are dead; programs that their performers started may not be
            if node.fenced_at is None and not died_here and not _is_silent(self.store, self.parts.lease, node, silent):
                has_peers = True
                continue
            nodes.fence(self.store.backend, node.id)
            is_left |= _take_over(self.store, self.parts.node, node)
        self.store.note_peers(has_peers)
        return 0.0 if is_left else self.parts.until_next_poll()


class Orphans(Chore):
    """Make queues run again that are held in the name of a node whose row was deleted."""

    def run(self):
        holders = nodes.holders(self.store.backend, self.store.scopes)  # before the nodes: who holds one has a row
        others = nodes.other_nodes(self.store.backend, self.store.node_id)
        is_left = False
        for node_id in holders - {self.store.node_id, *(node.id for node in others)}:
            is_left |= _take_over(self.store, self.parts.node, Node(id=node_id, host="unknown", pid=0))
        return 0.0 if is_left else self.store.poll_interval


class Forgotten(Chore):
    """Let go of queues that this node holds without a claim: an error has lost it."""

    def run(self):
        known = {claim.queue_id for claim in self.parts.hands.of(self.store)}
        for claim, _ in nodes.lost_claims(
            self.store.backend, self.store.node_id, self.store.scopes, TAKEN_AT_ONCE, known
        ):
            logger.error(
                "queue held without a claim, released node=%s scope=%s queue=%r",
                self.parts.node, claim.scope, claim.queue,
            )  # fmt: skip
            self.store.endings.add(Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.RETURN)))
        return self.store.poll_interval


def _died_here(node):
    return node.host == socket.gethostname() and node_file.is_dead(node.id)


def _is_silent(store, lease, node, seconds):
    """True for a node that has been silent for longer than its processes can have lived.

    Where no server ends a silent session, a node lives as long as its processes do.
    """
    may_live = not store.backend.ends_silent_sessions and node.host == socket.gethostname()
    return seconds >= lease.takeover and not (may_live and node_file.is_alive(node.id))


def _take_over(store, name, node):
    """Take what a dead node held, as far as its locks are free; return whether there may be more to be taken now."""
    known = {ending.claim.queue_id for ending in store.endings.all()}
    lost = nodes.lost_claims(store.backend, node.id, store.scopes, TAKEN_AT_ONCE, known)
    locked = set(store.backend.try_lock([claim.queue_id for claim, _ in lost]))
    for claim, last_error in lost:
        if claim.queue_id in locked:
            exc = exceptions.NodeDied(f"node {node} vanished while it ran the job")
            # The first attempt after a crash is made at once; a job that keeps killing its nodes backs off.
            delay = None if last_error == "NodeDied" else 0.0
            if claim.outside is None:
                outcome = jobs.failed(by_scope()[claim.scope], claim, exc, delay=delay)
            else:  # what it did was done, or not to be done, outside
                outcome = jobs.settled(claim)
            store.endings.add(Ending(claim, outcome, (None, 0)))
    if locked:
        logger.warning("taking over node=%s dead=%s queues=%d", name, node, len(locked))
    elif nodes.holds_nothing(store.backend, node.id):
        nodes.unregister(store.backend, node.id)
        nodes.note_death(store.backend, node.host)
        logger.info("dead node removed node=%s dead=%s", name, node)
    return len(locked) == TAKEN_AT_ONCE


# Standbys


def wait_for_turn(stores: list[Store], lease: Lease, name: str, is_stopped_within: Callable[[float], bool]) -> bool:
    """Wait, as a standby, until no other node serves these scopes; False if it is stopped meanwhile.

    is_stopped_within: waits so many seconds, and returns whether the node is to stop.
    """
    logger.info("standing by node=%s", name)
    node_id, note_at, is_stopped = uuid.uuid4(), 0.0, False
    while not is_stopped and not all(_is_our_turn(store, lease) for store in stores):
        if uptime() >= note_at:  # for status --check: a node that waits has no row of its own
            note_at = uptime() + lease.heartbeat
            for store in stores:
                with store.session():
                    nodes.note_standby(store.backend, node_id, name, store.scopes)
        is_stopped = is_stopped_within(0.5)
    for store in stores:
        with store.session():
            nodes.forget_standby(store.backend, node_id)
    return not is_stopped


def _is_our_turn(store, lease):
    with store.session():
        # One standby of a scope is next; of two with different scopes, each is.
        turns = [_standby_lock(scope) for scope in store.scopes]
        if set(store.backend.try_lock(turns)) != set(turns):
            store.backend.unlock(turns)
            return False
        return not any(
            node.fenced_at is None
            and not _is_silent(store, lease, node, silent)
            and set(node.scopes) & set(store.scopes)
            and not _died_here(node)
            for node, silent in store.other_nodes()
        )


def _standby_lock(scope):
    """Return the number of a lock that no queue has: their ids are much lower."""
    return 2**39 + binascii.crc32(scope.encode())
