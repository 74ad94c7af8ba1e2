"""The contract of a database, written with the ORM; SQLite and MySQL use it nearly as it stands.

A Backend works through one connection. Web processes use it for the wake-up and for people's verbs; a scheduler
opens a *session*: a connection of its own that holds one advisory lock per queue it serves and writes all claims
and results, so that a write that succeeds proves the locks were alive.

What a backend promises, and ``tests/test_backends.py`` tests for every one of them:

- ``claim`` gives each queue to one caller, with a fence higher than all before, and only its head;
- ``record`` writes a result only while the claim's fence is the queue's, and starts a queue's next job only after;
- a queue found empty is cleared, committed, and looked at again in a new snapshot: no wake-up is lost.
"""

import copy
import json
import logging
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db import OperationalError, connections, models, transaction
from django.db.models import Q
from django.db.models.expressions import DatabaseDefault
from django.db.models.functions import Cast

from .. import conf
from ..attempts import ENDINGS, ERRORS_KEPT, FAILURES, Claim, Outcome, Verdict
from ..models import Chore, Job, Node, Queue, Scope, Statistic
from ..params import ParamsDecoder
from .columns import DatabaseNow, database_now

logger = logging.getLogger(__name__)

PRIVATE = "+queuetopia"  # suffix of the alias under which a scheduler's own connection is known to the ORM
INSERT_BATCH = 1_000  # rows of one INSERT
ROUNDS = 10  # looks of one claim for queues whose lock is free
CENSUS = "census"  # the chore
OVERDUE = 0.05  # seconds until a queue is looked at again that is due and was not claimed

CLAIM_COLUMNS = (
    "id", "action", "params_text", "attempts", "scheduled_at", "timeout", "max_backoff", "max_attempts",
    "on_exhausted", "attempted_at", "failed_at", "state", "next_attempt_at",
)  # fmt: skip


class Ending(NamedTuple):
    """A claim and how its attempt ended, to be recorded; ``teller`` is whoever waits for the commit."""

    claim: Claim
    outcome: Outcome
    teller: Any = None
    passed_over: bool = False  # somebody had its rows locked when it was to be recorded


class Recorded(NamedTuple):
    """What came of recording a batch."""

    written: list[Ending]  # as stored: a requested stop may have turned a failure into CANCEL
    stale: list[Ending]  # refused: the queue is no longer held under this fence
    claims: list[Claim]  # the next jobs of queues that were kept
    released_due: bool  # a queue was let go that is due now
    locked: list[Ending]  # not written: somebody has the rows locked; to be recorded again


class Alert(NamedTuple):
    """A queue that is still blocked: the claim of its head as it would be, and for how long, in seconds."""

    claim: Claim
    duration: float
    threshold: float


