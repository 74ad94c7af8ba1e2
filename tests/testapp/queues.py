"""The Queuetopias of the tests. Their performers write what they do to a ledger, a file outside the database."""

import asyncio
import ctypes
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from importlib import import_module

from asgiref.sync import sync_to_async
from django.db import connections, models, transaction

from queuetopia import (
    Breaker,
    Deferred,
    External,
    Halt,
    JobTimeout,
    Performer,
    Queuetopia,
    Retry,
    Skip,
    Snooze,
    action,
    signals,
)

LEDGER = "QUEUETOPIA_TEST_LEDGER"
CODE = "QUEUETOPIA_TEST_CODE"  # name of a module of the test's own: code that changes between two nodes, or breaks


def note(*words):
    """Append one line to the ledger; O_APPEND keeps lines of several processes whole."""
    line = " ".join(str(word) for word in (*words, time.clock_gettime(time.CLOCK_MONOTONIC), os.getpid())) + "\n"
    with open(os.environ[LEDGER], "ab", buffering=0) as ledger:
        ledger.write(line.encode())


def pause():
    """Hang for as long as this process lives."""
    while True:
        time.sleep(0.05)


class LedgerPerformer(Performer):
    def setup(self):
        self.pid_at_setup = os.getpid()

    @action
    def noop(self, job, edited=None):
        pass

    @action
    def write(self, job, seq, lasts=0.0):
        note("start", job.queue, seq, job.fence)
        time.sleep(lasts)
        note("end", job.queue, seq, job.fence)

    @action("answer")
    def give_answer(self, job, value=None):
        return value

    @action
    def fail(self, job, times=10**9, text="refused"):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts <= times:
            raise ConnectionError(text)

    @action
    def fail_at_random(self, job, seq, chance=0.3, lasts=0.0, hangs=0, holds=False):
        """Sometimes raise, exit or be killed; the first ``hangs`` attempts never end by themselves.

        holds: they keep Python's global lock meanwhile, so that no other thread of the worker runs.
        """
        note("start", job.queue, seq, job.fence)
        if job.attempts <= hangs:
            note("failed", job.queue, seq, job.fence)
            if holds:
                ctypes.PyDLL(None).sleep(3600)
            pause()
        until = time.monotonic() + lasts
        while time.monotonic() < until:
            time.sleep(0.004)
            note("alive", job.queue, seq, job.fence)
        dice = random.random()
        if dice < chance:
            note("failed", job.queue, seq, job.fence)
        if dice < chance / 6:
            os._exit(0)
        if dice < chance / 3:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
        if dice < chance:
            raise ConnectionError("at random")
        note("end", job.queue, seq, job.fence)
        return job.fence

    @action
    def book_at_random(self, job, seq, chance=0.3, lasts=0.0):
        """Write a note with the success; fail or be killed at any moment of it."""
        note("start", job.queue, seq, job.fence)
        time.sleep(lasts)
        with job.completing() as done:
            write_note(f"booked {job.queue} {seq}")
            perish(chance / 3)
            note("end", job.queue, seq, job.fence)
            done.result = job.fence
            perish(chance / 3)
        perish(chance / 3)

    @action
    def defer(self, job, timeout=3600, then=None):
        """Go on elsewhere; the token is written beside the ledger. ``then`` comes before the return."""
        note("attempt", job.queue, job.attempts, job.fence)
        with open(f"{os.environ[LEDGER]}.token.{job.queue}", "w") as file:
            file.write(job.token)
        if then == "complete":
            LedgerQueue.complete(job.token, {"early": True})
        if then == "report":
            job.report_progress(0.1, "sent")
        return Deferred(timeout)

    @action
    def report(self, job, texts, holds=True):
        """Report each text as progress, at once and in a transaction; then go on until there is a file ``.go``."""
        note("attempt", job.queue, job.attempts, job.fence)
        with transaction.atomic():
            for number, text in enumerate(texts, 1):
                job.report_progress(number / len(texts), text)
        while holds and not os.path.exists(f"{os.environ[LEDGER]}.go"):
            time.sleep(0.01)

    @action
    async def report_async(self, job, texts):
        note("attempt", job.queue, job.attempts, job.fence)
        for number, text in enumerate(texts, 1):
            job.report_progress(number / len(texts), text)
        while not os.path.exists(f"{os.environ[LEDGER]}.go"):
            await asyncio.sleep(0.01)

    @action
    def run_program(self, job, code):
        """Run a program of Python, which gets the path of a file to write its pid to."""
        note("attempt", job.queue, job.attempts, job.fence)
        path = f"{os.environ[LEDGER]}.pid"
        code = f"import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); {code}"
        return External(subprocess.Popen([sys.executable, "-c", code, path], start_new_session=True))

    @action
    async def run_program_async(self, job, code):
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
        return External(process)

    @action
    def say(self, job, verdict, delay=0.0):
        note("attempt", job.queue, job.attempts, job.fence)
        raise {"retry": Retry("later", delay=delay), "snooze": Snooze(delay), "halt": Halt("no"), "skip": Skip("no")}[
            verdict
        ]

    @action
    def snooze_once(self, job, delay=0.0, scope=False):
        note("attempt", job.queue, job.attempts, job.fence)
        path = f"{os.environ[LEDGER]}.{job.pk}"
        if not os.path.exists(path):
            open(path, "w").close()
            raise Snooze(delay, scope=scope)

    @action
    def write_when_told(self, job, seq):
        """Last until the test creates the file; also tell how often the job was begun."""
        note("start", job.queue, seq, job.fence)
        while not os.path.exists(f"{os.environ[LEDGER]}.go"):
            time.sleep(0.005)
        note("end", job.queue, seq, job.fence)

    @action
    def hang(self, job, times=10**9):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts <= times:
            pause()

    @action
    def hang_stubbornly(self, job, times=10**9):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts > times:
            return
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        while True:
            try:
                pause()
            except BaseException:  # noqa: S112 - that is the point
                continue

    @action
    def hang_in_c(self, job, times=10**9):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts <= times:
            ctypes.PyDLL(None).sleep(3600)  # PyDLL keeps Python's global lock

    @action
    async def hang_async(self, job, times=10**9):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts <= times:
            await asyncio.sleep(3600)

    @action
    def hang_awaiting(self, job, times=10**9):
        return self.hang_async(job, times)

    @action
    async def sleep_async(self, job, seq, lasts=0.1):
        note("start", job.queue, seq, job.fence)
        await asyncio.sleep(lasts)
        note("end", job.queue, seq, job.fence)

    @action
    async def count_async(self, job):
        from .models import Note

        return await Note.objects.acount()

    @action
    def bad_str(self, job, times=1):
        if job.attempts <= times:
            raise BadStr

    @action
    def die(self, job, how, times=1):
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts > times:
            return
        if how == "sys.exit":
            sys.exit(0)
        if how == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if how == "os._exit":
            os._exit(0)
        if how == "abort":
            os.abort()
        if how == "segfault":
            ctypes.string_at(0)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "kill group":
            os.killpg(0, signal.SIGKILL)
        if how == "close all and hang":
            os.closerange(3, 1024)
            pause()
        if how == "close all":
            os.closerange(3, 1024)
        if how == "garble channel":
            os.write(json.loads(sys.argv[2])["channel"], b"garbage " * 8)
            pause()
        if how == "garble all":
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, b"garbage " * 8)
                except OSError:
                    continue
            pause()

    @action
    def fill_memory(self, job, times=1):
        """Take memory in small pieces until there is none, not even for the handling of the error."""
        note("attempt", job.queue, job.attempts, job.fence)
        if job.attempts > times:
            return
        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + 32 * 2**20, resource.RLIM_INFINITY))
        pieces = []
        while True:
            pieces.append(bytearray(len(pieces) % 5000))

    @action
    def close_connections(self, job):
        from .models import Note

        Note.objects.count()
        for connection in connections.all():
            connection.close()

    @action
    def leave_transaction(self, job, times=1):
        if job.attempts <= times:
            transaction.atomic().__enter__()
            from .models import Note

            Note.objects.create(text="lost")

    @action
    def print_much(self, job):
        sys.stdout.write("x" * 10_000_000)

    @action
    def print_text(self, job, text):
        print(text)  # noqa: T201
        sys.stdout.write(text)
        sys.stderr.write(text)

    @action
    def return_object(self, job):
        return object()

    @action
    def daemonise(self, job):
        code = "import os,sys,time; os.setsid(); open(sys.argv[1],'w').write(str(os.getpid())); time.sleep(3600)"
        path = f"{os.environ[LEDGER]}.daemon{job.attempts}"
        subprocess.Popen([sys.executable, "-c", code, path])
        note("attempt", job.queue, job.attempts, job.fence)
        while job.attempts == 1 or not os.path.exists(path):
            time.sleep(0.01)

    @action
    def fork(self, job):
        if os.fork() == 0:
            return  # the child goes on with our code, and must not get anywhere
        note("attempt", job.queue, job.attempts, job.fence)


