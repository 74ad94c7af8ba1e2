"""PostgreSQL: claims, results and wake-ups of many queues in one statement each.

Why the claim has this shape (each line was a bug somewhere):

- The candidates are picked and row-locked in a MATERIALIZED CTE with a LIMIT, and ``pg_try_advisory_lock`` stands in
  the select list above it. In a WHERE the planner may call it for rows it then throws away (10,000 locks taken for
  LIMIT 1), and evaluate it twice (the lock is re-entrant: it is never given back).
- FOR NO KEY UPDATE SKIP LOCKED: two schedulers pick different queues instead of waiting for each other. The row
  locks end with that first transaction, which has nothing to keep and so waits for no disk; what lasts is the
  session's advisory lock.
- The heads are read in a *second* transaction. The lock says who may start; it says nothing about what the snapshot
  of the statement that took it has missed. In one statement a job that was just finished elsewhere runs twice.
- The UPDATE that marks a head repeats the conditions on the row (``held_by``, ``rev``): if an operator's verb committed
  after our snapshot, PostgreSQL re-reads the row and the mark does not happen. A pause raises ``rev``, too.
- ``unnest`` + LATERAL per scope: each scope is one range of the index (scope, due_at), so that 100,000 due queues of
  a scope that is not served here are never read. CTEs have no statistics: columns are carried through instead of
  joining a CTE back (a 200 x 200 join of two of them halved the rate).
- A row looked up by its id is not tested in the same place for the condition of a partial index, a queue for
  ``paused_at IS NULL``, a job for ``done_at IS NULL`` (which its state implies). It would let the planner, while the
  tables are small, read all of that index for each row instead of one entry of the primary key, and keep that plan.

Locks are 64-bit numbers of a namespace (which tables: a database may hold several installs, each in a schema of its
own) and the queue row's id, so that nothing collides. Notifications carry the same namespace.
"""

import binascii
import logging

from django.apps import apps
from django.db import DatabaseError, OperationalError, connections, transaction

from ..attempts import Claim
from ..channel import uptime
from ..conf import JOB_OPTIONS, MOST_ATTEMPTS
from ..exceptions import SessionLost, SessionRefused
from ..lines import row_name
from ..models import Job, Queue, Scope
from ..params import as_text
from ..text import brief
from . import base, keys, values
from .standby import Patience

logger = logging.getLogger(__name__)

CHANNEL = "queuetopia"
FOLLOWERS = "queuetopia_followers"  # from nodes to followers; a channel of its own, or it would wake nodes
FOLLOW = "follow"  # the payload, on CHANNEL, of a follower's request
_SWEEP = "sweep "  # the payload, on CHANNEL, of a creator that could not wake its queues
FOLLOWED = 15.0  # seconds for which a node believes that

JOB, QUEUE, SCOPE = (f'"{model._meta.db_table}"' for model in (Job, Queue, Scope))
# Which of the tables of this name: that of the schema which the session's search_path leads to.
OURS = f"'{QUEUE}'::regclass::oid"

# What a claim carries, in its own order, of a queue that has just been marked: its row, and what was read of its head.
_JOB_COLUMNS = ", ".join(["params", *values.HEAD_COLUMNS])
_HEAD_OF_CLAIM = ", ".join(["h.id AS jid", "h.params", *(f"h.{name}" for name in values.HEAD_COLUMNS if name != "id")])
_CLAIM = ", ".join(
    {
        "job_id": "jid",
        "queue_id": "id",
        "queue": "name",
        "params": "params::text",
        "scheduled_at": "scheduled_at::text",
        "attempted": "attempted_at IS NOT NULL",
        "failed_at": "failed_at::text",
        "outside": "outside::text",
        "memory": "memory::text",
        "coalesces": "coalesce_key IS NOT NULL",
        "trial": "false",
    }.get(name, name)
    for name in Claim._fields
)

# Django's own INSERT takes twice as long, most of it in Python.
_GIVEN = ("scope", "queue", "action", "params", *JOB_OPTIONS, "scheduled_at")
_ARRAYS = {"FloatField": "float", "PositiveIntegerField": "int", "DateTimeField": "timestamptz"}
_GIVEN_ARRAYS = ", ".join(
    f"%s::{_ARRAYS.get(Job._meta.get_field(name).get_internal_type(), 'text')}[]" for name in _GIVEN
)
_INSERT = f"INSERT INTO {JOB} ({', '.join(_GIVEN)}, state, attempts, attempted_by, error, errors)"
_NEW = "coalesce({}, statement_timestamp()), 'pending', 0, '', '', '[]'"
_INSERT_ONE = f"""
    {_INSERT} VALUES ({"%s, " * (len(_GIVEN) - 1)} {_NEW.format("%s")})
    RETURNING id, scheduled_at
"""
_INSERT_MANY = f"""
    {_INSERT}
    SELECT scope, queue, action, params::jsonb, {", ".join(JOB_OPTIONS)}, {_NEW.format("scheduled_at")}
    FROM unnest({_GIVEN_ARRAYS}) WITH ORDINALITY AS j ({", ".join(_GIVEN)}, place)
    ORDER BY place
    RETURNING id, scheduled_at
"""  # noqa: S608

# An INSERT that finds its key taken by a job whose transaction is open waits for that to end.
_KEYED = f"""
    {_INSERT[:-1]}, {{key}}) VALUES ({"%s, " * (len(_GIVEN) - 1)} {_NEW.format("%s")}, %s)
    ON CONFLICT ({{columns}}, {{key}}) WHERE done_at IS NULL AND {{key}} IS NOT NULL DO {{instead}}
    RETURNING id, scheduled_at, xmax = 0
"""
_INSERT_UNIQUE = _KEYED.format(key="unique_key", columns="scope, queue", instead="NOTHING")
_INSERT_COALESCED = _KEYED.format(
    key="coalesce_key", columns="scope, queue, action", instead="UPDATE SET params = excluded.params"
)

