"""The example project: its shop and provider in this process, its demo as a user starts it."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import SimpleNamespace
from urllib import error

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.auth import authenticate, get_user_model
from django.core.management import CommandError, call_command
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from queuetopia import InvalidJob, registry
from queuetopia.models import Job
from queuetopia.testing import create_due_jobs, drain, perform_job, wait_until
from tests.conftest import REPOSITORY
from tests.mails import mails_to_files
from tests.nodes import PATIENCE, Node

KETTLE = {"email": "toto@mail.com", "item": "a kettle", "amount": "39.00"}
STEPS = ["confirm_order", "register_invoice", "charge_payment", "send_receipt"]
MODULES = (
    "billing",
    "mailbox",
    "lines",
    "models",
    "orders",
    "producer",
    "queues",
    "site",
    "verification",
    "management.commands.demo",
    "management.commands.produce",
    "regulars",
)


_in_admin: dict = {}  # what the example registers when it is imported, which happens once


@pytest.fixture(scope="module")
def shop(django_db_setup, django_db_blocker):
    """The shop's modules and the provider's, their apps being installed for this module's tests alone."""
    models = dict(admin.site._registry)
    apps = [*settings.INSTALLED_APPS, "example_project.shop", "example_project.provider"]
    with (
        django_db_blocker.unblock(),
        override_settings(INSTALLED_APPS=apps, ROOT_URLCONF="example_project.urls"),
        registry.only(*registry.registered()),
    ):
        for app in ("shop", "provider"):
            call_command("migrate", app, verbosity=0)
        modules = {name.rpartition(".")[2]: import_module(f"example_project.shop.{name}") for name in MODULES}
        for queues in (modules["queues"].OrderQueue, modules["queues"].ReportQueue):
            if queues not in registry.registered():  # imported before, by another run
                registry.register(queues)
        _in_admin.update(set(admin.site._registry.items()) - set(models.items()))
        admin.site._registry.update(_in_admin)
        yield SimpleNamespace(**modules, provider=import_module("example_project.provider.models"))
        for app in ("shop", "provider"):
            call_command("migrate", app, "zero", verbosity=0)
    admin.site._registry = models


@pytest.fixture
def mail_folder(tmp_path):
    with override_settings(MAIL_FOLDER=str(tmp_path), **mails_to_files(tmp_path)):
        yield tmp_path


@pytest.fixture
def provider(shop, live_server, settings):
    """The provider at its real address; ``provider("off")`` switches it."""
    settings.PROVIDER_URL = f"{live_server.url}/provider/"
    return lambda mode: switch(shop, mode)


def switch(shop, mode):
    shop.provider.Provider.objects.update_or_create(pk=1, defaults={"mode": mode})


def place(shop, email="toto@mail.com", item="a kettle", amount=39, payment="card"):
    return shop.orders.place_order(email, item, amount, payment)


def actions(jobs):
    return [job.action for job in jobs]


@pytest.mark.django_db
class TestOrders:
    @pytest.mark.parametrize(("payment", "steps"), [("card", STEPS), ("cash", ["confirm_order", "announce_delivery"])])
    def test_an_order_by_the_page_creates_its_steps_as_jobs_of_the_customers_queue(self, shop, client, payment, steps):
        response = client.post("/", {**KETTLE, "payment": payment})
        assert response.status_code == 302
        order = shop.models.Order.objects.get()
        jobs = list(shop.queues.OrderQueue.list_jobs(queue=order.customer.queue))
        assert actions(jobs) == steps
        assert {job.params["order_id"] for job in jobs} == {order.pk}
        assert {job.state for job in jobs} == {Job.State.PENDING}

    def test_a_wrong_order_creates_nothing(self, shop, client):
        response = client.post("/", {"email": "toto", "item": "", "amount": "-1", "payment": "with a smile"})
        assert response.status_code == 400
        assert not shop.models.Order.objects.exists()
        assert not shop.queues.OrderQueue.jobs().exists()

    def test_two_orders_of_a_customer_stand_in_one_line(self, shop):
        first, second = (place(shop, item=item) for item in ("tea", "cup"))
        assert first.customer == second.customer
        jobs = shop.queues.OrderQueue.list_jobs(queue=first.customer.queue)
        assert [job.params["order_id"] for job in jobs] == [first.pk] * 4 + [second.pk] * 4

    def test_everybody_orders_once_more_what_they_ordered_last(self, shop, client):
        place(shop, "toto@mail.com", "tea", 7, "cash")
        place(shop, "toto@mail.com", "cup", 9, "cash")
        place(shop, "tata@mail.com")
        assert client.post("/everybody/").status_code == 302
        again = shop.models.Order.objects.order_by("pk")[3:]
        said = {(order.customer.email, order.item, order.payment) for order in again}
        assert said == {("toto@mail.com", "cup", "cash"), ("tata@mail.com", "a kettle", "card")}

    def test_a_rolled_back_order_leaves_no_job(self, shop):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            place(shop)
            raise ZeroDivisionError
        assert not shop.queues.OrderQueue.jobs().exists()

    def test_an_order_whose_steps_are_wrong_is_not_stored(self, shop, client, monkeypatch):
        monkeypatch.setitem(shop.orders.STEPS, "card", ("confirm_order", "send_spam"))
        with pytest.raises(InvalidJob):
            client.post("/", {**KETTLE, "payment": "card"})
        assert not shop.models.Customer.objects.exists()
        assert not shop.models.Order.objects.exists()
        assert not shop.queues.OrderQueue.jobs().exists()


