"""What a scheduler does beside running jobs: successions, requests to stop, the sweep, retention, the end.

Nothing here is on the way of a job; each step is short, so that the loop is never kept from it for long.
"""

import binascii
import logging
import socket
import uuid

from django.db import DatabaseError, OperationalError

from .. import conf, exceptions, jobs
from ..attempts import REFUSED, Outcome, Verdict
from ..backends import nodes, rows, upkeep
from ..backends.values import Ending, Recorded, joined
from ..channel import Message, uptime
from ..models import Job, Node, Queue
from ..monitoring import census
from ..processes import kill_marked
from ..registry import by_scope
from ..repeats import pause
from ..text import brief
from . import node_file
from .tally import FLUSH

logger = logging.getLogger(__name__)

LOOK_FOR_DEAD = 1.0  # seconds between looks for dead nodes and for requests to stop a job; two for a lone, idle node
LOOK_FOR_PEERS = 0.25  # … and a lone, busy node looks so often for others, which may have room for what waits here
LOOK_FOR_ALERTS = 5.0  # seconds between looks for queues that have been blocked for too long, if that is longer
LOOK_FOR_MAIL = 60.0  # seconds between looks for blocked queues to mail about
STEP = 0.01  # seconds between two steps of a sweep or of pruning …
SHARE = 0.1  # … and what they may take of the scheduler's time while jobs run
PATIENT = 3  # tries to write a row after an error that may pass, before a constant text is written instead
MOST_LOSSES = 3  # sessions that may be lost while one row is written, before a constant text is written instead
MOST_REFUSED = 20  # rows refused in one go, with none written, after which the rest is not tried now
LONGEST_REFUSAL = 30.0  # seconds between two tries to write a row that the database refuses
TAKEN_AT_ONCE = 500  # queues of a dead node that one step takes over


def keep_house(scheduler) -> None:
    now = uptime()
    for store in scheduler.stores:
        store.wake_by_time()
        with scheduler.session(store):
            store.tell_followers()
            if now >= store.peers_at:
                store.peers_at = now + _until_next_look(scheduler, store)
                stop_what_people_asked(scheduler, store)
                scheduler._take_from_pool()  # what follows must not take it for forgotten
                if store.backend.unseen and store.backend.look_again([]):
                    store.may_have_due = True
                if not scheduler.is_stopping:
                    if not store.sweeping and store.backend.is_sweep_wanted():
                        store.sweeping = [(scope, "") for scope in store.scopes]
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


def _until_next_look(scheduler, store):
    if store.has_peers:
        return LOOK_FOR_DEAD
    return LOOK_FOR_PEERS if scheduler.pool.in_flight else 2 * LOOK_FOR_DEAD


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
        nodes.fence(store.backend, node.id)
        _take_over(scheduler, store, node)


def take_over_orphans(scheduler, store) -> None:
    """Make queues run again that are held in the name of a node whose row was deleted."""
    holders = nodes.holders(store.backend, store.scopes)  # before the nodes: who holds a queue has a row
    known = {store.node_id, *(node.id for node in nodes.other_nodes(store.backend, store.node_id))}
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
    lost = nodes.lost_claims(store.backend, node.id, store.scopes, TAKEN_AT_ONCE, known)
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
    elif nodes.holds_nothing(store.backend, node.id):
        nodes.unregister(store.backend, node.id)
        nodes.note_death(store.backend, node.host)
        logger.info("dead node removed node=%s dead=%s", scheduler.node, node)
    if len(locked) == TAKEN_AT_ONCE:
        store.peers_at = 0.0


def wait_for_turn(scheduler) -> bool:
    """Wait, as a standby, until no other node serves these scopes; False when told to stop meanwhile."""
    logger.info("standing by node=%s", scheduler.node)
    node_id, note_at = uuid.uuid4(), 0.0
    while not all(_is_our_turn(scheduler, store) for store in scheduler.stores):
        if uptime() >= note_at:  # for status --check: a node that waits has no row of its own
            note_at = uptime() + scheduler.lease.heartbeat
            _each_session(
                scheduler, lambda store: nodes.note_standby(store.backend, node_id, scheduler.node, store.scopes)
            )
        scheduler._tell_supervisor()
        scheduler.obey(scheduler._signals.wait(0.5))
        if scheduler.is_stopping:
            break
    _each_session(scheduler, lambda store: nodes.forget_standby(store.backend, node_id))
    return not scheduler.is_stopping


