"""PgBouncer in transaction mode, configured as docs/guides/production.md says, in front of the test's PostgreSQL."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from django.db import connection

from queuetopia.models import Job
from queuetopia.testing import wait_until
from tests.conftest import REPOSITORY
from tests.database import pgbouncer
from tests.faults.ledger import check
from tests.nodes import PATIENCE, is_running
from tests.pages import blocks
from tests.processes.waiting import wait_for_all, wait_for_attempts
from tests.testapp.queues import LedgerQueue

psycopg = pytest.importorskip("psycopg")

pytestmark = [
    pytest.mark.processes,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="PgBouncer is PostgreSQL's"),
]

SETTINGS = """
from tests.settings import *

direct = DATABASES["default"]
pooled = {{**direct, "HOST": {host!r}, "PORT": {port!r}, "DISABLE_SERVER_SIDE_CURSORS": True}}
pooled["OPTIONS"] = {{"application_name": "pooled", **env.json("POOLED_OPTIONS", default={{}})}}
DATABASES |= {{"default": pooled, "direct": direct}}
if env.bool("DIRECT", default=True):
    QUEUETOPIA |= {{"LOCK_DATABASE": {{"default": "direct"}}}}
"""
# What a session in the pool must not keep of its last client.
LEFT_BEHIND = """
    SELECT current_setting('synchronous_commit'), current_setting('lock_timeout'), current_setting('statement_timeout'),
           current_setting('idle_session_timeout'), current_setting('plan_cache_mode'),
           current_setting('enable_seqscan'),
           (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
           (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid())
"""

FIND_OUT = """
import threading
from django.db import connections
from queuetopia import conf
from queuetopia.backends import backend_for
from queuetopia.exceptions import SessionRefused

over = threading.Event()
def work():
    while not over.is_set():
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT 1")
    connections.close_all()

others = [threading.Thread(target=work) for _ in range(3)]
for other in others:
    other.start()
try:
    for _ in range(25):
        backend = backend_for("default")
        try:
            backend.open_session(conf.lease())
        except SessionRefused as exc:
            assert "pooler in transaction mode" in str(exc)
            print("refused")
        finally:
            backend.close_session()
finally:
    over.set()
"""
PAGE = REPOSITORY / "docs/guides/production.md"


@pytest.fixture(scope="module")
def address(django_db_setup):
    """The folder of the pooler's socket, and its port."""
    (config,) = (block.text for block in blocks(PAGE) if "[pgbouncer]" in block.text)
    assert "pool_mode = transaction\n" in config
    folder, port = pgbouncer(config, connection)
    yield folder, port
    pid = int(Path(folder, "pid").read_text())
    os.kill(pid, signal.SIGKILL)  # while it has sessions the test database cannot be dropped
    wait_until(lambda: not is_running(pid) and not sessions_of_the_pool(), PATIENCE)


def server():
    """How to connect to the test database past the pooler."""
    given = connection.get_connection_params()
    return {name: given[name] for name in ("dbname", "host", "port", "user", "password") if name in given}


def sessions_of_the_pool():
    with psycopg.connect(**server()) as direct:
        return direct.execute("SELECT pid FROM pg_stat_activity WHERE application_name = 'pooled'").fetchall()


@pytest.fixture
def pooled(address):
    """A function that connects to the test database through the pooler."""
    host, port = address
    with contextlib.ExitStack() as stack:

        def connect():
            return stack.enter_context(psycopg.connect(**{**server(), "host": host, "port": port}))

        yield connect


@pytest.fixture
def environment(address, tmp_path):
    """The environment of a project whose jobs' database is behind the pooler."""
    host, port = address
    (tmp_path / "pooled_settings.py").write_text(SETTINGS.format(host=host, port=port))
    path = os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]])
    return {"DJANGO_SETTINGS_MODULE": "pooled_settings", "PYTHONPATH": path}


@pytest.fixture
def manage(environment, node_environment):
    """Run a management command in such a project; return what it printed."""

    def manage(*command, **more):
        environ = {**node_environment, **environment, **more}
        command = [sys.executable, "-m", "django", *command]
        result = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return manage


