"""The setting MIDDLEWARE: one place around every attempt of every class, sync and async."""

import inspect
from contextvars import ContextVar

import pytest
from django.core.checks import run_checks

from queuetopia import Performer, Queuetopia, Snooze, action
from queuetopia.models import Job
from queuetopia.testing import drain, perform_job
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

tenant = ContextVar("tenant", default="none")
seen: list = []


def outer(perform):
    def wrapped(job):
        seen.append("outer begins")
        try:
            result = perform(job)
            seen.append(["outer", result])
            return {"outer": result}
        except LookupError as exc:
            seen.append(repr(exc))
            raise
        finally:
            seen.append("outer ends")

    return wrapped


def inner(perform):
    def wrapped(job):
        token = tenant.set(job.queue)
        try:
            return perform(job)
        finally:
            tenant.reset(token)

    return wrapped


def either(perform):
    if not inspect.iscoroutinefunction(perform):
        return inner(perform)

    async def wrapped(job):
        seen.append("async")
        tenant.set(job.queue)
        return await perform(job)

    return wrapped


def later(perform):
    def wrapped(job):
        raise Snooze(5)

    return wrapped


def broken(perform):
    raise RuntimeError("no middleware")


class Shop(Performer):
    @action
    def run(self, job):
        Note.objects.count()
        return tenant.get()

    @action
    async def run_async(self, job):
        await Note.objects.acount()
        return tenant.get()

    @action
    def fail(self, job):
        raise LookupError("no")


@pytest.fixture
def queue(declare_only):
    declare_only()
    seen.clear()
    return type("ShopQueue", (Queuetopia,), {"performer": Shop, "scope": "tests.shop"})


def use(settings, *names):
    settings.QUEUETOPIA = {"MIDDLEWARE": [f"{__name__}.{name}" for name in names]}


@pytest.mark.parametrize("name", ["run", "run_async"])
def test_sync_middleware_wraps_sync_and_async_actions_the_first_outermost(queue, settings, name):
    use(settings, "outer", "inner")
    queue.create_job("acme", name)
    (job,) = drain(queue)
    assert (job.state, job.result) == (Job.State.DONE, {"outer": "acme"})
    assert seen == ["outer begins", ["outer", "acme"], "outer ends"]
    assert tenant.get() == "none"
    assert perform_job(queue.job("acme", name)) == {"outer": "acme"}


@pytest.mark.parametrize(("name", "expected"), [("run", []), ("run_async", ["async"])])
def test_middleware_that_takes_both_leaves_async_actions_in_the_event_loop(queue, settings, name, expected):
    use(settings, "either")
    queue.create_job("acme", name)
    assert drain(queue)[0].result == "acme"
    assert seen == expected


def test_middleware_sees_what_the_performer_raises(queue, settings):
    use(settings, "outer")
    queue.create_job("acme", "fail")
    assert drain(queue)[0].error == "LookupError: no"
    assert seen == ["outer begins", "LookupError('no')", "outer ends"]


@pytest.mark.parametrize("name", ["run", "run_async"])
def test_middleware_may_put_a_job_off(queue, settings, name):
    use(settings, "later")
    queue.create_job("acme", name)
    (job,) = drain(queue)
    assert (job.state, job.attempts) == (Job.State.PENDING, 0)


@pytest.mark.parametrize("name", ["run", "run_async"])
def test_middleware_that_cannot_be_made_fails_the_attempt(queue, settings, name):
    use(settings, "broken")
    queue.create_job("acme", name)
    assert drain(queue)[0].error == "RuntimeError: no middleware"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("shop.middleware", "'shop.middleware' is no list of dotted paths"),
        ([5], "[5] is no list of dotted paths"),
        (["tests.worker.test_middleware.missing"], "'tests.worker.test_middleware.missing' cannot be imported"),
        (["tests.worker.test_middleware.seen"], "cannot be called with perform"),
    ],
)
def test_a_setting_that_cannot_be_used_is_a_system_check_error(queue, settings, value, text):
    settings.QUEUETOPIA = {"MIDDLEWARE": value}
    (problem,) = run_checks(tags=["queuetopia"])
    assert problem.id == "queuetopia.E003"
    assert text in problem.msg