def _each_session(scheduler, act):
    for store in scheduler.stores:
        with scheduler.session(store):
            act(store)


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
    if claims and (job_ids := upkeep.stop_requests(store.backend, claims)):
        scheduler.pool.stop_jobs(store, job_ids)


def return_forgotten(scheduler, store) -> None:
    """Let go of queues that are held in this node's name while no worker has them: an error lost their claims."""
    known = {claim.queue_id for claim in scheduler.claims_in_hand(store)}
    for claim, _ in nodes.lost_claims(store.backend, store.node_id, store.scopes, TAKEN_AT_ONCE, known):
        logger.error(
            "queue held without a claim, released node=%s scope=%s queue=%r", scheduler.node, claim.scope, claim.queue
        )
        store.endings.append(Ending(claim, Outcome(claim.job_id, claim.fence, Verdict.RETURN)))


# The safety net and retention


def sweep_step(store) -> None:
    if store.sweeping:
        scope, after = store.sweeping[0]
        repaired, go_on_after = upkeep.sweep(store.backend, scope, after)
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
        logger.error("pruning failed, next try at the next poll scope=%s cause=%r", store.pruning[0], brief(exc))
        is_done = True
    if is_done:
        store.pruning.pop(0)


# Alerts: found here, told by a worker, for receivers and mail servers are not ours


def give_alerts(scheduler, store) -> None:
    """Have workers tell of queues that are still blocked, and mail about them."""
    if not scheduler.pool.may_tell():
        return
    try:
        for claim, duration, threshold in upkeep.due_alerts(store.backend, store.scopes):
            scheduler.pool.tell_any(Message.ALERT, claim, duration, threshold)
        if (every := conf.mail_admins_every()) and uptime() >= store.mail_at:
            store.mail_at = uptime() + LOOK_FOR_MAIL
            scheduler.pool.tell_any(Message.MAIL, store.database, every)
    except DatabaseError as exc:
        _put_off(store, "alerts put off", exc)


# Statistics


def save_statistics(store) -> None:
    """Write what was counted since the last time. What cannot be written now is written, with more, the next time."""
    store.tally.flush_at = uptime() + FLUSH
    unsaved = store.tally.unsaved() if conf.statistics_retention() != 0 else []
    try:
        if unsaved:
            upkeep.save_statistics(store.backend, store.node_id, unsaved)
        store.tally.saved()
        store.tally.set_clock(store.backend.now())
    except DatabaseError as exc:
        _put_off(store, "statistics not saved now", exc)


def take_census(store) -> None:
    """Count what no node records; if there is much of it, go on soon."""
    began, is_left = uptime(), False
    try:
        if conf.statistics_retention() != 0:
            is_left = upkeep.take_census(store.backend, census.look, census.EVERY)
    except DatabaseError as exc:
        _put_off(store, "jobs not counted now", exc)
    store.census_at = uptime() + ((uptime() - began) / SHARE if is_left else census.EVERY)


def prune_statistics(store) -> None:
    if (keep := conf.statistics_retention()) is None:
        return
    try:
        upkeep.prune_statistics(store.backend, store.scopes, keep)
    except DatabaseError as exc:
        _put_off(store, "statistics not pruned now", exc)


def _put_off(store, what, exc):
    """Log what will be retried; a table that another transaction has locked for a while is no warning."""
    store.refuse_if_lost()
    is_busy = isinstance(exc, OperationalError) and store.backend.is_busy(exc)
    level = logging.INFO if is_busy else logging.WARNING
    store.repeats.log(logger, level, f"{what} alias=%s cause=%r", store.alias, brief(exc))


# Recording what a database may refuse


