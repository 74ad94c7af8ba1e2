"""Record how attempts ended, row by row where the database refuses one, and notify of what is committed."""

import logging
from collections.abc import Callable

from django.db import DatabaseError

from .. import exceptions
from ..attempts import ENDINGS, FAILURES, REFUSED, Claim, Verdict, readable
from ..backends import rows
from ..backends.breakers import OPENED
from ..backends.values import Ending, Recorded, joined
from ..channel import uptime
from ..logs import fields
from ..progress import Progress
from ..registry import by_scope
from ..repeats import pause
from ..text import brief, loggable, masked, visible
from .hands import Hands, text_of
from .pool import Pool
from .store import Store
from .turns import Turns

logger = logging.getLogger(__name__)

GATHER = 0.003  # seconds a result may wait for others to share its commit, while more of them are to be expected
RECORDED_AT_ONCE = 400  # endings of one transaction: the heartbeat waits with it
LONGEST_PARAMS = 10_000  # characters of params in the log
PATIENT = 3  # tries to write a row after an error that may pass, before a constant text is written instead
MOST_LOSSES = 3  # sessions that may be lost while one row is written, before a constant text is written instead
MOST_REFUSED = 20  # rows refused in one go, with none written, after which the rest is not tried now
LONGEST_REFUSAL = 30.0  # seconds between two tries to write a row that the database refuses


class Recording:
    def __init__(
        self, stores: list[Store], hands: Hands, pool: Pool, turns: Turns, node: str,
        meanwhile: Callable[[], None], progress: Progress | None,
    ):  # fmt: skip
        """meanwhile: called while a database writes; it must not raise."""
        self._stores, self._hands, self._pool, self._turns = stores, hands, pool, turns
        self._node, self._meanwhile, self._progress = node, meanwhile, progress
        self._gathers = True

    def end(self) -> None:
        """Stop gathering: no attempt starts any more."""
        self._gathers = False

    def is_gathering(self) -> bool:
        """True while results wait for others: less than half of what was handed out has ended.

        Only while every worker has enough in its hands to be busy meanwhile. A lone job does not wait.
        """
        may_gather = 0 < self._hands.to_record() < len(self._hands.in_flight)
        return may_gather and uptime() < self._hands.ended_at + GATHER and self._pool.is_busy() and self._gathers

    def is_due(self) -> bool:
        return self._hands.to_record() > 0 and not self.is_gathering()

    def record(self) -> None:
        if not self.is_gathering():
            for store in self._stores:
                self.record_in(store)

    def record_in(self, store: Store) -> None:
        """Store how attempts ended and take the claims that follow; stale endings are logged and dropped."""
        with store.unless_busy():
            store.give_back()
            store.endings.take_up_again()
        endings = store.endings.next(RECORDED_AT_ONCE)
        if not endings:
            return
        store.streaks.count(endings)
        with store.session():
            recorded = record_storable(
                store, endings, self._node, lambda claim: self._turns.may_keep(store, claim), self._meanwhile
            )
        self._hands.done_with(store, endings)
        store.endings.put_off_recording(recorded.locked)
        self._hands.take(store, recorded.claims)
        store.streaks.end(endings, recorded.claims)
        store.note_recorded(recorded)
        for ending in recorded.stale:
            extra = fields(ending.claim, "stale result refused", self._node)
            logger.warning("stale result refused node=%s %s", self._node, text_of(ending.claim), extra=extra)
            if ending.notifier:
                self._pool.forget(ending)
        for ending in recorded.written:
            self._follow(ending)
        if self._progress:
            self._progress.advance(sum(ending.outcome.verdict in ENDINGS for ending in recorded.written))

    def _follow(self, ending):
        """Log a committed end, and pass it to hooks and receivers."""
        claim, outcome = ending.claim, ending.outcome
        if outcome.verdict in FAILURES:
            _log_failure(claim, outcome, self._node)
        elif outcome.verdict == Verdict.INTERRUPT:
            extra = fields(claim, "attempt interrupted", self._node)
            logger.warning("attempt interrupted, not counted node=%s %s", self._node, text_of(claim), extra=extra)
        if outcome.outage:
            _log_outage(claim, outcome, self._node)
            ending = ending._replace(notifier=ending.notifier or (None, 0))
        if ending.notifier and (outcome.verdict in FAILURES | ENDINGS or outcome.outage):
            self._pool.notify(ending)
        elif ending.notifier and outcome.verdict == Verdict.OUTAGE:  # it was a failure when it was reported
            self._pool.forget(ending)


def _log_outage(claim: Claim, outcome, node):
    change, since = outcome.outage
    if change == OPENED:
        cause = f"{outcome.error['type']}: {(outcome.error['message'].splitlines() or [''])[0][:200]}"
        logger.warning(
            "breaker open, such failures use no attempt scope=%s cause=%r", claim.scope, cause,
            extra=fields(claim, "breaker open", node),
        )  # fmt: skip
    else:
        extra = fields(claim, "breaker closed", node)
        logger.warning("breaker closed scope=%s open_since=%s", claim.scope, since or "never", extra=extra)


