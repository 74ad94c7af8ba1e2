"""What a scheduler does beside running jobs: successions, requests to stop, the sweep, retention, the end.

Nothing here is on the way of a job; each step is short, so that the loop is never kept from it for long.
"""

import binascii
import logging
import socket

from django.db import (
    DatabaseError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from . import census, conf, exceptions, jobs, node_file
from .attempts import Outcome, Verdict, describe
from .backends.base import Ending, Recorded
from .channel import uptime
from .declaration import by_scope
from .models import Job, Node, Queue
from .processes import kill_marked
from .supervisor import STOP
from .tally import FLUSH

logger = logging.getLogger(__name__)

LOOK_FOR_DEAD = 1.0  # seconds between looks for dead nodes and for requests to stop a job; two for a lone, idle node
LOOK_FOR_ALERTS = 5.0  # seconds between looks for queues that have been blocked for too long, if that is longer
LOOK_FOR_MAIL = 60.0  # seconds between looks for blocked queues to mail about
STEP = 0.01  # seconds between two steps of a sweep or of pruning …
SHARE = 0.1  # … and what they may take of the scheduler's time while jobs run
# Errors that no result causes: of the session, of the tables, of a statement planned before a migration.
NOT_THE_VALUES = (OperationalError, InterfaceError, InternalError, NotSupportedError, ProgrammingError)
TAKEN_AT_ONCE = 500  # queues of a dead node that one step takes over


def keep_house(scheduler) -> None:
    now = uptime()
    for store in scheduler.stores:
        store.wake_by_time()
        with scheduler.session(store):
            store.tell_followers()
            if now >= store.peers_at:
                is_alone = not store.has_peers and not scheduler.pool.in_flight
                store.peers_at = now + LOOK_FOR_DEAD * (2 if is_alone else 1)
                stop_what_people_asked(scheduler, store)
                scheduler._take_from_pool()  # what follows must not take it for forgotten
                if store.backend.unseen and store.backend.look_again([]):
                    store.may_have_due = True
                if not scheduler.is_stopping:
                    take_over_dead_nodes(scheduler, store)
                    if now >= store.alerts_at:
                        store.alerts_at = now + min([LOOK_FOR_ALERTS, *conf.alert_after()])
                        give_alerts(scheduler, store)
            if now >= store.tally.flush_at:
                save_statistics(store)
            if now >= store.census_at:
                take_census(store)
            if scheduler.is_stopping:
                continue
            if now >= store.poll_at:
                store.poll_at = now + store.poll_interval
                store.may_have_due = True
                store.sweeping = store.sweeping or [(scope, "") for scope in store.scopes]
                store.pruning = store.pruning or list(store.scopes)
                prune_statistics(store)
                return_forgotten(scheduler, store)
                take_over_orphans(scheduler, store)
            if now >= store.step_at and (store.sweeping or store.pruning):
                prune_step(store)
                sweep_step(store)
                took = uptime() - now
                store.step_at = uptime() + max(STEP, took / SHARE if scheduler.pool.in_flight else took)


# Succession


def take_over_dead_nodes(scheduler, store) -> None:
    """Fence nodes that are certainly dead, and make the queues they held run again.

    Certainly dead: fenced already; on this host with its file unlocked; or silent for longer than its processes
    can have lived. The lost attempt is counted, from the queue's row.
    """
    store.has_peers = False
    for node, silent in store.other_nodes():
        if died_here := _died_here(node):
            kill_marked(str(node.id))  # its workers are dead, what their performers had started need not be
        if node.fenced_at is None and not died_here and not _is_silent(scheduler, store, node, silent):
            store.has_peers = True
            continue
        store.backend.fence(node.id)
        _take_over(scheduler, store, node)


def take_over_orphans(scheduler, store) -> None:
    """Make queues run again that are held in the name of a node whose row somebody has deleted."""
    holders = store.backend.holders(store.scopes)  # before the nodes: who holds a queue has a row
    known = {store.node_id, *(node.id for node in store.backend.other_nodes(store.node_id))}
    for node_id in holders - known:
        _take_over(scheduler, store, Node(id=node_id, host="unknown", pid=0))


def _died_here(node):
    return node.host == socket.gethostname() and node_file.is_dead(node.id)


def _is_silent(scheduler, store, node, seconds):
    """True for a node that has been silent for longer than its processes can have lived.

    Where no server ends a silent session, a node lives as long as its processes do.
    """
    may_live = not store.backend.ends_silent_sessions and node.host == socket.gethostname()
    return seconds >= scheduler.lease.takeover and not (may_live and node_file.is_alive(node.id))


def _take_over(scheduler, store, node):
    known = {ending.claim.queue_id for ending in store.unrecorded()}
    lost = store.backend.lost_claims(node.id, store.scopes, TAKEN_AT_ONCE, known)
    locked = set(store.backend.try_lock([claim.queue_id for claim, _ in lost]))
    for claim, last_error in lost:
        if claim.queue_id in locked:
            exc = exceptions.NodeDied(f"node {node} vanished while it ran the job")
            # The first attempt after a crash is made at once; a job that keeps killing its nodes backs off.
            delay = None if last_error == "NodeDied" else 0.0
            outcome = jobs.failed(by_scope()[claim.scope], claim, exc, delay=delay)
            store.endings.append(Ending(claim, outcome, (None, 0)))
    if locked:
        logger.warning("taking over node=%s dead=%s queues=%d", scheduler.node, node, len(locked))
    elif store.backend.holds_nothing(node.id):
        store.backend.unregister(node.id)
        logger.info("dead node removed node=%s dead=%s", scheduler.node, node)
    if len(locked) == TAKEN_AT_ONCE:
        store.peers_at = 0.0


def wait_for_turn(scheduler) -> bool:
    """Wait, as a standby, until no other node serves these scopes; False when told to stop meanwhile."""
    logger.info("standing by node=%s", scheduler.node)
    while not all(_is_our_turn(scheduler, store) for store in scheduler.stores):
        scheduler._tell_supervisor()
        if STOP in scheduler._signals.wait(0.5):
            scheduler.stop()
            return False
    return True


def _is_our_turn(scheduler, store):
    with scheduler.session(store):
        # One standby of a scope is next; of two with different scopes, each is.
        turns = [_standby_lock(scope) for scope in store.scopes]
        if set(store.backend.try_lock(turns)) != set(turns):
            store.backend.unlock(turns)
            return False
        return not any(
            node.fenced_at is None
            and not _is_silent(scheduler, store, node, silent)
            and set(node.scopes) & set(store.scopes)
            and not _died_here(node)
            for node, silent in store.other_nodes()
        )


def _standby_lock(scope):
    """Return the number of a lock that no queue has: their ids are much lower."""
    return 2**39 + binascii.crc32(scope.encode())


def stop_what_people_asked(scheduler, store) -> None:
    claims = [claim for owner, claim in scheduler.pool.claims() if owner is store]
    if claims and (job_ids := store.backend.stop_requests(claims)):
        scheduler.pool.stop_jobs(store, job_ids)


def return_forgotten(scheduler, store) -> None:
    """Let go of queues that are held in this node's name but in nobody's hands: what an error in between lost."""
    known = {claim.queue_id for claim in scheduler.claims_in_hand(store)}
    for claim, _ in store.backend.lost_claims(store.node_id, store.scopes, TAKEN_AT_ONCE, known):
        logger.error("queue held by nobody, let go node=%s scope=%s queue=%r", scheduler.node, claim.scope, claim.queue)
        store.endings.append(Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.RETURN)))