# The database's clock, unless a test or ``testing.drain`` has one of its own.
NOW = "coalesce(%(now)s, statement_timestamp())"


_RESTS = "(paused_at IS NOT NULL OR snoozed_until > {now})"
_STARTS_NONE = f"({_RESTS} OR ramp IS NOT NULL)"  # but by ``limits.take_limited``


def _is_resting(scope, now=NOW, rests=_STARTS_NONE):
    """Return the condition that nothing of this scope starts, or of everything."""
    rests = rests.format(now=now)
    return f"EXISTS (SELECT 1 FROM {SCOPE} WHERE name IN ({scope}, '{Scope.EVERYTHING}') AND {rests})"  # noqa: S608


_CANDIDATES = f"""
    WITH due AS MATERIALIZED (
        SELECT c.id FROM unnest(%(scopes)s::text[]) AS s (scope) CROSS JOIN LATERAL (
            SELECT q.id, q.due_at FROM {QUEUE} q
            WHERE q.scope = s.scope AND q.due_at <= {NOW} AND q.paused_at IS NULL AND q.held_by IS NULL
              AND (%(only)s::text IS NULL OR q.name = %(only)s) AND q.id <> ALL(%(passed)s)
            ORDER BY q.due_at LIMIT %(limit)s FOR NO KEY UPDATE OF q SKIP LOCKED
        ) c
        WHERE NOT {_is_resting("s.scope")}
        ORDER BY c.due_at LIMIT %(limit)s
    )
    SELECT id, pg_try_advisory_lock(%(base)s + id), set_config('synchronous_commit', 'off', true) FROM due
"""  # noqa: S608 - the names of our own tables

# The next head of a queue row ``q``: the job it is set to, else the first in line.
_HEAD = f"""
    (SELECT {_JOB_COLUMNS} FROM {JOB}
     WHERE q.current_job IS NOT NULL AND id = q.current_job AND state IN ('pending', 'halted')
     UNION ALL
     (SELECT {_JOB_COLUMNS} FROM {JOB}
      WHERE q.current_job IS NULL AND scope = q.scope AND queue = q.name AND done_at IS NULL
      ORDER BY scheduled_at, id LIMIT 1))
"""  # noqa: S608

# One row, once: the transaction waits for the standby as the project has it.
_DURABLY = """
    (SELECT set_config('synchronous_commit', coalesce(%(commit)s::text, current_setting('synchronous_commit')), true)) s
"""

_START = f"""
    WITH h AS MATERIALIZED (
        SELECT q.id AS qid, q.rev AS qrev, q.paused_at, j.* FROM {_DURABLY}, {QUEUE} q CROSS JOIN LATERAL {_HEAD} j
        WHERE q.id = ANY(%(ids)s)
          AND j.state = 'pending' AND coalesce(j.next_attempt_at, j.scheduled_at) <= {NOW}
          AND NOT {_is_resting("q.scope")}
    ), q AS (
        UPDATE {QUEUE} q SET fence = greatest(q.fence, %(floor)s) + 1, current_job = h.id,
               attempt = least(h.attempts, {MOST_ATTEMPTS}) + 1,
               held_by = %(holder)s, held_since = {NOW}, stop_requested = false, problem = ''
        FROM h WHERE q.id = h.qid AND h.paused_at IS NULL AND q.rev = h.qrev AND q.held_by IS NULL
        RETURNING q.id, q.scope, q.name, q.attempt, q.fence, q.rev, q.memory, {_HEAD_OF_CLAIM}
    )
    SELECT {_CLAIM} FROM q
"""  # noqa: S608

# A statement of a scheduler that waits for a row of another transaction waits this long at most, in milliseconds: the
# heartbeat of the whole node waits with it. What it wanted to write is then written row by row, passing over that one.
_LOCK_TIMEOUT = 200

# Planned once, and then index look-ups for ever: a plan made for an empty table, or without statistics, must be the
# right one for a million rows too. (Planning was half the cost of a batch of 20 results; a sequential scan of 1,000
# queues, joined in nested loops, two thirds of one of 200.)
_PLANS = {"plan_cache_mode": "force_generic_plan", "enable_seqscan": "off", "enable_bitmapscan": "off", "jit": "off"}

# Each statement sees what was committed before it, and waits for a row instead of failing: whatever the default is.
_ISOLATION = {"default_transaction_isolation": "read committed"}

# How a commit waits for a standby. In a session only claims and results do: a fence must not be given again, and no
# result be lost. A heartbeat that waited for one that is away would cost what runs, and what else a node writes is
# found out again after a failover.
_REMOTE = {"on", "remote_write", "remote_apply"}

# A standby that is promoted begins a new timeline, and so does a restored backup. Fences that were not replicated are
# all below those of the new one.
_TIMELINE = "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)"
_FENCES_OF_A_TIMELINE = 2**32

_PROBES = 100  # probes for a pooler: under load a session may be lent to another client just then, every other time

