"""What is special to PostgreSQL."""

import contextlib
import select
from datetime import timedelta
from functools import partial
from unittest import mock

import pytest
from django.db import OperationalError, connection, transaction

from queuetopia import conf
from queuetopia.backends import backend_for, base, postgresql, upkeep
from queuetopia.backends.contract.toolkit import (
    HOUR,
    PATIENCE,
    SCOPE,
    ContractQueue,
    claim,
    claim_one,
    end,
    finish,
    join,
    line,
    put,
    put_row,
    record,
)
from queuetopia.backends.contract.vendors import is_waiting
from queuetopia.exceptions import SessionLost
from queuetopia.models import Queue
from queuetopia.testing import wait_until
from tests.backends.sessions import EndsSilentSessions, ask, is_deaf, is_lost, random_walk
from tests.conftest import REPOSITORY
from tests.pages import blocks


def pid_of(backend):
    """Return the process of the server that has the backend's session."""
    (pid,) = ask(backend, "SELECT pg_backend_pid()")
    return pid


@pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL only")
class TestPostgreSQL(EndsSilentSessions):
    LOCKS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"

    def test_a_full_lock_table_costs_no_lock_and_the_node_holds_fewer_queues(self, backend, node):
        """The statement fails at a lock; those it took before stay the session's."""
        from psycopg import errors

        put("a")
        put("b")
        before = claim_one(backend, limit=1)
        other = line("b").pk

        def fill_the_lock_table(execute, sql, arguments, many, context):
            if sql == postgresql._CANDIDATES:
                ask(backend, "SELECT pg_advisory_lock(%s)", backend.lock_key(other))
                raise OperationalError("out of shared memory") from errors.OutOfMemory()
            return execute(sql, arguments, many, context)

        most = backend.most_held
        with backend.connection.execute_wrapper(fill_the_lock_table):
            assert claim(backend) == []
        assert backend.most_held == most // 2
        assert backend.held == {before.queue_id}
        assert node.run(node.backend.try_lock, [other, before.queue_id]) == [other]
        assert backend.next_due([SCOPE]) > base.OVERDUE

    @pytest.mark.parametrize(("locks", "held"), [(1, 10), (200, 50), (6_400, 1_000)])
    def test_a_node_takes_a_share_of_the_lock_table(self, locks, held):
        assert postgresql.share_of(locks) == held

    def test_a_sequence_behind_its_table_is_named_with_its_remedy_and_keeps_no_queue_from_the_sweep(
        self, backend, node, caplog
    ):
        put("a")
        put("b")
        assert backend.behind_their_tables() == []
        Queue.objects.filter(name="b").update(due_at=None)
        put_row("c")
        ask(backend, "SELECT setval('queuetopia_queue_id_seq', min(id), false) FROM queuetopia_queue")
        assert backend.behind_their_tables() == ["queuetopia_queue"]
        assert upkeep.sweep(backend, SCOPE, "") == (1, None)
        assert "sqlsequencereset queuetopia" in caplog.text
        assert line("b").due_at is not None
        node.run(node.backend.close_session)
        caplog.clear()
        ask(backend, "SELECT setval('queuetopia_queue_id_seq', min(id), false) FROM queuetopia_queue")
        node.run(node.backend.open_session, conf.lease())
        assert "sqlsequencereset queuetopia" in caplog.text

    def test_the_statements_of_the_docs_are_understood(self, backend):
        page = REPOSITORY / "docs" / "guides" / "months.md"
        statements = [block.text for block in blocks(page) if block.language == "sql"]
        assert len(statements) == 4
        with transaction.atomic(), connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            transaction.set_rollback(True)

    def test_each_statement_of_a_session_sees_what_is_committed(self, serializable, backend):
        for begin in (contextlib.nullcontext, partial(transaction.atomic, using=backend.alias)):
            with begin():
                assert ask(backend, "SHOW transaction_isolation") == ("read committed",)

    def test_something_else_is_done_while_the_server_writes_a_batch(self, backend):
        for number in range(postgresql._WORTH_A_PIPELINE):
            put(f"queue-{number}")
        claims, pid = claim(backend), pid_of(backend)
        with backend.connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = 0")

        def is_writing():  # it waits for the row that we have locked
            with connection.cursor() as cursor:
                cursor.execute("SELECT cardinality(pg_blocking_pids(%s)) > 0", [pid])
                return cursor.fetchone()[0]

        def unlock():
            wait_until(is_writing)
            transaction.rollback()

        meanwhile = mock.Mock(side_effect=unlock)
        transaction.set_autocommit(False)
        try:
            Queue.objects.select_for_update().get(name="queue-0")
            recorded = record(backend, *map(end, claims), meanwhile=meanwhile)
        finally:
            transaction.set_autocommit(True)
        assert len(recorded.written) == len(claims)
        meanwhile.assert_called_once_with()

    def test_the_server_enforces_the_lease(self, backend):
        lease = conf.Lease(15)
        expected = {
            "idle_session_timeout": "12500ms",
            "idle_in_transaction_session_timeout": "12500ms",
            "statement_timeout": "4500ms",
            "tcp_user_timeout": f"{int(lease.session * 1000)}ms",
            "application_name": "queuetopia",
        }
        set_ = {name: ask(backend, "SELECT current_setting(%s)", name)[0] for name in expected}
        # A socket file has no TCP options.
        assert {**set_, "tcp_user_timeout": expected["tcp_user_timeout"]} == expected

    @pytest.mark.faults
    def test_a_terminated_session_is_noticed(self, backend):
        pid = pid_of(backend)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
        wait_until(lambda: is_deaf(backend))
        assert is_lost(backend)

    def test_there_are_never_more_locks_than_the_backend_holds(self, backend):
        def check():
            assert ask(backend, self.LOCKS) == (len(backend.held),)

        random_walk(backend, check)
        assert ask(backend, self.LOCKS) == (0,)

    def test_a_claim_locks_what_it_takes_and_nothing_else(self, backend):
        ContractQueue.create_jobs([ContractQueue.job(f"q{number}", "noop") for number in range(1_000)])
        for limit, locks in ((1, 1), (3, 4), (10, 14)):
            assert len(claim(backend, limit)) == limit
            assert ask(backend, self.LOCKS) == (locks,)

    def test_a_lock_that_was_not_ours_any_more_is_a_lost_session(self, backend):
        put()
        one = claim_one(backend)
        ask(backend, "SELECT pg_advisory_unlock_all()")
        with pytest.raises(SessionLost):
            finish(backend, one)

    def test_the_key_of_a_lock_is_the_number_of_its_queue_in_our_namespace(self, backend):
        put()
        one = claim_one(backend)
        key = "SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND pid = %s"
        assert ask(backend, key, pid_of(backend)) == (backend.lock_key(one.queue_id),)
        assert backend.lock_key(2**40 - 1) < 2**63
        assert backend.lock_key(1) - backend.lock_key(0) == 1

    @pytest.mark.capability("E33")
    @pytest.mark.parametrize("more", [True, False])
    def test_a_job_finished_while_a_claim_looks_with_an_older_snapshot_is_not_run_twice(self, backend, node, more):
        """Z11 in one statement: its snapshot is older than a whole run of the queue's head."""
        put()
        following = [put().pk] if more else []
        gate = 4711
        scan = "WHERE q.scope = s.scope"
        gated = f"WHERE (SELECT pg_advisory_xact_lock_shared({gate})::text) = '' AND q.scope = s.scope"

        def wait_at_the_gate(execute, sql, *rest):
            return execute(sql.replace(scan, gated), *rest)

        def claim_late(now):
            with node.backend.connection.execute_wrapper(wait_at_the_gate):
                return claim(node.backend, holder=node.id, now=now)

        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [gate])
            theirs = node.start(claim_late, backend.now() + HOUR)
            wait_until(lambda: theirs.done() or is_waiting(), PATIENCE)
            assert not theirs.done()
            first = claim_one(backend)
            finish(backend, first)
            cursor.execute("SELECT pg_advisory_unlock(%s)", [gate])
        assert [one.job_id for one in theirs.result(PATIENCE)] == following

    def test_a_wake_that_changes_nothing_notifies_nobody(self, backend):
        put("a")
        claim(backend)
        wait_until(backend.has_news)
        assert not backend.has_news()
        backend_for("default").wake([(SCOPE, "a", backend.now())])  # it runs
        ask(backend, "SELECT 1")
        assert not backend.has_news()

    @pytest.mark.capability("J3")
    def test_a_job_for_later_notifies_too(self, backend):
        put(scheduled_at=backend.now() + HOUR)
        assert wait_until(backend.has_news)

    def test_a_notification_read_by_another_statement_is_not_swallowed(self, backend):
        put()
        for _ in range(3):
            backend.now()
        assert wait_until(backend.has_news)
        assert not backend.has_news()

    def test_a_descriptor_tells_of_a_notification(self, backend, elsewhere):
        while backend.has_news():
            pass
        elsewhere().run(put)
        readable, _, _ = select.select([backend.fileno()], [], [], PATIENCE)
        assert readable
        assert backend.has_news()

    def test_a_queue_that_had_nothing_to_do_goes_ahead_of_one_that_had_its_turn(self, backend):
        for _ in range(3):
            put("busy")
        finish(backend, claim_one(backend, limit=1))
        put("new")
        assert claim_one(backend, limit=1).queue == "new"

    def test_a_queue_does_not_get_ahead_by_new_jobs_while_it_has_some(self, backend):
        for name in ("first", "second"):
            put(name)
            put(name)
        first = claim_one(backend, limit=1)
        finish(backend, first)
        put(first.queue)
        assert claim_one(backend, limit=1).queue != first.queue

    @pytest.mark.parametrize("many", [False, True])
    def test_a_job_for_later_is_not_due_before_its_time(self, backend, many):
        later = backend.now() + timedelta(seconds=2)
        backend.wake([(SCOPE, name, later) for name in ("a", "b")[: 1 + many]])
        assert set(Queue.objects.values_list("due_at", flat=True)) == {later}

    def test_a_wake_passes_over_a_row_that_is_locked_and_comes_back_to_it(self, backend, elsewhere):
        now = backend.now()
        for name in ("a", "b", "c"):
            put(name, scheduled_at=now + HOUR)
        with transaction.atomic():
            ContractQueue.pause("b")
            wakes = [(SCOPE, name, now) for name in ("a", "b", "c", "d")]
            waking = elsewhere().start(lambda: backend_for("default").wake(wakes))
            wait_until(lambda: waking.done() or is_waiting(), PATIENCE)
            assert set(Queue.objects.due(now).values_list("name", flat=True)) == {"a", "c", "d"}
        join([waking])
        assert line("b").due_at == now


@pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL only")
class TestWaitingForAStandby:
    """A claim that a failover undid would give its fence to another attempt; a heartbeat may be undone."""

    HOW = "SELECT current_setting('synchronous_commit')"

    @pytest.fixture
    def waiting(self, backend):
        """A session where the project has commits wait for a standby."""
        backend.close_session()
        with connection.cursor() as cursor:
            name = connection.ops.quote_name(connection.settings_dict["NAME"])
            cursor.execute(f"ALTER DATABASE {name} SET synchronous_commit = remote_apply")
            backend.open_session(conf.lease())
            yield
            cursor.execute(f"ALTER DATABASE {name} RESET synchronous_commit")

    @pytest.fixture
    def commits(self, backend, waiting):
        """How each claim and result commits."""
        commits = []
        statements = {postgresql._START: "claim", postgresql._FINISH: "result"}

        def note(execute, sql, *rest):
            if sql not in statements:
                return execute(sql, *rest)
            with transaction.atomic(using=backend.alias):
                result = execute(sql, *rest)
                commits.append((statements[sql], *ask(backend, self.HOW)))
            return result

        with backend.connection.execute_wrapper(note):
            yield commits

    def test_claims_and_results_do_as_the_project_has_it_and_all_else_does_not(self, backend, commits):
        assert ask(backend, self.HOW) == ("local",)
        put()
        one = claim_one(backend)
        finish(backend, one)
        assert set(commits) == {("claim", "remote_apply"), ("result", "remote_apply")}
