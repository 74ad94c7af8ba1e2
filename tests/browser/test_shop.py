"""The example's shop as a newcomer meets it: ``manage.py demo`` and its page in a browser."""

import re
import signal
import sys

import pytest
from playwright.sync_api import expect

from queuetopia.testing import wait_until
from tests.conftest import REPOSITORY
from tests.nodes import PATIENCE, Node

pytestmark = pytest.mark.slow

RED, GREEN, BLUE, YELLOW = (f"{name}@customer.example" for name in ("red", "green", "blue", "yellow"))
STEPS = ["confirm order", "register invoice", "charge payment", "send receipt"]
HOSTILE = "<img src=/x onerror=\"document.title='taken'\"><script>document.title='taken'</script>&amp;"

expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def demo(tmp_path_factory, node_environment):
    """A running demo; in the end it must stop cleanly and leave no process."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {
        **node_environment,
        "DJANGO_SETTINGS_MODULE": "example_project.settings",
        "DATABASE_URL": f"sqlite:///{folder}/db.sqlite3",
        "MAIL_FOLDER": f"{folder}/mails",
    }
    command = [sys.executable, str(REPOSITORY / "manage.py"), "demo", "--no-color", "--port", "0"]
    demo = Node(command, environment, folder / "log")
    try:
        demo.wait_for_log("The shop")
        yield demo
        assert demo.stop(signal.SIGINT) == 0, demo.log()
        wait_until(demo.is_gone, PATIENCE)
    finally:
        demo.put_away()


@pytest.fixture
def site_url(demo):
    return re.search(r"The shop +(http://127\.0\.0\.1:\d+)/", demo.log())[1]


@pytest.fixture
def shop(page, site_url):
    """The shop's page, the provider being on and all earlier orders done."""
    page.goto(site_url)
    switch(page, "on")
    for customer in (RED, GREEN, BLUE, YELLOW):
        expect(state(page, customer)).to_have_text("empty")
    return page


def switch(page, mode):
    page.get_by_role("button", name=mode, exact=True).click()
    expect(page.get_by_role("button", name=mode, exact=True)).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_text(f"provider {mode}", exact=True)).to_be_visible()


def order(page, customer, item="a kettle", amount="39", payment="by card"):
    page.get_by_label("Customer").fill(customer)
    page.get_by_label("Item").fill(item)
    page.get_by_label("Amount").fill(amount)
    page.get_by_label(payment).check()
    page.get_by_role("button", name="Order", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("its steps stand in queue customer-")


def line(page, customer):
    return page.get_by_role("article", name=customer)


def state(page, customer):
    return line(page, customer).get_by_role("heading").locator(".chip")


def steps(page, customer):
    """The steps of the customer's last order that is shown."""
    return line(page, customer).get_by_role("list").last.get_by_role("listitem")


def all_steps(state):
    return [re.compile(rf"{step}\s+{state}") for step in STEPS]


@pytest.mark.capability("W1", "Q2")
def test_who_needs_the_provider_is_held_while_it_is_off_and_catches_up_when_it_is_on(shop, screenshot):
    switch(shop, "off")
    shop.get_by_role("button", name="Everybody orders once more").click()
    expect(shop.get_by_role("status")).to_have_text("4 customers ordered once more.")
    for customer in (RED, BLUE):
        expect(state(shop, customer)).to_have_text("blocked, backing off")
        expect(line(shop, customer)).to_contain_text("ProviderError: 503: the provider is switched off")
        expect(line(shop, customer)).to_contain_text(re.compile(r"By job \d+, register_invoice, for \d+ s, since [\d:]+"))
        expect(line(shop, customer)).to_contain_text(re.compile(r"2 attempts\.\s+Next in \d s\."))
        expect(steps(shop, customer)).to_have_text(
            [
                re.compile(r"confirm order\s+done"),
                re.compile(r"register invoice\s+backing off"),
                re.compile(r"charge payment\s+waiting"),
                re.compile(r"send receipt\s+waiting"),
            ]
        )
    for customer in (GREEN, YELLOW):
        expect(state(shop, customer)).to_have_text("empty")
    screenshot("shop-blocked", full_page=True)

    switch(shop, "on")
    for customer in (RED, BLUE):
        expect(state(shop, customer)).to_have_text("empty")
        expect(steps(shop, customer)).to_have_text(all_steps("done"))
    screenshot("shop-caught-up", full_page=True)
