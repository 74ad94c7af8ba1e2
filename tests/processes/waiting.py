"""What the tests of processes wait for, and nodes with code of the test's own."""

import os

from queuetopia.testing import wait_until
from tests.mails import ADMINS, mails_to_files
from tests.nodes import PATIENCE
from tests.testapp.queues import CODE, LedgerQueue


def wait_for_all(queuetopia=LedgerQueue):
    """Wait until every job of the class has ended."""
    unfinished = queuetopia.jobs().unfinished()
    wait_until(lambda: not unfinished.exists(), PATIENCE, message=f"unfinished jobs of {queuetopia.scope}")


def wait_for_attempts(ledger, count, queue=None):
    """Wait until so many attempts have begun; return what the ledger has of them."""
    wait_until(lambda: ledger.attempts(queue) >= count, PATIENCE, message=f"fewer than {count} attempts")
    return [record for record in ledger.records(queue=queue) if record.event in ("start", "attempt")]


def wait_for(job, condition):
    """Wait until the stored job satisfies the condition; return it."""

    def look():
        job.refresh_from_db()
        return condition(job)

    wait_until(look, PATIENCE, message=f"{job} never came to be as it should")
    return job


def errors_of(job):
    """Return (type, message, counted) of each failed attempt."""
    job.refresh_from_db()
    return [(error["type"], error["message"], error["counted"]) for error in job.errors]


def settings(folder, nodes, **queuetopia):
    """Return the environment of a node with these keys in QUEUETOPIA; its mails become files in ``folder``/mails."""
    values = {"ADMINS": ADMINS, **mails_to_files(folder / "mails")}
    (folder / "other_settings.py").write_text(
        "from tests.settings import *\n"
        f"QUEUETOPIA = {{**QUEUETOPIA, **{queuetopia!r}}}\n"
        + "".join(f"{name} = {value!r}\n" for name, value in values.items())
    )
    path = os.pathsep.join([str(folder), nodes.environment["PYTHONPATH"]])
    return {"DJANGO_SETTINGS_MODULE": "other_settings", "PYTHONPATH": path}


def environment(folder, code):
    """Return the environment of a node whose project has this code too."""
    (folder / "more_code.py").write_text(code)
    return {CODE: "more_code", "PYTHONPATH": os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])}
