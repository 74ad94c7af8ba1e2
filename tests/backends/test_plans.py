"""The hot statements beside 100,000 blocked queues: each uses its index, and costs no more than without them."""

import re
import uuid
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from queuetopia import conf
from queuetopia.attempts import Outcome, Verdict
from queuetopia.backends import backend_for, postgresql, upkeep
from queuetopia.backends.values import Ending
from queuetopia.models import Job, Node, Queue
from tests.backends.sessions import ask
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]

SCOPE = LedgerQueue.scope
CROWD = 100_000
WORK = 10  # queues with due jobs
NODE = uuid.UUID(int=1)
HOUR = timedelta(hours=1)
TABLES = [Job._meta.db_table, Queue._meta.db_table]


# The crowd: every other queue backs off, the others are halted; each has a second job waiting.

DIGITS = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
NUMBERS = (
    "SELECT a.d + 10*b.d + 100*c.d + 1000*e.d + 10000*f.d AS n FROM "  # noqa: S608
    + ", ".join(f"({DIGITS}) {place}" for place in "abcef")
)
JOBS = """
    INSERT INTO queuetopia_job (id, scope, queue, action, params, scheduled_at, state, attempts, attempted_at,
                                attempted_by, next_attempt_at, error, errors)
    SELECT {first_id} + n, '{scope}', {name}, 'noop', '{{}}', {earlier}, {state}, {attempts}, {attempted_at}, '',
           {next_attempt_at}, '', '[]' FROM ({numbers}) x
"""
QUEUES = """
    INSERT INTO queuetopia_queue (scope, name, due_at, current_job)
    SELECT '{scope}', {name}, {next_attempt_at}, 10000000 + n FROM ({numbers}) x
"""


def insert_crowd():
    now = backend_for("default").now()
    words = {
        "scope": SCOPE,
        "numbers": NUMBERS,
        "name": "CONCAT('blocked ', n)" if connection.vendor == "mysql" else "'blocked ' || n",
        "earlier": literal(now - HOUR),
        "next_attempt_at": f"CASE WHEN n % 2 = 0 THEN {literal(now + HOUR)} END",
    }
    head = {"first_id": 10_000_000, "state": "CASE WHEN n % 2 = 0 THEN 'pending' ELSE 'halted' END", "attempts": 1,
            "attempted_at": words["earlier"]}  # fmt: skip
    waiting = {"first_id": 20_000_000, "state": "'pending'", "attempts": 0, "attempted_at": "NULL"}
    with connection.cursor() as cursor:
        cursor.execute(JOBS.format(**words, **head))
        cursor.execute(JOBS.format(**{**words, "next_attempt_at": "NULL"}, **waiting))
        cursor.execute(QUEUES.format(**words))


def literal(moment):
    text = str(connection.ops.adapt_datetimefield_value(moment))
    return f"CAST('{text}' AS timestamptz)" if connection.vendor == "postgresql" else f"'{text}'"


def insert_work():
    """Jobs in new queues, three each, and their wake-ups."""
    LedgerQueue.create_jobs([LedgerQueue.job(f"due {n % WORK}", "noop") for n in range(3 * WORK)])


def remove_work():
    Job.objects.filter(queue__startswith="due").delete()
    Queue.objects.filter(name__startswith="due").delete()


@pytest.fixture
def backend(transactional_db):
    """The session under test, which stands while a crowd is inserted: MySQL ends one that has been silent."""
    backend = backend_for("default")
    backend.open_session(conf.Lease(3600))
    yield backend
    backend.close_session()


@pytest.fixture
def no_statistics(transactional_db):
    """The planner knows nothing of our tables until ``analyse()``."""
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = false)")
            cursor.execute("DELETE FROM pg_statistic WHERE starelid = %s::regclass", [table])
        yield
        for table in TABLES:
            cursor.execute(f"ALTER TABLE {table} RESET (autovacuum_enabled)")


@pytest.fixture
def crowd(no_statistics):
    insert_crowd()
    assert Queue.objects.blocked().count() == CROWD


