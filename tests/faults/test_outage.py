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
def test_a_standby_that_is_away_costs_a_running_job_nothing(server, nodes, ledger):
    node = nodes.start(LedgerQueue, processes=1, env=ledger.environment | {"QUEUETOPIA_TEST_LEASE": "6"})
    node.wait_for_log("node started")
    create = "from tests.testapp.queues import *; LedgerQueue.create_job('a', 'write_when_told', {'seq': 1})"
    subprocess.run([sys.executable, "-m", "django", "shell", "-c", create], env=nodes.environment, check=True)
    wait_until(lambda: ledger.attempts() == 1, PATIENCE)
    seen = lambda: server._ask("SELECT last_seen FROM queuetopia_node")[0][0]  # noqa: E731

    stopped_at = seen()
    with server.standby_away():
        wait_until(lambda: (seen() - stopped_at).total_seconds() > 5, PATIENCE)  # longer than the fence time
        ledger.go()
        is_waiting = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'queuetopia' AND wait_event = 'SyncRep'"
        wait_until(lambda: server._ask(is_waiting), PATIENCE, message="the result does not wait")

    wait_until(lambda: server._ask("SELECT state, attempts FROM queuetopia_job") == [("done", 1)], PATIENCE)
    assert ledger.attempts() == 1
    assert node.stop() == 0
