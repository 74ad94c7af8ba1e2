"""Orders that come in at a rate: ``manage.py produce``, and a button on the page.

A producer only writes orders and jobs. When it stops, what it placed stands in the queues, and nothing else stops.
"""

import itertools
import logging
import threading
import time

from django.db import connections

from .orders import place_order
from .regulars import CUSTOMERS, ITEMS, address_of

RATE = 5.0  # orders a second
POLL = 0.1  # seconds until a stop is noticed

logger = logging.getLogger(__name__)


def orders_at(rate, is_stopped):
    """Place orders of all customers in turn, ``rate`` in a second; yield each one, until ``is_stopped()``.

    If the database is slower than that, orders come as fast as it takes them, and none are made up for later.
    """
    due_at = time.monotonic()
    for (name, payment), (item, amount) in zip(itertools.cycle(CUSTOMERS.items()), itertools.cycle(ITEMS.items())):
        while (left := due_at - time.monotonic()) > 0 and not is_stopped():
            time.sleep(min(left, POLL))
        if is_stopped():
            return
        due_at = max(due_at + 1 / rate, time.monotonic())
        yield place_order(address_of(name), item, amount, payment)


class Producer:
    """Places orders in a thread of this process, until it is stopped or the process ends."""

    def __init__(self):
        self._lock = threading.Lock()
        self._thread = None
        self._is_stopped = threading.Event()

    def is_on(self):
        return self._thread is not None and self._thread.is_alive()

    def start(self, rate=RATE):
        with self._lock:
            if not self.is_on():
                self._is_stopped.clear()
                self._thread = threading.Thread(target=self._run, args=[rate], name="producer", daemon=True)
                self._thread.start()

    def stop(self):
        """Return when the last order is placed."""
        with self._lock:
            self._is_stopped.set()
            if self._thread is not None:
                self._thread.join()

    def _run(self, rate):
        try:
            for _ in orders_at(rate, self._is_stopped.is_set):
                pass
        except Exception:
            logger.exception("the producer ends: an order could not be placed")
        finally:
            connections.close_all()


producer = Producer()  # of the site
