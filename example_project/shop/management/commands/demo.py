"""``manage.py demo``: a real node at work, one blocked queue, and a summary that was checked."""

import contextlib
import os
import secrets
import time

from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError

from example_project.shop.models import Customer
from example_project.shop.orders import place_order
from example_project.shop.queues import MailQueue
from example_project.shop.verification import verify
from queuetopia import start_node

ITEMS = {"a kettle": 39, "two cups": 18, "green tea": 7}
CUSTOMERS = 4
FAILURES = 3  # how often the blocked job fails before its customer's mail server is back
BETWEEN_ORDERS = 0.4  # seconds
PATIENCE = 60  # seconds the story may take, on a slow machine too
POLL = 0.1  # seconds between two looks at the database


class Command(BaseCommand):
    help = "Shows shop customers' mails on their way, while one customer's mail server is down for some seconds."

    def add_arguments(self, parser):
        parser.add_argument("--exit", action="store_true", help="end after the story: 0 if all that was shown is true")

    def handle(self, **options):
        call_command("migrate", verbosity=0, interactive=False)
        if not any(node["alive"] for node in MailQueue.status()["nodes"]):
            # Nobody plays with them: a demo was killed. The mails it had still to send leave now, beside this story.
            Customer.objects.update(mail_server_up=True)
        self.began, self.seen = time.monotonic(), {}
        self.customers = [Customer.objects.create(email=new_address()) for _ in range(CUSTOMERS)]
        self.followed = MailQueue.jobs().filter(queue__in=[customer.queue for customer in self.customers])
        if options["verbosity"] < 2:
            os.environ.setdefault("LOG_LEVEL", "ERROR")  # the node's log would tell the same once more
        try:
            with start_node(MailQueue, processes=2) as node:
                self.say(f"Started a node: process {node.pid} and its scheduler, with 2 worker processes.")
                self.tell_the_story()
                if options["exit"]:
                    self.end(node)
                else:
                    self.go_on()
        except KeyboardInterrupt:
            raise CommandError("Stopped before the story's end.") from None

    # The story

    def tell_the_story(self):
        down, *others = self.customers[1], self.customers[0], *self.customers[2:]
        kettle, *more = ITEMS
        for customer in self.customers:
            self.place(customer, kettle)
        self.follow("everybody's first mails to leave", lambda: self.all_done(self.customers))

        self.turn_mail_server(down, up=False)
        for item in more:
            for customer in self.customers:
                self.place(customer, item)
                self.follow_for(BETWEEN_ORDERS)
        self.follow("the other queues to be empty", lambda: self.all_done(others))
        self.follow("the job to fail", lambda: self.head(down) and self.head(down).attempts >= FAILURES)
        waiting = self.jobs_of(down).unfinished().count() - 1
        self.say(
            f"{down.queue} is blocked by job {self.head(down).pk}, {waiting} jobs wait behind it. "
            "The other queues are empty: nothing waited for it.",
            self.style.WARNING,
        )

        self.turn_mail_server(down, up=True)
        self.follow(f"{down.queue} to recover", lambda: self.all_done(self.customers))
        self.sum_up(down)

    def place(self, customer, item):
        order = place_order(customer.email, item, ITEMS[item])
        self.say(f"{customer.queue}  ordered {item} (order {order.pk}): 3 jobs created")

    def turn_mail_server(self, customer, *, up):
        Customer.objects.filter(pk=customer.pk).update(mail_server_up=up)
        self.say(
            f"{customer.queue}  *** its mail server is {'back' if up else 'DOWN'} ***",
            self.style.MIGRATE_HEADING,
        )

    def sum_up(self, down):
        self.stdout.write("\nWhat the database and the mail files say:")
        findings = verify(self.customers, down, orders_each=len(ITEMS), failures=FAILURES)
        for finding in findings:
            style = self.style.SUCCESS if finding.is_true else self.style.ERROR
            self.stdout.write(style(f"  {'true' if finding.is_true else 'NOT TRUE'}  {finding.text}"))
        if not all(finding.is_true for finding in findings):
            raise CommandError("Not everything that was shown is true.")

    def end(self, node):
        if code := node.stop():
            raise CommandError(f"The node ended with exit code {code}.")
        self.say("Stopped the node.")

    def go_on(self):
        off = f"Customer.objects.filter(pk={self.customers[0].pk}).update(mail_server_up=False)"
        self.stdout.write(
            "\nThe node goes on. In another terminal, in this folder and environment, try:\n"
            "  manage.py queuetopia status     which queues are blocked and why, who runs what\n"
            "  manage.py runserver             order something yourself: its mails show up here\n"
            f'  manage.py shell -c "{off}"\n'
            f"                                  order for {self.customers[0].email} then, and see it wait\n"
            "Ctrl-C here stops the node.\n"
        )
        self.stdout.flush()
        self.followed = MailQueue.jobs().filter(pk__gt=max(self.seen))
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                self.follow_for(1)

    # Looking

    def jobs_of(self, customer):
        return MailQueue.jobs().filter(queue=customer.queue)

    def head(self, customer):
        return self.jobs_of(customer).unfinished().in_order().first()

    def all_done(self, customers):
        queues = [customer.queue for customer in customers]
        return not MailQueue.jobs().unfinished().filter(queue__in=queues).exists()

    def follow(self, what, is_reached):
        """Tell what happens until ``is_reached()``; CommandError when that takes too long."""
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
                self.tell(job)

    def tell(self, job):
        who = f"{job.queue}  {job.action:<18}  job {job.pk}"
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


def new_address():
    return f"{secrets.token_hex(4)}@customer.example"