_CONFLICTS = {"40P01", "40001"}  # deadlock_detected, serialization_failure
_BUSY = _CONFLICTS | {"55P03"}  # lock_not_available
# Classes: insufficient resources, operator intervention (a cancelled statement), read-only transaction.
_OF_THE_MOMENT = {"25", "53", "57"}
_FULL = "53200"  # out of shared memory
_SHARE = 0.25  # of the server's lock table that one node may use at most
_FEWEST_HELD = 10
_GIVE_BACK = """
    SELECT pg_advisory_unlock(l.key) FROM (
        SELECT (classid::bigint << 32) | objid::bigint AS key FROM pg_locks
        WHERE locktype = 'advisory' AND objsubid = 1 AND pid = pg_backend_pid()
    ) l WHERE l.key <> ALL(%(held)s)
"""
_UNIQUE = "23505"
_SEQUENCE = """
    SELECT s FROM pg_get_serial_sequence(%(table)s, 'id') s WHERE s IS NOT NULL AND has_sequence_privilege(s, 'SELECT')
"""
_IS_BEHIND = "SELECT last_value + is_called::int <= (SELECT coalesce(max(id), 0) FROM {table}) FROM {sequence}"
_RAISED = "P0"  # the class of RAISE EXCEPTION

# Results of a batch from which on it pays to do something else meanwhile: pipeline mode costs half a millisecond.
_WORTH_A_PIPELINE = 10

# Queue rows first, under fence, rev and current job; only what that UPDATE returns is written to the jobs. ``go`` is
# NULL for a queue that must be let go. What an operator touched (rev) or a successor took (fence) is missing from
# the answer and recorded one by one.


def _finish(array="", column="", change=""):
    return f"""
    WITH f AS MATERIALIZED (
        SELECT f.* FROM {_DURABLY},
                      unnest(%(jobs)s::bigint[], %(queues)s::bigint[], %(fences)s::bigint[], %(revs)s::bigint[],
                             %(attempts)s::int[], %(results)s::text[], %(keeps)s::bool[]{array})
                      AS f (fid, qid, ffence, frev, fattempt, fresult, keep{column})
    ), p AS MATERIALIZED (
        SELECT name FROM {SCOPE} WHERE {_STARTS_NONE.format(now=NOW)}
    ), h AS MATERIALIZED (
        SELECT f.*, j.*, f.keep AND j.scheduled_at <= {NOW} AND j.state = 'pending'
                         AND NOT EXISTS (SELECT 1 FROM p WHERE p.name IN (q.scope, '{Scope.EVERYTHING}')) AS go
        FROM f JOIN {QUEUE} q ON q.id = f.qid LEFT JOIN LATERAL (
            SELECT {_JOB_COLUMNS} FROM {JOB}
            WHERE scope = q.scope AND queue = q.name AND done_at IS NULL AND id <> f.fid
            ORDER BY scheduled_at, id LIMIT 1
        ) j ON true
    ), q AS (
        UPDATE {QUEUE} q SET {change}
            fence = CASE WHEN go THEN greatest(q.fence, %(floor)s) + 1 ELSE q.fence END,
            current_job = CASE WHEN go OR h.state = 'halted' THEN h.id END,
            attempt = CASE WHEN go THEN least(h.attempts, {MOST_ATTEMPTS}) + 1 ELSE 0 END,
            held_by = CASE WHEN go THEN q.held_by END,
            held_since = CASE WHEN go THEN {NOW} END,
            due_at = CASE WHEN go THEN q.due_at WHEN h.state = 'pending' THEN greatest(h.scheduled_at, {NOW}) END
        FROM h WHERE q.id = h.qid AND q.fence = h.ffence AND q.rev = h.frev AND q.current_job = h.fid
                 AND q.held_by IS NOT NULL AND NOT q.stop_requested
        RETURNING h.fid, h.fattempt, h.fresult, h.go, q.due_at <= {NOW} AS due, q.id, q.scope, q.name, q.attempt,
                  q.fence, q.rev, q.memory, {_HEAD_OF_CLAIM}
    ), d AS (
        UPDATE {JOB} j SET state = 'done', attempts = q.fattempt, attempted_at = {NOW}, attempted_by = %(node)s,
               next_attempt_at = NULL, done_at = {NOW}, result = q.fresult::jsonb, error = '', outside = NULL
        FROM q WHERE j.id = q.fid AND j.state IN ('pending', 'halted')
    )
    SELECT fid, go, due, {_CLAIM} FROM q
"""  # noqa: S608


_FINISH = _finish()
# For a batch in which an attempt has changed its queue's memory; the others do without the column.
_FINISH_AND_REMEMBER = _finish(", %(memories)s::text[]", ", fmemory", "memory = coalesce(h.fmemory::jsonb, q.memory),")

_QUEUE_ID = 3 + Claim._fields.index("queue_id")

# Rows that another transaction has locked are skipped, and returned.
_RECHECK = f"""
    WITH h AS MATERIALIZED (
        SELECT q.id, j.scheduled_at FROM {QUEUE} q CROSS JOIN LATERAL (
            SELECT scheduled_at FROM {JOB} WHERE scope = q.scope AND queue = q.name AND done_at IS NULL
            ORDER BY scheduled_at, id LIMIT 1) j
        WHERE q.id = ANY(%(ids)s) AND q.held_by IS NULL AND q.current_job IS NULL
          AND (q.due_at IS NULL OR q.due_at > j.scheduled_at)
    ), l AS MATERIALIZED (
        SELECT h.* FROM h JOIN {QUEUE} q ON q.id = h.id FOR NO KEY UPDATE OF q SKIP LOCKED
    ), u AS (
        UPDATE {QUEUE} q SET due_at = l.scheduled_at FROM l
        WHERE q.id = l.id AND q.held_by IS NULL AND q.current_job IS NULL
          AND (q.due_at IS NULL OR q.due_at > l.scheduled_at)
        RETURNING q.id
    )
    SELECT id, false FROM u UNION ALL SELECT id, true FROM h WHERE id NOT IN (SELECT id FROM l)
"""  # noqa: S608

