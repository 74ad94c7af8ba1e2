"""Only the performer's own completed return is a success: awaitables are awaited, work never done is a failure."""

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import itertools
import logging
import multiprocessing.pool
import subprocess
import sys
import threading
import time
import types

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.checks import run_checks
from django.db import connection, transaction

from queuetopia import Halt, Performer, Queuetopia, Skip, Snooze, action, registry, signals
from queuetopia.exceptions import Unfinished
from queuetopia.models import Job
from queuetopia.testing import drain, perform_job
from tests.testapp.models import Note

pytestmark = pytest.mark.django_db

tenant = contextvars.ContextVar("tenant", default="none")


@pytest.fixture
def declared():
    """Return a function that declares a Queuetopia for this test only."""

    def declare(performer, **options):
        return type("CompletionQueue", (Queuetopia,), {"performer": performer, "scope": "tests.completion", **options})

    with registry.only(*registry.registered()):
        yield declare


def run(queue, action="run"):
    """Run one job of the action; return it as stored."""
    queue.create_job("a", action)
    (job,) = drain(queue)
    return job


def performing(function, name="run"):
    """Return a performer whose one action returns what the function does."""
    return type("ShopPerformer", (Performer,), {name: action(name)(lambda self, job: function())})


async def ran(result="ran"):
    """Note in the database that this body has run."""
    await asyncio.sleep(0)
    await Note.objects.acreate(text="ran")
    return result


class Awaitable:
    def __await__(self):
        return ran().__await__()


@types.coroutine
def old_coroutine():
    return (yield from ran().__await__())


async def nested():
    return ran()


async def in_a_task():
    return asyncio.create_task(ran())


@sync_to_async
def in_a_thread():
    Note.objects.create(text="ran")
    return "ran"


def finished_future():
    future = concurrent.futures.Future()
    Note.objects.create(text="ran")
    future.set_result("ran")
    return future


# What is waited for

AWAITED = {
    "a coroutine": ran,
    "an object with __await__": Awaitable,
    "a generator-based coroutine": old_coroutine,
    "a coroutine that returns a coroutine": nested,
    "a task of the loop that is waited in": in_a_task,
    "what sync_to_async returns": in_a_thread,
    "the result of a partial": functools.partial(ran, "ran"),
    "a future that is done": finished_future,
}


@pytest.mark.parametrize("what", AWAITED)
def test_what_a_sync_action_returns_is_awaited(declared, what):
    job = run(declared(performing(AWAITED[what])))
    assert (job.state, job.result) == (Job.State.DONE, "ran")
    assert Note.objects.count() == 1


@pytest.mark.parametrize("what", AWAITED)
def test_what_an_async_action_returns_is_awaited(declared, what):
    class P(Performer):
        @action
        async def run(self, job):
            make = AWAITED[what]
            return await sync_to_async(make)() if make is finished_future else make()

    job = run(declared(P))
    assert (job.state, job.result) == (Job.State.DONE, "ran")
    assert Note.objects.count() == 1


class Wrapped(Performer):
    """A sync perform() around an async action: the action runs inside what perform() has opened."""

    def perform(self, job):
        token = tenant.set("acme")
        try:
            with transaction.atomic():
                self.result = super().perform(job)
                self.tenant_after = tenant.get()
                return self.result
        finally:
            tenant.reset(token)

    @action
    async def run(self, job):
        await asyncio.sleep(0)
        in_transaction = await sync_to_async(lambda: len(connection.savepoint_ids))()
        await Note.objects.acreate(text=tenant.get())
        return {"tenant": tenant.get(), "savepoints": in_transaction}

    @action
    def run_sync(self, job):
        return tenant.get()


def test_an_async_action_runs_inside_the_sync_perform_that_wraps_it(declared):
    before = len(connection.savepoint_ids)
    job = run(declared(Wrapped))
    assert (job.state, job.result) == (Job.State.DONE, {"tenant": "acme", "savepoints": before + 1})
    assert Note.objects.get().text == "acme"
    assert run(declared(Wrapped), "run_sync").result == "acme"


def test_a_sync_perform_gets_what_its_async_action_raises(declared):
    class P(Performer):
        def perform(self, job):
            try:
                return super().perform(job)
            except LookupError:
                return "caught"

        @action
        async def run(self, job):
            raise LookupError

    assert run(declared(P)).result == "caught"


