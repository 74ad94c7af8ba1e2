"""``manage.py demo``: the shop's site and a node that serves its queues; with ``--exit`` a story that is checked."""

import os
import secrets
import time

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError

from example_project.provider.models import Provider
from example_project.shop.models import Customer, Order
from example_project.shop.orders import place_order
from example_project.shop.producer import producer
from example_project.shop.queues import OrderQueue, ReportQueue
from example_project.shop.regulars import CUSTOMERS, ITEMS, address_of
from example_project.shop.site import Visitor, serve
from example_project.shop.verification import verify
from queuetopia import start_node
from queuetopia.terminal import TerminalCommand

FAILURES = 2  # how often each held job fails before the provider is back
BETWEEN_ORDERS = 0.2  # seconds
PATIENCE = 60  # seconds the story may take, on a slow machine too
POLL = 0.1  # seconds between two polls of the database


class Command(TerminalCommand):
    help = "Starts the shop: its site, and a node for its queues. Ctrl-C stops both."

    def add_arguments(self, parser):
        parser.add_argument("--port", type=int, default=8000, help="of the site; another one if it is taken")
        parser.add_argument(
            "--exit",
            action="store_true",
            help="play a story of blocked queues at the site, check it, and end: 0 if all that was shown is true",
        )

    def handle(self, *, port, exit, verbosity, **options):
        call_command("migrate", verbosity=0, interactive=False)
        if not any(node["alive"] for node in OrderQueue.status()["nodes"]):
            Provider.objects.all().delete()  # Nobody plays with it: a demo was killed.
        self.began, self.seen = time.monotonic(), {}
        self.followed = OrderQueue.jobs().filter(pk__gt=latest_job())
        if verbosity < 2:
            os.environ.setdefault("LOG_LEVEL", "ERROR")  # the node's log would repeat it
        try:
            with serve(port) as self.address:
                os.environ["PROVIDER_URL"] = f"{self.address}provider/"
                with start_node(OrderQueue, ReportQueue, processes=2, concurrency=4, grace=5) as node:
                    if exit:
                        self.tell_the_story(node)
                        self.end(node)
                    else:
                        self.open_the_shop()
        except KeyboardInterrupt:
            if exit:
                raise CommandError("Stopped before the story's end.") from None
            self.say("Closed the shop.")
        finally:
            producer.stop()

    # The shop is open

    def open_the_shop(self):
        if not Customer.objects.exists():
            for name, payment in CUSTOMERS.items():
                place_order(address_of(name), "a kettle", ITEMS["a kettle"], payment)
        self.stdout.write(
            f"\n  The shop       {self.style.SUCCESS(self.address)}\n"
            f"  Its admin      {self.address}admin/  {self.login()}\n"
            f"  Its mails      {settings.MAIL_FOLDER}\n"
            "  Its queues     manage.py queuetopia status\n\n"
            "Switch the provider off on the page, order, and see who waits. Ctrl-C here stops all.\n\n"
        )
        self.stdout.flush()
        while True:
            self.follow_for(1)

    def login(self):
        """Return how to log in: as a user that is made here, but only in the database that the demo made itself."""
        if "DATABASE_URL" in os.environ:
            return "for a user of yours: manage.py createsuperuser"
        password = secrets.token_urlsafe(9)
        user, _ = get_user_model().objects.get_or_create(
            username="demo", defaults={"is_staff": True, "is_superuser": True}
        )
        user.set_password(password)
        user.save()
        return f"user demo, password {password}"

    # The story

    def tell_the_story(self, node):
        self.say(f"The shop is open at {self.address}; its node is process {node.pid} and what it started.")
        self.visitor, token = Visitor(self.address), secrets.token_hex(3)
        kettle, *more = ITEMS
        names = {address_of(f"{name}-{token}"): payment for name, payment in CUSTOMERS.items()}
        for email, payment in names.items():
            self.order(email, kettle, payment)
        self.customers = list(Customer.objects.filter(email__in=names).order_by("pk"))
        held = [customer for customer in self.customers if names[customer.email] == Order.Payment.CARD]
        others = [customer for customer in self.customers if customer not in held]
        self.follow("everybody's first order to be done", lambda: self.all_done(self.customers))

        self.switch_provider(Provider.Mode.OFF)
        for item in more:
            for email, payment in names.items():
                self.order(email, item, payment)
                self.follow_for(BETWEEN_ORDERS)
        self.follow("the other queues to be empty", lambda: self.all_done(others))
        self.follow("the provider to be missed", lambda: all(self.head(one).attempts >= FAILURES for one in held))
        self.follow("the page to show it", lambda: self.is_shown(held))
        for customer in held:
            waiting = self.jobs_of(customer).unfinished().count() - 1
            self.say(
                f"{customer.queue} is blocked by job {self.head(customer).pk}, {waiting} jobs wait behind it.",
                self.style.WARNING,
            )
        self.say("The page says so too. The other queues are empty: nothing waited for it.", self.style.WARNING)

        self.switch_provider(Provider.Mode.ON)
        self.follow("the held queues to catch up", lambda: self.all_done(self.customers))
        self.sum_up(held, others)

    def order(self, email, item, payment):
        self.visitor.post("", email=email, item=item, amount=ITEMS[item], payment=payment)
        order = Order.objects.select_related("customer").filter(customer__email=email).latest("pk")
        self.say(f"{order.customer.queue:<12} orders {item}, {order.get_payment_display()} (order {order.pk})")

    def switch_provider(self, mode):
        self.visitor.post("provider/", mode=mode)
        self.say(f"*** the provider is switched {mode.upper()} ***", self.style.MIGRATE_HEADING)

    def is_shown(self, customers):
        page = self.visitor.get("queues/")
        return all(f"by job {self.head(customer).pk}, " in page for customer in customers)

    def sum_up(self, held, others):
        self.stdout.write("\nWhat the database, the mail files and the provider's bookings say:")
        findings = verify(held, others, orders_each=len(ITEMS), failures=FAILURES)
        for finding in findings:
            style = self.style.SUCCESS if finding.is_true else self.style.ERROR
            self.stdout.write(style(f"  {'true' if finding.is_true else 'NOT TRUE'}  {finding.text}"))
        if not all(finding.is_true for finding in findings):
            raise CommandError("Not everything that was shown is true.")

    def end(self, node):
        if code := node.stop():
            raise CommandError(f"The node ended with exit code {code}.")
        self.say("Stopped the node and the site.")

    # Looking

    def jobs_of(self, customer):
        return OrderQueue.list_jobs(queue=customer.queue)

    def head(self, customer):
        return self.jobs_of(customer).unfinished().first()

    def all_done(self, customers):
        queues = [customer.queue for customer in customers]
        return not OrderQueue.jobs().unfinished().filter(queue__in=queues).exists()

    def follow(self, what, is_reached):
        """Report what happens until ``is_reached()``; CommandError when that takes too long."""
        while not is_reached():
            if time.monotonic() - self.began > PATIENCE:
                raise CommandError(f"Waited for {what}, in vain for {PATIENCE} s. See: manage.py queuetopia status")
            self.follow_for(POLL)
        self.tell_news()

    def follow_for(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tell_news()
            time.sleep(POLL)

    def tell_news(self):
        jobs = self.followed.exclude(attempted_at=None).order_by("attempted_at", "id")
        for job in jobs:
            if self.seen.get(job.pk) != (job.state, job.attempts):
                self.seen[job.pk] = (job.state, job.attempts)
                self.report(job)

    def report(self, job):
        who = f"{job.queue:<12} {job.action:<17} job {job.pk}"
        if job.is_ended():
            again = f" at attempt {job.attempts}: the queue goes on" if job.attempts > 1 else ""
            self.say(f"{who}  {job.state}{again}", self.style.SUCCESS)
        elif job.is_backing_off() and job.next_attempt_at:
            wait = (job.next_attempt_at - job.attempted_at).total_seconds()
            self.say(f"{who}  failed: {job.error}; next attempt in {wait:.0f} s, queue blocked", self.style.ERROR)
        else:
            self.say(f"{who}  {job.state}: {job.error}", self.style.ERROR)

    def say(self, text, style=str):
        self.stdout.write(f"{time.monotonic() - self.began:5.1f} s  {style(text)}")
        self.stdout.flush()


def latest_job():
    return OrderQueue.jobs().order_by("-pk").values_list("pk", flat=True).first() or 0
