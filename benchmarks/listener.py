"""The reference for latency: waits for NOTIFY, or polls every millisecond, and prints when a new job came."""

import time

import django
from django.db import connection
from django.db.models import Max


def main():
    django.setup()
    for _ in news():
        print(time.monotonic_ns(), flush=True)


def news():
    if connection.vendor == "postgresql":
        from queuetopia.backends.postgresql import CHANNEL

        connection.cursor().execute(f"LISTEN {CHANNEL}")
        print("ready", flush=True)
        yield from connection.connection.notifies()
    else:
        yield from new_jobs()


def new_jobs():
    from queuetopia.models import Job

    newest = lambda: Job.objects.aggregate(newest=Max("id"))["newest"]  # noqa: E731
    known = newest()
    print("ready", flush=True)
    while True:
        if (last := newest()) != known:
            known = last
            yield
        time.sleep(0.001)


if __name__ == "__main__":
    main()