def _log_failure(claim: Claim, outcome, node):
    message = outcome.error["message"].splitlines() or [""]
    cause = f"{outcome.error['type']}: {message[0][:200]}"
    if outcome.verdict == Verdict.RETRY:
        logger.warning(
            "attempt failed %s attempt=%d cause=%r next_in=%gs", text_of(claim), claim.attempt, cause, outcome.delay,
            extra=fields(claim, "attempt failed", node),
        )  # fmt: skip
        return
    params: object = f"{len(claim.params)} characters"
    if len(claim.params) <= LONGEST_PARAMS:
        params = masked(readable(claim.params), by_scope()[claim.scope].option("sensitive_params"))
    what, then = "skipped", "its queue goes on"
    if outcome.verdict == Verdict.HALT:
        what, then = "halted", "its queue is blocked until it is retried or skipped"
    if outcome.verdict == Verdict.MOVE:
        what, then = f"moved to queue {visible(outcome.to)!r}", "halted; its own queue goes on"
    logger.error(
        "job %s, %s %s attempt=%d cause=%r params=%r\n%s",
        what, then, text_of(claim), claim.attempt, cause, params,
        loggable(outcome.error["traceback"]), extra=fields(claim, f"job {what}", node),
    )  # fmt: skip


# Recording what a database may refuse


def record_storable(
    store: Store,
    endings: list[Ending],
    node: str,
    keep: Callable[[Claim], bool],
    meanwhile: Callable[[], None] = lambda: None,
) -> Recorded:
    """Record a batch. What the database refuses of it costs no other queue anything.

    Not the class of an error decides, which differs from driver to driver, but two questions. Does the session still
    stand? If not, the batch is written one by one in the next one: one of its rows may be what ends sessions. Can the
    others be written? They are, and the refused attempt is closed with a constant text, its job halted. If not even
    that can be written, the row is kept out of the way, and tried again with growing pauses.
    """
    suspects = [ending for ending in endings if store.endings.is_suspect(ending)]
    batches = [[ending] for ending in suspects]
    if others := [ending for ending in endings if not store.endings.is_suspect(ending)]:
        batches.insert(0, others)

    def write(batch):
        return store.backend.record(batch, store.node_id, node, keep, meanwhile=meanwhile)

    recorded = Recorded([], [], [], False, [])
    for batch in batches:
        recorded = joined(recorded, _record_what_can_be(store, batch, write))
    return recorded


def _record_what_can_be(store, endings, write):
    recorded, refused = Recorded([], [], [], False, []), 0
    batches = [endings]
    while batches:
        batch = batches.pop(0)
        if refused >= MOST_REFUSED and not recorded.written:
            for ending in batch:
                store.endings.refuse(ending, LONGEST_REFUSAL / 30)  # no row is at fault: a table is missing, say
            continue
        try:
            part = _write(store, batch, write)
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
            part = _record_refused(store, batch[0], write, exc)
            refused += not part.written
        recorded = joined(recorded, part)
    return recorded


def _write(store, endings, write) -> Recorded:
    """Record; raise SessionLost after any error that leaves no session."""
    if len(endings) == 1 and store.endings.losses(endings[0]) >= MOST_LOSSES:
        endings = [_closed(endings[0])]
    try:
        recorded = write(endings)
    except exceptions.SessionLost:
        raise
    except Exception:
        try:
            store.refuse_if_lost()
        except exceptions.SessionLost:
            store.endings.note_loss(endings)
            raise
        raise
    store.endings.forget_refusals([*recorded.written, *recorded.stale])
    return recorded


def _record_refused(store, ending, write, exc) -> Recorded:
    """Close the attempt with a constant text if the database takes that, else put it off for ever longer."""
    claim, tries = ending.claim, store.endings.times_refused(ending)
    is_of_the_row = store.backend.is_of_the_row(exc) or (tries >= PATIENT and not store.backend.may_pass(exc))
    if is_of_the_row and ending.outcome.verdict != Verdict.RETURN:
        store.repeats.log(
            logger, logging.ERROR, "result refused by the database, halting its job scope=%s queue=%r job=%d cause=%r",
            claim.scope, claim.queue, claim.job_id, brief(exc), cause=str(claim.job_id),
            extra=fields(claim, "result refused by the database"),
        )  # fmt: skip
        try:
            return _write(store, [_closed(ending)], write)
        except exceptions.SessionLost:
            raise
        except Exception as again:
            exc = again
    seconds = pause(tries, 0.1, LONGEST_REFUSAL)
    store.endings.refuse(ending, seconds)
    store.repeats.log(
        logger, logging.ERROR,
        "the database refuses a row, its queue waits scope=%s queue=%r job=%d cause=%r next_in=%.1fs",
        claim.scope, claim.queue, claim.job_id, brief(exc), seconds, cause=str(claim.job_id),
        extra=fields(claim, "row refused by the database"),
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
