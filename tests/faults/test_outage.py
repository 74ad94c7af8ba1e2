"""A database that is away for long: nodes wait for it, can be stopped meanwhile, and do not fill their logs."""

import subprocess
import sys

import pytest
from django.db import connection

from queuetopia.testing import wait_until
from tests.nodes import PATIENCE, Nodes
from tests.testapp.queues import LedgerQueue

from .campaign import environment_of
from .proxy import Proxy
from .servers import SERVERS

pytestmark = [pytest.mark.faults, pytest.mark.processes, pytest.mark.slow]


@pytest.fixture
def server():
    """A server of the kind under test, which may be crashed."""
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
    """The way to the server, which knows how often somebody wanted to go it."""
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
