"""What the tests of a backend are written with: queues, nodes, and short names for what they do.

Django's connections belong to a thread, so a second node, or a web process, is a thread here (``Node``,
``Elsewhere``); the test's own thread has the session under test and beside it the usual connection.
"""

import contextlib
import random
import threading
import uuid
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import timedelta

from django.db import OperationalError, connections

from ... import Performer, Queuetopia, action, conf, registry
from ...attempts import Outcome, Verdict, describe
from ...models import Job, JobEvent, Queue, Scope
from ...models import Node as NodeRow
from .. import backend_for
from ..base import Ending

NODE, OTHER_NODE = uuid.UUID(int=1), uuid.UUID(int=2)
PATIENCE = 60  # seconds after which something is taken to wait for ever
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)

Dice = random.Random

JOB_VERBS = ("cancel", "skip", "retry", "mark_done", "edit", "move_to_end")
EDITED = {"edited": True}

# Verdicts: those that are failures, that hold their queue, that end their job, after which its queue goes on.
FAILED = (Verdict.RETRY, Verdict.HALT, Verdict.SKIP, Verdict.MOVE)
HOLDING = (Verdict.RETRY, Verdict.HALT, Verdict.SNOOZE, Verdict.OUTAGE, Verdict.DEFER, Verdict.INTERRUPT)
ENDING = (Verdict.DONE, Verdict.SKIP, Verdict.CANCEL)
FREEING = (*ENDING, Verdict.MOVE)
GRAVEYARD = "graveyard"  # where MOVE leads to

ODD_NAMES = (
    "a", "A", "a ", " a", "á", "a\u0301", "ä", "ß", "ss", "i", "\u0131", "🙂", "🙃", "a🙂", "ﬁ", "fi", "½", "0", "00",
    "%", "_", "\\", "'", '"', "x'; DROP TABLE queuetopia_job; --", "%s", "%(scope)s", "{0}", "\n", "\t", "\x7f",
    "\u200b", "-", "\u202eab", "ǆ", "Z", "z", "é", "e\u0301", "\U0010ffff", "\ufffd", "x" * 255, "🙂" * 255,
)  # fmt: skip