class Backend:
    """Statements on the tables of Job, Queue and Node through the connection of one alias."""

    # Whether the server ends a session that has been silent for the lease, and so frees its locks.
    ends_silent_sessions = True
    # Seconds between looks for a wake-up where the database cannot push one; None where it can.
    looks_every: float | None = None

    def __init__(self, alias: str):
        self.alias = alias
        self.held: set[int] = set()
        self.unseen: set[int] = set()  # cleared queues whose second look is due: somebody had the row locked
        self.was_notified = False  # a wake-up came while another statement ran
        # What a scheduler has to do while results are written, or before, where the database is no other process.
        self.meanwhile: Callable[[], None] = lambda: None
        self._driver: Any = None  # the driver's connection that took the locks

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

        Raises SessionRefused when this connection cannot hold locks for us.
        """
        source = lock_alias(self.alias)
        private = connections.create_connection(source)
        private.settings_dict = self.session_settings(copy.deepcopy(private.settings_dict), lease)
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
        return self.connection.connection is self._driver and self.connection.is_usable()

    def fileno(self) -> int | None:
        """Return the descriptor that becomes readable on a wake-up, or None: then ``looks_every`` holds."""
        return None

    def descriptors(self) -> list[int]:
        """Return the descriptors that keep the locks while any process has them open; workers inherit them."""
        return []

    def has_news(self) -> bool:
        """True when somebody may have made a queue due since the last call."""
        return True

    def is_busy(self, exc: Exception) -> bool:
        """True for an error that says: somebody has locked what was to be written, try again later."""
        return False

    def is_deadlock(self, exc: Exception) -> bool:
        """True for an error that rolled the whole transaction back because of another one: do it all again.

        They waited for each other, or the other wrote what this one had read (where transactions are isolated so far).
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

    # Wake-ups

    def wake(self, wakes: list[tuple[str, str, datetime]]) -> None:
        """Make queues (scope, name, due at) due if nothing holds them; tell the schedulers. After the commit."""
        busy = None
        for scope, name, due_at in sorted(wakes):
            try:
                self._make_due(Queue.objects.using(self.alias).filter(pk=self.queue_id(scope, name)), due_at)
            except OperationalError as exc:
                if not self.is_busy(exc):
                    raise
                busy = exc  # one locked row must not keep the others asleep
        self.notify()
        if busy and not self.in_session:  # the sweep comes again
            raise busy

    def queue_id(self, scope: str, name: str) -> int:
        """Return the id of the queue's row, which is made if there is none.

        Rows are locked by their ids: MySQL may look for a name by another index, and lock what it passes.
        """
        ids = Queue.objects.using(self.alias).filter(scope=scope, name=name).values_list("pk", flat=True)
        found = ids.first()
        if found is None:
            self._add_queue(scope, name)
            found = ids.get()
        return found

    def _add_queue(self, scope, name):
        Queue.objects.using(self.alias).bulk_create([Queue(scope=scope, name=name)], ignore_conflicts=True)

    def _make_due(self, queues, due_at) -> int:
        idle = queues.filter(held_by=None, current_job=None)
        return idle.filter(Q(due_at=None) | Q(due_at__gt=due_at)).update(due_at=due_at)

    def notify(self) -> None:
        """Tell the schedulers to look now, where the database can."""

    # Followers

    def listener(self):
        """Return a ``Listener`` that hears of what happens to jobs, on a connection of its own; None: nothing tells."""
        return None

    def is_followed(self) -> bool:
        """True while somebody wants to be told, by ``tell_followers``, that something has been recorded."""
        return False

    def tell_followers(self) -> None:
        """Tell who follows to look now, where the database can."""

    def lock_order(self, scope: str, queues: set[str]) -> None:
        """Make creators of the same queues wait for each other until this transaction ends (commit_ordered)."""
        for name in sorted(queues):
            row = Queue.objects.using(self.alias).filter(pk=self.queue_id(scope, name))
            row.select_for_update().get()

    # Claim

    def claim(
        self, scopes: list[str], limit: int, holder: UUID, *, now: datetime | None = None, only: str | None = None
    ) -> tuple[list[Claim], bool]:
        """Take up to ``limit`` due queues and mark their heads as running under a new fence.

        Two transactions: the locks first, the heads in a new snapshot after, because a lock says nothing about
        what the snapshot before it missed. Queues whose lock somebody else has are passed over. Returns the claims,
        and whether there may be more to claim.
        """
        claims: list[Claim] = []
        passed: list[int] = []
        for _ in range(ROUNDS):
            room = limit - len(claims)
            found, locked = self.lock_due(scopes, room, now, only, passed)
            try:
                started, rest = self.start_heads(locked, holder, now)
            except OperationalError as exc:
                if not self.is_busy(exc):
                    raise
                self.unlock(locked)
                return claims, True
            self._try_to_look_again(rest)
            self.unlock(rest)
            claims += started
            others = set(found) - {claim.queue_id for claim in started}
            if not others or len(claims) == limit:
                break
            passed += others
        return claims, len(found) == room or bool(passed) or bool(others)

    def lock_due(self, scopes, limit, now, only=None, passed=()) -> tuple[list[int], list[int]]:
        """Return the due queues found, and those of them whose lock we have now."""
        found = self.due_queues(scopes, limit, now, only, passed)
        return found, self.try_lock(found)

    def due_queues(self, scopes, limit, now, only=None, passed=()) -> list[int]:
        """Return the ids of due queues, longest due first. Per scope, so that unserved scopes cost nothing."""
        now = now or self.now()
        due: list[tuple[datetime, int]] = []
        for scope in set(scopes) - self._paused_scopes(scopes):
            queues = Queue.objects.using(self.alias).due(now).filter(scope=scope)
            if only is not None:
                queues = queues.filter(name=only)
            if passed:
                queues = queues.exclude(pk__in=passed)
            due += queues.order_by("due_at").values_list("due_at", "id")[:limit]
        return [queue_id for _, queue_id in sorted(due)[:limit]]

    def _paused_scopes(self, scopes) -> set[str]:
        paused = Scope.objects.using(self.alias).filter(paused_at__isnull=False, name__in=scopes)
        return set(paused.values_list("name", flat=True))

    def start_heads(self, queue_ids, holder, now=None) -> tuple[list[Claim], list[int]]:
        """Mark the due heads of locked queues as running; return their claims and the queues let go instead."""
        if not queue_ids:
            return [], []
        claims = []
        with transaction.atomic(using=self.alias):
            now = now or self.now()
            # A row that a person's open transaction has locked is passed over: it may stay so for long.
            queues = Queue.objects.using(self.alias).select_for_update(skip_locked=True).order_by("id")
            paused = Scope.objects.filter(name=models.OuterRef("scope"), paused_at__isnull=False)
            for queue in queues.filter(~models.Exists(paused), pk__in=queue_ids, held_by=None, paused_at=None):
                head, current_job, due_at = self._head(queue, now)
                if head:
                    claims.append(self._start(queue, head, holder, now))
                else:
                    Queue.objects.using(self.alias).filter(pk=queue.pk).update(current_job=current_job, due_at=due_at)
        started = {claim.queue_id for claim in claims}
        return claims, [queue_id for queue_id in queue_ids if queue_id not in started]

    def _head(self, queue, now):
        """Return (the job to start or None, the job that is the head already or None, when the head is due)."""
        current = queue.current_job and self._jobs().filter(pk=queue.current_job, done_at=None).first()
        if current:
            if current["state"] == Job.State.HALTED:
                return None, queue.current_job, None
            due_at = current["next_attempt_at"] or now
            return (current if due_at <= now else None), queue.current_job, due_at
        head = self._jobs().unfinished().in_queue(queue.scope, queue.name).in_order().first()
        if head is None:
            return None, None, None
        if head["state"] == Job.State.HALTED:
            return None, head["id"], None
        return (head if head["scheduled_at"] <= now else None), None, head["scheduled_at"]

    def _jobs(self):
        text = Cast("params", models.TextField())
        return Job.objects.using(self.alias).annotate(params_text=text).values(*CLAIM_COLUMNS)

    def _start(self, queue, head, holder, now) -> Claim:
        queue.fence += 1
        Queue.objects.using(self.alias).filter(pk=queue.pk).update(
            fence=queue.fence,
            current_job=head["id"],
            attempt=next_attempt(head["attempts"]),
            held_by=holder,
            held_since=now,
            stop_requested=False,
            problem="",
        )
        return claim_of(queue, head)

    def next_due(self, scopes: list[str]) -> float | None:
        """Return the seconds until a queue is due that nobody holds, or None.

        One that is due already was passed over by the last claim, or became due after it looked: at once.
        """
        served = set(scopes) - self._paused_scopes(scopes)
        waiting = Queue.objects.using(self.alias).filter(paused_at=None, held_by=None, due_at__isnull=False)
        times = (
            waiting.filter(scope=scope).order_by("due_at").values_list("due_at", flat=True).first() for scope in served
        )
        first = min(filter(None, times), default=None)
        return None if first is None else max(OVERDUE, (first - self.now()).total_seconds())

    # Record

    def record(
        self, endings: list[Ending], holder: UUID, node: str, keep: Callable[[Claim], bool], now: datetime | None = None
    ) -> Recorded:
        """Store how attempts ended, in one transaction, and let their queues go or start their next jobs.

        keep: whether this claim's queue may go straight on with its next job.
        node: what ``attempted_by`` says. Locks are given back after the commit.
        """
        self.meanwhile()
        try:
            with transaction.atomic(using=self.alias):
                written = self._record(endings, holder, node, keep, now or self.now())
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            return Recorded([], [], [], False, [ending._replace(passed_over=True) for ending in endings])
        return self._after_commit(*written, holder)

    def _record(self, endings, holder, node, keep, now) -> tuple[Recorded, list[int], list[int]]:
        """Write a batch in the transaction at hand.

        Returns what came of it, the queues let go, and those of them to be looked at again.
        """
        result = Recorded([], [], [], False, [])
        released, cleared, due = [], [], False
        paused = self._paused_scopes({ending.claim.scope for ending in endings})
        for ending in sorted(endings, key=_queue_of):  # rows are locked in one order everywhere
            queue = self._held_queue(ending.claim)
            was_run = ending.outcome.verdict != Verdict.RETURN
            if queue and queue.stop_requested and ending.outcome.verdict not in ENDINGS:
                ending = ending._replace(outcome=ending.outcome._replace(verdict=Verdict.CANCEL))
            if queue is None or not self._locks_job(ending):
                if self.still_held([ending.claim]):
                    result.locked.append(ending._replace(passed_over=True))
                else:
                    result.stale.append(ending)
                continue
            self._write_job(ending, node, now, was_run)
            result.written.append(ending)
            may_go_on = keep(ending.claim) and queue.paused_at is None and queue.scope not in paused
            claim, due_at, current_job = self._after(ending, queue, now, may_go_on, holder)
            if claim:
                result.claims.append(claim)
                continue
            self._let_go(queue, due_at, current_job, _problem(ending), **_alert(ending, now))
            released.append(queue.pk)
            if due_at is not None and due_at <= now:
                due = True
            elif current_job is None and ending.outcome.verdict != Verdict.RETURN:
                cleared.append(queue.pk)
        return result._replace(released_due=due), released, cleared

    def _after_commit(self, result, released, cleared, holder) -> Recorded:
        due = self._try_to_look_again(cleared) or result.released_due
        stale = {ending.claim.queue_id for ending in result.stale}
        if stale:  # an old result of ours may be refused while the queue's next job is ours
            running = Queue.objects.using(self.alias).filter(pk__in=stale, held_by=holder)
            stale.difference_update(running.values_list("pk", flat=True))
        self.unlock({*released, *stale})
        return result._replace(released_due=due)

    def _try_to_look_again(self, queue_ids) -> bool:
        """Look again; not to be able to now must not cost what has been committed before."""
        try:
            return self.look_again(queue_ids)
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            self.unseen.update(queue_ids)
            return False

    def _held_queue(self, claim):
        """Return the queue's row, locked; None if the claim is stale, or if somebody has the row locked.

        A person's transaction may stay open for long: whoever waited for it would hold up every other queue.
        """
        return self._queues_of([claim]).select_for_update(skip_locked=True).first()

    def _locks_job(self, ending) -> bool:
        """Lock the job's row if it is to be written; False if somebody else has it locked."""
        if ending.outcome.verdict == Verdict.RETURN or not self.connection.features.has_select_for_update:
            return True
        rows = Job.objects.using(self.alias).filter(pk=ending.claim.job_id).values_list("pk")
        return bool(rows.select_for_update(skip_locked=True)) or not rows.exists()

    def still_held(self, claims: list[Claim]) -> set[int]:
        """Return the ids of the queues that are held under the fence of one of these claims."""
        return set(self._queues_of(claims).values_list("pk", flat=True))

    def _queues_of(self, claims):
        ours = Q()
        for claim in claims:
            ours |= Q(pk=claim.queue_id, fence=claim.fence, current_job=claim.job_id)
        held = Queue.objects.using(self.alias).filter(held_by__isnull=False)
        return held.filter(ours) if claims else held.none()

    def _write_job(self, ending, node, now, was_run):
        claim, outcome = ending.claim, ending.outcome
        if outcome.verdict == Verdict.RETURN:
            return
        job = Job.objects.using(self.alias).filter(pk=claim.job_id, done_at=None)
        errors = history(job.values_list("errors", flat=True).first()) if outcome.error else []
        values = job_values(claim, outcome, node, now, errors)
        if not was_run:  # cancelled before it began: there was no attempt
            values = {name: values[name] for name in ("state", "done_at", "next_attempt_at")}
        job.update(**values)

    def _after(self, ending, queue, now, may_go_on, holder):
        """Return (claim of the next job or None, due_at, current_job) for a queue whose attempt ended so."""
        claim, outcome = ending.claim, ending.outcome
        later = _later(now, outcome)
        if outcome.verdict == Verdict.RETURN:
            return None, later, claim.job_id if claim.attempted else None
        if outcome.verdict in (Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT):
            return None, later, claim.job_id
        if outcome.verdict == Verdict.HALT:
            return None, None, claim.job_id
        queue.current_job = None
        head, current_job, due_at = self._head(queue, now)
        if head and may_go_on:
            return self._start(queue, head, holder, now), None, None
        return None, now if head else due_at, current_job

    def _let_go(self, queue, due_at, current_job, problem="", **alert):
        """Release the queue; ``problem`` says why this code cannot serve its head, ``alert`` when to look again."""
        held = Queue.objects.using(self.alias).filter(pk=queue.pk, fence=queue.fence, held_by=queue.held_by)
        held.update(
            due_at=due_at,
            current_job=current_job,
            attempt=0,
            held_by=None,
            held_since=None,
            stop_requested=False,
            problem=problem,
            **alert,
        )

    def look_again(self, queue_ids: Iterable[int]) -> bool:
        """Make cleared queues due that have got a job meanwhile; True if one is due now.

        In a new snapshot, after the commit that cleared them: whoever created a job before that commit saw the
        queue held and did not wake it. A scheduler passes over rows that somebody has locked, and looks at them with
        the next call.
        """
        due = False
        queue_ids, self.unseen = {*queue_ids, *self.unseen}, set()
        for queue in Queue.objects.using(self.alias).filter(pk__in=queue_ids, held_by=None, current_job=None):
            jobs = Job.objects.using(self.alias).unfinished().in_queue(queue.scope, queue.name).in_order()
            first = jobs.values_list("scheduled_at", flat=True).first()
            if first is None or (queue.due_at is not None and queue.due_at <= first):
                continue
            due |= self._make_one_due(queue.pk, first)
        return due

    def _make_one_due(self, queue_id, due_at) -> bool:
        row = Queue.objects.using(self.alias).filter(pk=queue_id)
        try:
            with transaction.atomic(using=self.alias):
                if not self.in_session or row.select_for_update(skip_locked=True).first():
                    return bool(self._make_due(row, due_at))
        except OperationalError as exc:
            if not (self.in_session and self.is_busy(exc)):
                raise
        self.unseen.add(queue_id)
        return False

    def forget_problems(self, scopes: list[str]) -> None:
        """Make queues with a problem due: this node's code may know what the last one's did not."""
        queues = Queue.objects.using(self.alias).filter(scope__in=scopes, held_by=None).exclude(problem="")
        with transaction.atomic(using=self.alias):
            free = [queue.pk for queue in queues.select_for_update(skip_locked=True).order_by("id")]
            queues.filter(pk__in=free).update(problem="", due_at=DatabaseNow())

    def stop_requests(self, claims: list[Claim]) -> set[int]:
        """Return the ids of the running jobs among ``claims`` that a person asked to stop."""
        asked = Queue.objects.using(self.alias).filter(
            pk__in=[claim.queue_id for claim in claims], held_by__isnull=False, stop_requested=True
        )
        return {job_id for job_id in asked.values_list("current_job", flat=True) if job_id is not None}

    # Nodes

    def register(self, node_id: UUID, host: str, pid: int, scopes: list[str]) -> None:
        Node.objects.using(self.alias).create(id=node_id, host=host, pid=pid, scopes=scopes)

    def beat(self, node_id: UUID, workers: list[dict]) -> bool:
        """Prove that the node lives; False when a successor has fenced it."""
        nodes = Node.objects.using(self.alias).filter(pk=node_id, fenced_at=None)
        return bool(nodes.update(last_seen=DatabaseNow(), workers=workers))

    def unregister(self, node_id: UUID) -> None:
        """Remove the node; one that still holds a queue is fenced instead, so that a successor finds the queue."""
        if self.holds_nothing(node_id):
            Node.objects.using(self.alias).filter(pk=node_id).delete()
        else:
            self.fence(node_id)

    def other_nodes(self, node_id: UUID) -> list[Node]:
        return list(Node.objects.using(self.alias).exclude(pk=node_id).defer("workers"))

    def fence(self, node_id: UUID) -> None:
        """Declare a node dead: its heartbeats are refused from now on, its queues may be taken over."""
        Node.objects.using(self.alias).filter(pk=node_id, fenced_at=None).update(fenced_at=DatabaseNow())

    def holders(self, scopes: list[str]) -> set[UUID]:
        """Return the ids of the nodes in whose names queues are held."""
        held = Queue.objects.using(self.alias).held().filter(scope__in=scopes)
        return {node_id for node_id in held.values_list("held_by", flat=True).distinct() if node_id}

    def lost_claims(
        self, node_id: UUID, scopes: list[str], limit: int, known: Iterable[int] = ()
    ) -> list[tuple[Claim, str]]:
        """Return the claims a dead node left behind, without queues ``known``, each with the type of its last error."""
        queues = Queue.objects.using(self.alias).filter(held_by=node_id, scope__in=scopes)
        known, lost = set(known), []
        ids = [pk for pk in queues.order_by("id").values_list("pk", flat=True) if pk not in known][:limit]
        for queue in queues.filter(pk__in=ids).order_by("id"):
            head = self._jobs().filter(pk=queue.current_job or 0).first()
            if head is not None:
                stored = Job.objects.using(self.alias).filter(pk=head["id"])
                errors = history(stored.values_list("errors", flat=True).first())
                lost.append((claim_of(queue, head), errors[-1].get("type", "") if errors else ""))
            else:
                self._let_go(queue, DatabaseNow(), None)
        return lost

    def holds_nothing(self, node_id: UUID) -> bool:
        return not Queue.objects.using(self.alias).filter(held_by=node_id).exists()

    # The safety net

    def sweep(self, scope: str, after: str, limit: int = 100) -> tuple[int, str | None]:
        """Make idle queues due that have unfinished jobs, ``limit`` queues of the scope from name ``after`` on.

        Repairs wake-ups lost by a crash between a commit and its wake. Returns how many queues were repaired and
        the name to go on after, None at the end of the scope.
        """
        jobs = Job.objects.using(self.alias).unfinished().filter(scope=scope, queue__gt=after)
        firsts = dict(jobs.order_by("queue").values_list("queue").annotate(first=models.Min("scheduled_at"))[:limit])
        queues = Queue.objects.using(self.alias).filter(scope=scope, name__in=firsts)
        repaired = self._unblock_from_vanished(queues)
        now = self.now()
        well = {
            queue.name
            for queue in queues
            if queue.held_by or queue.current_job or queue.problem or _is_due_by(queue, max(now, firsts[queue.name]))
        }
        idle = [(scope, name, first) for name, first in firsts.items() if name not in well]
        if idle:
            self.wake(idle)
        # The last name in the database's order, which need not be Python's.
        return repaired + len(idle), [*firsts][-1] if len(firsts) == limit else None

    def _unblock_from_vanished(self, queues) -> int:
        """Make due the blocked queues whose head was deleted by hand; a halted one would stay blocked for ever."""
        blocked = dict(queues.blocked().values_list("current_job", "pk"))
        heads = Job.objects.using(self.alias).unfinished().filter(pk__in=blocked)
        vanished = set(blocked) - set(heads.values_list("pk", flat=True)) if blocked else set()
        for current_job in vanished:
            still = queues.blocked().filter(pk=blocked[current_job], current_job=current_job)
            still.update(current_job=None, due_at=DatabaseNow())
        return len(vanished)

    # Alerts

    def due_alerts(self, scopes: list[str], limit: int = 100) -> list[Alert]:
        """Return the queues that have been blocked for longer than one threshold more: each to one caller only.

        Of a queue that goes on by now the row is put right, and nothing is returned.
        """
        rows = Queue.objects.using(self.alias).filter(alert_at__lte=DatabaseNow(), scope__in=scopes)
        if not rows.exists():
            return []
        now, alerts = self.now(), []
        with transaction.atomic(using=self.alias):
            queues = list(rows.order_by("alert_at").select_for_update(skip_locked=True)[:limit])
            current = [queue.current_job for queue in queues if queue.current_job is not None]
            heads = {job["id"]: job for job in self._jobs().filter(pk__in=current, done_at=None)}
            for queue in queues:
                head = heads.get(queue.current_job)
                queue.alert_at = None
                if head and head["failed_at"]:
                    alerts += self._alerts_of(queue, head, now)
            Queue.objects.using(self.alias).bulk_update(queues, ["alert_at"])
        return alerts

    def _alerts_of(self, queue, head, now):
        """Return the alert that is due, if one is, and set when the next one will be."""
        duration = (now - head["failed_at"]).total_seconds()
        thresholds = conf.alert_after()
        later = [after for after in thresholds if after > duration]
        queue.alert_at = head["failed_at"] + timedelta(seconds=later[0]) if later else None
        claim = claim_of(queue, head)._replace(attempt=head["attempts"])
        return [Alert(claim, duration, max(passed))] if (passed := set(thresholds) - set(later)) else []

    def was_done(self, chore: str, every: float) -> bool:
        """True when somebody has done the chore within ``every`` seconds."""
        since = self.now() - timedelta(seconds=every)
        return Chore.objects.using(self.alias).filter(name=chore, done_at__gt=since).exists()

    def is_turn(self, chore: str, every: float) -> bool:
        """True for the first caller in the cluster since ``every`` seconds: it is to do the chore now."""
        Chore.objects.using(self.alias).bulk_create([Chore(name=chore)], ignore_conflicts=True)
        now = self.now()
        due = Q(done_at=None) | Q(done_at__lte=now - timedelta(seconds=every))
        return bool(Chore.objects.using(self.alias).filter(due, name=chore).update(done_at=now))

    # Statistics

    def save_statistics(self, node_id: UUID, rows: list[dict[str, Any]]) -> None:
        """Write the node's own rows, over those of the same span: writing them again changes nothing."""
        keys = ["scope", "at", "action", "node"]
        has_target = self.connection.features.supports_update_conflicts_with_target
        Statistic.objects.using(self.alias).bulk_create(
            [Statistic(node=node_id, **row) for row in rows],
            update_conflicts=True,
            unique_fields=keys if has_target else None,
            update_fields=[field.name for field in Statistic._meta.fields if field.name not in ("id", *keys)],
        )

    def take_census(self, look: Callable[..., Any], every: float) -> bool:
        """Add what ``look`` finds since the last time to the rows of ``Statistic`` that are no node's.

        One caller in the cluster does so, every so many seconds; what it adds and how far it has come is one
        transaction. Returns whether something is left for another call.
        """
        chores = Chore.objects.using(self.alias)
        now = self.now()
        due = Q(done_at=None) | Q(done_at__lte=now - timedelta(seconds=every))
        if not chores.filter(due, name=CENSUS).exists():
            if chores.filter(name=CENSUS).exists():
                return False
            chores.bulk_create([Chore(name=CENSUS)], ignore_conflicts=True)
        with transaction.atomic(using=self.alias):
            passes_over = self.connection.features.has_select_for_update_skip_locked
            chore = chores.select_for_update(skip_locked=passes_over).filter(due, name=CENSUS).first()
            if chore is None:
                return False
            found, chore.marks, is_all = look(self.alias, chore.marks, now)
            for (scope, action, at), more in found.items():
                self._add_to_statistic(scope, action, at, more)
            chore.done_at = now if is_all else chore.done_at
            chore.save(using=self.alias, update_fields=["marks", "done_at"])
        return not is_all

    def _add_to_statistic(self, scope, action, at, more):
        # Whoever has the chore's row locked is the only one who writes these.
        key = {"scope": scope, "action": action, "at": at, "node": Statistic.NOBODY}
        row = Statistic.objects.using(self.alias).filter(**key).first() or Statistic(**key)
        for name, number in more.counts.items():
            setattr(row, name, getattr(row, name) + number)
        for number, count in more.blocks.items():
            row.blocks[str(number)] = row.blocks.get(str(number), 0) + count
        row.blocked_seconds += more.blocked_seconds
        row.save(using=self.alias)

    def prune_statistics(self, scopes: list[str], keep: float, limit: int = 1_000) -> int:
        """Delete up to ``limit`` rows that are older than ``keep`` seconds; return how many."""
        old = Statistic.objects.using(self.alias).filter(scope__in=scopes)
        old = old.filter(at__lt=self.now() - timedelta(seconds=keep))
        ids = list(old.values_list("pk", flat=True)[:limit])
        if ids:
            old.filter(pk__in=ids)._raw_delete(self.alias)
        return len(ids)

    def has_work(self, scopes: list[str]) -> bool:
        """True while a served queue runs, is due, or backs off: what --until-empty waits for."""
        now = self.now()
        served = set(scopes) - self._paused_scopes(scopes)
        queues = Queue.objects.using(self.alias).filter(scope__in=served)
        busy = Q(held_by__isnull=False) | Q(paused_at=None, due_at__lte=now)
        backing_off = Q(paused_at=None, current_job__isnull=False, due_at__isnull=False, problem="")
        return queues.filter(busy | backing_off).exists()