# Plans


def serve(backend):
    """The life of the work: wake, claim, record (kept and not), look for what is next."""
    insert_work()
    backend.wake([(SCOPE, f"due {n}", backend.now() - HOUR) for n in range(WORK)])
    claims, _ = backend.claim([SCOPE], WORK, NODE)
    assert len(claims) == WORK
    verdicts = [Verdict.DONE] * 5 + [Verdict.RETRY, Verdict.HALT, Verdict.SNOOZE, Verdict.RETURN, Verdict.CANCEL]
    kept = record(backend, claims, verdicts, keep=True)
    assert len(kept) == 6
    record(backend, kept, [Verdict.DONE] * len(kept), keep=False)
    assert backend.next_due([SCOPE]) < 3600
    upkeep.stop_requests(backend, claims)
    upkeep.due_alerts(backend, [SCOPE])
    upkeep.sweep(backend, SCOPE, "d")
    backend.claim([SCOPE], WORK, NODE)


def record(backend, claims, verdicts, keep):
    endings = [
        Ending(claim, Outcome(claim.job_id, claim.fence, verdict))
        for claim, verdict in zip(claims, verdicts, strict=True)
    ]
    recorded = backend.record(endings, NODE, "web1:7", lambda claim: keep)
    assert len(recorded.written) == len(claims)
    return recorded.claims


def statements(backend):
    """Return every statement on our big tables that serving the work takes, each kind once."""
    with CaptureQueriesContext(backend.connection) as captured:
        serve(backend)
    kinds = {re.sub(r"'[^']*'|\d+", "?", query["sql"]): query["sql"] for query in captured}
    # What is executed for many rows at once is captured as a template.
    statements = (re.sub(r"^\d+ times: ", "", sql).replace("%s", "0") for sql in kinds.values())
    return [sql for sql in statements if any(table in sql for table in TABLES)]


def plan_of(sql):
    """Return the plan as text, one line for each access."""
    explain = {"postgresql": "EXPLAIN ", "mysql": "EXPLAIN ", "sqlite": "EXPLAIN QUERY PLAN "}[connection.vendor]
    with connection.cursor() as cursor:
        cursor.execute(explain + sql)
        return "\n".join(" | ".join(map(str, row)) for row in cursor.fetchall())


def troubles_of(plan):
    """Return the lines of a plan that read a big table whole, or sort it."""
    bad = {
        "postgresql": r"Seq Scan on queuetopia_(job|queue)",
        "sqlite": r"SCAN queuetopia_(job|queue)",
        # table | type ... Extra: ALL reads the table, index a whole index
        "mysql": r"queuetopia_(job|queue) \| (ALL|index) |filesort|temporary",
    }[connection.vendor]
    return [line for line in plan.splitlines() if re.search(bad, line)]


@pytest.mark.capability("H23", "Q3", "E33")
@pytest.mark.usefixtures("crowd")
def test_no_statement_of_a_jobs_life_reads_a_table_whole_with_or_without_statistics(backend):
    for prepare in (remove_work, analyse):
        prepare()
        seen = statements(backend)
        assert len(seen) > 5
        for sql in seen:
            plan = plan_of(sql)
            assert not troubles_of(plan), f"{sql}\n{plan}"
        remove_work()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="only PostgreSQL keeps plans for so long")
