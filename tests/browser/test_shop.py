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
    page.get_by_role("combobox", name="Customer").fill(customer)
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


def mails_to(page, customer):
    return page.get_by_role("row").filter(has_text=customer)


def all_steps(state):
    return [re.compile(rf"{step}\s+{state}") for step in STEPS]


@pytest.mark.capability("W1", "Q2")
def test_who_needs_the_provider_is_held_while_it_is_off_and_catches_up_when_it_is_on(shop, screenshot):
    switch(shop, "off")
    shop.get_by_role("button", name="Everybody orders once more").click()
    expect(shop.get_by_role("status")).to_have_text(re.compile(r"\d+ customers ordered once more\."))
    for customer in (RED, BLUE):
        expect(state(shop, customer)).to_have_text("blocked, backing off")
        expect(line(shop, customer)).to_contain_text("ProviderError: 503: the provider is switched off")
        expect(line(shop, customer)).to_contain_text(
            re.compile(r"for \d+ s, since [\d:]+, by job \d+, register_invoice")
        )
        expect(line(shop, customer)).to_contain_text(re.compile(r"\d+ attempts?,\s+the next in \d s\."))
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


def test_an_order_is_placed_done_and_its_mails_can_be_opened(shop):
    order(shop, "purple@customer.example", item="a teapot", amount="45.50")
    expect(steps(shop, "purple@customer.example")).to_have_text(all_steps("done"))
    shop.get_by_role("link", name="Mails").click()
    expect(mails_to(shop, "purple@customer.example")).to_have_count(2)
    receipt = mails_to(shop, "purple@customer.example").filter(has_text="Your receipt for a teapot")
    receipt.get_by_role("link").click()
    expect(shop.locator("body")).to_contain_text(re.compile(r"Invoice I-\d+\. You paid 45\.50 . by card: P-\d+\."))


def test_a_wrong_order_is_told_and_nothing_is_placed(shop, problems):
    orders = shop.get_by_text(re.compile(r"^Order \d+$")).count()
    shop.get_by_label("Amount").fill("1234567.00")
    shop.get_by_role("button", name="Order", exact=True).click()
    expect(shop.get_by_text("Ensure that there are no more than 8 digits in total.")).to_be_visible()
    expect(shop.get_by_label("Amount")).to_have_value("1234567.00")
    assert shop.get_by_text(re.compile(r"^Order \d+$")).count() == orders
    assert [text for text in problems if "400 (Bad Request)" not in text] == []
    problems.clear()


def test_a_slow_provider_is_seen_running_and_holds_nobody_else(shop):
    switch(shop, "slow")
    order(shop, RED)
    order(shop, RED)  # four slow calls
    expect(state(shop, RED)).to_have_text("running")
    expect(line(shop, RED)).to_contain_text(re.compile(r"Runs job \d+, register_invoice, attempt 1, for \d s"))
    order(shop, GREEN, payment="in cash, on delivery")
    expect(state(shop, GREEN)).to_have_text("empty")
    expect(state(shop, RED)).to_have_text("running")
    switch(shop, "on")
    expect(steps(shop, RED)).to_have_text(all_steps("done"))


def test_a_provider_that_fails_is_asked_again(shop):
    switch(shop, "failing")
    order(shop, BLUE)
    expect(line(shop, BLUE)).to_contain_text("ProviderError: 500: the provider fails")
    expect(state(shop, BLUE)).to_have_text("blocked, backing off")
    switch(shop, "on")
    expect(steps(shop, BLUE)).to_have_text(all_steps("done"))


def test_a_refused_payment_halts_and_hostile_text_of_an_order_and_its_error_shows_as_text(shop):
    hostile = "hostile@customer.example"
    order(shop, hostile, item=HOSTILE, amount="500.01")
    expect(state(shop, hostile)).to_have_text("blocked, halted")
    expect(line(shop, hostile)).to_contain_text("no next one until an operator decides")
    expect(line(shop, hostile).locator(".error")).to_contain_text(f"{HOSTILE}: 500.01 € are over the card's limit")
    expect(line(shop, hostile)).to_contain_text(f": {HOSTILE}, 500.01 € by card")
    expect(shop.get_by_label("Item")).to_have_value(HOSTILE)
    shop.get_by_role("link", name="Mails").click()
    expect(mails_to(shop, hostile)).to_contain_text(f"Your order of {HOSTILE}")
    expect(shop).to_have_title("Mails of Queuetopia's shop")
    mails_to(shop, hostile).get_by_role("link").click()
    expect(shop.locator("body")).to_contain_text("hostile@customer.example")
    assert shop.title() == ""


def test_what_has_the_focus_keeps_it_while_the_queues_are_shown_anew(shop):
    link = line(shop, RED).get_by_role("link", name=re.compile("^Order")).first
    link.focus()
    shop.evaluate("document.querySelector('.lines').dataset.old = 'yes'")
    expect(shop.locator(".lines[data-old]")).to_have_count(0)
    expect(link).to_be_focused()


def test_a_site_that_does_not_answer_is_told(shop, problems):
    note = shop.get_by_text("The shop does not answer; trying again.")
    shop.route("**/queues/", lambda route: route.abort())
    expect(note).to_be_visible()
    shop.unroute("**/queues/")
    expect(note).to_be_hidden()
    assert [text for text in problems if "/queues/" not in text] == []
    problems.clear()


def test_the_page_fits_a_phone_in_the_dark(shop, screenshot):
    shop.set_viewport_size({"width": 390, "height": 844})
    shop.emulate_media(color_scheme="dark")
    switch(shop, "off")
    order(shop, RED)
    expect(state(shop, RED)).to_have_text("blocked, backing off")
    assert shop.evaluate("document.documentElement.scrollWidth") <= 390
    shop.locator("#live").evaluate("section => section.scrollIntoView()")
    screenshot("shop-phone")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_kept_out(shop, barriers, scheme):
    shop.emulate_media(color_scheme=scheme)
    switch(shop, "failing")
    order(shop, BLUE)
    expect(state(shop, BLUE)).to_have_text("blocked, backing off")
    assert barriers() == []
    shop.get_by_role("link", name="Mails").click()
    assert barriers() == []


def test_the_pages_name_their_icon_and_browsers_find_it_without(shop, site_url):
    address = shop.locator("link[rel=icon]").get_attribute("href")
    for icon in (address, "/favicon.ico"):
        assert shop.request.get(f"{site_url}{icon}").headers["content-type"] == "image/svg+xml"
