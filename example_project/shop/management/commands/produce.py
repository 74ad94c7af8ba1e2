"""``manage.py produce``: orders come in at a rate until it is stopped; the shop and its nodes go on."""

import argparse
import signal

from django.core.management import call_command

from example_project.shop.producer import RATE, orders_at
from queuetopia.terminal import TerminalCommand

FASTEST = 1_000


def rate(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= FASTEST:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of orders a second, above 0 and up to {FASTEST}")
    return value


class Command(TerminalCommand):
    help = "Places orders at a rate until Ctrl-C or SIGTERM. Stopping it stops nothing else."

    def add_arguments(self, parser):
        parser.add_argument("--rate", type=rate, default=RATE, help=f"orders a second (default: {RATE:g})")

    def handle(self, *, rate, **options):
        call_command("migrate", verbosity=0, interactive=False)
        self.is_stopped = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.stop)  # the order in hand is placed first
        self.say(f"Placing {rate:g} orders a second. Ctrl-C stops it.")
        count = 0
        for order in orders_at(rate, lambda: self.is_stopped):
            count += 1
            how = order.get_payment_display()
            self.say(f"{order.customer.queue:<12} orders {order.item}, {how} (order {order.pk})")
        self.say(f"Stopped after {count} orders. Their steps stand in the queues; nodes do them.")

    def stop(self, number, frame):
        self.is_stopped = True

    def say(self, text):
        self.stdout.write(text)
        self.stdout.flush()
