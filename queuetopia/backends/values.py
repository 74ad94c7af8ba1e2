"""What backends hand to each other and to schedulers: wake-ups, endings, alerts, and the columns that follow from them.

Nothing here touches a database.
"""

import json
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db.models.expressions import DatabaseDefault

from .. import conf
from ..attempts import ERRORS_KEPT, ERRORS_LIMIT, HOOK, MEANING, REFUSED, Claim, Outcome, Verdict
from ..params import ParamsDecoder, Unreadable, as_text

# What is read of a queue's head: for its claim, and to decide whether it is due.
HEAD_COLUMNS = (
    "id", "action", "scheduled_at", *conf.JOB_OPTIONS, "attempted_at", "failed_at", "attempts", "state",
    "next_attempt_at", "outside", "coalesce_key",
)  # fmt: skip

Wake = tuple[str, str, datetime]  # scope, queue, due at


class Ending(NamedTuple):
    """A claim and how its attempt ended, to be recorded; ``notifier`` is the worker that waits for the commit."""

    claim: Claim
    outcome: Outcome
    notifier: Any = None
    passed_over: bool = False  # its rows were locked when it was to be recorded


class Recorded(NamedTuple):
    """What came of recording a batch."""

    written: list[Ending]  # as stored: a requested stop may have turned a failure into CANCEL
    stale: list[Ending]  # refused: the queue is no longer held under this fence
    claims: list[Claim]  # the next jobs of queues that were kept
    released_due: bool  # a queue was let go that is due now
    locked: list[Ending]  # not written: the rows are locked; to be recorded again


class Alert(NamedTuple):
    """A queue that is still blocked: the claim of its head as it would be, and for how long, in seconds."""

    claim: Claim
    duration: float
    threshold: float


def is_plain(ending: Ending) -> bool:
    """True for a success that may be written together with others."""
    is_alone = ending.outcome.chunk is None and not ending.claim.trial
    return ending.outcome.verdict == Verdict.DONE and not ending.passed_over and is_alone


def as_done(ending: Ending, result: str | None = None) -> Ending:
    """Return the ending of an attempt whose job is known to be done, however it ended after that."""
    outcome = ending.outcome._replace(verdict=Verdict.DONE, delay=0.0, error=None, result=result, exhausted=False)
    return ending._replace(outcome=outcome)


def ids_of(ending: Ending) -> list[int]:
    """Return the ids of the jobs whose end it is: several, of a chunk."""
    return [ending.claim.job_id, *(pk for pk, *_ in ending.outcome.chunk or ())]


def of_each(ending: Ending) -> list[Ending]:
    """Return the ending as one for each of its jobs, which have taken the same share of its time."""
    if not ending.outcome.chunk or ending.outcome.verdict != Verdict.DONE:
        return [ending]
    one = ending.outcome._replace(chunk=None, duration=ending.outcome.duration / len(ids_of(ending)))
    claim = ending.claim._replace(params="", attempt=1, attempted=False, failed_at=None)
    return [
        ending._replace(outcome=one),
        *(
            ending._replace(
                claim=claim._replace(job_id=pk, scheduled_at=scheduled_at),
                outcome=one._replace(job_id=pk, result=result),
            )
            for pk, scheduled_at, result in ending.outcome.chunk
        ),
    ]


def joined(one: Recorded, other: Recorded) -> Recorded:
    return Recorded(
        one.written + other.written,
        one.stale + other.stale,
        one.claims + other.claims,
        one.released_due or other.released_due,
        one.locked + other.locked,
    )


def queue_of(ending):
    return ending.claim.queue_id


def problem_of(ending) -> str:
    """Return why a job was given back: an unknown action, or a setup() that failed; else an empty text."""
    error = ending.outcome.error if ending.outcome.verdict == Verdict.RETURN else None
    return error["message"][:500] if error else ""


def alert_of(ending, now) -> dict[str, datetime | None]:
    """Return when to check whether the queue is still blocked, if this ending blocks it."""
    if not MEANING[Verdict(ending.outcome.verdict)].blocks_queue or ending.claim.failed_at:
        return {}
    return {"alert_at": next((now + timedelta(seconds=after) for after in conf.alert_after()), None)}


def is_late(queue, wake) -> bool:
    """True for a queue that a wake-up changes."""
    return queue.held_by is None and queue.current_job is None and not is_due_by(queue, wake[2])


