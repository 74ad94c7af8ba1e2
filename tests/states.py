"""Jobs in every state, and nodes, as rows: what nodes leave behind is there for sure, without any node."""

import uuid
from datetime import timedelta

from django.utils import timezone

from queuetopia import Performer, Queuetopia, action
from queuetopia.models import Job, Node, Queue

NODE = uuid.UUID(int=7)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
UNFINISHED = (
    "waiting", "scheduled", "running first", "running again", "backing off", "snoozed", "halted", "halted early",
)  # fmt: skip
ENDED = ("done", "skipped", "cancelled")
STATES = (*UNFINISHED, *ENDED)
WORKER_FIGURES = ("age", "attempts", "memory", "max_attempts", "max_memory")  # that nodes report, but for older ones


class MailPerformer(Performer):
    @action
    def send_mail(self, job, **params):
        return params


def mail_queue(scope="tests.mail", **options):
    """Declare a class of its own for each scope."""
    name = "MailQueue" if scope == "tests.mail" else "".join(filter(str.isalnum, scope.title()))
    return type(name, (Queuetopia,), {"performer": MailPerformer, "scope": scope, **options})


def put(queuetopia, state, queue="customer-42", **columns) -> Job:
    """Write the rows of a job in ``state`` as a scheduler would have left them, and return it."""
    now = timezone.now()
    tried = {"attempted_at": now - HOUR, "attempted_by": "web1:1"}
    failed = {**tried, "attempts": 2, "error": "ValueError: boom"}
    held = {"held_by": NODE, "held_since": now, "fence": 7}
    job, line = {
        "waiting": ({}, {"due_at": now - HOUR}),
        "scheduled": ({"scheduled_at": now + HOUR}, {"due_at": now + HOUR}),
        "running first": ({}, {**held, "attempt": 1, "due_at": now - HOUR}),
        "running again": (failed, {**held, "attempt": 3, "due_at": now - HOUR}),
        "backing off": ({**failed, "next_attempt_at": now + HOUR}, {"due_at": now + HOUR}),
        "snoozed": ({**tried, "next_attempt_at": now + HOUR}, {"due_at": now + HOUR}),
        "halted": ({**failed, "attempts": 20, "state": "halted"}, {"due_at": None}),
        "halted early": ({**failed, "state": "halted"}, {"due_at": None}),
        "done": ({**tried, "attempts": 1, "state": "done", "done_at": now}, {}),
        "skipped": ({**failed, "state": "skipped", "done_at": now}, {}),
        "cancelled": ({"state": "cancelled", "done_at": now}, {}),
    }[state]
    job = Job(
        **{
            "scope": queuetopia.scope,
            "queue": queue,
            "action": "send_mail",
            "scheduled_at": now - HOUR,
            **job,
            **columns,
        }
    )
    job.save(using=queuetopia.database())
    current = None if state in ("waiting", "scheduled", *ENDED) else job.pk
    Queue.objects.using(queuetopia.database()).update_or_create(
        scope=queuetopia.scope, name=queue, defaults={"current_job": current, **line}
    )
    return job


def put_node(**columns):
    columns = {"id": NODE, "host": "web1", "pid": 4242, "scopes": ["tests.mail"], **columns}
    node = Node.objects.create(**columns)
    Node.objects.filter(pk=node.pk).update(**{"last_seen": timezone.now(), **columns})
    return node


def wait_behind(queues, count, since=2 * HOUR + MINUTE):
    """Put jobs in line that were never attempted."""
    first = timezone.now() - since
    Job.objects.bulk_create(
        Job(scope=queues.scope, queue="customer-42", action="send_mail", scheduled_at=first + timedelta(seconds=number))
        for number in range(count)
    )
