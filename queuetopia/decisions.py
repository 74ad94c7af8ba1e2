"""What operators can decide: the one list of verbs; commands, permissions, pages and statistics follow from it."""

from typing import NamedTuple

from django.utils.translation import gettext_lazy as _

HEAD_START = 3600.0  # seconds that a queue is prioritized by if no others are given


class Decision(NamedTuple):
    """One verb. What it does is a function of ``jobs`` by its name, and what it answers one of ``verbs``."""

    help: str  # of the command
    permissions: dict[
        str, object
    ]  # {"job", "queue", "scope" or "schedule": what the permission to do it to such a one is called}
    ends_job: bool = False  # the job is done with: statistics count it


DECISIONS = {
    "retry": Decision("make the next attempt of backing-off or halted jobs now", {"job": _("Can retry jobs")}),
    "skip": Decision(
        "give backing-off or halted jobs up; their queues go on", {"job": _("Can skip jobs")}, ends_job=True
    ),
    "cancel": Decision(
        "cancel jobs that were never attempted, ask running ones to stop",
        {"job": _("Can cancel jobs")},
        ends_job=True,
    ),
    "mark_done": Decision(
        "take waiting, backing-off or halted jobs for done; their queues go on",
        {"job": _("Can mark jobs as done")},
        ends_job=True,
    ),
    "edit": Decision(
        "give a job other params; a backing-off or halted one is retried with them",
        {"job": _("Can edit the params of jobs")},
    ),
    "move_to_end": Decision(
        "let the other due jobs of a queue go first; a blocking job is skipped and copied to the end",
        {"job": _("Can move jobs to the end of their queues")},
        ends_job=True,
    ),
    "move": Decision(
        "carry waiting, backing-off or halted jobs to the end of another queue, in their order",
        {"job": _("Can move jobs to other queues")},
    ),
    "reschedule": Decision("give jobs that were never attempted another time", {"job": _("Can reschedule jobs")}),
    "run_now": Decision(
        "make jobs that are scheduled for later due now",
        {"job": _("Can make jobs scheduled for later due now"), "schedule": _("Can run schedules now")},
    ),
    "prioritize": Decision(
        "give a queue that is ready a head start in line", {"queue": _("Can give queues a head start in line")}
    ),
    "edit_memory": Decision(
        "give a queue another memory, while it does not run", {"queue": _("Can edit the memories of queues")}
    ),
    "pause": Decision(
        "start nothing new in a queue, a whole scope or everywhere; running jobs finish",
        {"queue": _("Can pause queues"), "scope": _("Can pause scopes"), "schedule": _("Can pause schedules")},
    ),
    "resume": Decision(
        "serve a paused queue or scope, or everything, again at once",
        {"queue": _("Can resume queues"), "scope": _("Can resume scopes"), "schedule": _("Can resume schedules")},
    ),
}


def decisions_on(what: str) -> list[str]:
    """Return the verbs for a "job", a "queue", a "scope" or a "schedule"."""
    return [verb for verb, decision in DECISIONS.items() if what in decision.permissions]


def permissions_on(what: str) -> tuple:
    """Return the permissions of the model of a "job", a "queue", a "scope" or a "schedule"."""
    return tuple((f"{verb}_{what}", DECISIONS[verb].permissions[what]) for verb in decisions_on(what))