def is_due_by(queue, time):
    return queue.due_at is not None and queue.due_at <= time


def later(now, outcome):
    # A performer may ask for any delay; one beyond the calendar must not stop the scheduler.
    return now + timedelta(seconds=min(outcome.delay, conf.LONGEST))


def history(errors) -> list[dict]:
    """Return ``job.errors`` as read, without what is not ours: a corrupt row must not stop the scheduler."""
    return [entry for entry in errors if isinstance(entry, dict)] if isinstance(errors, list) else []


def attempts_of(errors) -> list[dict]:
    """Return the entries of ``job.errors`` that are of attempts, not of hooks."""
    return [entry for entry in history(errors) if entry.get("kind") != HOOK]


def next_attempt(attempts: int) -> int:
    """Return the number of the next attempt. One row whose number overflowed would keep all from being claimed."""
    return min(attempts, conf.MOST_ATTEMPTS) + 1


def claim_of(queue, head) -> Claim:
    return Claim(
        job_id=head["id"],
        queue_id=queue.pk,
        scope=queue.scope,
        queue=queue.name,
        action=head["action"],
        params=head["params_text"],
        attempt=next_attempt(head["attempts"]),
        fence=queue.fence,
        rev=queue.rev,
        scheduled_at=head["scheduled_at"].isoformat(),
        **{name: head[name] for name in conf.JOB_OPTIONS},
        attempted=head["attempted_at"] is not None,
        failed_at=head["failed_at"] and head["failed_at"].isoformat(),
        outside=None if head["outside"] is None else json.dumps(head["outside"]),
        memory=_as_stored(queue.memory),
        coalesces=head["coalesce_key"] is not None,
    )


def _as_stored(memory):
    return memory if memory is None or isinstance(memory, Unreadable) else as_text(memory)


def job_values(claim: Claim, outcome: Outcome, node: str, now: datetime, errors: list[dict]) -> dict[str, Any]:
    """Return the columns of a job whose attempt ended so. ``attempted_at`` is when the attempt ended."""
    meaning = MEANING[Verdict(outcome.verdict)]
    values: dict[str, Any] = {"attempted_at": now, "attempted_by": node, "state": meaning.state}
    values["next_attempt_at"] = later(now, outcome) if meaning.again else None
    values["outside"] = None
    if outcome.verdict == Verdict.DEFER:  # what it remembers waits for its success
        values["outside"] = {} if outcome.memory is None else {"memory": outcome.memory}
    if meaning.counted:
        values["attempts"] = claim.attempt
    if outcome.error:
        entry = {
            "attempt": claim.attempt,
            "at": now.isoformat(),
            "by": node,
            "duration": round(outcome.duration, 6),
            "counted": meaning.counted,
            **outcome.error,
        }
        values["errors"] = bounded([*errors, entry][-ERRORS_KEPT:], 0 if entry["message"] == REFUSED else ERRORS_LIMIT)
        if meaning.is_failure or outcome.verdict == Verdict.OUTAGE:
            values["error"] = f"{entry['type']}: {entry['message']}"
    if meaning.is_failure and not claim.failed_at:
        values["failed_at"] = now
    if outcome.verdict == Verdict.MOVE:
        values |= {"queue": outcome.to, "scheduled_at": now}  # behind all that are due there
        values |= {"unique_key": None, "coalesce_key": None}  # there they may be taken
    if meaning.ends_job:
        values["done_at"] = now
        values["result"] = result_of(outcome.result)
    if outcome.verdict == Verdict.DONE:
        values["error"] = ""  # of an earlier attempt: it stands in the history
    return values


def result_of(text: str | None) -> Any:
    """Return a result from its text."""
    return None if text is None else json.loads(text, cls=ParamsDecoder)


def bounded(errors: list[dict], most: int) -> list[dict]:
    """Return the entries without their oldest tracebacks, and then messages, until they weigh ``most`` bytes or less.

    A row that grows with each failure would one day be larger than the server takes in one packet.
    """
    errors = [*errors]
    for key in ("traceback", "message"):
        for place, entry in enumerate(errors[:-1]):
            if len(json.dumps(errors)) <= most:
                return errors
            errors[place] = {**entry, key: ""}
    return errors


def has_no_time(job) -> bool:
    """True for a new job whose scheduled_at is the database's clock at its INSERT."""
    return isinstance(job.scheduled_at, DatabaseDefault)
