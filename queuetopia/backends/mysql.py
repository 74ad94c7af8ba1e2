"""MySQL and MariaDB: GET_LOCK on the scheduler's session, new work found by polling five times a second."""

import hashlib
import math

from ..exceptions import SessionLost, SessionRefused
from ..models import Queue
from . import base

_LOCK_WAIT_TIMEOUT, _DEADLOCK = 1205, 1213
_CHANGED_SINCE_READ = 1020  # a conflict, where innodb_snapshot_isolation is on
_CONFLICTS = {_DEADLOCK, _CHANGED_SINCE_READ}
_WAITS = "SET SESSION innodb_lock_wait_timeout = %s, lock_wait_timeout = %s"  # for rows, for tables
# Interrupted by KILL QUERY or a time limit; read-only; a full table or disk; too many locks.
_OF_THE_MOMENT = {1317, 1969, 3024, 1290, 1792, 1836, 1021, 1114, 1206, 1040, 1041}
# Text that the column's character set lacks, too long or wrong a value, a constraint, SIGNAL in a trigger.
_OF_THE_ROW = {1366, 1267, 1264, 1406, 3819, 4025, 1644}


class Backend(base.Backend):
    polls_every = 0.2  # no LISTEN here; one poll is one index look-up

    def __init__(self, alias):
        super().__init__(alias)
        self.database: str | None = None  # as the server calls it: NAME may stand in a file of options

    def open_session(self, lease):
        super().open_session(lease)
        with self.connection.cursor() as cursor:
            # The server ends a silent session, and so frees its locks; it counts in whole seconds.
            cursor.execute("SET SESSION wait_timeout = %s", [math.ceil(lease.session)])
            # The heartbeat of the whole node waits with a statement that waits for a row.
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1, lock_wait_timeout = 1")
            if self.connection.mysql_is_mariadb:
                # An update checks *all* constraints of its row: a job with corrupt params could not even be halted.
                cursor.execute("SET SESSION check_constraint_checks = 0")
            cursor.execute("SELECT DATABASE()")
            (self.database,) = cursor.fetchone()
            cursor.execute("SHOW VARIABLES LIKE 'wsrep_on'")
            if (cursor.fetchone() or ("", "OFF"))[1] == "ON":
                raise SessionRefused(
                    f"Database {self.alias!r} is a Galera cluster, where GET_LOCK locks nothing: point "
                    "QUEUETOPIA['LOCK_DATABASE'] at a single server."
                )

    def session_settings(self, settings, lease):
        settings = super().session_settings(settings, lease)
        settings["OPTIONS"] |= {"isolation_level": "read committed", "connect_timeout": 5}
        return settings

    def descriptors(self):
        return [self.connection.connection.fileno()]

    def is_busy(self, exc):
        return _code(exc) in {_LOCK_WAIT_TIMEOUT, *_CONFLICTS}

    def may_pass(self, exc):
        return super().may_pass(exc) or self.is_busy(exc) or _code(exc) in _OF_THE_MOMENT

    def is_of_the_row(self, exc):
        return super().is_of_the_row(exc) or _code(exc) in _OF_THE_ROW

    def is_deadlock(self, exc):
        return _code(exc) in _CONFLICTS

    def wake(self, wakes):
        # A transaction that locks the row for longer checks for jobs after its commit. A backup may lock the table.
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout")
            usual = cursor.fetchone()
            cursor.execute(_WAITS, [1, 1])
            try:
                return super().wake(wakes)
            finally:
                cursor.execute(_WAITS, usual)

    def try_lock(self, queue_ids):
        if not self.in_session:
            return super().try_lock(queue_ids)
        taken = []
        with self.connection.cursor() as cursor:
            for queue_id in queue_ids:
                if queue_id not in self.held:  # GET_LOCK is re-entrant: it would have to be given back twice
                    cursor.execute("SELECT GET_LOCK(%s, 0)", [self.lock_name(queue_id)])
                    if cursor.fetchone()[0] != 1:
                        continue
                taken.append(queue_id)
        return super().try_lock(taken)

    def unlock(self, queue_ids):
        queue_ids = [queue_id for queue_id in queue_ids if self.in_session and queue_id in self.held]
        with self.connection.cursor() as cursor:
            for queue_id in queue_ids:
                cursor.execute("SELECT RELEASE_LOCK(%s)", [self.lock_name(queue_id)])
                if cursor.fetchone()[0] != 1:
                    raise SessionLost(f"the lock of queue {queue_id} was not ours any more")
        super().unlock(queue_ids)

    def ask_for_sweep(self):
        if self.connection.mysql_is_mariadb:  # which, unlike MySQL, can be set not to wait at all
            with self.connection.cursor() as cursor:
                cursor.execute(_WAITS, [0, 0])
        super().ask_for_sweep()

    def _add_queues(self, wakes):
        # INSERT IGNORE takes a shared lock on a row that is there: two who go on to write it deadlock.
        rows = ", ".join(["(%s, %s, %s)"] * len(wakes))
        sql = f"INSERT INTO {Queue._meta.db_table} (scope, name, due_at) VALUES {rows} ON DUPLICATE KEY UPDATE id = id"  # noqa: S608
        adapt = self.connection.ops.adapt_datetimefield_value
        with self.connection.cursor() as cursor:
            cursor.execute(sql, [value for scope, name, due_at in wakes for value in (scope, name, adapt(due_at))])

    def lock_name(self, queue_id):
        # Lock names are per server: without database and table two sites would share queues. At most 64 characters.
        place = f"{self.database}|{Queue._meta.db_table}|{queue_id}"
        return "queuetopia:" + hashlib.sha1(place.encode(), usedforsecurity=False).hexdigest()


def _code(exc):
    return exc.args[0] if exc.args else None