@pytest.mark.django_db(transaction=True)
class TestSteps:
    """The performers, with the provider over real HTTP."""

    def test_an_order_goes_through_all_its_steps(self, shop, provider, mail_folder):
        order = place(shop)
        done = drain(shop.queues.OrderQueue)
        assert [(job.action, job.state, job.attempts) for job in done] == [(step, "done", 1) for step in STEPS]
        order.refresh_from_db()
        invoice, payment = shop.provider.Booking.objects.order_by("pk")
        assert (order.invoice_number, order.payment_number) == (invoice.number, payment.number)
        confirmation, receipt = shop.mailbox.mails_to(order.customer.email)
        assert confirmation["Subject"] == "Your order of a kettle"
        assert f"Invoice {invoice.number}. You paid 39.00 € by card: {payment.number}." in receipt.get_content()
        assert [mail["Message-ID"] for mail in (confirmation, receipt)] == [
            shop.queues.message_id(job) for job in (done[0], done[3])
        ]

    def test_a_repeated_call_books_once(self, shop, provider):
        place(shop)
        job = shop.queues.OrderQueue.jobs().get(action="charge_payment")
        for _ in range(2):
            perform_job(job)
        booking = shop.provider.Booking.objects.get()
        assert (booking.key, booking.kind, booking.amount) == (f"job-{job.pk}", "payment", 39)

    @pytest.mark.capability("E16")
    @pytest.mark.parametrize(("mode", "code"), [("off", 503), ("failing", 500)])
    def test_a_provider_that_does_not_do_it_holds_the_line_until_it_does(self, shop, provider, mail_folder, mode, code):
        provider(mode)
        place(shop)
        failed = drain(shop.queues.OrderQueue)
        assert actions(failed) == STEPS[:2]
        assert failed[1].error.startswith(f"ProviderError: {code}: the provider ")
        assert drain(shop.queues.OrderQueue) == []
        provider("on")
        later = drain(shop.queues.OrderQueue, now=failed[1].next_attempt_at)
        assert actions(later) == STEPS[1:]
        assert {job.state for job in later} == {Job.State.DONE}

    def test_a_slow_provider_answers_late(self, shop, provider, monkeypatch):
        naps = []
        monkeypatch.setattr("example_project.provider.views.time.sleep", naps.append)
        provider("slow")
        place(shop)
        assert perform_job(shop.queues.OrderQueue.jobs().get(action="register_invoice")) is None
        assert naps == [3]

    @pytest.mark.capability("J21", "J22")
    def test_a_provider_that_accepts_only_calls_back_and_the_page_shows_that_the_line_waits(
        self, shop, provider, mail_folder, client, monkeypatch
    ):
        may_call = threading.Event()
        monkeypatch.setattr("example_project.provider.views.time.sleep", lambda seconds: may_call.wait(PATIENCE))
        provider("later")
        order = place(shop)
        assert actions(drain(shop.queues.OrderQueue)) == STEPS[:3]
        page = " ".join(client.get("/queues/").content.decode().split())
        assert "charge_payment, waits for the provider's call for" in page and ": accepted by the provider." in page
        charge = shop.queues.OrderQueue.jobs().get(action="charge_payment")
        assert charge.is_outside()
        may_call.set()
        wait_until(lambda: shop.queues.OrderQueue.jobs().get(pk=charge.pk).is_reported(), PATIENCE)
        assert actions(drain(shop.queues.OrderQueue)) == STEPS[2:]
        order.refresh_from_db()
        number = shop.provider.Booking.objects.get(kind="payment").number
        assert order.payment_number == number
        assert f"by card: {number}." in shop.mailbox.mails_to(order.customer.email)[-1].get_content()

    def test_a_call_of_the_provider_that_is_wrong_or_late_is_refused(self, shop, client):
        order = place(shop)
        body = {"order": order.pk, "number": "P-1"}
        assert client.post("/paid/12.3/", "x", content_type="application/json").status_code == 400
        assert client.post("/paid/12.3/", {}, content_type="application/json").status_code == 400
        assert client.post("/paid/12.3/", body, content_type="application/json").status_code == 409
        order.refresh_from_db()
        assert not order.payment_number

    def test_a_refused_payment_halts_the_line(self, shop, provider, mail_folder):
        order = place(shop, amount="500.01")
        *_, refused = drain(shop.queues.OrderQueue)
        assert (refused.action, refused.state) == ("charge_payment", Job.State.HALTED)
        assert refused.error == "Halt: a kettle: 500.01 € are over the card's limit of 500 €"
        shop.queues.OrderQueue.skip(refused, by="ann", reason="paid at the door")
        drain(shop.queues.OrderQueue)
        assert "Not paid yet." in shop.mailbox.mails_to(order.customer.email)[-1].get_content()

    def test_an_address_where_nobody_answers_is_a_failed_attempt(self, shop, provider, settings):
        settings.PROVIDER_URL = "http://127.0.0.1:1/"
        place(shop)
        with pytest.raises(error.URLError, match="Connection refused"):
            perform_job(shop.queues.OrderQueue.jobs().get(action="register_invoice"))

    def test_an_item_of_several_lines_is_no_header(self, shop, mail_folder):
        place(shop, item="tea\nBcc: all@mail.com")
        perform_job(shop.queues.OrderQueue.jobs().get(action="confirm_order"))
        (mail,) = shop.mailbox.mails_to("toto@mail.com")
        assert mail["Subject"] == "Your order of tea Bcc: all@mail.com"
        assert mail["Bcc"] is None


