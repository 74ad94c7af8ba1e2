"""The contract of a database, written with the ORM; SQLite and MySQL use it nearly as it stands.

A Backend works through one connection. Web processes use it for the wake-up and for operators' verbs; a scheduler
opens a *session*: a connection of its own that holds one advisory lock per queue it serves and writes all claims
and results, so that a write that succeeds proves the locks were alive.

What a backend promises, and the tests of ``contract`` show for every one of them:

- ``claim`` gives each queue to one caller, with a fence higher than all before, and only its head;
- ``record`` writes a result only while the claim's fence is the queue's, and starts a queue's next job only after;
- a queue found empty is cleared, committed, and checked again in a new snapshot: no wake-up is lost.
"""

import contextlib
import copy
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from django.db import (
    DatabaseError,
    DataError,
    Error,
    IntegrityError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    connections,
    models,
    transaction,
)
from django.db.models.functions import Coalesce

from .. import conf
from ..attempts import ENDINGS, MEANING, Claim, Verdict
from ..channel import uptime
from ..lines import is_own
from ..models import Chore, Job, Queue, Scope
from ..repeats import Repeats
from ..text import brief
from ..times import refuse_wrong
from . import keys, rows, sums
from .breakers import Breakers
from .columns import DatabaseNow, database_now
from .limits import Closed, Limits, Locked, take_limited
from .refusals import Refusals
from .values import (
    Ending,
    Recorded,
    Wake,
    alert_of,
    claim_of,
    has_no_time,
    is_late,
    later,
    of_each,
    problem_of,
    queue_of,
)

logger = logging.getLogger(__name__)

PRIVATE = "+queuetopia"  # suffix of the alias under which a scheduler's own connection is known to the ORM
INSERT_BATCH = 1_000  # rows of one INSERT
WAKE_BATCH = 1_000  # queues woken together
WAKE_TIMEOUT = 1.0  # seconds for which a creator of jobs waits at most for its queues to be woken
ROUNDS = 10  # queries of one claim for queues whose lock is free
SWEEP = "sweep"  # a chore
RESET_SEQUENCES = "manage.py sqlsequencereset queuetopia | manage.py dbshell"
OVERDUE = 0.05  # seconds until a queue is tried again that is due and was not claimed