# What a queue row and a job row hold after each verdict on attempt 3: (job, queue). "now" is the clock that record()
# was given, "later" 40 s after it; "job" the job's id.
ENDED = {"current_job": None, "due_at": None}
UNCHANGED = {"state": "pending", "attempts": 2, "done_at": None}
AFTER = {
    Verdict.DONE: ({"state": "done", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.SKIP: ({"state": "skipped", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.CANCEL: ({"state": "cancelled", "attempts": 3, "done_at": "now", "next_attempt_at": None}, ENDED),
    Verdict.RETRY: (
        {"state": "pending", "attempts": 3, "done_at": None, "next_attempt_at": "later"},
        {"current_job": "job", "due_at": "later"},
    ),
    Verdict.HALT: (
        {"state": "halted", "attempts": 3, "done_at": None, "next_attempt_at": None},
        {"current_job": "job", "due_at": None},
    ),
    Verdict.MOVE: (
        {"state": "halted", "attempts": 3, "done_at": None, "next_attempt_at": None, "queue": GRAVEYARD},
        ENDED,
    ),
    Verdict.SNOOZE: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.OUTAGE: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.DEFER: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.INTERRUPT: ({**UNCHANGED, "next_attempt_at": "later"}, {"current_job": "job", "due_at": "later"}),
    Verdict.RETURN: (UNCHANGED, {"current_job": "job", "due_at": "later"}),
}


class ContractPerformer(Performer):
    @action
    def noop(self, job, edited=None):
        pass

    @action
    def write(self, job, seq, lasts=0.0):
        pass


# Declared, but not among the project's classes: no node serves them, no page shows them.
with registry.only():

    class ContractQueue(Queuetopia):
        scope = "queuetopia.contract"
        performer = ContractPerformer
        max_backoff = 0
        max_attempts = 1_000_000

    class OtherQueue(ContractQueue):
        scope = "queuetopia.contract.other"

    class IndependentQueue(ContractQueue):
        scope = "queuetopia.contract.independent"
        ordered = False


SCOPE = ContractQueue.scope


class Elsewhere:
    """A thread with connections of its own: for the database, another process."""

    def __init__(self):
        self._thread = ThreadPoolExecutor(1)

    def start(self, function, *args, **kwargs):
        return self._thread.submit(function, *args, **kwargs)

    def run(self, function, *args, **kwargs):
        return self.start(function, *args, **kwargs).result(PATIENCE)

    def close(self):
        self.run(connections.close_all)
        self._thread.shutdown()


class Node(Elsewhere):
    """A thread with a session of its own."""

    def __init__(self, node_id=OTHER_NODE):
        super().__init__()
        self.id = node_id
        self.backend = backend_for("default")
        self.run(self.backend.open_session, conf.lease())

    def claim(self, limit=10, **options):
        return self.run(claim, self.backend, limit, holder=self.id, **options)

    def record(self, *endings, **options):
        return self.run(record, self.backend, *endings, holder=self.id, **options)

    def close(self):
        self.run(self.backend.close_session)
        super().close()


@contextlib.contextmanager
def session(alias="default"):
    """A backend with an open session, closed at the end."""
    backend = backend_for(alias)
    backend.open_session(conf.lease())
    yield backend
    backend.close_session()


def put(queue="q", *, queuetopia=ContractQueue, **options) -> Job:
    return queuetopia.create_job(queue, "noop", **options)


def put_row(queue="q", **columns) -> Job:
    """Write a job's row, without a wake-up."""
    return Job.objects.create(scope=SCOPE, queue=queue, action="noop", **columns)


def claim(backend, limit=10, *, scopes=(SCOPE,), holder=NODE, **options):
    claims, _ = backend.claim(list(scopes), limit, holder, **options)
    return claims


def claim_one(backend, **options):
    (one,) = claim(backend, **options)
    return one


def end(claim, verdict=Verdict.DONE, **outcome) -> Ending:
    if verdict == Verdict.MOVE:
        outcome.setdefault("to", GRAVEYARD)
    return Ending(claim, Outcome(claim.job_id, claim.fence, verdict, **outcome))


def record(backend, *endings, keep=False, holder=NODE, **options):
    return backend.record(list(endings), holder, "web1:7", lambda claim: keep, **options)


def finish(backend, claim, verdict=Verdict.DONE, *, keep=False, now=None, **outcome):
    """Record the end of one attempt, which must not be stale; return what came of it."""
    recorded = record(backend, end(claim, verdict, **outcome), keep=keep, now=now)
    assert [ending.claim for ending in recorded.written] == [claim]
    return recorded


def halted(backend) -> Job:
    """Return a halted job, which is the head of its queue."""
    job = put()
    finish(backend, claim_one(backend), Verdict.HALT, error=describe(ValueError("boom")))
    return job


def do_verb(verb, job) -> int:
    """Call the verb; return how many jobs it created."""
    if verb == "pause scope":
        ContractQueue.pause()
    elif verb == "pause":
        ContractQueue.pause(job.queue)
    elif verb == "edit":
        ContractQueue.edit(job, EDITED)
    elif verb == "move_to_end":
        return int(ContractQueue.move_to_end(job).pk != job.pk)
    else:
        getattr(ContractQueue, verb)(job)
    return 0


def names(claims):
    return [claim.queue for claim in claims]


def stored(job) -> Job:
    return Job.objects.get(pk=getattr(job, "job_id", None) or job.pk)


def line(queue="q") -> Queue:
    return Queue.objects.get(scope=SCOPE, name=queue)


def rows():
    """Everything that is stored, to compare."""
    return [list(model.objects.order_by("pk").values()) for model in (Job, Queue, Scope, JobEvent, NodeRow)]


def before(backend, method, do):
    """Call ``do()`` once, just before the next call of ``backend.method``."""
    original = getattr(backend, method)

    def wrapper(*args, **kwargs):
        setattr(backend, method, original)
        do()
        return original(*args, **kwargs)

    setattr(backend, method, wrapper)


def fail():
    raise OperationalError("as after a deadlock")


def barrier(parties):
    return threading.Barrier(parties, timeout=PATIENCE / 2)


def join(futures):
    """Wait until all have returned; raise what the first to fail has raised."""
    done, waiting = wait(futures, PATIENCE, FIRST_EXCEPTION)
    for future in done:
        future.result()
    assert not waiting