@pytest.mark.django_db
class TestProvider:
    CALL = {"customer": "toto@mail.com", "order": 1, "item": "tea", "amount": "7"}

    def call(self, client, body=None, key="k", kind="invoices"):
        body = json.dumps(self.CALL if body is None else body)
        headers = {"Idempotency-Key": key} if key else {}
        return client.post(f"/provider/{kind}/", body, content_type="application/json", headers=headers)

    def test_the_same_key_gets_the_same_answer(self, shop, client):
        first, second = self.call(client), self.call(client)
        assert (first.status_code, second.status_code) == (201, 200)
        assert first.json() == second.json()
        assert shop.provider.Booking.objects.count() == 1

    @pytest.mark.parametrize("other", [{"amount": "8"}, {"order": 2}, {"item": "a cup"}])
    def test_the_same_key_for_something_else_is_refused(self, shop, client, other):
        self.call(client)
        assert self.call(client, {**self.CALL, **other}).status_code == 409
        assert self.call(client, kind="payments").status_code == 409
        assert shop.provider.Booking.objects.count() == 1

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"key": ""}, "Idempotency-Key"),
            ({"key": "k" * 101}, "Idempotency-Key"),
            ({"body": [1]}, "no JSON object"),
            ({"body": 7}, "no JSON object"),
            ({"body": {}}, "This field is required"),
            ({"body": {**CALL, "amount": "NaN"}}, "Enter a number"),
            ({"body": {**CALL, "amount": "-1"}}, "greater than or equal to 0"),
        ],
    )
    def test_a_wrong_call_is_refused(self, shop, client, change, said):
        response = self.call(client, **change)
        assert response.status_code == 400
        assert said in response.content.decode()
        assert not shop.provider.Booking.objects.exists()

    def test_it_calls_back_no_other_site(self, shop, client):
        switch(shop, "later")
        body = {**self.CALL, "callback": "https://elsewhere.example/"}
        assert self.call(client, body, kind="payments").status_code == 400

    def test_it_is_switched_to_what_it_can_be_only(self, shop, client):
        assert client.post("/provider/", {"mode": "off"}).status_code == 302
        assert client.post("/provider/", {"mode": "asleep"}).status_code == 400
        assert shop.provider.Provider.load().mode == "off"