def is_plain(ending: Ending) -> bool:
    """True for a success that nothing speaks against writing together with others."""
    return ending.outcome.verdict == Verdict.DONE and not ending.passed_over


def joined(one: Recorded, other: Recorded) -> Recorded:
    return Recorded(
        one.written + other.written,
        one.stale + other.stale,
        one.claims + other.claims,
        one.released_due or other.released_due,
        one.locked + other.locked,
    )


def _queue_of(ending):
    return ending.claim.queue_id


def _problem(ending) -> str:
    """Say why a job was given back, if it was for a reason: an unknown action, or a setup() that failed."""
    error = ending.outcome.error if ending.outcome.verdict == Verdict.RETURN else None
    return error["message"][:500] if error else ""


def _alert(ending, now) -> dict[str, datetime | None]:
    """Return when to look whether the queue is still blocked, if this is what blocks it."""
    if ending.outcome.verdict not in (Verdict.RETRY, Verdict.HALT) or ending.claim.failed_at:
        return {}
    return {"alert_at": next((now + timedelta(seconds=after) for after in conf.alert_after()), None)}


def _is_due_by(queue, time):
    return queue.due_at is not None and queue.due_at <= time


def _later(now, outcome):
    # A performer may ask for any delay; one beyond the calendar must not stop the scheduler.
    return now + timedelta(seconds=min(outcome.delay, conf.LONGEST))


