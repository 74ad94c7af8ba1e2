"""SQLite: one host by nature. The queues' locks are byte ranges of one file beside the database.

The locks belong to an open file description (F_OFD_SETLK), which workers inherit: the kernel frees a queue when
the last process that could be running its job is dead. One file and one descriptor serve any number of queues;
the byte at offset ``queue id`` is that queue's lock.
"""

import contextlib
import fcntl
import os
import sqlite3
import struct

from django.db import OperationalError, connections, transaction

from ..exceptions import SessionRefused
from . import base

_LOCK_COMMAND = getattr(fcntl, "F_OFD_SETLK", None)  # Linux; elsewhere locks die with the scheduler alone

_TIMEOUT = 0.5  # seconds that a statement of a scheduler waits for another writer


class Backend(base.Backend):
    # PRAGMA data_version costs some microseconds and no disk access; it changes with every foreign commit.
    looks_every = 0.02
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

    def beat(self, node_id, workers):
        try:
            return super().beat(node_id, workers)
        except OperationalError as exc:
            if not self.is_busy(exc):
                raise
            # Somebody writes for long. The locks are the kernel's: they hold as long as our processes live.
            return True

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

    def wake(self, wakes):
        # One write transaction for all: each would be a commit of its own.
        with transaction.atomic(using=self.alias) if len(wakes) > 1 else contextlib.nullcontext():
            super().wake(wakes)

    def lock_order(self, scope, queues):
        """Nothing to do: writers wait for each other anyway."""