@pytest.mark.django_db
class TestPage:
    def test_an_empty_shop_can_be_shown(self, shop, client):
        page = client.get("/").content.decode()
        assert "Nobody has ordered yet." in page
        assert "No node is running" in page

    def test_a_line_is_shown_with_its_steps_order_by_order(self, shop, client):
        order = place(shop)
        place(shop, item="tea", payment="cash")
        page = " ".join(client.get("/queues/").content.decode().split())
        said = ["Order", "a kettle, 39.00 € by card", *(step.replace("_", " ") for step in STEPS)]
        said += ["tea, 39.00 € in cash, on delivery", "confirm order", "announce delivery"]
        places = list(itertools.accumulate(said, lambda place, text: page.index(text, place + 1), initial=0))
        assert places == sorted(places)
        assert order.customer.queue in page

    def test_a_long_line_says_how_many_more_there_are(self, shop, client):
        for _ in range(4):
            place(shop)
        assert "… and 4 more jobs." in client.get("/queues/").content.decode()

    def test_the_lines_of_the_busiest_and_then_the_latest_customers_are_shown(self, shop, monkeypatch):
        monkeypatch.setattr(shop.lines, "CUSTOMERS", 3)
        idle = [shop.models.Customer.objects.create(email=f"{number}@mail.com") for number in range(4)]
        busy = place(shop).customer
        late = [shop.models.Customer.objects.create(email=f"late-{number}@mail.com") for number in range(2)]
        _, lines = shop.lines.current_lines()
        assert [line.customer for line in lines] == [busy, *late]
        assert idle[0] not in [line.customer for line in lines]

    def test_a_job_that_ends_while_the_page_is_read_is_shown_once_and_as_done(self, shop, monkeypatch):
        queue = place(shop).customer.queue
        orders = shop.queues.OrderQueue
        first = orders.list_jobs().first()
        seen = {**orders.status(), "queues": [{"queue": queue, "state": "running", "job": first.pk, "since": None}]}
        ended = type(orders.jobs()).ended

        def end_meanwhile(jobs):
            Job.objects.filter(pk=first.pk, done_at=None).update(state="done", done_at=timezone.now())
            return ended(jobs)

        monkeypatch.setattr(orders, "status", lambda **options: seen)
        monkeypatch.setattr(type(orders.jobs()), "ended", end_meanwhile)
        _, (line,) = shop.lines.current_lines()
        steps = [(step.job.action, step.state) for _, steps in line.orders for step in steps]
        assert steps == [("confirm_order", "done"), *((step, "waiting") for step in STEPS[1:])]

    def test_an_admin_without_orders_or_jobs_of_its_kind_breaks_nothing(self, shop, client):
        shop.models.Customer.objects.create(email="new@mail.com")
        shop.queues.OrderQueue.create_job("somebody else's", "confirm_order", {"order_id": 0})
        assert "Nothing yet." in client.get("/").content.decode()
        assert client.post("/everybody/").status_code == 302

    @pytest.mark.parametrize(
        ("seconds", "said"),
        [(-1, "0 s"), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h")],
    )
    def test_a_duration_is_said_as_people_do(self, shop, seconds, said):
        assert shop.lines.span(timedelta(seconds=seconds)) == said

    def test_a_mail_file_is_shown_and_no_other_file(self, shop, client, mail_folder):
        place(shop)
        perform_job(shop.queues.OrderQueue.jobs().get(action="confirm_order"))
        (mail_folder / "secret.txt").write_text("secret")
        (name,) = (path.name for path in mail_folder.glob("*.log"))
        assert f'href="/mails/{name}"' in client.get("/mails/").content.decode()
        response = client.get(f"/mails/{name}")
        assert b"Your order of a kettle" in b"".join(response)
        assert response["Content-Type"].startswith("text/plain")
        for other in ("secret.txt", "..%2fsecret.txt", "nothing.log"):
            assert client.get(f"/mails/{other}").status_code == 404


@pytest.mark.django_db(transaction=True)
class TestVerification:
    """The demo's summary has to be able to say no."""

    @pytest.fixture
    def story(self, shop, provider, mail_folder):
        """A demo's rows, mails and bookings as they should be: one queue blocked for 10 s, another that went on."""
        held, other = (
            place(shop, email, payment=payment).customer
            for email, payment in (("held@mail.com", "card"), ("other@mail.com", "cash"))
        )
        began = timezone.now()
        error = {"type": "ProviderError", "message": "503: the provider is switched off", "at": began.isoformat()}
        drain(shop.queues.OrderQueue)
        for customer, start in ((held, 9), (other, 1)):
            for second, job in enumerate(shop.queues.OrderQueue.list_jobs(queue=customer.queue), start):
                at = began + timedelta(seconds=second)
                failed = {"attempts": 4, "errors": [error] * 3} if second == 10 else {}
                Job.objects.filter(pk=job.pk).update(attempted_at=at, done_at=at, **failed)
        return held, other

    def findings(self, shop, story):
        held, other = story
        return shop.verification.verify([held], [other], orders_each=1, failures=3)

    def untrue(self, shop, story):
        return [finding.text for finding in self.findings(shop, story) if not finding.is_true]

    def test_a_story_as_it_should_be_is_true(self, shop, story):
        assert self.untrue(shop, story) == []

    @pytest.mark.parametrize(
        ("which", "lie", "said"),
        [
            (2, {"state": "pending", "done_at": None}, "5 of their 6 jobs are done"),
            (1, {"attempts": 5}, "failed 3 times"),
            (1, {"errors": []}, "failed 0 times"),
            (1, {"errors": [{"type": "OSError", "message": "lost", "at": "2026-01-01T00:00:00+00:00"}] * 3}, "lost"),
            (
                1,
                {"errors": [{"type": "E", "message": "503", "at": "2126-01-01T00:00:00+00:00"}] * 3},
                "0 jobs of the other",
            ),
            (3, {"attempts": 2}, "failed too"),
            (2, {"done_at": datetime(2026, 1, 1, tzinfo=UTC)}, "was done before job"),
            (3, {"done_at": datetime(2026, 1, 1, tzinfo=UTC)}, "were done after it, but"),
            (5, {"done_at": datetime(2126, 1, 1, tzinfo=UTC)}, "while these were blocked, but"),
        ],
    )
    def test_a_row_that_says_otherwise_is_found(self, shop, story, which, lie, said):
        job = shop.queues.OrderQueue.jobs().order_by("id")[which]
        Job.objects.filter(pk=job.pk).update(**lie)
        assert any(said in text for text in self.untrue(shop, story))

    def test_a_missing_order_is_found(self, shop, story):
        shop.models.Order.objects.filter(customer=story[1]).delete()
        assert any("1 of 2 orders are placed" in text for text in self.untrue(shop, story))

    def test_a_missing_mail_is_found(self, shop, story, mail_folder):
        max(mail_folder.iterdir()).unlink()
        assert any("mails, in order, but" in text for text in self.untrue(shop, story))

    def test_a_second_copy_of_a_mail_is_found(self, shop, story):
        perform_job(shop.queues.OrderQueue.jobs().order_by("id")[0])
        assert any("mails, in order, but" in text for text in self.untrue(shop, story))

    @pytest.mark.parametrize("lie", [{"amount": 40}, {"order": 0}, {"kind": "payment"}, {"key": "another"}])
    def test_a_wrong_booking_is_found(self, shop, story, lie):
        first = shop.provider.Booking.objects.order_by("pk")[0]
        shop.provider.Booking.objects.filter(pk=first.pk).update(**lie)
        assert any("bookings" in text for text in self.untrue(shop, story))

    def test_a_booking_that_nobody_asked_for_is_found(self, shop, story):
        shop.provider.Booking.objects.filter(kind="payment").update(customer="other@mail.com")
        assert len([text for text in self.untrue(shop, story) if "bookings" in text]) == 2


@pytest.mark.django_db
class TestLogin:
    """The demo makes a user with all rights, and only where it cannot be anybody's harm."""

    def test_in_its_own_database_the_demo_makes_a_user_with_a_new_password_each_time(self, shop, monkeypatch):
        monkeypatch.delenv("DATABASE_URL")
        passwords = [shop.demo.Command().login().rpartition(" ")[2] for _ in range(2)]
        assert passwords[0] != passwords[1]
        assert [authenticate(username="demo", password=word) is not None for word in passwords] == [False, True]
        assert get_user_model().objects.get().is_superuser

    def test_in_a_database_that_was_given_it_makes_none(self, shop, monkeypatch):
        monkeypatch.setenv("DATABASE_URL", "postgres://example")
        assert "createsuperuser" in shop.demo.Command().login()
        assert not get_user_model().objects.exists()


class TestSite:
    def test_a_port_that_is_taken_is_replaced_by_one_that_is_free(self, shop):
        with shop.site.serve(0) as first:
            port = int(re.search(r":(\d+)/$", first)[1])
            with shop.site.serve(port) as second:
                assert first != second
                for address in (first, second):
                    assert ".chip" in shop.site.Visitor(address).get("static/shop/shop.css")

    def test_another_error_than_a_taken_port_is_told(self, shop):
        with pytest.raises(OSError, match="assign"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(shop.site, "HOST", "192.0.2.1")
            with shop.site.serve(0):
                pass


@pytest.mark.capability("W2")
@pytest.mark.django_db(transaction=True)
class TestProducer:
    def test_customers_order_in_turn_until_it_is_stopped(self, shop):
        placed = []
        for order in shop.producer.orders_at(1_000, lambda: len(placed) == 5):
            placed.append((order.customer.email.partition("@")[0], order.item))
        assert [name for name, _ in placed] == [*shop.regulars.CUSTOMERS, "red"]
        assert {item for _, item in placed} == set(shop.regulars.ITEMS)
        assert shop.models.Order.objects.count() == 5
        assert shop.queues.OrderQueue.jobs().count() == 3 * 4 + 2 * 2

    def test_a_stop_is_noticed_though_the_next_order_is_far_away(self, shop):
        orders = shop.producer.orders_at(0.001, lambda: shop.models.Order.objects.exists())
        assert len(list(orders)) == 1

    def test_a_button_starts_it_and_another_stops_it(self, shop, client):
        try:
            assert "Let orders come in" in client.get("/").content.decode()
            assert client.post("/produce/", {"orders": "on"}).status_code == 302
            wait_until(shop.models.Order.objects.exists)
            assert "Stop the orders" in client.get("/").content.decode()
            client.post("/produce/", {"orders": "on"})  # still one
        finally:
            client.post("/produce/", {"orders": "off"})
        assert not shop.producer.producer.is_on()
        assert "Let orders come in" in client.get("/").content.decode()

    def test_one_that_cannot_place_an_order_ends_and_says_so(self, shop, monkeypatch, caplog):
        monkeypatch.setattr(shop.producer, "place_order", lambda *order: 1 / 0)
        shop.producer.producer.start()
        wait_until(lambda: not shop.producer.producer.is_on())
        assert "the producer ends" in caplog.text

    @pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast", "1001"])
    def test_a_rate_that_is_none_is_refused(self, shop, rate):
        with pytest.raises(CommandError, match="orders a second, above 0"):
            call_command("produce", f"--rate={rate}")


RESOURCE = re.compile(
    r"""(?:\bsrc\s*=|\bsrcset\s*=|<link\b[^>]*\bhref\s*=|\burl\(|@import|\bimport\b|\bfetch\()\s*["']?\s*(?:https?:)?//""",
    re.IGNORECASE,
)


class TestOffline:
    """No page needs the network: what it loads is its own. (The browser tests refuse every other request, too.)"""

    FILES = [
        path
        for folder in ("example_project", "queuetopia")
        for path in sorted((REPOSITORY / folder).rglob("*"))
        if {"templates", "static"} & set(path.parts) and path.suffix in {".html", ".css", ".js", ".svg"}
    ]

    def test_the_pages_are_looked_at(self):
        assert {"base.html", "shop.css", "live.js"} <= {path.name for path in self.FILES}

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
    def test_nothing_is_loaded_from_elsewhere(self, path):
        assert RESOURCE.findall(path.read_text()) == []

    @pytest.mark.parametrize(
        "line",
        [
            '<script src="https://cdn.example/x.js"></script>',
            "<img src = //cdn.example/x.png>",
            "<link rel=stylesheet href='http://cdn.example/x.css'>",
            "background: url( 'https://cdn.example/x.png')",
            '@import "//cdn.example/x.css";',
            'fetch("https://api.example/")',
        ],
    )
    def test_what_would_be_is_found(self, line):
        assert RESOURCE.search(line)

    @pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(REPOSITORY)))
    def test_nothing_is_inline_that_a_strict_policy_would_refuse(self, path):
        if path.suffix == ".html":
            assert re.findall(r"<style|<script(?![^>]*\bsrc=)|\sstyle=|\son\w+=", path.read_text()) == []


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two demos on one database, as (exit code, output); the first was interrupted while a queue was blocked."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
        "MAIL_FOLDER": f"{folder}/mails",
    }
    command = [sys.executable, str(REPOSITORY / "manage.py"), "demo", "--exit", "--no-color", "--port", "0"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment, **output) as first:
        began = "".join(itertools.takewhile(lambda line: "queue blocked" not in line, first.stdout))
        first.send_signal(signal.SIGINT)
        ended, _ = first.communicate(timeout=50)
    second = subprocess.run(command, cwd=folder, env=environment, timeout=100, **output)
    return (first.returncode, began + ended), (second.returncode, second.stdout)


