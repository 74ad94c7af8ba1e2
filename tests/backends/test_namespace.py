"""Two installs on one server, each with tables of its own, know nothing of each other."""

import uuid
from urllib.parse import quote

import pytest
from django.apps import apps
from django.db import connection, connections, transaction

from queuetopia import conf
from queuetopia.backends import backend_for
from queuetopia.models import Job, Queue
from queuetopia.testing import wait_until
from tests.faults.ledger import Ledger
from tests.nodes import PATIENCE, Nodes
from tests.testapp.queues import LedgerQueue

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="other databases have no schemas"),
]
SCOPE = LedgerQueue.scope
SCHEMAS = ("red", "blue")
TABLES = [model._meta.db_table for model in apps.get_app_config("queuetopia").get_models()]


@pytest.fixture
def schemas(monkeypatch):
    """Two schemas in the test database, each with our tables and an alias of its name."""
    with connection.cursor() as cursor:
        for schema in SCHEMAS:
            cursor.execute(f"CREATE SCHEMA {schema}")
            for table in TABLES:
                cursor.execute(f"CREATE TABLE {schema}.{table} (LIKE public.{table} INCLUDING ALL)")
    # Django lets tests connect to aliases of its own only.
    monkeypatch.setattr(
        type(connections["default"]), "ensure_connection", lambda self: self.connection or self.connect()
    )
    for schema in SCHEMAS:
        options = {**connection.settings_dict["OPTIONS"], "options": f"-c search_path={schema},public"}
        monkeypatch.setitem(connections.settings, schema, {**connection.settings_dict, "OPTIONS": options})
    yield
    for schema in SCHEMAS:
        connections[schema].close()
        del connections[schema]
    with connection.cursor() as cursor:
        for schema in SCHEMAS:
            cursor.execute(f"DROP SCHEMA {schema} CASCADE")


@pytest.fixture
def sessions(schemas):
    """A session in each schema."""
    backends = [backend_for(schema) for schema in SCHEMAS]
    for backend in backends:
        backend.open_session(conf.lease())
    yield backends
    for backend in backends:
        backend.close_session()


def put(backend, name="q"):
    """Create a job as a web process of this schema does."""
    web = backend_for(backend.alias.partition("+")[0])
    web.insert([Job(scope=SCOPE, queue=name, action="noop")])
    web.wake([(SCOPE, name, web.now())])


def test_queues_of_the_same_number_run_at_once(sessions):
    for backend in sessions:
        put(backend)
    assert len({Queue.objects.using(backend.alias).get().pk for backend in sessions}) == 1

    claims = [backend.claim([SCOPE], 10, uuid.UUID(int=1))[0] for backend in sessions]

    assert [len(found) for found in claims] == [1, 1]


def test_a_standby_waits_for_no_other_install(sessions):
    turn = 2**39 + 7  # as a standby has it: no queue has so high a number
    assert [backend.try_lock([turn]) for backend in sessions] == [[turn], [turn]]


def test_creators_in_order_of_commit_wait_for_no_other_install(schemas):
    red, blue = map(backend_for, SCHEMAS)
    with transaction.atomic(using="red"), transaction.atomic(using="blue"):
        with connections["blue"].cursor() as cursor:
            cursor.execute("SET LOCAL lock_timeout = 500")
        red.lock_order(SCOPE, {"q"})
        blue.lock_order(SCOPE, {"q"})


def test_a_job_wakes_the_nodes_of_its_own_install(sessions):
    red, blue = sessions
    listener = red.listener()
    try:
        put(red)
        wait_until(red.has_news)
        wait_until(listener.has_news)
        red.notify_followers()
        wait_until(listener.has_news)
        assert not blue.has_news()
        blue.notify_followers()
        blue.notify()
        wait_until(blue.has_news)
        assert not red.has_news()
        assert not listener.has_news()
    finally:
        listener.close()


@pytest.mark.processes
def test_nodes_of_two_installs_run_jobs_of_the_same_number_at_once(schemas, node_environment, tmp_path):
    url, nodes = node_environment["DATABASE_URL"], []
    for schema in SCHEMAS:
        folder = tmp_path / schema
        folder.mkdir()
        ledger = Ledger(folder / "ledger")
        address = f"{url}{'&' if '?' in url else '?'}options={quote(f'-c search_path={schema},public')}"
        nodes.append((Nodes({**node_environment, **ledger.environment, "DATABASE_URL": address}, folder), ledger))
        backend_for(schema).insert(
            [Job(scope=SCOPE, queue=schema, action="write", params={"seq": 1, "lasts": 2.0 * PATIENCE})]
        )
        backend_for(schema).wake([(SCOPE, schema, backend_for(schema).now())])
    try:
        for started, _ in nodes:
            started.start(LedgerQueue, processes=1)
        for _, ledger in nodes:
            wait_until(lambda ledger=ledger: ledger.records("start"), PATIENCE)
        assert [ledger.records("end") for _, ledger in nodes] == [[], []]
    finally:
        for started, _ in nodes:
            started.put_away()
