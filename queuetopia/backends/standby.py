"""Heartbeats go on while a commit of a session waits for a synchronous standby of PostgreSQL.

The server answers nothing for as long as the standby is away, and a node that does not beat for the fence time is
killed with what it runs. So the driver's wait for an answer is interrupted now and then: where the server says that
the session waits for the standby, and for nothing else, the node beats through another connection. Whatever else makes
an answer late (locks, a slow disk, a network that forwards nothing) still ends with the fence.
"""

import copy
import logging
from collections.abc import Callable

from django.db import DatabaseError, connections

from ..channel import uptime
from ..text import brief
from .base import PRIVATE

logger = logging.getLogger(__name__)

_SETTINGS = """
    SELECT set_config('synchronous_commit', 'local', false), set_config('statement_timeout', '1000', false),
           set_config('lock_timeout', '200', false)
"""
# Which process of which server: after a failover another server may have one of the same number.
_WHO = "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
_AWAITS_STANDBY = "SELECT 1 FROM pg_stat_activity WHERE pid = %s AND backend_start = %s AND wait_event = 'SyncRep'"


class Patience:
    """Watches the statements of one session."""

    def __init__(self, session, every: float, beat: Callable[[str], None]):
        """beat: called with an alias whose commits wait for nothing, about each ``every`` seconds; must not raise."""
        self._session, self._every, self._beat = session, every, beat
        with session.cursor() as cursor:
            cursor.execute(_WHO)
            self._who = cursor.fetchone()
        driver = session.connection
        self._wait, driver.wait = driver.wait, self.wait

    def wait(self, steps, *args, **options):
        """Do what the driver's own ``wait`` does with the steps of a statement."""
        return self._wait(self._watched(steps), *args, **options)

    def _watched(self, steps):
        alias, ready, next_at = None, None, uptime() + self._every
        try:
            while True:
                try:
                    wanted = steps.send(ready)
                except StopIteration as end:
                    return end.value
                ready = yield wanted
                if not ready and uptime() >= next_at:  # some time has passed without an answer
                    alias = self._beat_past_the_standby(alias)
                    next_at = uptime() + self._every
        finally:
            if alias is not None:
                connections[alias].close()
                del connections[alias]

    def _beat_past_the_standby(self, alias):
        """Beat if the session waits for the standby; return the alias of the connection that says so."""
        try:
            alias = alias or self._connect()
            with connections[alias].cursor() as cursor:
                cursor.execute(_AWAITS_STANDBY, self._who)
                awaits_standby = cursor.fetchone() is not None
        except DatabaseError as exc:
            logger.warning("no connection beside the session alias=%s cause=%r", self._session.alias, brief(exc))
            return alias
        if awaits_standby:
            self._beat(alias)
        return alias

    def _connect(self):
        beside = connections.create_connection(self._session.alias.removesuffix(PRIVATE))
        beside.settings_dict = copy.deepcopy(self._session.settings_dict)
        beside.alias = self._session.alias  # as receivers of connection_created know it
        with beside.cursor() as cursor:
            cursor.execute(_SETTINGS)
        alias = f"{self._session.alias}+beat"
        connections[alias] = beside
        return alias