@pytest.mark.processes
@pytest.mark.slow
class TestDemo:
    def test_an_interrupted_demo_says_so(self, demos):
        code, output = demos[0]
        assert code == 1, output
        assert "Stopped before the story's end" in output
        assert "Traceback" not in output

    @pytest.mark.capability("W1", "Q2")
    def test_the_next_one_shows_blocked_queues_their_recovery_and_a_true_summary(self, demos):
        code, output = demos[1]
        assert code == 0, output
        held = re.findall(r"(\S+) is blocked by job \d+, 6 jobs wait behind it", output)
        assert len(held) == 2, output
        for queue in held:
            for line in (
                rf"{queue} +register_invoice +job \d+  failed: ProviderError: 503.*next attempt in \d s, queue blocked",
                rf"{queue} +register_invoice +job \d+  done at attempt \d+: the queue goes on",
                rf"true  {queue} got exactly its 6 mails, in order",
                rf"true  The provider has exactly 6 bookings for {queue}, in order",
            ):
                assert re.search(line, output), line
        assert "true  12 of 12 orders are placed, 36 of their 36 jobs are done" in output
        assert output.count("  true  ") == 16
        assert "NOT TRUE" not in output


@pytest.mark.django_db
@pytest.mark.capability("X10")
def test_each_midnight_the_office_gets_a_digest_of_the_day(shop, mail_folder):
    queue = shop.queues.ReportQueue
    create_due_jobs(queue)
    tomorrow = queue.list_schedules()[0]["next_at"]
    order = place(shop)
    type(order).objects.update(placed_at=tomorrow - timedelta(hours=1))
    (job,) = create_due_jobs(queue, now=tomorrow)
    assert job.scheduled_at == tomorrow
    assert [done.result for done in drain(queue, now=tomorrow)] == [1]