def test_an_async_perform_may_await_every_action_and_sync_ones_may_use_the_database(declared):
    class P(Performer):
        async def perform(self, job):
            return {"got": await super().perform(job)}

        @action
        async def run(self, job):
            return "async"

        @action
        def run_sync(self, job):
            Note.objects.create(text="sync")

        @action
        def run_returning(self, job):
            return ran()

    queue = declared(P)
    assert run(queue).result == {"got": "async"}
    assert run(queue, "run_sync").result == {"got": None}
    assert run(queue, "run_returning").result == {"got": "ran"}
    assert Note.objects.count() == 2


def test_a_verdict_raised_by_an_awaited_action_holds(declared):
    async def halt():
        raise Halt("ask somebody")

    assert run(declared(performing(halt))).state == Job.State.HALTED


@pytest.mark.parametrize("from_async", [False, True])
def test_perform_job_follows_the_same_rules(declared, from_async):
    def perform(function):
        job = declared(performing(function)).job("a", "run")
        return async_to_sync(sync_to_async(perform_job))(job) if from_async else perform_job(job)

    assert perform(lambda: ran("ran")) == "ran"
    with pytest.raises(Unfinished):
        perform(lambda: (number for number in range(3)))


def test_perform_job_inside_an_event_loop_runs_a_sync_action_and_says_how_to_run_an_async_one(declared):
    async def test(function):
        return perform_job(declared(performing(function)).job("a", "run"))

    assert asyncio.run(test(lambda: 7)) == 7
    with pytest.raises(RuntimeError, match="await sync_to_async"):
        asyncio.run(test(ran))


# What is refused


def generator():
    yield Note.objects.create(text="ran")


async def async_generator():
    yield await ran()


@contextlib.contextmanager
def context_manager():
    yield


def failing():
    raise ZeroDivisionError("of the work")


def task_of_another_loop():
    loop = asyncio.new_event_loop()
    future = loop.create_future()
    loop.close()
    return future


def pool_result():
    with multiprocessing.pool.ThreadPool(1) as pool:
        return pool.apply_async(time.sleep, (0.5,))


def program():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    programs.append(process)
    return process


programs = []


@pytest.fixture
def ended_programs():
    yield
    while programs:
        with programs.pop() as process:
            process.kill()


REFUSED = {
    "a generator": (generator, "a generator, and nothing has run it. Loop over it"),
    "a generator expression": (lambda: (ran() for _ in range(3)), "a generator"),
    "an async generator": (async_generator, "an async_generator"),
    "map": (lambda: map(failing, [1]), "a map"),
    "filter": (lambda: filter(failing, [1]), "a filter"),
    "zip of maps": (lambda: zip(map(failing, [1]), [1], strict=True), "a zip"),
    "something of itertools": (lambda: itertools.starmap(failing, [()]), "a starmap"),
    "iter(callable, sentinel)": (lambda: iter(failing, None), "a callable_iterator"),
    "a context manager": (context_manager, "that was not entered. Use it in a with statement"),
    "an unfinished future": (concurrent.futures.Future, "a Future that is not done. Wait for its result"),
    "a future of another loop": (task_of_another_loop, "a Future that is not done"),
    "an unfinished result of a pool": (pool_result, "that is not done"),
    "a thread never started": (lambda: threading.Thread(target=failing), "a Thread that has not ended"),
    "a program that runs": (program, "a Popen whose program still runs. Wait for it"),
    "coroutines in a list": (lambda: [ran(), ran()], "a list with a coroutine that was not awaited. Await each one"),
    "a coroutine deep inside": (lambda: {"sent": [1, (2, {"x": ran()})]}, "a dict with a coroutine"),
    "a generator in a tuple": (lambda: (1, generator()), "a tuple with a generator"),
    "a future in a dict": (lambda: {"x": concurrent.futures.Future()}, "a dict with a Future"),
    "Halt": (lambda: Halt("ask somebody"), "returned Halt('ask somebody'). Raise it instead"),
    "Skip, the class": (lambda: Skip, "returned <class 'queuetopia.exceptions.Skip'>. Raise it instead"),
    "Snooze": (lambda: Snooze(5), "Raise it instead"),
}


@pytest.mark.usefixtures("ended_programs")
@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("what", REFUSED)
def test_work_that_was_never_done_is_a_failed_attempt_that_says_so(declared, what, is_async):
    make, text = REFUSED[what]

    class ShopPerformer(Performer):
        @action("run")
        async def run_async(self, job):
            return make()

    job = run(declared(ShopPerformer if is_async else performing(make)))

    assert (job.state, job.attempts, job.result) == (Job.State.PENDING, 1, None)
    assert job.error.startswith("Unfinished: Action 'run' of ShopPerformer returned ")
    assert text in job.error
    assert not Note.objects.exists()