class Backend:
    """Statements on the tables of Job, Queue and Node through the connection of one alias."""

    # Whether the server ends a session that has been silent for the lease, and so frees its locks.
    ends_silent_sessions = True
    # Seconds between two polls for a wake-up where the database cannot push one; None where it can.
    polls_every: float | None = None
    most_held = 1_000  # queues that one session may hold
    fences_above = 0  # a failover may have undone fences up to this one
    notifies_as_it_wakes = False

    def __init__(self, alias: str):
        self.alias = alias
        self.held: set[int] = set()
        self.unchecked: set[int] = set()  # cleared queues to check again: the row was locked
        self.repeats = Repeats()
        self.refused = Refusals(self.repeats)
        self.closed = Closed()
        self.was_notified = False  # a wake-up came while another statement ran
        self._driver: Any = None  # the driver's connection that took the locks
        self._asked: str | None = None  # the last time that a sweep was asked for

    @property
    def connection(self):
        return connections[self.alias]

    @property
    def in_session(self) -> bool:
        """True on a scheduler's own connection; without one (testing.drain) no locks are taken."""
        return self.alias.endswith(PRIVATE)

    def now(self) -> datetime:
        """Return the database's clock."""
        return database_now(self.connection)

    # The session of a scheduler

    def open_session(self, lease: conf.Lease) -> None:
        """Connect anew, outside Django's own connections, and make the server enforce the lease.

        Raises SessionRefused when this connection cannot hold locks for us, TimesRefused when it would store times
        wrong.
        """
        source = lock_alias(self.alias)
        private = connections.create_connection(source)
        private.settings_dict = self.session_settings(copy.deepcopy(private.settings_dict), lease)
        refuse_wrong(private)
        private.alias = self.alias.removesuffix(PRIVATE) + PRIVATE
        connections[private.alias] = private
        self.alias = private.alias
        self.held.clear()
        private.ensure_connection()  # not connect(), whose errors are the driver's own
        self._driver = private.connection

    def session_settings(self, settings: dict[str, Any], lease: conf.Lease) -> dict[str, Any]:
        """Return the connection's settings as a session needs them: kept open, never pooled or checked."""
        settings["OPTIONS"].pop("pool", None)
        return {**settings, "CONN_MAX_AGE": None, "CONN_HEALTH_CHECKS": False, "AUTOCOMMIT": True}

    def beat_while_waiting(self, beat: Callable[[str], None], every: float) -> None:
        """While a commit of this session waits for a standby, call ``beat``, about each ``every`` seconds, with the
        alias of a connection whose commits do not. Does nothing where that cannot be, or cannot be known."""

    def close_session(self) -> None:
        """Close the session's connection; the server frees its locks. Never raises."""
        if not self.in_session:
            return
        try:
            self.connection.close()
        except Exception as exc:
            logger.info("closing session failed alias=%s error=%r", self.alias, exc)
        del connections[self.alias]
        self.alias = self.alias.removesuffix(PRIVATE)
        self.held.clear()

    def is_alive(self) -> bool:
        """True while the session that took the locks still stands; asked after an error.

        Django reconnects by itself, at the end of a transaction for example: without the locks, and without a word.
        """
        connection = self.connection
        # An interrupted "SET autocommit" leaves a transaction open for ever, with all the rows it locks.
        is_in_transaction = connection.in_atomic_block or not connection.autocommit
        return connection.connection is self._driver and not is_in_transaction and connection.is_usable()

    def fileno(self) -> int | None:
        """Return the descriptor that becomes readable on a wake-up, or None: then ``polls_every`` holds."""
        return None

    def descriptors(self) -> list[int]:
        """Return the descriptors that keep the locks while any process has them open; workers inherit them."""
        return []

    def has_news(self) -> bool:
        """True if a queue may have become due since the last call."""
        return True

    def is_busy(self, exc: Exception) -> bool:
        """True if another transaction has locked the row to write: retry later."""
        return False

    def may_pass(self, exc: Exception) -> bool:
        """True for an error of the moment or of the statement, not of the row written: it may pass."""
        return isinstance(exc, ProgrammingError | NotSupportedError)

    def is_of_the_row(self, exc: Exception) -> bool:
        """True for an error of the row: it cannot be written so, others may."""
        return isinstance(exc, DataError | IntegrityError) or not isinstance(exc, Error)

    def is_deadlock(self, exc: Exception) -> bool:
        """True if another transaction made the database roll this one back.

        They waited for each other, or the other one wrote what this one had read.
        """
        return False

    def try_lock(self, queue_ids: list[int]) -> list[int]:
        """Take the advisory lock of each queue that is free; return those that are ours now.

        A queue asked for that is in ``held`` was locked by a claim that failed half way: it is ours already.
        """
        self.held.update(queue_ids)
        return queue_ids

    def unlock(self, queue_ids: Iterable[int]) -> None:
        """Give locks back, after the commit that released the queues."""
        self.held.difference_update(queue_ids)

    # Create

    def insert(self, jobs: list[Job]) -> None:
        """INSERT new jobs in their order, in the transaction at hand; set their ids and ``scheduled_at``."""
        if len(jobs) == 1:
            jobs[0].save(using=self.alias, force_insert=True)
        else:
            Job.objects.using(self.alias).bulk_create(jobs, batch_size=INSERT_BATCH)
        # MySQL does not return columns from an INSERT.
        unread = [job for job in jobs if has_no_time(job)]
        if unread:
            stored = Job.objects.using(self.alias).filter(pk__in=[job.pk for job in unread])
            times = dict(stored.values_list("pk", "scheduled_at"))
            for job in unread:
                job.scheduled_at = times[job.pk]

    def insert_keyed(self, job: Job) -> Job:
        """INSERT a new job with a key, unless an unfinished one has that key; return what is stored.

        With a unique key the other one is returned as it is; with a coalesce key it gets the new params, and its row is
        locked until the transaction at hand ends.
        """
        return keys.insert_keyed(self, job)

    # Wake-ups

    def wake(self, wakes: list[Wake]) -> int:
        """Make queues (scope, name, due at) due if nothing holds them; notify the schedulers. After the commit.

        It takes a few statements per thousand queues and waits for locks for a second at most, in all. The rest is
        left to the sweep, which is asked to come soon. Return how many queues were left.
        """
        until = uptime() + WAKE_TIMEOUT
        left = _wake_in_batches(self, sorted(wakes), until) if self.in_session or len(wakes) > 1 else wakes
        if not self.in_session:
            left = _wake_one_by_one(self, left, until)
        if not self.notifies_as_it_wakes:
            self.notify()
        if left and not self.in_session:
            self.ask_for_sweep()
        return len(left)

    def _wake_one(self, wake, until):
        scope, name, due_at = wake
        rows.make_due(Queue.objects.using(self.alias).filter(pk=self.queue_id(scope, name)), due_at)

    def _wake_many(self, wakes, until) -> list[Wake]:
        """Wake up to ``WAKE_BATCH`` queues; return those whose rows another transaction has locked."""
        with transaction.atomic(using=self.alias):
            rows = _rows_of(self, wakes)
            new = [wake for wake in wakes if wake[:2] not in rows]
            if new:
                self._add_queues(new)
                rows |= _rows_of(self, new)  # another one may have added them
            late = {rows[wake[:2]].pk: wake for wake in wakes if is_late(rows[wake[:2]], wake)}
            if not late:
                return []
            # Rows are locked in one order everywhere, and nothing waits while it has some of them locked.
            locked = Queue.objects.using(self.alias).select_for_update(skip_locked=True).order_by("id")
            found = {row.pk for row in locked.filter(pk__in=late) if is_late(row, late[row.pk])}
            alike = defaultdict(list)
            for pk in found:
                alike[late[pk][2]].append(pk)
            times = [models.When(pk__in=pks, then=models.Value(due_at)) for due_at, pks in alike.items()]
            if times:
                Queue.objects.using(self.alias).filter(pk__in=found).update(
                    due_at=models.Case(*times, output_field=models.DateTimeField())
                )
            return [wake for pk, wake in late.items() if pk not in found]

    # The sweep, asked for

    def ask_for_sweep(self) -> None:
        """Make a node sweep within seconds, because jobs were created whose queues could not be woken."""
        try:
            Chore.objects.using(self.alias).update_or_create(name=SWEEP, defaults={"marks": {"asked": uuid4().hex}})
        except DatabaseError as exc:
            logger.info("sweep not asked for alias=%s cause=%r", self.alias, str(exc))

    def is_sweep_wanted(self) -> bool:
        """True if a sweep has been asked for since the last call."""
        marks = Chore.objects.using(self.alias).filter(name=SWEEP).values_list("marks", flat=True).first()
        asked = (marks.get("asked") if isinstance(marks, dict) else None) or ""
        is_new = self._asked is not None and asked != self._asked
        self._asked = asked  # the first call finds what the sweep at the start answers
        return is_new

    def queue_id(self, scope: str, name: str) -> int:
        """Return the id of the queue's row, which is made if there is none.

        Rows are locked by their ids: MySQL may search a name by another index, and lock what it passes.
        """
        ids = Queue.objects.using(self.alias).filter(scope=scope, name=name).values_list("pk", flat=True)
        found = ids.first()
        if found is None:
            self._add_queues([(scope, name, None)])
            found = ids.get()
        return found

    def _add_queues(self, wakes):
        """Add rows, due as the wakes say; rows that are there stay as they are."""
        rows = [Queue(scope=scope, name=name, due_at=due_at) for scope, name, due_at in wakes]
        Queue.objects.using(self.alias).bulk_create(rows, ignore_conflicts=True)

    def notify(self) -> None:
        """Wake the schedulers, where the database can notify."""

    # Followers

    def listener(self):
        """Return a ``Listener`` for news of jobs, on a connection of its own; None if the database cannot notify."""
        return None

    def is_followed(self) -> bool:
        """True while a follower wants to be notified, by ``notify_followers``, of what is recorded."""
        return False

    def notify_followers(self) -> None:
        """Notify followers of news, where the database can."""

    def commit_durably(self) -> None:
        """Make the current transaction wait for a standby, where others of a session do not: a claim or a result."""

    def lock_order(self, scope: str, queues: set[str]) -> None:
        """Make creators of the same queues wait for each other until this transaction ends (commit_ordered)."""
        for name in sorted(queues):
            row = Queue.objects.using(self.alias).filter(pk=self.queue_id(scope, name))
            row.select_for_update().get()

    # Claim

    def claim(
        self,
        scopes: list[str],
        limit: int,
        holder: UUID,
        *,
        now: datetime | None = None,
        only: str | None = None,
        limits: Limits | None = None,
    ) -> tuple[list[Claim], bool]:
        """Take up to ``limit`` due queues and mark their heads as running under a new fence.

        Two transactions: the locks first, the heads in a new snapshot after, because a lock says nothing about
        what the snapshot before it missed. Queues whose lock another session has are skipped. Returns the claims,
        and whether there may be more to claim.

        limits: those of the scope, which is the only one then; needed also while its breaker is not closed.

        To a job that coalesces no params come from here on. A claim that has read older ones gets the last committed.
        """
        claims: list[Claim] = []
        passed: list[int] = []
        self.closed.forget(scopes)
        for _ in range(ROUNDS):
            room = limit - len(claims)
            try:
                if limits is None:
                    found, started, rest = self.take(scopes, room, holder, now, only, passed)
                else:
                    found, started, rest = take_limited(self, scopes[0], limits, room, holder, now, only, passed)
            except Locked:
                return claims, True
            _try_to_recheck(self, rest)
            self.unlock(rest)
            claims += keys.close_to_creators(self, started, holder)
            others = set(found) - {claim.queue_id for claim in started}
            if not others or len(claims) == limit:
                break
            passed += others
        is_open = bool(self.closed.without(scopes))
        return claims, is_open and (len(found) == room or bool(passed) or bool(others))

    def take(self, scopes, room, holder, now, only, passed):
        """Return the due queues found, the claims on them, and the queues that are let go instead."""
        found, locked = self.lock_due(scopes, room, now, only, passed + self.refused.now())
        try:
            with self._savepoint():
                started, rest = self.start_heads(locked, holder, now)
        except DatabaseError as exc:
            if self.is_busy(exc):
                self.unlock(locked)
                raise Locked from exc
            started, rest = self.start_one_by_one(locked, holder, now, exc)
        return found, started, rest

    def _savepoint(self):
        """In a transaction, have an error of the block undo only what the block did."""
        is_inside = self.connection.in_atomic_block
        return transaction.atomic(using=self.alias) if is_inside else contextlib.nullcontext()

    def start_one_by_one(self, queue_ids, holder, now, exc) -> tuple[list[Claim], list[int]]:
        """Start heads after ``exc``, each alone. A queue whose row the database refuses is left out for a while."""
        if not self.in_session or not self.is_alive():
            raise exc
        claims, rest = [], []
        # The statement may have been committed before its answer was lost. None of these queues was held before it.
        for queue in Queue.objects.using(self.alias).filter(pk__in=queue_ids, held_by=holder):
            if head := rows.head_rows(self.alias).filter(pk=queue.current_job or 0).first():
                claims.append(claim_of(queue, head))
        marked = {claim.queue_id for claim in claims}
        for queue_id in [queue_id for queue_id in queue_ids if queue_id not in marked]:
            try:
                started, _ = Backend.start_heads(self, [queue_id], holder, now)
            except DatabaseError as refusal:
                if not self.is_alive():
                    raise
                if not self.is_busy(refusal):
                    self.refused.add(self.alias, queue_id, refusal)
                started = []
            if started:
                self.refused.forget(queue_id)
            claims += started
            rest += [] if started else [queue_id]
        return claims, rest

    def lock_due(self, scopes, limit, now, only=None, passed=()) -> tuple[list[int], list[int]]:
        """Return the due queues found, and those of them whose lock we have now."""
        found = self.due_queues(scopes, limit, now, only, passed)
        return found, self.try_lock(found)

    def due_queues(self, scopes, limit, now, only=None, passed=()) -> list[int]:
        """Return the ids of due queues, longest due first. Per scope, so that unserved scopes cost nothing."""
        now = now or self.now()
        due: list[tuple[datetime, int]] = []
        for scope in set(scopes) - rows.starting_none(self.alias, scopes, now):
            queues = Queue.objects.using(self.alias).due(now).filter(scope=scope)
            if only is not None:
                queues = queues.filter(name=only)
            if passed:
                queues = queues.exclude(pk__in=passed)
            due += queues.order_by("due_at").values_list("due_at", "id")[:limit]
        return [queue_id for _, queue_id in sorted(due)[:limit]]

    def start_heads(self, queue_ids, holder, now=None) -> tuple[list[Claim], list[int]]:
        """Mark the due heads of locked queues as running; return their claims and the queues let go instead."""
        if not queue_ids:
            return [], []
        claims = []
        with transaction.atomic(using=self.alias):
            self.commit_durably()
            now = now or self.now()
            # A row that another transaction has locked is passed over: it may stay so for long.
            queues = Queue.objects.using(self.alias).select_for_update(skip_locked=True).order_by("id")
            names = [models.OuterRef("scope"), models.Value(Scope.EVERYTHING)]
            resting = Scope.objects.starting_none(now).filter(name__in=names)
            for queue in queues.filter(~models.Exists(resting), pk__in=queue_ids, held_by=None, paused_at=None):
                head, current_job, due_at = rows.next_head(self.alias, queue, now)
                if head:
                    claims.append(rows.mark_started(self, queue, head, holder, now))
                elif current_job is None and due_at is None and is_own(queue.name):
                    # Its one job has ended, and may be gone: a wake-up that came so late has made the row again.
                    rows.remove_own(self.alias, [queue.pk])
                else:
                    Queue.objects.using(self.alias).filter(pk=queue.pk).update(current_job=current_job, due_at=due_at)
        started = {claim.queue_id for claim in claims}
        return claims, [queue_id for queue_id in queue_ids if queue_id not in started]

    def next_due(self, scopes: list[str]) -> float | None:
        """Return the seconds until a queue is due that no node holds, or None.

        One that is due already was passed over by the last claim, or became due after it: at once. Scopes that had no
        place free then are left out: the transaction that frees one notifies.
        """
        now = self.now()
        served = self.closed.without(scopes) - rows.resting_scopes(self.alias, scopes, now)
        waiting = Queue.objects.using(self.alias).filter(paused_at=None, held_by=None, due_at__isnull=False)
        if refused := self.refused.now():
            waiting = waiting.exclude(pk__in=refused)
        times = (
            waiting.filter(scope=scope).order_by("due_at").values_list("due_at", flat=True).first() for scope in served
        )
        first = min(filter(None, (*times, rows.end_of_snooze(self.alias, scopes, now))), default=None)
        seconds = None if first is None else max(OVERDUE, (first - now).total_seconds())
        return self.refused.or_next(self.closed.or_opening(scopes, seconds))

    def give_back(self, claims: list[Claim], holder: UUID) -> set[int]:
        """Let queues go whose jobs no worker has begun; return their ids.

        They stay what they were before the claim, their places in line included. Left to ``record`` are rows that
        another transaction has locked, and jobs that an operator asked to stop.
        """
        fences = {claim.queue_id: claim.fence for claim in claims}
        with transaction.atomic(using=self.alias):
            queues = Queue.objects.using(self.alias).filter(pk__in=fences, held_by=holder, stop_requested=False)
            held = queues.select_for_update(skip_locked=True).order_by("id").values_list("id", "fence")
            ours = {queue_id for queue_id, fence in held if fence == fences[queue_id]}
            heads = {claim.queue_id for claim in claims if claim.attempted}
            free = {"attempt": 0, "held_by": None, "held_since": None, "due_at": Coalesce("due_at", DatabaseNow())}
            Queue.objects.using(self.alias).filter(pk__in=ours & heads).update(**free)
            Queue.objects.using(self.alias).filter(pk__in=ours - heads).update(**free, current_job=None)
        self.unlock(ours)
        return ours

    # Record

    def record(
        self,
        endings: list[Ending],
        holder: UUID,
        node: str,
        keep: Callable[[Claim], bool],
        now: datetime | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Recorded:
        """Store how attempts ended, in one transaction, and let their queues go or start their next jobs.

        keep: whether this claim's queue may go straight on with its next job.
        node: what ``attempted_by`` says. Locks are given back after the commit.
        meanwhile: called once, while the server writes where that is possible; it must not raise.
        """
        meanwhile()
        try:
            with transaction.atomic(using=self.alias):
                self.commit_durably()
                written = self._record(endings, holder, node, keep, now or self.now())
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            return Recorded([], [], [], False, [ending._replace(passed_over=True) for ending in endings])
        return self._after_commit(*written, holder)

    def _record(self, endings, holder, node, keep, now) -> tuple[Recorded, list[int], list[int]]:
        """Write a batch in the transaction at hand.

        Returns the result, the queues let go, and those of them to check again.
        """
        result = Recorded([], [], [], False, [])
        released, cleared, due = [], [], False
        resting = rows.starting_none(self.alias, {ending.claim.scope for ending in endings}, now)
        breakers = Breakers(self.alias, now)
        for ending in sorted(endings, key=queue_of):  # rows are locked in one order everywhere
            queue = rows.held_queue(self.alias, ending.claim)
            was_run = ending.outcome.verdict != Verdict.RETURN
            if queue and queue.stop_requested and ending.outcome.verdict not in ENDINGS:
                ending = ending._replace(outcome=ending.outcome._replace(verdict=Verdict.CANCEL))
            if queue is None or not rows.locks_job(self.alias, ending):
                if rows.still_held(self.alias, [ending.claim]):
                    result.locked.append(ending._replace(passed_over=True))
                else:
                    result.stale.append(ending)
                continue
            if was_run and ending.outcome.verdict != Verdict.DONE:
                ending = rows.with_what_is_known(self.alias, ending)
            if queue.chunk and ending.outcome.verdict != Verdict.DONE:
                ending = rows.of_chunk(self.alias, queue, ending)
            ending = breakers.judge(ending)
            rows.write_job(self.alias, ending, node, now, was_run)
            if ending.outcome.verdict == Verdict.DONE and ending.outcome.chunk:
                rows.write_chunk(self.alias, ending, node, now)
            if ending.outcome.verdict == Verdict.DONE and ending.outcome.memory is not None:
                queue.memory = rows.remember(self.alias, ending.claim, ending.outcome.memory)
            if ending.outcome.of_scope:
                rows.snooze_scope(self.alias, queue.scope, later(now, ending.outcome))
            result.written.extend(of_each(ending))
            may_go_on = keep(ending.claim) and queue.paused_at is None and queue.scope not in resting
            claim, due_at, current_job = self._after(ending, queue, now, may_go_on, holder)
            if claim:
                result.claims.append(claim)
                continue
            rows.let_go(self.alias, queue, due_at, current_job, problem_of(ending), **alert_of(ending, now))
            if ending.outcome.verdict == Verdict.MOVE and is_own(queue.name):
                rows.remove_own(self.alias, [queue.pk])
            released.append(queue.pk)
            if due_at is not None and due_at <= now:
                due = True
            elif current_job is None and ending.outcome.verdict != Verdict.RETURN:
                cleared.append(queue.pk)
        breakers.save()
        return result._replace(released_due=due), released, cleared

    def _after_commit(self, result, released, cleared, holder) -> Recorded:
        due = _try_to_recheck(self, cleared) or result.released_due
        moved = [ending for ending in result.written if ending.outcome.verdict == Verdict.MOVE]
        if moved:
            _try_to_wake(self, {(ending.claim.scope, ending.outcome.to) for ending in moved})
        stale = {ending.claim.queue_id for ending in result.stale}
        if stale:  # an old result of ours may be refused while the queue's next job is ours
            running = Queue.objects.using(self.alias).filter(pk__in=stale, held_by=holder)
            stale.difference_update(running.values_list("pk", flat=True))
        self.unlock({*released, *stale})
        return result._replace(released_due=due, claims=keys.close_to_creators(self, result.claims, holder))

    def _after(self, ending, queue, now, may_go_on, holder):
        """Return (claim of the next job or None, due_at, current_job) for a queue whose attempt ended so."""
        claim, outcome = ending.claim, ending.outcome
        meaning = MEANING[Verdict(outcome.verdict)]
        if not meaning.frees_queue:
            is_head = claim.attempted or outcome.verdict != Verdict.RETURN
            return None, later(now, outcome) if meaning.again else None, claim.job_id if is_head else None
        queue.current_job = None
        head, current_job, due_at = rows.next_head(self.alias, queue, now)
        if head and may_go_on:
            return rows.mark_started(self, queue, head, holder, now), None, None
        return None, now if head else due_at, current_job

    def recheck(self, queue_ids: Iterable[int]) -> bool:
        """Make cleared queues due that have got a job meanwhile; True if one is due now.

        In a new snapshot, after the commit that cleared them: a creator of jobs found the queue held before that commit
        and did not wake it. A scheduler skips rows that another transaction has locked, and checks them with the next
        call.
        """
        due = False
        queue_ids, self.unchecked = {*queue_ids, *self.unchecked}, set()
        for queue in Queue.objects.using(self.alias).idle().filter(pk__in=queue_ids):
            jobs = Job.objects.using(self.alias).unfinished().in_queue(queue.scope, queue.name).in_order()
            first = jobs.values_list("scheduled_at", flat=True).first()
            if first is None or (queue.due_at is not None and queue.due_at <= first):
                continue
            due |= _make_one_due(self, queue.pk, first)
        return due

    # Upkeep

    def sum_statistics(self, columns: Sequence[str], names: Iterable[str], **which) -> tuple[list, list]:
        """Return (key, sum of each column, …) of the rows of ``Statistic``, and their histograms; see ``sums``."""
        return sums.of_columns_and_bins(self.connection, columns, names, **which)

    def behind_their_tables(self) -> list[str]:
        """Return the tables whose next ids are taken already, as after a restore of the rows alone."""
        return []

    def remedy(self, exc: Exception) -> str:
        """Return what an operator can do about an error that waking queues raised."""
        return "check for a constraint or trigger on the queues table"


def _wake_in_batches(backend, wakes, until) -> list[Wake]:
    """Wake all that no other transaction has locked; return the rest."""
    left: list[Wake] = []
    for start in range(0, len(wakes), WAKE_BATCH):
        if uptime() >= until and not backend.in_session:
            return left + wakes[start:]
        batch = wakes[start : start + WAKE_BATCH]
        try:
            left += backend._wake_many(batch, until)
        except OperationalError as exc:
            if not backend.is_busy(exc):
                raise
            left += batch
    return left


def _wake_one_by_one(backend, wakes, until) -> list[Wake]:
    """Wake queues whose rows were locked, as long as there is time; return the rest."""
    left, is_first = wakes, True
    while left and uptime() < until:
        if not is_first:  # at once it could meet the same transactions again
            time.sleep(random.uniform(0.01, 0.05))  # noqa: S311
        left, is_first = [wake for wake in left if not _is_woken(backend, wake, until)], False
    return left


def _is_woken(backend, wake, until) -> bool:
    if uptime() >= until:
        return False
    try:
        backend._wake_one(wake, until)
        return True
    except OperationalError as exc:
        if not backend.is_busy(exc):
            raise
        return False


def _rows_of(backend, wakes):
    """Return {(scope, name): what a wake-up needs of the queue}."""
    names = defaultdict(list)
    for scope, name, _ in wakes:
        names[scope].append(name)
    rows = Queue.objects.using(backend.alias).only("scope", "name", "due_at", "held_by", "current_job")
    return {(row.scope, row.name): row for scope in names for row in rows.filter(scope=scope, name__in=names[scope])}


def _make_one_due(backend, queue_id, due_at) -> bool:
    row = Queue.objects.using(backend.alias).filter(pk=queue_id)
    try:
        with transaction.atomic(using=backend.alias):
            if not backend.in_session or row.select_for_update(skip_locked=True).first():
                return bool(rows.make_due(row, due_at))
    except OperationalError as exc:
        if not (backend.in_session and backend.is_busy(exc)):
            raise
    backend.unchecked.add(queue_id)
    return False


def _try_to_recheck(backend, queue_ids) -> bool:
    """Check again; a failure now must not cost what has been committed before."""
    try:
        return backend.recheck(queue_ids)
    except DatabaseError as exc:
        if not backend.is_busy(exc):
            if not backend.in_session or not backend.is_alive():
                raise
            backend.repeats.log(logger, logging.WARNING, "second check failed cause=%r", brief(exc), cause=str(exc))
        if not backend.is_of_the_row(exc):  # else the sweep comes to them
            backend.unchecked.update(queue_ids)
        return False


def _try_to_wake(backend, lines) -> None:
    """Make queues due that jobs have moved to, so that their heads are known; a failure is left to the sweep."""
    try:
        now = backend.now()
        backend.wake([(scope, name, now) for scope, name in lines])
    except DatabaseError as exc:
        if not backend.is_busy(exc):
            if not backend.in_session or not backend.is_alive():
                raise
            backend.repeats.log(logger, logging.WARNING, "wake-up failed cause=%r", brief(exc), cause=str(exc))


def lock_alias(alias: str) -> str:
    """Return the alias whose connection carries the locks for ``alias``: past a pooler, if LOCK_DATABASE says so."""
    direct = conf.setting("LOCK_DATABASE")
    alias = alias.removesuffix(PRIVATE)
    return direct.get(alias, alias) if isinstance(direct, dict) else direct or alias
