"""What is special to MySQL and MariaDB."""

import pytest
from django.db import OperationalError, connection

from queuetopia.backends.contract.toolkit import claim_one, finish, put
from queuetopia.exceptions import SessionLost
from queuetopia.models import Queue
from queuetopia.testing import wait_until
from tests.backends.sessions import EndsSilentSessions, ask, is_lost, random_walk


@pytest.mark.skipif(connection.vendor != "mysql", reason="MySQL and MariaDB only")
class TestMySQL(EndsSilentSessions):
    def test_the_server_enforces_the_lease(self, backend):
        assert ask(backend, "SELECT @@SESSION.wait_timeout, @@SESSION.innodb_lock_wait_timeout") == (13, 1)

    def test_each_statement_of_a_session_sees_what_is_committed(self, serializable, backend):
        assert ask(backend, "SELECT @@SESSION.tx_isolation") == ("READ-COMMITTED",)

    def test_the_server_knows_the_locks_that_the_backend_holds(self, backend):
        def check():
            ours = {queue.pk for queue in Queue.objects.all() if is_ours(queue.pk)}
            assert ours == backend.held

        def is_ours(queue_id):
            return ask(backend, "SELECT IS_USED_LOCK(%s) = CONNECTION_ID()", backend.lock_name(queue_id)) == (1,)

        random_walk(backend, check)

    def test_a_lock_that_was_not_ours_any_more_is_a_lost_session(self, backend):
        put()
        one = claim_one(backend)
        ask(backend, "SELECT RELEASE_LOCK(%s)", backend.lock_name(one.queue_id))
        with pytest.raises(SessionLost):
            finish(backend, one)

    def test_a_snapshot_that_is_out_of_date_is_a_conflict_as_a_deadlock_is(self, backend):
        exc = OperationalError(1020, "Record has changed since last read in table 'queuetopia_queue'")
        assert backend.is_deadlock(exc)
        assert backend.is_busy(exc)

    def test_the_name_of_a_lock_is_short_and_names_the_database(self, backend):
        name = backend.lock_name(2**63 - 1)
        assert len(name) <= 64
        backend.database = "another"
        assert backend.lock_name(2**63 - 1) != name

    @pytest.mark.faults
    def test_a_killed_session_is_noticed(self, backend):
        (thread,) = ask(backend, "SELECT CONNECTION_ID()")
        with connection.cursor() as cursor:
            cursor.execute("KILL %s", [thread])
        wait_until(lambda: is_lost(backend))
