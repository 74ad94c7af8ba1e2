"""MySQL and MariaDB: GET_LOCK on the scheduler's session, found work by looking five times a second."""

import hashlib
import math

from ..exceptions import SessionLost, SessionRefused
from ..models import Queue
from . import base

_LOCK_WAIT_TIMEOUT, _DEADLOCK = 1205, 1213


class Backend(base.Backend):
    looks_every = 0.2  # no LISTEN here; one look is one index look-up

    def open_session(self, lease):
        super().open_session(lease)
        with self.connection.cursor() as cursor:
            # The server ends a silent session, and so frees its locks; it counts in whole seconds.
            cursor.execute("SET SESSION wait_timeout = %s", [math.ceil(lease.session)])
            # The heartbeat of the whole node waits with a statement that waits for a row.
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            if self.connection.mysql_is_mariadb:
                # An update checks *all* constraints of its row: a job with corrupt params could not even be halted.
                cursor.execute("SET SESSION check_constraint_checks = 0")
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
        return exc.args[:1] in [(_LOCK_WAIT_TIMEOUT,), (_DEADLOCK,)]

    def is_deadlock(self, exc):
        return exc.args[:1] == (_DEADLOCK,)

    def wake(self, wakes):
        # Who has locked the row for longer looks for jobs itself after the commit.
        with self.connection.cursor() as cursor:
            cursor.execute("SELECT @@innodb_lock_wait_timeout")
            (usual,) = cursor.fetchone()
            cursor.execute("SET SESSION innodb_lock_wait_timeout = 1")
            try:
                super().wake(wakes)
            finally:
                cursor.execute("SET SESSION innodb_lock_wait_timeout = %s", [usual])

    def try_lock(self, queue_ids):
        if not self.in_session:
            return super().try_lock(queue_ids)
        taken = []
        with self.connection.cursor() as cursor:
            for queue_id in queue_ids:
                if queue_id not in self.held:  # GET_LOCK is re-entrant: it would have to be given back twice
                    cursor.execute("SELECT GET_LOCK(%s, 0)", [self._name(queue_id)])
                    if cursor.fetchone()[0] != 1:
                        continue
                taken.append(queue_id)
        return super().try_lock(taken)

    def unlock(self, queue_ids):
        queue_ids = [queue_id for queue_id in queue_ids if self.in_session and queue_id in self.held]
        with self.connection.cursor() as cursor:
            for queue_id in queue_ids:
                cursor.execute("SELECT RELEASE_LOCK(%s)", [self._name(queue_id)])
                if cursor.fetchone()[0] != 1:
                    raise SessionLost(f"the lock of queue {queue_id} was not ours any more")
        super().unlock(queue_ids)

    def _add_queue(self, scope, name):
        # INSERT IGNORE takes a shared lock on a row that is there: two who go on to write it deadlock.
        sql = f"INSERT INTO {Queue._meta.db_table} (scope, name) VALUES (%s, %s) ON DUPLICATE KEY UPDATE id = id"  # noqa: S608
        with self.connection.cursor() as cursor:
            cursor.execute(sql, [scope, name])

    def _name(self, queue_id):
        # Lock names are per server: without database and table two sites would share queues. At most 64 characters.
        place = f"{self.connection.settings_dict['NAME']}|{Queue._meta.db_table}|{queue_id}"
        return "queuetopia:" + hashlib.sha1(place.encode(), usedforsecurity=False).hexdigest()