# A queue that has just got work goes ahead of those that have had their slice, by at most so much: with a thousand
# queues that always have jobs, its first one would else wait until each of them has run twenty.
_HEAD_START = "CASE WHEN {0} <= statement_timestamp() THEN {0} - interval '5 seconds' ELSE {0} END"

# What a wake-up needs is set in the statement itself, which is a transaction of its own: one round trip. A hint may
# commit asynchronously: the sweep finds what a crash of the server loses of it.
_QUICKLY = """
    set_config('synchronous_commit', coalesce(%(commit)s::text, current_setting('synchronous_commit')), true),
    set_config('lock_timeout', coalesce(%(timeout)s::text, current_setting('lock_timeout')), true)
"""

# Two statements, because a queue is new only once, and planning its INSERT costs the server more than all the rest. The
# first one's answer is NULL then, and false if the queue was busy until just now. (A plain upsert would burn an id for
# each wake of a known queue.)
_WAKE_KNOWN = f"""
    WITH s AS MATERIALIZED (
        SELECT {_QUICKLY}, t.time, {_HEAD_START.format("t.time")} AS first FROM (SELECT %(time)s::timestamptz AS time) t
    ), u AS (
        UPDATE {QUEUE} q SET due_at = CASE WHEN q.due_at IS NULL THEN s.first ELSE s.time END FROM s
        WHERE q.scope = %(scope)s AND q.name = %(name)s
          AND q.held_by IS NULL AND q.current_job IS NULL AND (q.due_at IS NULL OR q.due_at > s.time)
        RETURNING pg_notify(%(channel)s, {OURS}::text)
    )
    SELECT EXISTS (SELECT FROM u) OR (
        SELECT q.held_by IS NOT NULL OR q.current_job IS NOT NULL OR coalesce(q.due_at <= %(time)s, false)
        FROM {QUEUE} q WHERE q.scope = %(scope)s AND q.name = %(name)s)
"""  # noqa: S608
_WAKE_NEW = f"""
    WITH s AS MATERIALIZED (
        SELECT {_QUICKLY}, t.time, {_HEAD_START.format("t.time")} AS first FROM (SELECT %(time)s::timestamptz AS time) t
    )
    INSERT INTO {QUEUE} AS q (scope, name, due_at) SELECT %(scope)s::text, %(name)s::text, s.first FROM s
    ON CONFLICT (scope, name) DO UPDATE SET due_at = excluded.due_at
    WHERE q.held_by IS NULL AND q.current_job IS NULL AND (q.due_at IS NULL OR q.due_at > excluded.due_at)
    RETURNING pg_notify(%(channel)s, {OURS}::text)
"""  # noqa: S608

# A wake of several queues never waits for a row while it has others locked, or it would deadlock with claims and
# other wakes: it passes those over and returns their places.
_WAKE = f"""
    WITH s AS MATERIALIZED (SELECT {_QUICKLY}), w AS MATERIALIZED (
        SELECT w.*, {_HEAD_START.format("w.due_at")} AS first
        FROM s, unnest(%(scopes)s::text[], %(names)s::text[], %(times)s::timestamptz[]) WITH ORDINALITY
                AS w (scope, name, due_at, place)
    ), m AS MATERIALIZED (
        SELECT q.id, w.due_at, w.first, w.place FROM w JOIN {QUEUE} q ON q.scope = w.scope AND q.name = w.name
        WHERE q.held_by IS NULL AND q.current_job IS NULL AND (q.due_at IS NULL OR q.due_at > w.due_at)
    ), l AS MATERIALIZED (
        SELECT m.* FROM m JOIN {QUEUE} q ON q.id = m.id FOR NO KEY UPDATE OF q SKIP LOCKED
    ), u AS (
        UPDATE {QUEUE} q SET due_at = CASE WHEN q.due_at IS NULL THEN l.first ELSE l.due_at END FROM l
        WHERE q.id = l.id AND q.held_by IS NULL AND q.current_job IS NULL AND (q.due_at IS NULL OR q.due_at > l.due_at)
        RETURNING 1
    ), n AS (
        INSERT INTO {QUEUE} AS q (scope, name, due_at)
        SELECT scope, name, first FROM w
        WHERE NOT EXISTS (SELECT 1 FROM {QUEUE} q WHERE q.scope = w.scope AND q.name = w.name)
        ORDER BY scope, name
        ON CONFLICT (scope, name) DO UPDATE SET due_at = excluded.due_at
        WHERE q.held_by IS NULL AND q.current_job IS NULL AND (q.due_at IS NULL OR q.due_at > excluded.due_at)
        RETURNING 1
    )
    SELECT (SELECT pg_notify(%(channel)s, {OURS}::text) FROM (SELECT 1 FROM u UNION ALL SELECT 1 FROM n) x LIMIT 1),
           ARRAY(SELECT place FROM m EXCEPT SELECT place FROM l)
"""  # noqa: S608

_NOTIFY = f"SELECT pg_notify(%(channel)s, {OURS}::text)"

_NEXT_DUE = f"""
    SELECT greatest(extract(epoch FROM min(c.due_at) - clock_timestamp()), %(overdue)s)::float, min(c.due_at)
    FROM (
        SELECT c.due_at FROM unnest(%(scopes)s::text[]) AS s (scope) CROSS JOIN LATERAL (
            SELECT q.due_at FROM {QUEUE} q
            WHERE q.scope = s.scope AND q.due_at IS NOT NULL AND q.paused_at IS NULL AND q.held_by IS NULL
              AND q.id <> ALL(%(refused)s)
            ORDER BY q.due_at LIMIT 1) c
        WHERE NOT {_is_resting("s.scope", "clock_timestamp()", _RESTS)}
        UNION ALL
        SELECT snoozed_until FROM {SCOPE}
        WHERE name = ANY(%(scopes)s) AND paused_at IS NULL AND snoozed_until > clock_timestamp()
    ) c
"""  # noqa: S608


