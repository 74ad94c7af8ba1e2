"""What a job changes for its whole process is as before for the next one, which may be of another queue."""

import pytest

from tests.processes.waiting import environment, wait_for_all
from tests.testapp.queues import LedgerQueue

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]

CODE = """
import builtins, contextvars, decimal, gc, io, locale, logging, os, resource, signal, socket, sys, tempfile, time

from asgiref.sync import sync_to_async
from django.db import connection
from django.utils import timezone, translation

from queuetopia import action
from tests.testapp.queues import LedgerPerformer

tenant = contextvars.ContextVar("tenant", default="none")

def look():
    mask = os.umask(0)
    os.umask(mask)
    return {
        "working directory": os.getcwd(),
        "umask": mask,
        "environ": [os.environ.get("SPOILT"), os.environ.get("HOME"), os.environ.get("TZ"), list(time.tzname)],
        "from setup": os.environ.get("FROM_SETUP"),
        "socket timeout": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "stdout": type(sys.stdout).__name__,
        "logging": [logging.root.manager.disable, logging.root.level],
        "gc": gc.isenabled(),
        "recursion": sys.getrecursionlimit(),
        "limits": [resource.getrlimit(resource.RLIMIT_FSIZE), resource.getrlimit(resource.RLIMIT_NOFILE)],
        "builtins": hasattr(builtins, "complex"),
        "decimal": decimal.getcontext().prec,
        "context variable": tenant.get(),
        "language": translation.get_language(),
        "time zone": timezone.get_current_timezone_name(),
        "tenant": getattr(connection, "tenant", None),
        "session": session(),
    }

def session():
    sql = {"postgresql": "SHOW search_path", "sqlite": "PRAGMA case_sensitive_like", "mysql": "SELECT @@sql_mode"}
    with connection.cursor() as cursor:
        cursor.execute(sql[connection.vendor])
        return list(cursor.fetchone() or ())

def spoil():
    os.chdir(tempfile.mkdtemp(dir=os.environ["SPOIL_FOLDER"]))
    os.rmdir(os.getcwd())
    os.umask(0)
    os.environ["SPOILT"] = "yes"
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()
    del os.environ["HOME"]
    socket.setdefaulttimeout(0.001)
    locale.setlocale(locale.LC_ALL, "C")
    sys.stdout = io.StringIO()
    logging.disable(logging.INFO)
    gc.disable()
    sys.setrecursionlimit(500)
    del builtins.complex
    decimal.getcontext().prec = 2
    tenant.set("acme")
    translation.activate("fr")
    timezone.activate("Asia/Tokyo")
    signal.setitimer(signal.ITIMER_REAL, 2)
    connection.tenant = "acme"
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SET search_path TO pg_catalog")
        if connection.vendor == "mysql":
            cursor.execute("SET SESSION sql_mode = ''")
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, resource.getrlimit(limit)[1]))

def setup(self):
    os.environ["FROM_SETUP"] = "kept"

def work(self, job, value):
    return {"look": look, "spoil": spoil, "sleep": lambda: time.sleep(2.5)}[value]()

async def work_async(self, job, seq):
    if seq == "spoil":
        decimal.getcontext().prec = 2
        tenant.set("acme")
        translation.activate("fr")
    return await sync_to_async(work)(self, job, seq)

LedgerPerformer.setup = setup
LedgerPerformer.give_answer = action("answer")(work)
LedgerPerformer.sleep_async = action("sleep_async")(work_async)
"""


@pytest.mark.parametrize(("action", "param"), [("answer", "value"), ("sleep_async", "seq")])
def test_a_job_finds_what_the_first_one_found_whatever_others_have_changed(nodes, tmp_path, action, param):
    looks = []
    for number, what in enumerate(["look", "spoil", "look", "sleep", "spoil", "look"]):
        job = LedgerQueue.create_job(f"queue-{number}", action, {param: what})
        if what == "look":
            looks.append(job)
    env = {**environment(tmp_path, CODE), "SPOIL_FOLDER": str(tmp_path)}

    node = nodes.start(LedgerQueue, processes=1, env=env)
    wait_for_all()

    for job in looks:
        job.refresh_from_db()
    first, second, third = (job.result for job in looks)
    assert first["from setup"] == "kept"
    assert second == first
    assert third == first
    assert "worker died" not in node.log()  # of the timer
    for what in ("the working directory", "the umask", "os.environ", "a timer", "the limits of resources"):
        assert node.log().count(f"action '{action}' changed {what}") == 1


def test_what_an_attempt_changed_stays_for_another_one_that_still_runs(nodes, tmp_path):
    """Which may have changed it: it is put back when none runs."""
    code = CODE + (
        "\ndef slow(self, job, value):\n"
        "    os.environ['SPOILT'] = 'while I run'\n"
        "    time.sleep(value)\n"
        "    return os.environ.get('SPOILT')\n"
        "LedgerPerformer.give_answer = action('answer')(slow)\n"
    )
    job = LedgerQueue.create_job("slow", "answer", {"value": 2})
    for number in range(5):
        LedgerQueue.create_job(f"queue-{number}", "noop")
    env = {**environment(tmp_path, code), "SPOIL_FOLDER": str(tmp_path)}

    nodes.start(LedgerQueue, processes=1, concurrency=2, env=env)
    wait_for_all()

    job.refresh_from_db()
    assert job.result == "while I run"
