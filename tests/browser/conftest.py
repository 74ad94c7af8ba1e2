"""Tests in a real browser: Debian's Chromium (``apt-get install chromium``), driven by Playwright.

They are collected only when they are named, because README's test command needs nothing but Python:

    pip install --group browser && python -m pytest tests/browser

Run them in a process of their own: Playwright leaves an event loop in the main thread, which other tests trip over.
``QUEUETOPIA_SCREENSHOTS=1`` renews the pictures of docs/images.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import Permission, User
from django.test import Client
from django.utils import timezone

from queuetopia.models import Queue
from tests.browser.shop import MINUTE, ShopPerformer, error
from tests.conftest import REPOSITORY
from tests.states import mail_queue, put, put_node

ARGUMENTS = [
    "--no-sandbox",  # Chromium refuses root with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("browser")


@pytest.fixture(scope="session", autouse=True)
def orm_beside_playwright():
    """Playwright's event loop is in this thread all the time; Django would refuse every query beside it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        yield


@pytest.fixture(scope="session")
def base_url():
    """Not used here. pytest-playwright's own is a fixture of a kind that pytest warns about."""
    return None


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("chromium is not on PATH. On Debian: apt-get install chromium", pytrace=False)
    return {**browser_type_launch_args, "executable_path": chromium, "args": ARGUMENTS}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args):
    return {**browser_context_args, "viewport": {"width": 1100, "height": 800}, "reduced_motion": "reduce"}


@pytest.fixture
def site_url(live_server):
    """The address of the site under test; a module may define its own."""
    return live_server.url


@pytest.fixture
def problems():
    """What went wrong in the browser, as texts. A test that expects some takes them out: ``problems.clear()``."""
    return []


@pytest.fixture
def context(context, site_url, problems):
    """Playwright's, for one site: errors on its pages and requests to any other host fail the test."""
    host = urlsplit(site_url).netloc

    def see_request(request):
        url = urlsplit(request.url)
        if url.scheme not in ("data", "blob", "about") and url.netloc != host:
            problems.append(f"request to another host: {request.url}")

    def see_message(message):
        url = message.location.get("url", "")
        # The browser asks for it by itself, once, of sites whose pages name no icon.
        if message.type == "error" and urlsplit(url).path != "/favicon.ico":
            problems.append(f"console: {message.text} ({url})")

    context.on("request", see_request)
    context.on("console", see_message)
    context.on("weberror", lambda error: problems.append(f"error on the page: {error.error}"))
    yield context
    assert problems == []


@pytest.fixture
def admin_page(page, site_url, admin_client, settings):
    """A page whose visitor is logged in as superuser."""
    name = settings.SESSION_COOKIE_NAME
    page.context.add_cookies([{"name": name, "value": admin_client.cookies[name].value, "url": site_url}])
    return page


@pytest.fixture
def screenshot(page, tmp_path):
    """``screenshot("shop-blocked")`` takes a picture for the docs, kept only if QUEUETOPIA_SCREENSHOTS is 1.

    Options are Playwright's: ``full_page=True``, ``clip={…}``.
    """

    def take(name, **options):
        renew = os.environ.get("QUEUETOPIA_SCREENSHOTS") == "1"
        folder = REPOSITORY / "docs" / "images" if renew else tmp_path
        page.screenshot(path=folder / f"{name}.png", animations="disabled", caret="hide", **options)

    return take


@pytest.fixture
def barriers(page):
    """``barriers()`` returns what keeps people out of the page as it is now, by axe's rules, as texts."""
    from axe_playwright_python.sync_playwright import Axe

    def found():
        violations = Axe().run(page).response["violations"]
        return [f"{item['id']}: {node['html']}" for item in violations for node in item["nodes"]]

    return found


@pytest.fixture
def halted(declare_only):
    """A shop's queues; the job that blocks the one of customer-42."""
    declare_only()
    payments = mail_queue("shop.payments", performer=ShopPerformer, sensitive_params=("card",), max_attempts=3)
    now = timezone.now()
    text, errors = "ConnectionError: the provider answers 503", [*map(error, (1, 2, 3))]
    errors[-1]["at"] = (now - MINUTE).isoformat()
    put(payments, "done", queue="customer-7", action="receipt", scheduled_at=now - 9 * MINUTE)
    job = put(
        payments, "halted", queue="customer-42", action="charge", scheduled_at=now - 8 * MINUTE, attempts=3, error=text,
        params={"order": 1234, "amount": "19.90", "card": "4111 1111 1111 1111"}, errors=errors,
        attempted_at=now - MINUTE, attempted_by="web1:4242", failed_at=now - 3 * MINUTE,
    )  # fmt: skip
    for name, ago in (("receipt", 7), ("charge", 4), ("receipt", 3)):
        waiting = put(payments, "waiting", queue="customer-42", action=name, scheduled_at=now - ago * MINUTE)
        Queue.objects.filter(name="customer-42").update(current_job=job.pk, due_at=None)
    assert waiting.pk > job.pk
    put(payments, "backing off", queue="customer-8", action="charge", scheduled_at=now - 6 * MINUTE, error=text)
    put(payments, "running again", queue="customer-9", action="charge", scheduled_at=now - 5 * MINUTE)
    put(payments, "skipped", queue="customer-10", action="charge", scheduled_at=now - 5 * MINUTE, error=text)
    put_node(scopes=["shop.payments"])
    return job


@pytest.fixture
def open_admin(page, site_url, settings):
    """Log a person in, and return a function that goes to one of queuetopia's pages."""

    def log_in(*permissions, **columns):
        user = User.objects.create_user(**{"username": "ann", "is_staff": True, **columns})
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        client = Client()
        client.force_login(user)
        name = settings.SESSION_COOKIE_NAME
        page.context.add_cookies([{"name": name, "value": client.cookies[name].value, "url": site_url}])
        return lambda path="": page.goto(f"{site_url}/admin/queuetopia/{path}")

    return log_in