def history(errors) -> list[dict]:
    """Return ``job.errors`` as read, without what is not ours: a corrupt row must not stop the scheduler."""
    return [entry for entry in errors if isinstance(entry, dict)] if isinstance(errors, list) else []


def next_attempt(attempts: int) -> int:
    """Return the number of the next attempt. One row whose number overflowed would keep all from being claimed."""
    return min(attempts, conf.MOST_ATTEMPTS) + 1


def claim_of(queue, head) -> Claim:
    return Claim(
        job_id=head["id"],
        queue_id=queue.pk,
        scope=queue.scope,
        queue=queue.name,
        action=head["action"],
        params=head["params_text"],
        attempt=next_attempt(head["attempts"]),
        fence=queue.fence,
        rev=queue.rev,
        scheduled_at=head["scheduled_at"].isoformat(),
        timeout=head["timeout"],
        max_backoff=head["max_backoff"],
        max_attempts=head["max_attempts"],
        on_exhausted=head["on_exhausted"],
        attempted=head["attempted_at"] is not None,
        failed_at=head["failed_at"] and head["failed_at"].isoformat(),
    )


def job_values(claim: Claim, outcome: Outcome, node: str, now: datetime, errors: list[dict]) -> dict[str, Any]:
    """Return the columns of a job whose attempt ended so. ``attempted_at`` is when the attempt ended."""
    counted = outcome.verdict not in (Verdict.SNOOZE, Verdict.INTERRUPT)
    values: dict[str, Any] = {"attempted_at": now, "attempted_by": node, "next_attempt_at": None}
    if counted:
        values["attempts"] = claim.attempt
    if outcome.error:
        entry = {
            "attempt": claim.attempt,
            "at": now.isoformat(),
            "by": node,
            "duration": round(outcome.duration, 6),
            "counted": counted,
            **outcome.error,
        }
        values["errors"] = [*errors, entry][-ERRORS_KEPT:]
        if outcome.verdict in FAILURES:
            values["error"] = f"{entry['type']}: {entry['message']}"
    if outcome.verdict in FAILURES and not claim.failed_at:
        values["failed_at"] = now
    if outcome.verdict in (Verdict.RETRY, Verdict.SNOOZE, Verdict.INTERRUPT):
        values["next_attempt_at"] = _later(now, outcome)
    elif outcome.verdict == Verdict.HALT:
        values["state"] = Job.State.HALTED
    else:
        states = {Verdict.DONE: Job.State.DONE, Verdict.SKIP: Job.State.SKIPPED, Verdict.CANCEL: Job.State.CANCELLED}
        values |= {"state": states[Verdict(outcome.verdict)], "done_at": now}
        values["result"] = None if outcome.result is None else json.loads(outcome.result, cls=ParamsDecoder)
    return values


def has_no_time(job) -> bool:
    """True for a new job whose scheduled_at is the database's clock at its INSERT."""
    return isinstance(job.scheduled_at, DatabaseDefault)


def lock_alias(alias: str) -> str:
    """Return the alias whose connection carries the locks for ``alias``: past a pooler, if LOCK_DATABASE says so."""
    direct = conf.setting("LOCK_DATABASE")
    alias = alias.removesuffix(PRIVATE)
    return direct.get(alias, alias) if isinstance(direct, dict) else direct or alias
