"""The example project: its shop in this process, its demo as a user starts it."""

import itertools
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from importlib import import_module
from types import SimpleNamespace

import django
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import transaction
from django.test import override_settings
from django.utils import timezone

from queuetopia import InvalidJob, declaration
from queuetopia.models import Job
from tests.conftest import REPOSITORY

FILES = "django.core.mail.backends.filebased.EmailBackend"


@pytest.fixture(scope="module")
def shop(django_db_setup, django_db_blocker):
    """The shop's modules, its app being installed for this module's tests alone."""
    registry = declaration.registered()
    apps = [*settings.INSTALLED_APPS, "example_project.shop"]
    with (
        django_db_blocker.unblock(),
        override_settings(INSTALLED_APPS=apps, ROOT_URLCONF="example_project.urls"),
    ):
        call_command("migrate", "shop", verbosity=0)
        names = ("mailbox", "models", "orders", "queues", "verification")
        yield SimpleNamespace(**{name: import_module(f"example_project.shop.{name}") for name in names})
        call_command("migrate", "shop", "zero", verbosity=0)
    declaration._registry[:] = registry


@pytest.fixture
def mail_folder(tmp_path):
    if django.VERSION >= (6, 1):
        mailers = {"MAILERS": {"default": {"BACKEND": FILES, "OPTIONS": {"file_path": str(tmp_path)}}}}
    else:
        mailers = {"EMAIL_BACKEND": FILES, "EMAIL_FILE_PATH": str(tmp_path)}
    with override_settings(MAIL_FOLDER=str(tmp_path), **mailers):
        yield tmp_path


@pytest.mark.django_db
class TestShop:
    def test_an_order_by_the_page_creates_its_mails_as_jobs_of_the_customers_queue(self, shop, client):
        response = client.post("/", {"email": "toto@mail.com", "item": "a kettle", "amount": "39.00"})
        assert response.status_code == 302
        order = shop.models.Order.objects.get()
        jobs = list(shop.queues.MailQueue.list_jobs(queue=order.customer.queue))
        assert [job.action for job in jobs] == ["send_confirmation", "send_receipt", "send_shipping_note"]
        assert {job.params["order_id"] for job in jobs} == {order.pk}
        assert {job.state for job in jobs} == {Job.State.PENDING}

    def test_the_page_shows_the_latest_mails(self, shop, client):
        order = shop.orders.place_order("toto@mail.com", "a kettle", 39)
        assert f"<td>{order.customer.queue}</td>" in client.get("/").content.decode()

    def test_a_wrong_order_creates_nothing(self, shop, client):
        response = client.post("/", {"email": "toto", "item": "", "amount": "-1"})
        assert response.status_code == 400
        assert not shop.models.Order.objects.exists()
        assert not shop.queues.MailQueue.jobs().exists()

    def test_two_orders_of_a_customer_stand_in_one_line(self, shop):
        first, second = (shop.orders.place_order("toto@mail.com", item, 5) for item in ("tea", "cup"))
        assert first.customer == second.customer
        jobs = shop.queues.MailQueue.list_jobs(queue=first.customer.queue)
        assert [job.params["order_id"] for job in jobs] == [first.pk] * 3 + [second.pk] * 3

    def test_a_rolled_back_order_leaves_no_job(self, shop):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            shop.orders.place_order("toto@mail.com", "a kettle", 39)
            raise ZeroDivisionError
        assert not shop.queues.MailQueue.jobs().exists()

    def test_an_order_whose_mails_are_wrong_is_not_stored(self, shop, client, monkeypatch):
        monkeypatch.setattr(shop.orders, "MAILS", ("send_confirmation", "send_spam"))
        with pytest.raises(InvalidJob):
            client.post("/", {"email": "toto@mail.com", "item": "a kettle", "amount": "39.00"})
        assert not shop.models.Customer.objects.exists()
        assert not shop.models.Order.objects.exists()
        assert not shop.queues.MailQueue.jobs().exists()

    def test_a_mail_can_be_read_back_in_the_order_of_sending(self, shop, mail_folder):
        order = shop.orders.place_order("toto@mail.com", "a kettle", 39)
        other = shop.orders.place_order("tata@mail.com", "a cup", 9)
        jobs = list(shop.queues.MailQueue.list_jobs())
        for job in jobs:
            shop.queues.MailPerformer().perform(job)
        mails = shop.mailbox.mails_to(order.customer.email)
        assert [mail["Message-ID"] for mail in mails] == [shop.queues.message_id(job) for job in jobs[:3]]
        assert mails[0]["Subject"] == "Your order of a kettle"
        assert len(shop.mailbox.mails_to(other.customer.email)) == 3

    def test_no_mail_leaves_while_the_customers_mail_server_is_down(self, shop, mail_folder):
        order = shop.orders.place_order("toto@mail.com", "a kettle", 39)
        shop.models.Customer.objects.update(mail_server_up=False)
        with pytest.raises(ConnectionRefusedError):
            shop.queues.MailPerformer().perform(shop.queues.MailQueue.list_jobs()[0])
        assert shop.mailbox.mails_to(order.customer.email) == []


