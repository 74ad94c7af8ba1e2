"""``python -m tests.creators SEED ROUNDS``: a process that creates jobs whose keys others create jobs with, too.

A counter (the text of a Note) is raised in the transaction of each job that coalesces: what is committed last is known.
"""

import random
import sys

import django

QUEUES, KEYS = ("a", "b"), (1, 2, 3)
MILLION = 10**6  # a job's number is its key's, in millions, and the counter's


def main(seed, rounds):
    django.setup()
    from django.db import OperationalError, connection

    dice, done = random.Random(seed), 0
    while done < rounds:
        try:
            dice.choices([coalesce, unique, many], [6, 3, 1])[0](dice)
            done += 1
        except OperationalError as exc:
            if connection.vendor != "sqlite" or "locked" not in str(exc):
                raise  # its one writer is nobody's in turn: some wait for too long


def coalesce(dice):
    from django.db import transaction
    from django.db.models import F

    from tests.testapp.models import Note
    from tests.testapp.queues import LedgerQueue

    queue, key = dice.choice(QUEUES), dice.choice(KEYS)
    with transaction.atomic():
        counter = Note.objects.get(text__startswith=f"{queue} {key} ")
        Note.objects.filter(pk=counter.pk).update(text=F("text"))  # locks the row on every database
        counter.refresh_from_db()
        number = int(counter.text.split()[2]) + 1
        counter.text = f"{queue} {key} {number}"
        counter.save()
        LedgerQueue.create_job(queue, "write", {"seq": key * MILLION + number}, coalesce=f"key {key}")
        transaction.set_rollback(dice.random() < 0.1)


def unique(dice):
    from django.db import transaction

    from tests.testapp.queues import LedgerQueue

    with transaction.atomic():
        LedgerQueue.create_job(dice.choice(QUEUES), "noop", unique=f"key {dice.choice(KEYS)}")
        transaction.set_rollback(dice.random() < 0.3)


def many(dice):
    from tests.testapp.queues import LedgerQueue

    pairs = [(queue, key) for queue in QUEUES for key in KEYS]
    dice.shuffle(pairs)
    LedgerQueue.create_jobs(LedgerQueue.job(queue, "noop", unique=f"key {key}") for queue, key in pairs)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
