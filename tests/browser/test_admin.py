"""The admin in a browser: a person finds what blocks a queue, and decides; one who may not, cannot."""

import re

import pytest
from playwright.sync_api import expect

from queuetopia.models import Job, JobEvent, Queue
from tests.browser.shop import error, tool

pytestmark = pytest.mark.django_db(transaction=True)

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="session")
def browser_context_args(browser_context_args):
    return {**browser_context_args, "viewport": {"width": 1600, "height": 800}}


@pytest.mark.capability("E5")
def test_a_person_retries_and_then_skips_what_blocks_a_queue(page, open_admin, halted, screenshot):
    go = open_admin(is_superuser=True)
    go("queue/")
    screenshot("admin-queues")
    page.get_by_role("link", name="shop.payments/customer-42").click()
    expect(page.locator(".field-state_now .readonly")).to_have_text("halted")
    page.locator(".field-job a").click()
    expect(page.locator("#params")).to_contain_text('"card": "********"')
    expect(page.locator(".queuetopia-text").nth(1)).to_contain_text("the provider answers 503")
    screenshot("admin-job", full_page=True)

    tool(page, "Retry").click()
    page.get_by_label("Reason:").fill("the provider is back")
    screenshot("admin-confirm")
    page.get_by_role("button", name="Retry").click()
    expect(page.locator(".messagelist")).to_contain_text("is retried: attempt 4 of 4 is due now.")
    expect(page.locator(".field-state_now .readonly")).to_have_text("backing off")
    expect(page.get_by_role("cell", name="the provider is back")).to_be_visible()

    tool(page, "Skip").click()
    page.get_by_label("Reason:").fill("paid in cash")
    page.get_by_role("button", name="Skip").click()
    expect(page.locator(".messagelist")).to_contain_text("is skipped; its queue goes on.")
    tool(page, "History").click()
    expect(page.locator("#change-history")).to_contain_text("paid in cash")
    assert [(event.verb, event.by, event.reason) for event in JobEvent.objects.order_by("pk")] == [
        ("retry", "ann", "the provider is back"),
        ("skip", "ann", "paid in cash"),
    ]
    halted.refresh_from_db()
    assert halted.state == "skipped"


@pytest.mark.capability("E5")
def test_jobs_chosen_in_the_list_are_done_together(page, open_admin, halted, screenshot):
    go = open_admin(is_superuser=True)
    go("job/")
    screenshot("admin-jobs")
    page.get_by_label("Select all objects on this page for an action").check()
    page.get_by_label("Action:").select_option("Skip selected jobs")
    page.locator("button[name=index]").click()  # "Go", or "Run" since Django 6.1
    expect(page.get_by_role("heading", name="Skip 8 jobs")).to_be_visible()
    page.get_by_label("Reason:").fill("a bad day")
    page.get_by_role("button", name="Skip").click()
    expect(page.locator(".messagelist .success")).to_have_count(2)
    expect(page.locator(".messagelist .error")).to_have_count(6)
    expect(page.locator(".messagelist")).to_contain_text("cannot be skipped: it is running, attempt 3 since")
    assert Job.objects.filter(state="skipped").count() == 3


def test_a_person_who_may_only_look_is_offered_nothing_and_refused(page, open_admin, halted, problems):
    go = open_admin("view_job", "view_queue")
    go("job/")
    expect(page.locator("#result_list tbody tr")).to_have_count(8)
    expect(page.get_by_label("Action:")).to_have_count(0)
    go(f"job/{halted.pk}/change/")
    expect(page.get_by_text("Hidden: you may not view params")).to_be_visible()
    for verb in ("Retry", "Skip", "Cancel", "Delete"):
        expect(tool(page, verb)).to_have_count(0)
    assert go(f"job/{halted.pk}/skip/").status == 403
    problems.clear()  # the browser tells of the 403
    halted.refresh_from_db()
    assert halted.state == "halted"


def test_hostile_text_is_shown_as_text(page, open_admin, halted):
    Queue.objects.filter(name="customer-42").update(name=HOSTILE, problem=HOSTILE)
    errors = [{**error(1), "message": HOSTILE, "traceback": HOSTILE, "type": HOSTILE}]
    Job.objects.filter(queue="customer-42").update(
        queue=HOSTILE, error=HOSTILE, params={HOSTILE: HOSTILE}, errors=errors
    )
    go = open_admin(is_superuser=True, username=HOSTILE)
    for path in ("job/", "queue/", f"job/{halted.pk}/change/", f"job/{halted.pk}/skip/"):
        go(path)
        expect(page.locator("#content").get_by_text(HOSTILE).first).to_be_visible()
    page.get_by_label("Reason:").fill(HOSTILE)
    page.get_by_role("button", name="Skip").click()
    expect(page.locator(".messagelist")).to_contain_text(HOSTILE)
    expect(page.get_by_role("cell", name=re.compile("^<img")).first).to_be_visible()
    tool(page, "History").click()
    expect(page.locator("#change-history")).to_contain_text(HOSTILE)
    expect(page.locator("img[src=x]")).to_have_count(0)


def test_the_dark_theme_keeps_everything_readable(page, open_admin, halted):
    page.emulate_media(color_scheme="dark")
    open_admin(is_superuser=True)(f"job/{halted.pk}/change/")
    for selector in (".queuetopia-text", ".queuetopia-note", ".queuetopia-error > summary"):
        if page.locator(selector).count():
            assert contrast(page, selector) >= 4.5, selector


CONTRAST = """element => {
    const parts = color => color.match(/[\\d.]+/g).map(Number)
    const light = color => {
        const [r, g, b] = parts(color).slice(0, 3).map(c => c / 255).map(
            c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    let behind = element
    while (behind && parts(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement
    const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(light).sort()
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
}"""


def contrast(page, selector):
    return page.locator(selector).first.evaluate(CONTRAST)