def record_storable(store, endings: list[Ending], node: str, keep) -> Recorded:
    """Record a batch. What the database refuses of it costs no other queue anything.

    Not the class of an error decides, which differs from driver to driver, but two questions. Does the session still
    stand? If not, the batch is written one by one in the next one: one of its rows may be what ends sessions. Can the
    others be written? They are, and the refused attempt is closed with a constant text, its job halted. If not even
    that can be written, the row is kept out of the way, and tried again with growing pauses.
    """
    suspects = [ending for ending in endings if store.is_suspect(ending)]
    batches = [[ending] for ending in suspects]
    if others := [ending for ending in endings if not store.is_suspect(ending)]:
        batches.insert(0, others)
    recorded = Recorded([], [], [], False, [])
    for batch in batches:
        recorded = joined(recorded, _record_what_can_be(store, batch, node, keep))
    return recorded


def _record_what_can_be(store, endings, node, keep):
    recorded, refused = Recorded([], [], [], False, []), 0
    batches = [endings]
    while batches:
        batch = batches.pop(0)
        if refused >= MOST_REFUSED and not recorded.written:
            for ending in batch:
                store.refuse(ending, LONGEST_REFUSAL / 30)  # no row is at fault: a table is missing, say
            continue
        try:
            part = _write(store, batch, node, keep)
        except exceptions.SessionLost:
            raise
        except Exception as exc:
            if len(batch) > 1:
                store.repeats.log(
                    logger, logging.ERROR, "batch refused by the database, recording its parts cause=%r", brief(exc),
                    cause=type(exc).__name__,
                )  # fmt: skip
                middle = len(batch) // 2
                batches[:0] = [batch[:middle], batch[middle:]]
                continue
            part = _record_refused(store, batch[0], node, keep, exc)
            refused += not part.written
        recorded = joined(recorded, part)
    return recorded


def _write(store, endings, node, keep) -> Recorded:
    """Record; raise SessionLost after any error that leaves no session."""
    if len(endings) == 1 and store.losses(endings[0]) >= MOST_LOSSES:
        endings = [_closed(endings[0])]
    try:
        recorded = store.backend.record(endings, store.node_id, node, keep)
    except exceptions.SessionLost:
        raise
    except Exception:
        try:
            store.refuse_if_lost()
        except exceptions.SessionLost:
            store.note_loss(endings)
            raise
        raise
    store.forget_refusals([*recorded.written, *recorded.stale])
    return recorded


def _record_refused(store, ending, node, keep, exc) -> Recorded:
    """Close the attempt with a constant text if the database takes that, else put it off for ever longer."""
    claim, tries = ending.claim, store.times_refused(ending)
    is_of_the_row = store.backend.is_of_the_row(exc) or (tries >= PATIENT and not store.backend.may_pass(exc))
    if is_of_the_row and ending.outcome.verdict != Verdict.RETURN:
        store.repeats.log(
            logger, logging.ERROR, "result refused by the database, halting its job scope=%s queue=%r job=%d cause=%r",
            claim.scope, claim.queue, claim.job_id, brief(exc), cause=str(claim.job_id),
        )  # fmt: skip
        try:
            return _write(store, [_closed(ending)], node, keep)
        except exceptions.SessionLost:
            raise
        except Exception as again:
            exc = again
    seconds = pause(tries, 0.1, LONGEST_REFUSAL)
    store.refuse(ending, seconds)
    store.repeats.log(
        logger, logging.ERROR,
        "the database refuses a row, its queue waits scope=%s queue=%r job=%d cause=%r next_in=%.1fs",
        claim.scope, claim.queue, claim.job_id, brief(exc), seconds, cause=str(claim.job_id),
    )  # fmt: skip
    try:
        problem = f"The database refuses to write job {claim.job_id}: {exc}"
        rows.note_problem(store.backend.alias, claim.queue_id, problem)
    except DatabaseError:
        store.refuse_if_lost()  # the queue's row is refused too
    return Recorded([], [], [], False, [])


def _closed(ending):
    """Return the ending with nothing in it that a database could refuse."""
    error = {"type": "AttemptEnded", "message": REFUSED, "traceback": ""}
    return ending._replace(outcome=ending.outcome._replace(verdict=Verdict.HALT, delay=0.0, error=error, result=None))


# The end of --until-empty


def is_empty(scheduler) -> bool:
    """True when every served queue is empty, halted, paused or only scheduled for later."""
    for store in scheduler.stores:
        with scheduler.session(store):
            is_looking = store.may_have_due or store.sweeping or store.poll_at == 0.0 or store.backend.unseen
            if is_looking or upkeep.has_work(store.backend, store.scopes):
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