# The safety net and retention


def sweep_step(store) -> None:
    if store.sweeping:
        scope, after = store.sweeping[0]
        repaired, go_on_after = store.backend.sweep(scope, after)
        if repaired:
            logger.info("sweep found lost wake-ups scope=%s queues=%d", scope, repaired)
            store.may_have_due = True
        if go_on_after is None:
            store.sweeping.pop(0)
        else:
            store.sweeping[0] = (scope, go_on_after)


def prune_step(store) -> None:
    if not store.pruning:
        return
    try:
        is_done = jobs.prune(by_scope()[store.pruning[0]], alias=store.alias) == 0
    except DatabaseError as exc:
        # A row of the project's that refers to a job, say. It must not keep the sweep from its work.
        store.refuse_if_lost()
        logger.error("pruning failed, next try at the next poll scope=%s cause=%r", store.pruning[0], str(exc))
        is_done = True
    if is_done:
        store.pruning.pop(0)


# Alerts: found here, told by a worker, for receivers and mail servers are not ours


def give_alerts(scheduler, store) -> None:
    """Have workers tell of queues that are still blocked, and mail about them."""
    if not scheduler.pool.may_tell():
        return
    try:
        for claim, duration, threshold in store.backend.due_alerts(store.scopes):
            scheduler.pool.tell_any("alert", claim, duration, threshold)
        if (every := conf.mail_admins_every()) and uptime() >= store.mail_at:
            store.mail_at = uptime() + LOOK_FOR_MAIL
            scheduler.pool.tell_any("mail", store.database, every)
    except DatabaseError as exc:
        _put_off(store, "alerts put off", exc)