@pytest.fixture
def start(tmp_path):
    """Start commands of the example on one database: ``start("produce", "--rate=9")``."""
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
        "DATABASE_URL": f"sqlite:///{tmp_path}/db.sqlite3",
        "MAIL_FOLDER": f"{tmp_path}/mails",
    }
    started = []

    def start(name, *options):
        command = [sys.executable, str(REPOSITORY / "manage.py"), name, "--no-color", *options]
        started.append(Node(command, environment, tmp_path / f"{name}-{len(started)}.log"))
        return started[-1]

    yield start
    for node in reversed(started):
        node.put_away()


@pytest.mark.processes
@pytest.mark.slow
class TestProduce:
    @pytest.mark.capability("W2")
    def test_what_a_stopped_producer_has_placed_is_done_by_those_that_go_on(self, start):
        demo = start("demo", "--port=0")
        demo.wait_for_log("The shop")
        orders = 4  # the demo's own
        for number in (signal.SIGINT, signal.SIGTERM):
            producer = start("produce", "--rate=20")
            producer.wait_for_log("orders", times=10)
            assert producer.stop(number) == 0, producer.log()
            assert "Traceback" not in producer.log()
            (count,) = re.findall(r"Stopped after (\d+) orders", producer.log())
            assert producer.log().count("(order ") == int(count)
            orders += int(count)
        ends = re.compile(r"(send_receipt|announce_delivery) +job \d+  done")  # the last step of each order
        wait_until(lambda: len(ends.findall(demo.log())) >= orders, PATIENCE, message="orders are left")
        assert len(ends.findall(demo.log())) == orders
        assert demo.stop(signal.SIGINT) == 0, demo.log()
