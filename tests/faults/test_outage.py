"""A database that is away for long: nodes wait for it, can be stopped meanwhile, and do not fill their logs."""

import os
import signal
import subprocess
import sys

import pytest
from django.db import connection

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, Nodes
from tests.testapp.queues import LedgerQueue

from .campaign import environment_of
from .proxy import Proxy
from .servers import SERVERS, PostgresWithStandby

pytestmark = [pytest.mark.faults, pytest.mark.processes, pytest.mark.slow]


def with_standby(test):
    """Run the test with PostgreSQL's server and a standby of it; the other databases have none here."""
    test = pytest.mark.parametrize("server", [PostgresWithStandby], indirect=True, ids=["standby"])(test)
    return pytest.mark.skipif(connection.vendor != "postgresql", reason="PostgreSQL only")(test)


@pytest.fixture
def server(request):
    """A server of the kind under test, or of the class asked for, which may be crashed."""
    if hasattr(request, "param"):
        return request.param()
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server that could be away")
    return SERVERS[{"postgresql": "postgres", "mysql": "mariadb"}[connection.vendor]]()


@pytest.fixture
def nodes(server, tmp_path):
    nodes = Nodes(environment_of(server, tmp_path, lease=15), tmp_path)
    migrate = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"]
    subprocess.run(migrate, env=nodes.environment, check=True)
    yield nodes
    nodes.put_away()


def create(jobs, nodes):
    code = f"from tests.testapp.queues import LedgerQueue\n{jobs}"
    subprocess.run([sys.executable, "-m", "django", "shell", "-c", code], env=nodes.environment, check=True)


@pytest.fixture
def proxy(server):
    """The way to the server, which counts the connections that were tried."""
    proxy = Proxy(server.socket)
    yield proxy
    proxy.close()


@pytest.mark.capability("E16", "J3")
def test_nodes_wait_for_a_database_that_is_away_and_stop_when_they_are_told_to(server, proxy, nodes):
    node, other = (
        nodes.start(LedgerQueue, processes=1, grace=3600, env={"DATABASE_URL": server.url_by(proxy.port)})
        for _ in range(2)
    )
    for each in (node, other):
        each.wait_for_log("node started")

    server.crash()
    asked = proxy.asked
    for each in (node, other):
        each.wait_for_log("no database session")
    assert other.stop() == 1  # not everything it had ended may be stored

    wait_until(lambda: proxy.asked >= asked + 8, PATIENCE)
    assert node.log().count("no database session") <= 3  # one for each cause: the session is lost, there is no server
    server.start()
    node.wait_for_log("database session is back")
    node.wait_for_log("node started", times=2)
    assert node.stop() == 0


@with_standby
@pytest.mark.capability("E6")
def test_a_scheduler_that_dies_during_a_failover_costs_no_node(server, nodes):
    node = nodes.start(LedgerQueue, processes=1)
    node.wait_for_log("node started")

    server.fail_over()
    os.kill(node.scheduler, signal.SIGKILL)
    node.wait_for_log("is a read-only standby", times=2)
    server.promote()
    node.wait_for_log("node started", times=2)
    assert node.stop() == 0


@with_standby
def test_a_fence_that_a_failover_has_undone_is_not_given_again(server, nodes, ledger):
    node = nodes.start(LedgerQueue, processes=1, env=ledger.environment)
    node.wait_for_log("node started")
    with server.without_standby():
        create("for seq in range(3): LedgerQueue.create_job('a', 'write', {'seq': seq})", nodes)
        wait_until(lambda: ledger.attempts() == 3, PATIENCE)
        server.fail_over()
    server.promote()
    node.wait_for_log("node started", times=2)
    create("LedgerQueue.create_job('a', 'write', {'seq': 3})", nodes)
    wait_until(lambda: ledger.attempts() == 4, PATIENCE)

    fences = [record.fence for record in ledger.records("start")]
    assert fences == sorted(set(fences))
    assert node.stop() == 0


@with_standby
def test_a_standby_that_is_away_costs_a_running_job_nothing_not_even_while_a_result_waits_for_it(server, nodes, ledger):
    node = nodes.start(LedgerQueue, processes=2, env=ledger.environment | {"QUEUETOPIA_TEST_LEASE": "6"})
    node.wait_for_log("node started")
    create("LedgerQueue.create_job('a', 'write_when_told', {'seq': 1}); LedgerQueue.create_job('b', 'hang')", nodes)
    wait_until(lambda: ledger.attempts() == 2, PATIENCE)
    seen = lambda: server._ask("SELECT last_seen FROM queuetopia_node")[0][0]  # noqa: E731
    beats_for = lambda since, seconds: wait_until(lambda: (seen() - since).total_seconds() > seconds, PATIENCE)  # noqa: E731
    is_waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'queuetopia' AND wait_event = 'SyncRep'"

    with server.standby_away():
        beats_for(seen(), 5)  # longer than the fence time
        ledger.go()
        wait_until(lambda: server._ask(is_waiting), PATIENCE, message="the result does not wait")
        beats_for(seen(), 5)
        assert server._ask(is_waiting)

    wait_until(
        lambda: server._ask("SELECT state, attempts FROM queuetopia_job ORDER BY id")[0] == ("done", 1), PATIENCE
    )
    assert ledger.attempts() == 2
    assert node.log().count("node started") == 1
    assert node.stop() == 0