class Backend(base.Backend):
    notifies_as_it_wakes = True

    def __init__(self, alias):
        super().__init__(alias)
        self._pid: int | None = None
        self._tables = 0  # the namespace of our locks
        self._durably: str | None = None  # how claims and results commit in a session, as the project has it
        self._is_sweep_wanted = False
        self._followed_until = 0.0  # uptime
        self._full_until = 0.0  # uptime until which no locks are asked for: the server had no room for them

    # The session

    def session_settings(self, settings, lease):
        settings = super().session_settings(settings, lease)
        settings["OPTIONS"].pop("isolation_level", None)
        milliseconds = int(lease.kill * 2000)
        settings["OPTIONS"] |= {
            "application_name": "queuetopia",
            "server_side_binding": True,
            "prepare_threshold": 1,
            "connect_timeout": 5,
            "tcp_user_timeout": milliseconds,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 3,
        }
        return settings

    def open_session(self, lease):
        super().open_session(lease)
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_is_in_recovery(), pg_backend_pid(), to_regclass('{QUEUE}')::oid")
            in_recovery, self._pid, tables = cursor.fetchone()
            self._tables = tables or 0  # the statements that follow say that there are none
            if in_recovery:
                raise SessionRefused(f"Database {self.alias!r} is a read-only standby; point it at the primary.")
            self._refuse_pooler()
            self.fences_above = self._first_of_the_timeline(cursor)
            for name, value in {**_PLANS, **_ISOLATION}.items():
                cursor.execute("SELECT set_config(%s, %s, false)", [name, value])
            cursor.execute("SELECT current_setting('synchronous_commit')")
            (self._durably,) = cursor.fetchone()
            if self._durably in _REMOTE:
                cursor.execute("SELECT set_config('synchronous_commit', 'local', false)")
            # The server itself ends a session that has been silent for too long: its locks are free then.
            cursor.execute(
                "SELECT set_config('idle_session_timeout', %(silence)s, false),"
                " set_config('idle_in_transaction_session_timeout', %(silence)s, false),"
                " set_config('statement_timeout', %(statement)s, false),"
                " set_config('lock_timeout', %(lock)s, false),"
                " set_config('tcp_user_timeout', %(silence)s, false)",
                {
                    "silence": str(int(lease.session * 1000)),
                    "statement": str(int(lease.fence * 500)),
                    "lock": str(_LOCK_TIMEOUT),
                },
            )
            cursor.execute(f"LISTEN {CHANNEL}")
            self.most_held = self._most_to_hold(cursor)
        for table in self.behind_their_tables():
            logger.error("ids run into rows that are there, table=%s remedy=%r", table, base.RESET_SEQUENCES)
        # A notification that arrives while some statement runs is read by the driver: no descriptor shows it.
        self.connection.connection.add_notify_handler(self._note_notification)

    def _first_of_the_timeline(self, cursor) -> int:
        try:
            cursor.execute(_TIMELINE)
        except DatabaseError as exc:  # a server that is PostgreSQL in name only has no such files
            logger.warning(
                "timeline unknown, a failover may give fences again alias=%s cause=%r", self.alias, brief(exc)
            )
            return 0
        return (int(cursor.fetchone()[0], 16) - 1) * _FENCES_OF_A_TIMELINE

    def beat_while_waiting(self, beat, every):
        if self._durably in _REMOTE:
            Patience(self.connection, every, beat)

    def is_busy(self, exc):
        return getattr(exc.__cause__, "sqlstate", None) in _BUSY

    def may_pass(self, exc):
        state = getattr(exc.__cause__, "sqlstate", None) or ""
        return super().may_pass(exc) or state in _BUSY or state[:2] in _OF_THE_MOMENT

    def is_of_the_row(self, exc):
        return super().is_of_the_row(exc) or (getattr(exc.__cause__, "sqlstate", None) or "")[:2] == _RAISED

    def is_deadlock(self, exc):
        return getattr(exc.__cause__, "sqlstate", None) in _CONFLICTS

    def _note_notification(self, notification):
        self._note(notification.payload)

    def _note(self, payload):
        if payload == FOLLOW:
            self._followed_until = uptime() + FOLLOWED
        else:
            self._is_sweep_wanted |= payload == f"{_SWEEP}{self._tables}"
            self.was_notified |= payload in ("", str(self._tables))

    def _most_to_hold(self, cursor) -> int:
        names = ("max_locks_per_transaction", "max_connections", "max_prepared_transactions")
        cursor.execute(f"SELECT {', '.join(f'current_setting({name!r})::bigint' for name in names)}")
        locks, sessions, prepared = cursor.fetchone()
        most = share_of(locks * (sessions + prepared))
        if most < base.Backend.most_held:
            logger.warning("the server has room for few locks, queues held at once=%d alias=%s", most, self.alias)
        return most

    def _have_room(self):
        """After a lock that found no room: give back what was taken before it, and hold fewer from now on.

        The locks of a session outlive the statement that failed.
        """
        self.most_held, self._full_until = max(_FEWEST_HELD, self.most_held // 2), uptime() + 1.0
        self._run(_GIVE_BACK, {"held": [*map(self.lock_key, self.held)]})
        self.repeats.log(
            logger, logging.ERROR, "the server's lock table is full, queues held at once=%d alias=%s remedy=%r",
            self.most_held, self.alias, "raise max_locks_per_transaction", cause=self.alias,
        )  # fmt: skip

    def behind_their_tables(self):
        models = (model for model in apps.get_app_config("queuetopia").get_models() if model._meta.auto_field)
        tables = [model._meta.db_table for model in models]
        return [table for table in tables if self._is_behind(f'"{table}"')]

    def _is_behind(self, table):
        for (sequence,) in self._run(_SEQUENCE, {"table": table}):  # none if we may not read it
            ((is_behind,),) = self._run(_IS_BEHIND.format(table=table, sequence=sequence), {})
            return is_behind
        return False

    def remedy(self, exc):
        is_of_the_key = getattr(exc.__cause__, "sqlstate", None) == _UNIQUE and "_pkey" in str(exc)
        return base.RESET_SEQUENCES if is_of_the_key else super().remedy(exc)

    def _refuse_pooler(self):
        """Raise SessionRefused if this connection is not one session of the server all the time.

        A pooler in transaction mode lends out a server's session for a transaction. While ours is lent to another
        connection that is in one, it is ours no more, or the other's at the same time: both show in its pid. No lock
        is taken to try it: the pooler would keep it.
        """
        if self.connection.connection.info.backend_pid == self._pid:
            return  # what the server said when we connected: there is no pooler in between
        other = connections.create_connection(base.lock_alias(self.alias))
        try:
            for _ in range(_PROBES):
                other.set_autocommit(False)
                if _backend_pid(other) == self._pid or _backend_pid(self.connection) != self._pid:
                    raise SessionRefused(
                        f"Database {base.lock_alias(self.alias)!r} is reached through a pooler in transaction mode, "
                        "which gives one session's locks to many clients. Set QUEUETOPIA['LOCK_DATABASE'] to an "
                        "alias that connects to PostgreSQL directly; web processes may go on through the pooler."
                    )
                other.rollback()
        finally:
            other.close()

    def is_alive(self):
        if not super().is_alive():
            return False
        return _backend_pid(self.connection) == self._pid

    def fileno(self):
        return self.connection.connection.fileno()

    def descriptors(self):
        return [self.fileno()]

    def has_news(self):
        libpq = self.connection.connection.pgconn
        with self.connection.wrap_database_errors:
            libpq.consume_input()  # raises when the server has gone
        while (notification := libpq.notifies()) is not None:
            self._note(notification.extra.decode())
        news, self.was_notified = self.was_notified, False
        return news

    def lock_key(self, queue_id: int) -> int:
        """Return the advisory lock's 64-bit number: 23 bits say whose tables, 40 bits are the queue row's id."""
        namespace = binascii.crc32(f"queuetopia:{self._tables}".encode()) & 0x7FFFFF
        return (namespace << 40) + queue_id

    def try_lock(self, queue_ids):
        if not self.in_session:
            return super().try_lock(queue_ids)
        wanted = [queue_id for queue_id in queue_ids if queue_id not in self.held]  # the lock is re-entrant
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT k, pg_try_advisory_lock(k) FROM unnest(%s::bigint[]) AS k", [list(map(self.lock_key, wanted))]
            )
            taken = {key for key, locked in cursor.fetchall() if locked}
        return super().try_lock(
            [queue_id for queue_id in queue_ids if queue_id in self.held or self.lock_key(queue_id) in taken]
        )

    def unlock(self, queue_ids):
        held = [queue_id for queue_id in queue_ids if queue_id in self.held]
        if self.in_session:
            self._unlock_once(held)
        super().unlock(held)

    def _unlock_once(self, queue_ids):
        if not queue_ids:
            return
        with self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT bool_and(pg_advisory_unlock(k)) FROM unnest(%s::bigint[]) AS k",
                [[*map(self.lock_key, queue_ids)]],
            )
            if not cursor.fetchone()[0]:
                raise SessionLost("a queue's lock was not ours any more")

    # Create

    def insert(self, jobs):
        for start in range(0, len(jobs), base.INSERT_BATCH):
            batch = jobs[start : start + base.INSERT_BATCH]
            rows = [_inserted(job) for job in batch]
            if len(rows) == 1:
                stored = self._run(_INSERT_ONE, rows[0])
            else:
                stored = self._run(_INSERT_MANY, [*map(list, zip(*rows, strict=True))])
            for job, (pk, scheduled_at) in zip(batch, stored, strict=True):
                _stored(job, pk, scheduled_at, self.alias)

    def insert_keyed(self, job):
        if job.unique_key is None:
            ((pk, scheduled_at, is_new),) = self._run(_INSERT_COALESCED, [*_inserted(job), job.coalesce_key])
            return _stored(job, pk, scheduled_at, self.alias) if is_new else Job.objects.using(self.alias).get(pk=pk)
        while True:
            for pk, scheduled_at, _ in self._run(_INSERT_UNIQUE, [*_inserted(job), job.unique_key]):
                return _stored(job, pk, scheduled_at, self.alias)
            if found := keys.take_up(self, job):  # else it has ended meanwhile
                return found

    # Wake-ups

    def _wake_one(self, wake, until):
        scope, name, due_at = wake
        arguments = {**self._quickly(until), "scope": scope, "name": name, "time": due_at}
        ((is_awake,),) = self._run_quickly(_WAKE_KNOWN, arguments)
        if not is_awake:
            self._run_quickly(_WAKE_NEW, {**arguments, **self._quickly(until)})

    def _wake_many(self, wakes, until):
        scopes, names, times = map(list, zip(*wakes, strict=True))
        arguments = {**self._quickly(until), "scopes": scopes, "names": names, "times": times}
        ((_, places),) = self._run_quickly(_WAKE, arguments)
        return [wakes[place - 1] for place in places]

    def _run_quickly(self, sql, arguments):
        """Run a wake-up that does not wait for long, for a locked table either.

        A statement waits for its tables before it sets anything, so the time limit is set by one before it: in the
        same message and transaction where the client binds parameters, since only then may a message have two.
        """
        timeout = "SELECT set_config('lock_timeout', %(timeout)s, true)"
        with self.connection.cursor() as cursor:
            if arguments["timeout"] is None or self.in_session:  # whose own limit is shorter
                cursor.execute(sql, arguments)
                return cursor.fetchall()
            if hasattr(cursor.cursor, "mogrify"):
                cursor.execute(f"{timeout}; {sql}", arguments)
                cursor.nextset()
                return cursor.fetchall()
            with transaction.atomic(using=self.alias):
                cursor.execute(timeout, arguments)
                cursor.execute(sql, arguments)
                return cursor.fetchall()

    def _quickly(self, until):
        """Return how a wake-up is to commit and to wait; inside a transaction, that is not ours to say."""
        alone = not self.connection.in_atomic_block
        timeout = _LOCK_TIMEOUT if self.in_session else max(1, int((until - uptime()) * 1000))
        return {"channel": CHANNEL, "commit": "off" if alone else None, "timeout": str(timeout) if alone else None}

    def ask_for_sweep(self):
        self._run(f"SELECT pg_notify(%(channel)s, %(sweep)s || {OURS}::text)", {"channel": CHANNEL, "sweep": _SWEEP})

    def is_sweep_wanted(self):
        is_wanted, self._is_sweep_wanted = self._is_sweep_wanted, False
        return is_wanted

    def notify(self):
        self._run(_NOTIFY, {"channel": CHANNEL})

    # Followers

    def listener(self):
        return Listener(self.alias)

    def is_followed(self):
        return uptime() < self._followed_until

    def notify_followers(self):
        self._run(_NOTIFY, {"channel": FOLLOWERS})

    def commit_durably(self):
        if self._durably:
            self._run("SELECT set_config('synchronous_commit', %(commit)s, true)", {"commit": self._durably})

    def lock_order(self, scope, queues):
        lock = f"SELECT pg_advisory_xact_lock(hashtextextended(%(name)s, {OURS}::bigint))"
        for name in sorted(queues):
            self._run(lock, {"name": f"{scope}|{name}"})

    # Claim

    def lock_due(self, scopes, limit, now, only=None, passed=()):
        if not self.in_session:
            return super().lock_due(scopes, limit, now, only, passed)
        if uptime() < self._full_until:
            return [], []
        try:
            found = self._run(_CANDIDATES, {
                "scopes": scopes, "limit": limit, "only": only, "now": now, "base": self.lock_key(0),
                "passed": list(passed),
            })  # fmt: skip
        except OperationalError as exc:
            if getattr(exc.__cause__, "sqlstate", None) != _FULL or not self.is_alive():
                raise
            self._have_room()
            return [], []
        locked = [queue_id for queue_id, is_locked, _ in found if is_locked]
        self._unlock_once(self.held.intersection(locked))  # what a failed claim had locked is now locked twice
        self.held.update(locked)
        return [queue_id for queue_id, *_ in found], locked

    def start_heads(self, queue_ids, holder, now=None):
        if not queue_ids:
            return [], []
        try:
            rows = self._run(_START, {
                "ids": queue_ids, "holder": holder, "now": now, "commit": self._durably, "floor": self.fences_above,
            })  # fmt: skip
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            return super().start_heads(queue_ids, holder, now)  # which skips what another transaction has locked
        claims = [Claim._make(row) for row in rows]
        started = {claim.queue_id for claim in claims}
        rest = [queue_id for queue_id in queue_ids if queue_id not in started]
        # Queues that are empty, halted or not due after all are rare, and handled one by one.
        try:
            late, rest = super().start_heads(rest, holder, now)
        except DatabaseError as exc:
            # What has been marked is committed.
            late, rest = ([], rest) if self.is_busy(exc) else self.start_one_by_one(rest, holder, now, exc)
        return claims + late, rest

    def next_due(self, scopes):
        arguments = {"scopes": [*self.closed.without(scopes)], "overdue": base.OVERDUE, "refused": self.refused.now()}
        ((seconds, due_at),) = self._run(_NEXT_DUE, arguments)
        seconds = None if due_at is None else max(seconds, self._full_until - uptime())
        return self.refused.or_next(self.closed.or_opening(scopes, seconds))

    # Record

    def record(self, endings, holder, node, keep, now=None, meanwhile=lambda: None):
        fast = [ending for ending in endings if values.is_plain(ending)]
        if len(fast) < len(endings):
            recorded = super().record(endings, holder, node, keep, now, meanwhile)
            # Nothing was written because of one locked row: with each on its own, only that one is passed over.
            is_refused = fast and len(recorded.locked) == len(endings)
            return super().record(recorded.locked, holder, node, keep, now) if is_refused else recorded
        # Successes alone are one statement, so they need no transaction around it.
        try:
            result, released, cleared, rest = self._finish(endings, node, keep, now, meanwhile)
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            return super().record([ending._replace(passed_over=True) for ending in endings], holder, node, keep, now)
        result = self._after_commit(result, released, cleared, holder)
        return values.joined(result, self._record_rest(rest, holder, node, keep, now)) if rest else result

    def _record_rest(self, rest, holder, node, keep, now):
        """Record what the fast way left over. Whatever fails here, what has been recorded is reported."""
        rest = [ending._replace(passed_over=True) for ending in rest]
        try:
            return super().record(rest, holder, node, keep, now)
        except DatabaseError as exc:
            logger.info("result put off alias=%s error=%r", self.alias, brief(exc))
            return values.Recorded([], [], [], False, rest)

    def _record(self, endings, holder, node, keep, now):
        done = [ending for ending in endings if values.is_plain(ending)]
        if not done:
            return super()._record(endings, holder, node, keep, now)
        result, released, cleared, rest = self._finish(done, node, keep, now)
        rest += [ending for ending in endings if not values.is_plain(ending)]
        others, also_released, also_cleared = super()._record(rest, holder, node, keep, now)
        return values.joined(result, others), released + also_released, cleared + also_cleared

    def _finish(self, done, node, keep, now, meanwhile=lambda: None):
        """Record successes whose rows are as claimed; return what came of it, queues let go, to check, and the rest."""
        memories = [ending.outcome.memory for ending in done]
        remembers = any(memory is not None for memory in memories)
        rows = self._run_meanwhile(_FINISH_AND_REMEMBER if remembers else _FINISH, {
            **({"memories": memories} if remembers else {}),
            "jobs": [ending.claim.job_id for ending in done],
            "queues": [ending.claim.queue_id for ending in done],
            "fences": [ending.claim.fence for ending in done],
            "revs": [ending.claim.rev for ending in done],
            "attempts": [ending.claim.attempt for ending in done],
            "results": [ending.outcome.result for ending in done],
            "keeps": [keep(ending.claim) for ending in done],
            "now": now,
            "node": node,
            "commit": self._durably,
            "floor": self.fences_above,
        }, meanwhile)  # fmt: skip
        let_go = {row[_QUEUE_ID]: bool(row[2]) for row in rows if not row[1]}  # queue -> is it due?
        written = {row[0] for row in rows}
        result = values.Recorded(
            [ending for ending in done if ending.claim.job_id in written],
            [],
            [Claim._make(row[3:]) for row in rows if row[1]],
            any(let_go.values()),
            [],
        )
        rest = [ending for ending in done if ending.claim.job_id not in written]
        return result, list(let_go), [queue_id for queue_id, is_due in let_go.items() if not is_due], rest

    def recheck(self, queue_ids):
        queue_ids = {*queue_ids, *self.unchecked}
        if not queue_ids:
            return False
        rows = self._run(_RECHECK, {"ids": list(queue_ids)})
        self.unchecked = {queue_id for queue_id, is_locked in rows if is_locked}
        return len(rows) > len(self.unchecked)

    def _run_meanwhile(self, sql, arguments, meanwhile):
        """Run a statement, and do what a session has to do while the server works on it."""
        if not self.in_session or len(arguments["jobs"]) < _WORTH_A_PIPELINE:
            meanwhile()
            return self._run(sql, arguments)
        connection = self.connection
        with connection.wrap_database_errors, connection.connection.pipeline() as sent, connection.cursor() as cursor:
            cursor.execute(sql, arguments)
            meanwhile()
            sent.sync()  # waits for the answer
            return cursor.fetchall()

    def _run(self, sql, arguments):
        with self.connection.cursor() as cursor:
            cursor.execute(sql, arguments)
            return cursor.fetchall()


