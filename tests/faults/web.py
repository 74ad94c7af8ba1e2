"""``python -m tests.faults.web NAME QUEUES SECONDS``: a web process that creates jobs as long as the ledger lasts.

Each job belongs to a row of the project's own (a Note), created in the same transaction: after any fault there must
be both or none of them. ``created`` is written to the ledger when the commit was confirmed.
"""

import os
import random
import sys
import time

import django

MOST_WAITING = 25  # unfinished jobs of ours beyond which we wait
LONGEST = 0.4  # seconds that a job lasts
CHANCE = 0.05  # that an attempt fails
BOOKS = 0.4  # the chance that a job writes to the project's own tables in one transaction with its success
HANGS = 0.01  # the chance that a job's first attempt hangs, and runs into its timeout


def main(name, queues, pace):
    django.setup()
    numbers = {f"{name}-{number}": 0 for number in range(queues)}
    dice = random.Random(name)
    while not has_had_enough():
        time.sleep(dice.uniform(0, 2 * pace))
        attempt(lambda: create_some(numbers, dice))


def pulse(name, queues, pace):
    """Create one small job after the other, for nodes that nothing is done to."""
    from tests.testapp.queues import PulseQueue, note

    django.setup()
    number = 0
    while not has_had_enough():
        time.sleep(pace)
        queue = f"{name}-{number % queues}"
        note("asked", queue, number, 0)
        attempt(lambda: PulseQueue.create_job(queue, "write", {"seq": number}))  # noqa: B023 - called at once
        number += 1


def lock(name, rows, pace):
    """Lock rows of queues and jobs in any order, one after the other, until a deadlock or a timeout ends it."""
    from tests.testapp.queues import note

    django.setup()
    dice = random.Random(name)
    number = 0
    while not has_had_enough():
        time.sleep(dice.uniform(0, 2 * pace))
        note("locked", name, number, 0)
        attempt(lambda: lock_some(dice, rows))
        number += 1


def lock_some(dice, rows):
    from django.db import connection, transaction

    from queuetopia.models import Job, Queue

    impatience = {
        "postgresql": "SELECT set_config('lock_timeout', '1s', true), set_config('deadlock_timeout', '50ms', true)",
        "mysql": "SET innodb_lock_wait_timeout = 1",
    }.get(connection.vendor)
    with transaction.atomic():
        if impatience:
            connection.cursor().execute(impatience)
        for model in dice.choices([Queue, Job], k=2):
            ids = list(model.objects.order_by("-id").values_list("id", flat=True)[:20])
            for pk in dice.sample(ids, min(len(ids), rows)):
                list(model.objects.select_for_update().filter(pk=pk))
                time.sleep(dice.uniform(0, 0.1))


def create_some(numbers, dice):
    """Create jobs in one to three queues in one transaction, some of it by bulk; say so when it is committed."""
    from django.db import connection, transaction

    from tests.testapp.models import Note
    from tests.testapp.queues import LedgerQueue, note

    queues = dice.sample(sorted(numbers), min(len(numbers), dice.randint(1, 3)))
    created = [(queue, numbers[queue]) for queue in queues]
    for queue in queues:
        numbers[queue] += 1  # never used again, whatever becomes of it
    with transaction.atomic():
        if connection.vendor == "postgresql" and dice.random() < 0.3:
            connection.cursor().execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        if LedgerQueue.jobs().unfinished().filter(queue__in=numbers).count() >= MOST_WAITING:
            return
        for queue, number in created:
            params = {"seq": number, "chance": CHANCE, "lasts": dice.uniform(0, LONGEST)}
            action, timeout = "fail_at_random", None
            if dice.random() < BOOKS:
                action = "book_at_random"
            elif dice.random() < HANGS:
                params["hangs"], params["holds"], timeout = 1, dice.random() < 0.5, 0.5
            Note.objects.create(text=f"{queue} {number}")
            if dice.random() < 0.5:
                LedgerQueue.create_job(queue, action, params, timeout=timeout)
            else:
                LedgerQueue.create_jobs([LedgerQueue.job(queue, action, params, timeout=timeout)])
    for queue, number in created:
        note("created", queue, number, 0)


def attempt(create):
    """Call it; if the database refuses, go on with a new connection, as after a request."""
    from django.db import DatabaseError, InterfaceError, connection

    try:
        create()
    except (DatabaseError, InterfaceError):
        connection.close()


def has_had_enough():
    from tests.testapp.queues import LEDGER

    return os.path.exists(f"{os.environ[LEDGER]}.enough")


if __name__ == "__main__":
    what = {"pulse": pulse, "lock": lock}.get(sys.argv[1], main)
    what(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