def perish(chance):
    """By chance, have the worker killed, or raise."""
    dice = random.random()
    if dice < chance / 2:
        os.kill(os.getpid(), signal.SIGKILL)
    if dice < chance:
        raise ConnectionError("at random")


class BadStr(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class LedgerQueue(Queuetopia):
    """Retries at once, so that tests need not wait."""

    scope = "tests.ledger"
    performer = LedgerPerformer
    max_backoff = 0
    max_attempts = 1_000_000


class ProviderPerformer(LedgerPerformer):
    @action
    def call(self, job, seq, lasts=0.02):
        """Fail while the provider is down: as long as there is a file of that name beside the ledger."""
        note("start", job.queue, seq, job.fence)
        time.sleep(lasts)
        if os.path.exists(f"{os.environ[LEDGER]}.down"):
            note("failed", job.queue, seq, job.fence)
            raise ConnectionError("no route to the provider")
        note("end", job.queue, seq, job.fence)


class ProviderQueue(LedgerQueue):
    scope = "tests.provider"
    performer = ProviderPerformer
    max_attempts = 3
    breaker = Breaker(ConnectionError, after=5, backoff_base=0.2, max_backoff=1)


class SlowRetryQueue(LedgerQueue):
    """A failing job blocks its queue for seconds."""

    scope = "tests.slow"
    max_backoff = 3600
    max_attempts = 3


class DecidingPerformer(LedgerPerformer):
    def decide(self, job, exc):
        note("decided", job.queue, job.attempts, job.fence)
        return "skip"


class DecidingQueue(LedgerQueue):
    """What a failure leads to is said by the performer, and by kind of error."""

    scope = "tests.deciding"
    performer = DecidingPerformer
    max_attempts = 1
    on_exhausted = "decide"
    on_error = {JobTimeout: "skip"}


class BookingPerformer(LedgerPerformer):
    """Writes to its own tables in one transaction with its success, and does something else then or after."""

    @action
    def book(self, job, inside="", after="", follow=False):
        note("attempt", job.queue, job.attempts, job.fence)
        with job.completing() as done:
            write_note(f"{job.queue} {job.pk}")
            if follow:
                BookingQueue.create_job(f"receipt of {job.queue}", "noop")
            done.result = {"booked": job.queue}
            self.suffer(job, inside)
        self.suffer(job, after)
        return "not kept"

    @action
    async def book_async(self, job, inside="", after=""):
        await sync_to_async(self.book)(job, inside, after)

    @action
    def book_elsewhere(self, job, after="", steps=("",), using="other"):
        note("attempt", job.queue, job.attempts, job.fence)
        for step in steps:
            with job.once(using=using, step=step) as is_new:
                if is_new:
                    write_note(f"{job.queue} {job.pk} {step}".strip(), using=using)
        self.suffer(job, after)

    def suffer(self, job, what):
        """Do so at the first attempt."""
        if job.attempts > 1 or not what:
            return
        note("inside", job.queue, job.attempts, job.fence)
        if what == "raise":
            raise ConnectionError("refused")
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "hang":
            pause()
        if what == "lose":  # as when another node has taken the queue over
            from queuetopia.models import Queue

            Queue.objects.filter(scope=job.scope, name=job.queue).update(fence=models.F("fence") + 1)
        if what == "again":
            self.book(job)
        if what == "wait":
            while not os.path.exists(f"{os.environ[LEDGER]}.go"):
                time.sleep(0.005)


def write_note(text, using="default"):
    from .models import Note

    Note.objects.using(using).create(text=text)


class BookingQueue(LedgerQueue):
    scope = "tests.booking"
    performer = BookingPerformer


class AskingPerformer(BookingPerformer):
    """Says of a job that was cut short whether it was done: what the queue is called says so."""

    def was_done(self, job):
        note("asked", job.queue, job.attempts, job.fence)
        if job.queue == "raise":
            raise ConnectionError("cannot ask")
        return job.queue == "done"


class AskingQueue(LedgerQueue):
    scope = "tests.asking"
    performer = AskingPerformer


class MemoryPerformer(LedgerPerformer):
    @action
    def add(self, job, n=1, how="", secret=None):
        note("attempt", job.queue, job.attempts, job.fence)
        job.memory = {**job.memory, "sum": job.memory.get("sum", 0) + n, "jobs": [*job.memory.get("jobs", ()), job.pk]}
        return self.end_as(job, how, secret)

    @action
    async def add_async(self, job, n=1):
        job.memory["sum"] = job.memory.get("sum", 0) + n

    def end_as(self, job, how, secret):
        match how:
            case "fail once" if job.attempts == 1:
                raise ConnectionError(f"refused {secret or job.memory.get('secret', '')}")
            case "die once" if job.attempts == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "skip":
                raise Skip("not this one")
            case "large":
                job.memory["text"] = "x" * 20_000
            case "wrong":
                job.memory["exc"] = ValueError()
            case "none":
                job.memory = None
            case "secret":
                job.memory["secret"] = secret
            case "complete" | "complete, then die" | "complete, then change":
                with job.completing():
                    pass
                if how == "complete, then die":
                    os.kill(os.getpid(), signal.SIGKILL)
                job.memory["sum"] = -1
            case "fail in the block":
                with job.completing():
                    job.memory["text"] = "x" * 20_000
            case "defer":
                with open(f"{os.environ[LEDGER]}.token.{job.queue}", "w") as file:
                    file.write(job.token)
                return Deferred(timeout=60)
            case "program":
                return External(subprocess.Popen(["true"]))
        return None


class ChunkPerformer(LedgerPerformer):
    @action(chunk=5)
    def sync(self, jobs, params):
        note("chunk", jobs[0].queue, jobs[0].attempts, jobs[0].fence, ",".join(str(each["n"]) for each in params))
        for job, each in zip(jobs, params, strict=True):
            job.memory = {"done": [*job.memory.get("done", ()), each["n"]]}
            self.do(jobs, job, each)
        return [each["n"] for each in params] if jobs[0].queue.startswith("each") else {"jobs": len(jobs)}

    @action("sync-async", chunk=5)
    async def sync_async(self, jobs, params):
        note("chunk", jobs[0].queue, jobs[0].attempts, jobs[0].fence, ",".join(str(each["n"]) for each in params))

    def do(self, jobs, job, each):
        match each.get("how"):
            case "fail":
                raise ConnectionError(f"cannot sync {each['n']} {each.get('secret', '')}")
            case "halt":
                raise Halt("look at it")
            case "skip":
                raise Skip("not this one")
            case "snooze once" if jobs[0].attempts == 1 and len(jobs) > 1 and not job.memory.get("again"):
                raise Snooze(60)
            case "die once" if len(jobs) > 1:
                os.kill(os.getpid(), signal.SIGKILL)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang" if len(jobs) > 1:
                pause()
            case "complete":
                with jobs[0].completing() as done:
                    models_of_tests().Note.objects.create(text=f"{len(jobs)}")
                    done.result = "completed"
            case "complete another":
                with jobs[-1].completing():
                    pass
            case "once":
                with jobs[0].once():
                    pass

    @action(chunk=3)
    def give(self, jobs, params):
        return Deferred() if params[0].get("defer") else [1, 2, 3, 4]

    def handle_done_job(self, job):
        note("told", job.queue, job.pk)


class ChunkQueue(LedgerQueue):
    scope = "tests.chunks"
    performer = ChunkPerformer
    sensitive_params = ("secret",)
    max_backoff = 3600


def models_of_tests():
    return import_module("tests.testapp.models")  # not at the top: apps are not loaded yet


class MemoryQueue(LedgerQueue):
    scope = "tests.memory"
    performer = MemoryPerformer
    sensitive_params = ("secret",)


class PulseQueue(LedgerQueue):
    """Served by nodes that nothing is done to, while others are hurt."""

    scope = "tests.pulse"


class OtherDatabaseQueue(LedgerQueue):
    scope = "tests.other"
    using = "other"


class HookPerformer(LedgerPerformer):
    """Writes down each hook and signal, with what it was told and what the database says by then."""

    def handle_done_job(self, job):
        tell("handle_done_job", job)

    def handle_failed_job(self, job, exc):
        tell("handle_failed_job", job, exc)

    def handle_exhausted_job(self, job, exc):
        tell("handle_exhausted_job", job, exc)


class HookQueue(LedgerQueue):
    scope = "tests.hooks"
    performer = HookPerformer


def tell(what, job, exc=None, **more):
    """Append a line of JSON about a hook or a signal; then do what the queue is called."""
    stored = HookQueue.jobs().get(pk=job.pk)
    told = {
        "what": what,
        "job": job.pk,
        "attempt": job.attempts,
        "exc": exc and type(exc).__name__,
        "text": exc and str(exc),
        "stored": [stored.state, stored.attempts],
        "pid": os.getpid(),
        **more,
    }
    with open(f"{os.environ[LEDGER]}.told", "ab", buffering=0) as file:
        file.write(json.dumps(told).encode() + b"\n")
    if job.queue == "raise":
        raise RuntimeError(f"{what} fails")
    if job.queue == "exit":
        sys.exit(f"{what} exits")
    if job.queue == f"hang in {what}":
        pause()
    if job.queue == f"sleep in {what}":
        time.sleep(6)


def _tell_signal(name):
    def receive(sender, signal, job, exc=None, **more):
        tell(name, job, exc, **more)

    getattr(signals, name).connect(receive, sender=HookQueue, weak=False, dispatch_uid=f"tests.{name}")


for _name in (
    "job_started", "job_done", "job_failed", "job_halted", "job_skipped", "job_cancelled",
    "queue_blocked", "queue_still_blocked", "queue_unblocked",
):  # fmt: skip
    _tell_signal(_name)

if CODE in os.environ:
    import_module(os.environ[CODE])