def share_of(locks: int) -> int:
    """Return how many queues a session may hold if the server's table has room for ``locks``, for all sessions."""
    return int(max(_FEWEST_HELD, min(base.Backend.most_held, locks * _SHARE)))


class Listener:
    """Gets news of what nodes record and of what wakes them, on a connection of its own that goes past a pooler.

    Nodes notify only while they are asked to, again and again: so they forget followers that are gone. The request
    comes back here too, which shows that notifications arrive: behind a pooler, none does.
    """

    def __init__(self, alias: str):
        self.is_heard = False  # what we asked last came back
        self._has_news = False
        self._connection = connections.create_connection(base.lock_alias(alias))
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT {OURS}::text")
            (self._tables,) = cursor.fetchone()
            cursor.execute(f"LISTEN {CHANNEL}")
            cursor.execute(f"LISTEN {FOLLOWERS}")
        # A notification that arrives while a statement runs is read by the driver: no descriptor shows it.
        self._connection.connection.add_notify_handler(lambda notification: self._note(notification.payload))

    def fileno(self) -> int:
        return self._connection.connection.fileno()

    def ask(self) -> None:
        """Ask the nodes to notify, for some seconds."""
        self.is_heard = False
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, FOLLOW])

    def has_news(self) -> bool:
        """True when something may have happened to jobs since the last call. Raises when the server has gone."""
        libpq = self._connection.connection.pgconn
        with self._connection.wrap_database_errors:
            libpq.consume_input()
        while (notification := libpq.notifies()) is not None:
            self._note(notification.extra.decode())
        news, self._has_news = self._has_news, False
        return news

    def _note(self, payload):
        if payload == FOLLOW:
            self.is_heard = True
        else:
            self._has_news |= payload in ("", self._tables)

    def close(self) -> None:
        self._connection.close()


def _inserted(job):
    scheduled_at = None if values.has_no_time(job) else job.scheduled_at
    return (
        job.scope, row_name(job.queue), job.action, as_text(job.params), *(getattr(job, name) for name in JOB_OPTIONS),
        scheduled_at,
    )  # fmt: skip


def _stored(job, pk, scheduled_at, alias):
    job.pk, job.scheduled_at = pk, scheduled_at
    job._state.adding, job._state.db = False, alias
    return job


def _backend_pid(connection) -> int:
    connection.ensure_connection()
    with connection.wrap_database_errors:
        # Never as a prepared statement, which a pooler would send to a session that does not know it.
        return connection.connection.execute("SELECT pg_backend_pid()", prepare=False).fetchone()[0]