def create_jobs(manage, queue, number, **more):
    """Create jobs in a web process: some one by one, some in transactions that are rolled back, the rest at once."""
    code = f"""
from django.db import connection, transaction
from tests.testapp.queues import LedgerQueue
assert connection.settings_dict["OPTIONS"]["application_name"] == "pooled"
for seq in range({number // 2}):
    with transaction.atomic():
        LedgerQueue.create_job({queue!r}, "write", {{"seq": -1}})
        transaction.set_rollback(True)
    LedgerQueue.create_job({queue!r}, "write", {{"seq": seq}})
LedgerQueue.create_jobs([LedgerQueue.job({queue!r}, "write", {{"seq": seq}}) for seq in range({number // 2}, {number})])
"""
    manage("shell", "-v0", "-c", code, **more)


def left_behind(pooled):
    """Return what is set in two of the pool's sessions, which are used at the same moment."""
    return [pooled().execute(LEFT_BEHIND).fetchone() for _ in range(2)]


def as_new():
    with psycopg.connect(**server()) as direct:
        return direct.execute(LEFT_BEHIND).fetchone()


@pytest.mark.parametrize("options", [{}, {"server_side_binding": True}], ids=["as usual", "server-side binding"])
def test_a_node_with_a_direct_connection_runs_what_is_created_through_the_pooler(
    nodes, ledger, environment, manage, pooled, options
):
    node = nodes.start(LedgerQueue, env=environment, poll_interval=3600)
    node.wait_for_log("node started")
    created = {f"queue-{number}": list(range(20)) for number in range(3)}
    options = {"POOLED_OPTIONS": json.dumps(options)}
    creators = [threading.Thread(target=create_jobs, args=(manage, queue, 20), kwargs=options) for queue in created]
    for creator in creators:
        creator.start()
    for creator in creators:
        creator.join(PATIENCE)

    wait_for_all()

    assert check(ledger.records(), created).wrong == []
    assert Job.objects.count() == 60
    assert "refused" not in node.log()
    assert left_behind(pooled) == [as_new()] * 2
    assert node.stop() == 0


def test_people_look_and_decide_through_the_pooler(nodes, ledger, environment, manage, pooled):
    node = nodes.start(LedgerQueue, env=environment, poll_interval=3600)
    job = LedgerQueue.create_job("q", "say", {"verdict": "halt"})
    waiting = LedgerQueue.create_job("q", "noop")
    wait_until(lambda: LedgerQueue.jobs().halted().exists(), PATIENCE)

    assert "halted" in manage("queuetopia", "status", LedgerQueue.scope)
    assert json.loads(manage("queuetopia", "status", LedgerQueue.scope, "--json"))["nodes"][0]["alive"]
    manage("queuetopia", "pause", LedgerQueue.scope, "q", "--by", "ann")
    manage("queuetopia", "cancel", "--scope", LedgerQueue.scope, str(waiting.pk), "--by", "ann")
    manage("queuetopia", "retry", "--scope", LedgerQueue.scope, str(job.pk), "--by", "ann")
    manage("queuetopia", "resume", LedgerQueue.scope, "q", "--by", "ann")
    wait_for_attempts(ledger, 2)
    wait_until(lambda: LedgerQueue.jobs().halted().exists(), PATIENCE)
    manage("queuetopia", "skip", "--scope", LedgerQueue.scope, str(job.pk), "--by", "ann")
    manage("queuetopia", "prune", LedgerQueue.scope, "--older-than", "0")

    assert not LedgerQueue.jobs().exists()
    assert left_behind(pooled) == [as_new()] * 2
    assert node.stop() == 0


def test_a_node_refuses_to_keep_its_locks_in_a_pooler_and_says_what_to_do(nodes, environment, pooled):
    node = nodes.start(LedgerQueue, env={**environment, "DIRECT": "false"})
    assert node.wait() == 1
    assert "cannot start: Database 'default' is reached through a pooler in transaction mode" in node.log()
    assert "Set QUEUETOPIA['LOCK_DATABASE'] to an alias that connects to PostgreSQL directly" in node.log()
    assert left_behind(pooled) == [as_new()] * 2


def test_a_pooler_is_found_out_while_others_use_its_sessions(manage, pooled):
    printed = manage("shell", "-v0", "-c", FIND_OUT, DIRECT="false")
    assert printed.split() == ["refused"] * 25
    assert left_behind(pooled) == [as_new()] * 2


def test_options_that_a_pooler_does_not_take_are_told_by_name(nodes, environment):
    options = {"POOLED_OPTIONS": json.dumps({"options": "-c statement_timeout=1000"}), "DIRECT": "false"}
    node = nodes.start(LedgerQueue, env={**environment, **options})
    node.wait_for_log("unsupported startup parameter: options")