@pytest.mark.django_db
class TestVerification:
    """The demo's summary has to be able to say no."""

    @pytest.fixture
    def story(self, shop, mail_folder):
        """A demo's rows and mails as they should be: one queue blocked for 10 s, another that went on."""
        customers = [shop.orders.place_order(f"{name}@mail.com", "a kettle", 39).customer for name in ("down", "other")]
        began = timezone.now()
        failed = {"attempts": 4, "errors": [{"type": "ConnectionRefusedError", "at": began.isoformat()}] * 3}
        for customer, start in zip(customers, (10, 1), strict=True):
            for second, job in enumerate(shop.queues.MailQueue.list_jobs(queue=customer.queue), start):
                shop.queues.MailPerformer().perform(job)
                at = began + timedelta(seconds=second)
                ended = {"state": "done", "attempted_at": at, "done_at": at + timedelta(seconds=0.5)}
                Job.objects.filter(pk=job.pk).update(**ended, **(failed if second == 10 else {"attempts": 1}))
        return customers

    def findings(self, shop, story):
        return shop.verification.verify(story, story[0], orders_each=1, failures=3)

    def test_a_story_as_it_should_be_is_true(self, shop, story):
        assert [finding.text for finding in self.findings(shop, story) if not finding.is_true] == []

    @pytest.mark.parametrize(
        ("which", "lie", "said"),
        [
            (2, {"state": "pending", "done_at": None}, "5 of 6 jobs are done"),
            (0, {"attempts": 1}, "failed 3 times"),
            (0, {"errors": []}, "failed 0 times"),
            (
                0,
                {"errors": [{"type": "ConnectionRefusedError", "at": "2126-01-01T00:00:00+00:00"}]},
                "0 jobs of the other",
            ),
            (3, {"attempts": 2}, "failed too"),
            (2, {"attempted_at": datetime(2026, 1, 1, tzinfo=UTC)}, "started before job"),
            (5, {"done_at": datetime(2126, 1, 1, tzinfo=UTC)}, "was not"),
        ],
    )
    def test_a_row_that_says_otherwise_is_found(self, shop, story, which, lie, said):
        job = shop.queues.MailQueue.jobs().order_by("id")[which]
        Job.objects.filter(pk=job.pk).update(**lie)
        assert any(said in finding.text for finding in self.findings(shop, story) if not finding.is_true)

    def test_a_missing_mail_is_found(self, shop, story, mail_folder):
        max(mail_folder.iterdir()).unlink()
        assert not all(finding.is_true for finding in self.findings(shop, story))

    def test_a_second_copy_of_a_mail_is_found(self, shop, story):
        shop.queues.MailPerformer().perform(shop.queues.MailQueue.jobs().order_by("id")[0])
        assert not all(finding.is_true for finding in self.findings(shop, story))


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two demos on one database, as (exit code, output); the first was interrupted while a queue was blocked."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"} | {
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
        "MAIL_FOLDER": f"{folder}/mails",
    }
    command = [sys.executable, str(REPOSITORY / "manage.py"), "demo", "--exit", "--no-color"]
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
    def test_the_next_one_shows_a_blocked_queue_its_recovery_and_a_true_summary(self, demos):
        code, output = demos[1]
        assert code == 0, output
        (down,) = re.findall(r"(\S+)  \*\*\* its mail server is DOWN", output)
        for line in (
            rf"{down}  send_\w+ +job \d+  failed: ConnectionRefusedError.*next attempt in \d s, queue blocked",
            rf"{down} is blocked by job \d+, 5 jobs wait behind it",
            rf"{down}  send_\w+ +job \d+  done at attempt \d: the queue goes on",
            r"true  36 of 36 jobs are done",
            rf"true  {down} got exactly its 9 mails, in order",
        ):
            assert re.search(line, output), line
        assert output.count("  true  ") == 9
        assert "NOT TRUE" not in output