# Statistics


def save_statistics(store) -> None:
    """Write what was counted since the last time. What cannot be written now is written, with more, the next time."""
    store.tally.flush_at = uptime() + FLUSH
    rows = store.tally.unsaved() if conf.statistics_retention() != 0 else []
    try:
        if rows:
            store.backend.save_statistics(store.node_id, rows)
        store.tally.saved()
        store.tally.set_clock(store.backend.now())
    except DatabaseError as exc:
        _put_off(store, "statistics not saved now", exc)


def take_census(store) -> None:
    """Count what no node records; if there is much of it, go on soon."""
    began, is_left = uptime(), False
    try:
        if conf.statistics_retention() != 0:
            is_left = store.backend.take_census(census.look, census.EVERY)
    except DatabaseError as exc:
        _put_off(store, "jobs not counted now", exc)
    store.census_at = uptime() + ((uptime() - began) / SHARE if is_left else census.EVERY)


def prune_statistics(store) -> None:
    if (keep := conf.statistics_retention()) is None:
        return
    try:
        store.backend.prune_statistics(store.scopes, keep)
    except DatabaseError as exc:
        _put_off(store, "statistics not pruned now", exc)


def _put_off(store, what, exc):
    """Log what will be tried again; that somebody has locked a table for a while is nothing to warn of."""
    store.refuse_if_lost()
    is_busy = isinstance(exc, OperationalError) and store.backend.is_busy(exc)
    level = logging.INFO if is_busy else logging.WARNING
    store.repeats.log(logger, level, f"{what} alias=%s cause=%r", store.alias, str(exc))


# Recording what a database may refuse


def record_storable(store, endings: list[Ending], node: str, keep) -> Recorded:
    """Record a batch; if the database refuses something in it, record one by one, and what it refuses as a failure.

    An attempt must be closed whatever its result or error holds.
    """
    try:
        return store.backend.record(endings, store.node_id, node, keep)
    except (*NOT_THE_VALUES, exceptions.SessionLost):
        raise
    except Exception as exc:
        logger.error("batch refused by the database, recording one by one cause=%r", str(exc))
    parts = [_record_one(store, ending, node, keep) for ending in endings]
    return Recorded(
        [ending for part in parts for ending in part.written],
        [ending for part in parts for ending in part.stale],
        [claim for part in parts for claim in part.claims],
        any(part.released_due for part in parts),
        [ending for part in parts for ending in part.locked],
    )


def _record_one(store, ending, node, keep):
    try:
        return store.backend.record([ending], store.node_id, node, keep)
    except (*NOT_THE_VALUES, exceptions.SessionLost):
        raise
    except Exception as exc:
        logger.error("result refused by the database job=%d cause=%r", ending.claim.job_id, str(exc))
    unstorable = exceptions.AttemptEnded("the database refused to store the attempt's result or error")
    error = {**describe(unstorable), "traceback": ""}
    outcome = jobs.failed(by_scope()[ending.claim.scope], ending.claim, unstorable)._replace(error=error)
    return store.backend.record([ending._replace(outcome=outcome)], store.node_id, node, keep)


# The end of --until-empty


def is_empty(scheduler) -> bool:
    """True when every served queue is empty, halted, paused or only scheduled for later."""
    for store in scheduler.stores:
        with scheduler.session(store):
            is_looking = store.may_have_due or store.sweeping or store.poll_at == 0.0 or store.backend.unseen
            if is_looking or store.backend.has_work(store.scopes):
                return False
    return True


def has_left_over(scheduler) -> bool:
    """True when a halted job is left, or one that this code cannot serve."""
    for store in scheduler.stores:
        jobs = Job.objects.using(store.alias).unfinished().halted().filter(scope__in=store.scopes)
        queues = Queue.objects.using(store.alias).filter(scope__in=store.scopes, paused_at=None).exclude(problem="")
        if jobs.exists() or queues.exists():
            return True
    return False
