"""The overview in a browser: it renews itself, goes without a script, and keeps nobody out, on a phone neither."""

import re
from datetime import timedelta

import pytest
from django.core.cache import cache
from django.utils import timezone
from playwright.sync_api import expect

from queuetopia import registry
from queuetopia.models import Job, Queue, Statistic
from queuetopia.testing import wait_until
from tests.browser.shop import MINUTE, ShopPerformer, tool
from tests.states import NODE, mail_queue, put, put_node

pytestmark = pytest.mark.django_db(transaction=True)

PHONE = {"width": 360, "height": 740}


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args):
    return {**browser_context_args, "viewport": {"width": 1300, "height": 800}}


@pytest.fixture
def busy(halted):
    """A bad hour in the shop: one provider is down, mails go out all the same."""
    cache.clear()
    now = timezone.now()
    mails = mail_queue("shop.mails", performer=ShopPerformer)
    payments = registry.by_scope()["shop.payments"]
    for number in range(12):
        put(
            payments, "backing off" if number % 3 else "halted", queue=f"customer-{100 + number}", action="charge",
            error=f"ConnectionError: api.acme: order {4000 + number} answered 503", failed_at=now - number * MINUTE,
        )  # fmt: skip
    put(mails, "halted", queue="news", action="send", error="SMTPRecipientsRefused: <toto@mail.com>")
    running = [put(mails, "running again", queue=f"list-{n}", action="send") for n in range(2)]
    put_node(
        id="6f1c2b1e-8a3d-4c0e-9f57-0a1b2c3d4e5f", host="web2", pid=99, scopes=["shop.mails"],
        workers=[{"pid": 101 + place, "jobs": jobs} for place, jobs in enumerate([[job.pk] for job in running] + [[]])],
    )  # fmt: skip
    Queue.objects.filter(name__startswith="list-").update(held_by="6f1c2b1e-8a3d-4c0e-9f57-0a1b2c3d4e5f")
    span = now.replace(minute=now.minute // 5 * 5, second=0, microsecond=0)
    Statistic.objects.bulk_create(
        Statistic(
            scope="shop.mails", at=span - timedelta(minutes=5 * step), action="send", node=NODE,
            created=190 + 30 * (step % 4),
            done=180 + 40 * (step % 5) - 4 * step, failed=max(0, 30 - 4 * step), halted=max(0, 5 - step),
            waits={str(8 + step % 4): 90, str(20 + step % 6): 3}, runs={"7": 90}, blocks={str(40 + step % 5): 4},
        )
        for step in range(36)
    )  # fmt: skip
    yield halted
    cache.clear()


@pytest.fixture
def go(open_admin):
    return open_admin(is_superuser=True)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_nothing_keeps_anybody_out(page, go, busy, barriers, screenshot, theme):
    page.emulate_media(color_scheme=theme)
    go("scope/")
    screenshot("admin-overview" if theme == "light" else "admin-overview-dark", full_page=True)
    line = Queue.objects.get(name="customer-42")
    pages = ("scope/", "queue/", "job/", f"queue/{line.pk}/change/", f"job/{busy.pk}/change/", f"job/{busy.pk}/edit/")
    for path in pages:
        go(path)
        # The admin's own parts have some.
        ours = [text for text in barriers() if "queuetopia-" in text or path == "scope/"]
        assert ours == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_pages_fit_a_phone(page, go, busy, screenshot, theme):
    page.emulate_media(color_scheme=theme)
    page.set_viewport_size(PHONE)
    job, queue = f"job/{busy.pk}", f"queue/{Queue.objects.get(name='customer-42').pk}"
    for path in (f"{job}/change/", f"{job}/edit/", f"{job}/skip/", f"{queue}/change/", "job/", "queue/", "scope/"):
        go(path)
        assert page.evaluate("document.scrollingElement.scrollWidth") <= PHONE["width"], path
    if theme == "light":
        screenshot("admin-overview-phone")


def test_a_queue_is_found_and_paused_without_a_mouse(page, go, busy):
    def press_until(locator, key="Tab"):
        for _ in range(60):
            if locator.evaluate("element => element === document.activeElement"):
                return
            page.keyboard.press(key)
        raise AssertionError("the keyboard does not get there")

    go("queue/")
    press_until(page.get_by_role("link", name="shop.payments/customer-42"))
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="shop.payments/customer-42")).to_be_visible()
    press_until(tool(page, "Pause"))
    page.keyboard.press("Enter")
    press_until(page.get_by_label("Reason:"))
    page.keyboard.type("deploy")
    page.keyboard.press("Enter")
    expect(page.locator(".messagelist")).to_contain_text("is paused: what runs finishes, nothing new starts.")


def test_on_a_phone_a_person_reaches_every_action(page, go, busy, screenshot):
    page.set_viewport_size(PHONE)
    go("queue/")
    screenshot("admin-queues-phone")
    page.get_by_role("row", name="shop.payments/customer-42").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("Pause selected queues")
    page.locator("button[name=index]").click()
    page.get_by_label("Reason:").fill("deploy")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".messagelist")).to_contain_text("hop.payments/customer-42 is paused")
    page.get_by_role("link", name="shop.payments/customer-42").click()
    for verb in ("Resume", "Retry head", "Skip head"):
        expect(tool(page, verb)).to_be_in_viewport(ratio=1)
    page.locator(".field-job a").click()
    for verb in ("Retry", "Skip", "Mark done", "Edit", "Move to end", "History"):
        tool(page, verb).scroll_into_view_if_needed()
        expect(tool(page, verb)).to_be_in_viewport(ratio=1)
    go("job/?state=halted")
    page.get_by_role("row", name="shop.payments/customer-42").get_by_role("checkbox").check()
    page.get_by_label("Action:").select_option("Skip selected jobs")
    page.locator("button[name=index]").click()
    page.get_by_role("button", name="Skip").click()
    expect(page.locator(".messagelist")).to_contain_text("is skipped; its queue")


