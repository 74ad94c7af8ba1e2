"""What the checker must find wrong: a runner as it is often written.

It takes a lock per queue, runs the head in a process of its own, reconnects when the database does not answer, and
goes on as if nothing had been: no fence, no lease, no word to what runs. ``python -m tests.faults.naive`` is one.
"""

import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import django

QUEUES = 3
# What a job does, as LedgerQueue's do: it writes down that it lives. Without Django, so that it starts at once.
JOB = """
import os, sys, time
path, queue, number, fence = sys.argv[1:]
def note(event):
    clock = time.clock_gettime(time.CLOCK_MONOTONIC)
    with open(path, "ab", buffering=0) as ledger:
        ledger.write(f"{event} {queue} {number} {fence} {clock} {os.getpid()}\\n".encode())
note("start")
for _ in range(120):
    time.sleep(0.005)
    note("alive")
note("end")
"""


def run():
    """Run jobs until stopped."""
    from django.db import DatabaseError, InterfaceError, connection

    from .web import has_had_enough

    django.setup()
    while not has_had_enough():
        for number in range(QUEUES):
            with suppress(DatabaseError, InterfaceError):
                _serve(f"naive-{number}")
            if connection.connection is None or not connection.is_usable():
                connection.close()  # Django connects anew with the next query
        time.sleep(0.01)


def _serve(queue):
    from django.db import connection

    from tests.testapp.queues import LEDGER, LedgerQueue

    lock, unlock = LOCKS[connection.vendor]
    if not lock(queue):
        return
    head = LedgerQueue.jobs().unfinished().filter(queue=queue).in_order().first()
    if head:
        fence = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        subprocess.run([sys.executable, "-SEc", JOB, os.environ[LEDGER], queue, str(head.params["seq"]), str(fence)])
        LedgerQueue.jobs().filter(pk=head.pk).update(state="done", done_at=head.scheduled_at)
    unlock(queue)


def _ask(sql):
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0] in (True, 1)


FILES: dict = {}


def _lock_file(queue):
    from tests.testapp.queues import LEDGER

    file = FILES.setdefault(queue, open(f"{os.environ[LEDGER]}.{queue}", "a"))  # noqa: SIM115 - the lock's
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


LOCKS = {
    "postgresql": (
        lambda queue: _ask(f"SELECT pg_try_advisory_lock(hashtext('{queue}'))"),
        lambda queue: _ask(f"SELECT pg_advisory_unlock(hashtext('{queue}'))"),
    ),
    "mysql": (
        lambda queue: _ask(f"SELECT GET_LOCK('{queue}', 0)"),
        lambda queue: _ask(f"SELECT RELEASE_LOCK('{queue}')"),
    ),
    "sqlite": (_lock_file, lambda queue: fcntl.flock(FILES[queue], fcntl.LOCK_UN)),
}


ENOUGH = 3  # overlaps


def overlaps(campaign, seconds: float) -> list[str]:
    """Kill naive runners and end their sessions, for so long at most; return the first overlaps that the checker finds.

    campaign: one that was not started; it has the folder, the dice and the server.
    """
    from queuetopia.testing import wait_until
    from tests.testapp.queues import LedgerQueue

    from .ledger import check, now  # not above: a runner has to set Django up first

    created = {f"naive-{number}": list(range(200)) for number in range(QUEUES)}
    LedgerQueue.create_jobs(
        [LedgerQueue.job(queue, "write", {"seq": seq}) for queue, line in created.items() for seq in line]
    )
    command = [sys.executable, "-m", "tests.faults.naive"]
    runners = [campaign.nodes.run(command) for _ in range(QUEUES + 2)]  # two are free to take over
    wait_until(campaign.ledger.attempts, 30)
    found: list[str] = []
    until = now() + seconds
    while now() < until and len(found) < ENOUGH:
        time.sleep(campaign.dice.uniform(0.4, 1))
        if campaign.server.has_sessions and campaign.dice.random() < 0.5:
            campaign.server.end_session("node", campaign.dice)
        else:
            runners.pop(campaign.dice.randrange(len(runners))).send(signal.SIGKILL)
            runners.append(campaign.nodes.run(command))
        wrong = check(campaign.ledger.records(), created).wrong
        found = [sentence for sentence in wrong if "began in attempt" in sentence]
    Path(f"{campaign.ledger.path}.enough").touch()
    for runner in runners:
        runner.wait()
    campaign.nodes.put_away()
    return found


if __name__ == "__main__":
    run()
