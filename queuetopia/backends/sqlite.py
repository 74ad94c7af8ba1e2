"""SQLite: one host by nature. The queues' locks are byte ranges of one file beside the database.

The locks belong to an open file description (F_OFD_SETLK), which workers inherit: the kernel frees a queue when
the last process that could be running its job is dead. One file and one descriptor serve any number of queues;
the byte at offset ``queue id`` is that queue's lock.
"""

import fcntl
import os
import sqlite3
import struct
from collections import defaultdict

from django.db import connections, transaction
from django.db.models import OuterRef, Subquery

from ..exceptions import SessionRefused
from ..models import Job, Queue
from . import base, rows, values

_LOCK_COMMAND = getattr(fcntl, "F_OFD_SETLK", None)  # Linux; elsewhere locks die with the scheduler alone

_TIMEOUT = 0.5  # seconds that a statement of a scheduler waits for another writer


class Backend(base.Backend):
    # PRAGMA data_version costs some microseconds and no disk access; it changes with every foreign commit.
    polls_every = 0.02
    ends_silent_sessions = False  # the locks are the kernel's

    def __init__(self, alias):
        super().__init__(alias)
        self._lock_file: int | None = None
        self._version: int | None = None

    def open_session(self, lease):
        name = str(connections[self.alias].settings_dict["NAME"])
        if ":memory:" in name or "mode=memory" in name or not name:
            raise SessionRefused(
                f"Database {self.alias!r} is in memory, where other processes cannot see it: use a file."
            )
        super().open_session(lease)
        with self.connection.cursor() as cursor:
            path = cursor.execute("PRAGMA database_list").fetchone()[2]
        # The same file whatever name or link leads to the database.
        self._lock_file = os.open(f"{os.path.realpath(path)}.queuetopia", os.O_RDWR | os.O_CREAT, 0o660)
        self._version = None

    def close_session(self):
        super().close_session()
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def session_settings(self, settings, lease):
        settings = super().session_settings(settings, lease)
        # The heartbeat of the whole node waits with a statement that waits for another writer.
        timeout = min(settings["OPTIONS"].get("timeout", _TIMEOUT), _TIMEOUT)
        settings["OPTIONS"] |= {"transaction_mode": "IMMEDIATE", "timeout": timeout}
        return settings

    def is_busy(self, exc):
        code = getattr(exc.__cause__, "sqlite_errorcode", None)
        return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)

    def descriptors(self):
        return [] if self._lock_file is None else [self._lock_file]

    def has_news(self):
        with self.connection.cursor() as cursor:
            (version,) = cursor.execute("PRAGMA data_version").fetchone()
        changed, self._version = version != self._version, version
        return changed

    def try_lock(self, queue_ids):
        return super().try_lock(
            [queue_id for queue_id in queue_ids if queue_id in self.held or self._lock(queue_id, fcntl.F_WRLCK)]
        )

    def unlock(self, queue_ids):
        queue_ids = list(queue_ids)
        for queue_id in queue_ids:
            self._lock(queue_id, fcntl.F_UNLCK)
        super().unlock(queue_ids)

    def _lock(self, queue_id, kind):
        if self._lock_file is None:
            return True
        try:
            if _LOCK_COMMAND is None:
                operation = fcntl.LOCK_UN if kind == fcntl.F_UNLCK else fcntl.LOCK_EX | fcntl.LOCK_NB
                fcntl.lockf(self._lock_file, operation, 1, queue_id)
            else:
                fcntl.fcntl(self._lock_file, _LOCK_COMMAND, struct.pack("hhqqi4x", kind, os.SEEK_SET, queue_id, 1, 0))
        except BlockingIOError:
            return False
        return True

    def insert_keyed(self, job):
        with transaction.atomic(using=self.alias):
            # A transaction that reads first cannot write after another one has: this one writes first.
            Queue.objects.using(self.alias).filter(pk=0).update(rev=0)
            return super().insert_keyed(job)

    def wake(self, wakes):
        # The whole database is locked while another process writes.
        with self.connection.cursor() as cursor:
            (usual,) = cursor.execute("PRAGMA busy_timeout").fetchone()
            cursor.execute(f"PRAGMA busy_timeout = {min(usual, int(base.WAKE_TIMEOUT * 1000))}")
            try:
                return super().wake(wakes)
            finally:
                cursor.execute(f"PRAGMA busy_timeout = {usual}")

    def ask_for_sweep(self):
        with self.connection.cursor() as cursor:
            cursor.execute("PRAGMA busy_timeout = 0")
        super().ask_for_sweep()

    # Record

    def _record(self, endings, holder, node, keep, now):
        """Successes in queues that are as claimed are written together: there is one writer, nothing moves."""
        queues, done, rest = self._untouched(endings)
        self._write_done(done, node, now)
        heads = self._next_heads(queues)
        resting = rows.starting_none(self.alias, {queue.scope for queue in queues.values()}, now)
        claims, let_go, cleared, due = [], [], [], False
        for ending in done:
            queue, head = queues[ending.claim.queue_id], heads.get(ending.claim.queue_id)
            if ending.outcome.memory is not None:
                queue.memory = rows.remember(self.alias, ending.claim, ending.outcome.memory)
            may_go_on = keep(ending.claim) and queue.scope not in resting
            is_due = head is not None and head["state"] == Job.State.PENDING and head["scheduled_at"] <= now
            if is_due and may_go_on:
                queue.fence += 1
                claims.append(values.claim_of(queue, head))
                continue
            is_halted = head is not None and head["state"] == Job.State.HALTED
            due_at = None if head is None or is_halted else max(now, head["scheduled_at"])
            rows.let_go(self.alias, queue, due_at, head["id"] if is_halted else None)
            let_go.append(queue.pk)
            due |= is_due
            if not is_due and not is_halted:
                cleared.append(queue.pk)
        self._start_next(claims, now)
        result = values.Recorded(done, [], claims, due, [])
        others, also_released, also_cleared = super()._record(rest, holder, node, keep, now)
        return values.joined(result, others), let_go + also_released, cleared + also_cleared

    def _untouched(self, endings):
        """Return {id: row} of queues still as they were claimed, the successes in them, and all other endings."""
        plain = {ending.claim.queue_id: ending for ending in endings if values.is_plain(ending)}
        held = Queue.objects.using(self.alias).held().filter(pk__in=plain, stop_requested=False)
        claims = {queue_id: ending.claim for queue_id, ending in plain.items()}
        queues = {queue.pk: queue for queue in held if _is_as_claimed(queue, claims[queue.pk])}
        done = [plain[queue_id] for queue_id in queues]
        ours = set(map(id, done))
        return queues, done, [ending for ending in endings if id(ending) not in ours]

    def _write_done(self, endings, node, now):
        alike = defaultdict(list)
        for ending in endings:
            alike[ending.claim.attempt, ending.outcome.result].append(ending)
        for group in alike.values():
            columns = values.job_values(group[0].claim, group[0].outcome, node, now, [])
            jobs = Job.objects.using(self.alias).filter(pk__in=[ending.claim.job_id for ending in group], done_at=None)
            jobs.update(**columns)

    def _next_heads(self, queue_ids):
        """Return {queue's id: the first of its unfinished jobs}."""
        line = Job.objects.unfinished().in_queue(OuterRef("scope"), OuterRef("name")).in_order()
        queues = Queue.objects.using(self.alias).filter(pk__in=queue_ids).annotate(head=Subquery(line.values("id")[:1]))
        ids = dict(queues.values_list("pk", "head"))
        heads = {head["id"]: head for head in rows.head_rows(self.alias).filter(pk__in=ids.values())}
        return {queue_id: heads[head] for queue_id, head in ids.items() if head is not None}

    def _start_next(self, claims, now):
        """Mark the jobs as running in queues that are held already."""
        if not claims:
            return
        held_since = self.connection.ops.adapt_datetimefield_value(now)
        with self.connection.cursor() as cursor:
            cursor.executemany(
                f"UPDATE {Queue._meta.db_table} SET fence = %s, current_job = %s, attempt = %s, held_since = %s,"  # noqa: S608
                " problem = '' WHERE id = %s",
                [(claim.fence, claim.job_id, claim.attempt, held_since, claim.queue_id) for claim in claims],
            )

    def lock_order(self, scope, queues):
        """Nothing to do: writers wait for each other anyway."""


def _is_as_claimed(queue, claim):
    return (queue.fence, queue.rev, queue.current_job) == (claim.fence, claim.rev, claim.job_id)