@pytest.mark.parametrize("inside", [False, True])
def test_a_future_that_failed_is_a_failure_with_its_exception(declared, inside):
    def failed():
        future = concurrent.futures.Future()
        future.set_exception(ZeroDivisionError("of the work"))
        return [future] if inside else future

    assert run(declared(performing(failed))).error == "ZeroDivisionError: of the work"


# What is a success


SUCCESSES = {
    "an object": object,
    "an exception": lambda: ValueError("returned"),
    "a function": lambda: failing,
    "an iterator over what is there": lambda: iter([1]),
    "a query set": Note.objects.all,
    "a cursor": lambda: connection.cursor().execute("SELECT 1"),
    "a class": lambda: Performer,
    "a thread that has ended": lambda: ended(threading.Thread(target=int)),
    "a program that has ended": lambda: subprocess.run([sys.executable, "-c", ""], check=True),
    "exceptions that were gathered": lambda: [1, ValueError("no")],
    "a list that contains itself": lambda: itself([]),
}


def ended(thread):
    thread.start()
    thread.join()
    return thread


def itself(items):
    items.append(items)
    return items


@pytest.mark.parametrize("what", SUCCESSES)
def test_what_is_finished_is_a_success_whatever_it_is(declared, what):
    job = run(declared(performing(SUCCESSES[what])))
    assert (job.state, job.error) == (Job.State.DONE, "")


# Hooks, setup, backoff, callables and receivers


def test_hooks_setup_backoff_and_callables_may_be_async(declared):
    async def decide(job, exc):
        return (await ran("skip")) if job.queue == "a" else "halt"

    class P(Performer):
        async def setup(self):
            self.texts = [await ran("set up")]

        async def backoff(self, job, exc):
            return await ran(7)

        async def handle_done_job(self, job):
            self.texts.append(await ran("done"))

        async def handle_failed_job(self, job, exc):
            self.texts.append(await ran(f"failed {exc}"))

        async def handle_exhausted_job(self, job, exc):
            self.texts.append(await ran("exhausted"))

        @action
        def run(self, job):
            return list(self.texts)

        @action
        def fail(self, job):
            raise ValueError("no")

        @action
        async def fail_async(self, job):
            raise ValueError("no")

    queue = declared(P, on_exhausted=staticmethod(decide))
    for name in ("fail", "fail_async"):
        job = run(queue, name)
        assert (job.next_attempt_at - job.attempted_at).total_seconds() == 7
        Job.objects.filter(pk=job.pk).update(max_attempts=1)
        queue.retry(job)
        assert [(job.state, job.attempts) for job in drain(queue)] == [(Job.State.SKIPPED, 2)]
    for text in ("done", "failed no", "exhausted"):
        assert text in _told(queue)


def _told(queue):
    """Run one job more after hooks; return the texts of the performer at that time."""
    queue.create_job("b", "run")
    queue.create_job("c", "fail", max_attempts=1, on_exhausted="skip")
    queue.create_job("d", "run")
    return drain(queue)[-1].result


@pytest.mark.parametrize("hook", ["setup", "handle_done_job"])
def test_a_hook_that_is_a_generator_is_refused_and_says_so(declared, caplog, hook):
    def broken(self, *arguments):
        yield

    queue = declared(type("ShopPerformer", (performing(lambda: 1),), {hook: broken}))
    with caplog.at_level(logging.ERROR), contextlib.suppress(Exception):
        run(queue)
    wanted = f"{hook}() of ShopPerformer returned a generator"
    assert wanted in caplog.text


def test_a_hook_that_is_a_generator_is_an_error_of_the_system_check(declared):
    class ShopPerformer(performing(lambda: 1)):
        def handle_failed_job(self, job, exc):
            yield

    declared(ShopPerformer)
    found = [problem.msg for problem in run_checks(tags=["queuetopia"]) if problem.id == "queuetopia.E017"]
    assert len(found) == 1
    assert "ShopPerformer.handle_failed_job is a generator: a call would run nothing." in found[0]


@pytest.mark.parametrize("signal", ["job_started", "job_done"])
@pytest.mark.parametrize("is_async", [False, True])
def test_receivers_may_be_async_or_return_awaitables(declared, signal, is_async):
    async def receive_async(sender, job, **more):
        await ran()

    def receive(sender, job, **more):
        return ran()

    receiver = receive_async if is_async else receive
    queue = declared(performing(lambda: 1))
    getattr(signals, signal).connect(receiver, sender=queue)
    try:
        run(queue)
    finally:
        getattr(signals, signal).disconnect(receiver, sender=queue)
    assert Note.objects.count() == 1