def test_the_overview_renews_itself_while_somebody_looks(page, go, busy, site_url):
    page.clock.install()
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "/live/" in request.url else None)
    go("scope/")
    expect(page.locator(".queuetopia-totals")).to_contain_text("queues halted")
    before = page.locator(".queuetopia-totals li").nth(2).inner_text()
    Job.objects.filter(state="halted").update(state="pending")
    Queue.objects.filter(held_by=None, current_job__isnull=False).update(due_at=timezone.now() + MINUTE)
    cache.clear()
    page.clock.run_for(10_500)
    expect(page.locator(".queuetopia-totals li").nth(2)).to_contain_text("0 queues halted")
    assert "0 queues halted" not in before
    expect(page.get_by_role("status")).to_contain_text("0 queues halted")
    assert len(asked) == 1

    page.evaluate("Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
    page.clock.run_for(60_000)
    assert len(asked) == 1
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    assert wait_until(lambda: page.evaluate("1") and len(asked) == 2)


def test_who_is_at_a_link_of_it_keeps_the_place(page, go, busy):
    page.clock.install()
    go("scope/")
    link = page.get_by_role("link", name=re.compile("^Retry what blocks")).first
    link.focus()
    page.clock.run_for(30_000)
    expect(link).to_be_focused()


def test_a_page_that_cannot_be_renewed_says_so(page, go, busy, problems):
    page.clock.install()
    go("scope/")
    page.context.clear_cookies()
    page.clock.run_for(10_500)
    expect(page.get_by_role("status")).to_have_text("This page could not be renewed: reload it.")
    problems.clear()  # the browser tells of the redirect to the login


def test_it_goes_without_a_script(browser, browser_context_args, page, go, busy, site_url):
    context = browser.new_context(**browser_context_args, java_script_enabled=False)
    context.add_cookies(page.context.cookies())
    plain = context.new_page()
    plain.goto(f"{site_url}/admin/queuetopia/scope/")
    plain.get_by_role("link", name="Reload").click()
    expect(plain.get_by_text("api.acme: order # answered #")).to_be_visible()
    context.close()


@pytest.mark.capability("E5")
def test_a_person_retries_all_that_one_error_blocks(page, go, busy, screenshot):
    go("scope/")
    page.get_by_role("link", name=re.compile("Retry what blocks .* api.acme")).click()
    expect(page.get_by_role("heading", name=re.compile(r"Retry what blocks \d+ queues"))).to_be_visible()
    page.get_by_label("Reason:").fill("acme is back")
    screenshot("admin-retry-all")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".messagelist")).to_contain_text("Retried:")
    assert Job.objects.filter(error__contains="api.acme", next_attempt_at__lte=timezone.now()).count() == 12


@pytest.mark.capability("E5")
def test_a_person_edits_the_params_and_retries(page, go, busy, screenshot):
    go(f"job/{busy.pk}/change/")
    tool(page, "Edit").click()
    params = page.get_by_label("Params:")
    expect(params).to_have_value(re.compile(r'"card": "\*{8}"'))
    screenshot("admin-edit")
    params.fill("{")
    page.get_by_label("Reason:").fill("the price was wrong")
    page.get_by_role("button", name="Edit").click()
    expect(page.locator(".errorlist")).to_contain_text("This is no JSON object of params")
    params.fill('{"order": 1234, "amount": "9.90", "card": "********"}')
    page.get_by_role("button", name="Edit").click()
    expect(page.locator(".messagelist")).to_contain_text("has new params and is retried: attempt 4 of 4 is due now.")
    expect(page.locator("#timeline")).to_contain_text("the price was wrong")
    busy.refresh_from_db()
    assert busy.params == {"order": 1234, "amount": "9.90", "card": "4111 1111 1111 1111"}


@pytest.mark.parametrize("path", ["queue/", "job/"])
def test_the_names_of_queues_are_completed(page, go, busy, path):
    go(path)
    page.locator("#searchbar").press_sequentially("customer-4")
    expect(page.locator("#queuetopia-names option")).to_have_count(1)
    assert page.locator("#queuetopia-names option").get_attribute("value") == "customer-42"


def test_no_script_or_style_stands_in_the_pages(page, go, busy, site_url, problems):
    """As under the strictest Content-Security-Policy: what it would forbid is told on the console."""

    def strict(route):
        answer = route.fetch()
        policy = {"Content-Security-Policy": "default-src 'self'"}
        route.fulfill(response=answer, headers={**answer.headers, **policy})

    page.route(re.compile(f"{re.escape(site_url)}/admin/queuetopia/.*"), strict)
    page.clock.install()
    go("scope/")
    page.clock.run_for(10_500)
    expect(page.get_by_role("status")).to_contain_text("queues halted")
    for path in (f"job/{busy.pk}/change/", f"job/{busy.pk}/edit/", "queue/"):
        go(path)
    assert problems == []