@pytest.mark.usefixtures("no_statistics")
def test_no_plan_made_for_empty_tables_reads_an_index_whole(backend):
    """A session makes its plans once, perhaps before the first job, and keeps them for the million that follow."""
    seen = statements(backend)
    with backend.connection.cursor() as cursor:  # which has the settings that the plans are made with
        cursor.execute(f"TRUNCATE {', '.join(TABLES)} CASCADE")
        for sql in seen:
            cursor.execute(f"EXPLAIN {sql}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
            assert not re.search(r"Index Scan using \S+ on queuetopia_(job|queue)\b.*\n(?!\s+Index Cond)", plan), (
                f"{sql}\n{plan}"
            )


def analyse():
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(f"ANALYZE TABLE {table}" if connection.vendor == "mysql" else f"ANALYZE {table}")


EXPECTED = {
    "head": {
        "postgresql": r"Index Scan using queuetopia_job_head on queuetopia_job",
        "sqlite": r"SEARCH queuetopia_job USING INDEX queuetopia_job_head \(scope=\? AND queue=\?\)",
        "mysql": r"queuetopia_job \| (ref|range) \|.*queuetopia_job_head",
    },
    "due": {
        "postgresql": r"Index Scan using queuetopia_queue_due on queuetopia_queue",
        "sqlite": r"SEARCH queuetopia_queue USING INDEX queuetopia_queue_due \(scope=\? AND due_at<\?\)",
        "mysql": r"queuetopia_queue \| range \|.*queuetopia_queue_due",
    },
}


@pytest.mark.usefixtures("crowd")
def test_the_two_hot_queries_read_one_range_of_their_index_in_its_order_with_or_without_statistics():
    """The ORM's own, which SQLite and MySQL use as they are."""
    queries = {
        "head": Job.objects.unfinished().in_queue(SCOPE, "blocked 77").in_order()[:1],
        "due": Queue.objects.due(backend_for("default").now()).filter(scope=SCOPE).order_by("due_at")[:10],
    }
    for _ in range(2):
        for what, query in queries.items():
            with CaptureQueriesContext(connection) as captured:
                list(query.all())
            plan = plan_of(captured[0]["sql"])
            assert re.search(EXPECTED[what][connection.vendor], plan), plan
            assert not re.search(r"Sort|TEMP B-TREE|filesort", plan), plan
        analyse()


@pytest.mark.capability("H26")
@pytest.mark.usefixtures("crowd")
def test_explaining_a_queue_reads_no_table_whole_with_or_without_statistics():
    now = backend_for("default").now()
    Node.objects.create(id=NODE, host="web1", pid=7, scopes=[SCOPE])
    Queue.objects.create(scope=SCOPE, name="due", due_at=now - HOUR)
    Job.objects.create(scope=SCOPE, queue="due", action="noop", scheduled_at=now - HOUR)
    for _ in range(2):
        for name in ("blocked 76", "blocked 77", "due", "unheard of"):
            with CaptureQueriesContext(connection) as captured:
                LedgerQueue.explain(name)
            for sql in [query["sql"] for query in captured if any(table in query["sql"] for table in TABLES)]:
                plan = plan_of(sql)
                assert not troubles_of(plan), f"{sql}\n{plan}"
        analyse()


# Effort


def effort_of_work(backend):
    """Return what claiming and recording the work costs, in units of this database, step by step."""
    serve(backend)  # what is done once for each connection has been done
    remove_work()
    insert_work()
    effort = {"postgresql": _rows_read, "mysql": _row_reads, "sqlite": _steps}[connection.vendor](backend)
    remove_work()
    return effort


def work_off(backend):
    claims, _ = backend.claim([SCOPE], WORK, NODE)
    record(backend, claims, [Verdict.DONE] * WORK, keep=False)
    backend.next_due([SCOPE])
    backend.wake([(SCOPE, "due 1", backend.now() - HOUR)])


def _row_reads(backend):
    before = _handler_reads(backend)
    work_off(backend)
    return {"rows": _handler_reads(backend) - before}


def _handler_reads(backend):
    with backend.connection.cursor() as cursor:
        cursor.execute("SHOW SESSION STATUS LIKE 'Handler_read%'")
        return sum(int(count) for _, count in cursor.fetchall())


def _steps(backend):
    """Count the instructions of SQLite's virtual machine, in tens."""
    ticks = []
    backend.connection.connection.set_progress_handler(lambda: ticks.append(1), 10)
    work_off(backend)
    backend.connection.connection.set_progress_handler(None, 0)
    return {"steps": len(ticks)}


def _rows_read(backend):
    """Rows that the statements of postgresql.py read, by the plans that the session has for them."""
    claims, _ = backend.claim([SCOPE], WORK, NODE)
    record(backend, claims, [Verdict.RETURN] * WORK, keep=False)
    efforts, now = {}, backend.now()
    ids = list(Queue.objects.due(now).values_list("id", flat=True))

    def measure(statement, **arguments):
        with transaction.atomic(using=backend.alias), backend.connection.cursor() as cursor:
            before = _read_in_transaction(backend)
            cursor.execute(getattr(postgresql, statement), arguments)
            efforts[statement] = _read_in_transaction(backend) - before
            cursor.execute("SELECT pg_advisory_unlock_all()")
            transaction.set_rollback(True, using=backend.alias)

    measure("_CANDIDATES", scopes=[SCOPE], limit=WORK, only=None, now=now, base=backend.lock_key(0), passed=[])
    measure("_START", ids=ids, holder=NODE, now=now, commit=None, floor=0)
    claims, _ = backend.claim([SCOPE], WORK, NODE)
    assert len(claims) == WORK
    measure(
        "_FINISH",
        jobs=[claim.job_id for claim in claims], queues=[claim.queue_id for claim in claims],
        fences=[claim.fence for claim in claims], revs=[claim.rev for claim in claims],
        attempts=[1] * WORK, results=[None] * WORK, keeps=[True] * WORK, now=now, node="web1:7", commit=None, floor=0,
    )  # fmt: skip
    backend.held.clear()  # pg_advisory_unlock_all() has given them back
    record(backend, claims, [Verdict.DONE] * WORK, keep=False)
    measure("_RECHECK", ids=ids)
    measure("_NEXT_DUE", scopes=[SCOPE], overdue=0.0, refused=[])
    wake = {"commit": None, "timeout": None, "channel": "queuetopia"}
    measure("_WAKE", **wake, scopes=[SCOPE], names=["due 1"], times=[now - 2 * HOUR])
    measure("_WAKE_KNOWN", **wake, scope=SCOPE, name="due 1", time=now - 3 * HOUR)
    measure("_WAKE_NEW", **wake, scope=SCOPE, name="due 1", time=now - 4 * HOUR)
    return efforts


def _read_in_transaction(backend):
    counters = "sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables"
    (rows,) = ask(backend, f"SELECT {counters} WHERE relname = ANY(%s)", list(TABLES))
    return int(rows)


@pytest.mark.capability("H23", "Q3", "E33")
def test_serving_costs_the_same_beside_a_crowd_of_blocked_queues(no_statistics, backend):
    alone = effort_of_work(backend)  # and plans have been made for tables with next to nothing in them
    insert_crowd()
    for prepare in (remove_work, analyse):
        prepare()
        among_the_crowd = effort_of_work(backend)
        for what, effort in among_the_crowd.items():
            # An index over the crowd has a level or two more.
            assert effort <= 1.5 * alone[what] + 10 * WORK, (alone, among_the_crowd)


# The admin


@pytest.mark.usefixtures("crowd")
def test_the_admins_pages_of_a_job_and_a_queue_read_no_table_whole(admin_client):
    analyse()
    line = Queue.objects.get(name="blocked 77")
    for path in (f"queue/{line.pk}/", f"job/{line.current_job}/", f"job/{line.current_job + 10_000_000}/"):
        with CaptureQueriesContext(connection) as captured:
            assert admin_client.get(f"/admin/queuetopia/{path}change/").status_code == 200
        seen = [query["sql"] for query in captured if re.search(r"\Wqueuetopia_(job|queue)\W", query["sql"])]
        assert len(seen) > 3
        for sql in seen:
            plan = plan_of(sql)
            assert not re.search(r"Seq Scan on queuetopia_(job|queue)\b|SCAN queuetopia_(job|queue)\b|"
                                 r"queuetopia_(job|queue) \| (ALL|index) ", plan), f"{sql}\n{plan}"  # fmt: skip
