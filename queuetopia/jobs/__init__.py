"""The life of a job, in order: created, failed, decided about, deleted. With ``backends`` the only writers.

Every function that the classes of a project call is named here.
"""

from .bulk import batches, begin_ramp, blocking, decide, refusals, retry_all, skip_all
from .carrying import movable, move, moves, why_not_moved
from .chunking import jobs_with
from .creating import build, create, create_many, create_new
from .deciding import (
    again_after_deadlock,
    cancel,
    edit,
    edit_memory,
    mark_done,
    move_to_end,
    pause,
    pause_all,
    prioritize,
    reschedule,
    resume,
    resume_all,
    retry,
    run_now,
    skip,
)
from .deferring import complete, fail, report_outside, settled
from .failing import failed, timeout_text, was_cut_short
from .pending import pending_problems
from .reporting import report_in_background, write_reports
from .retention import delete_ended, prune
from .scheduling import (
    create_due,
    declared,
    log_wrong,
    pause_schedule,
    prune_schedules,
    resume_schedule,
    run_schedule,
    schedule_problems,
)
from .sending import keep_hook_error, number_waiting, send, send_unblocked

__all__ = [
    "again_after_deadlock", "batches", "begin_ramp", "blocking", "build", "cancel", "complete", "create",
    "create_due", "create_many", "create_new", "decide", "declared", "delete_ended", "edit", "edit_memory", "fail",
    "failed", "jobs_with", "keep_hook_error", "log_wrong", "mark_done", "movable", "move", "move_to_end", "moves",
    "number_waiting", "pause", "pause_all", "pause_schedule", "pending_problems", "prioritize", "prune",
    "prune_schedules", "refusals", "report_in_background", "report_outside", "reschedule", "resume", "resume_all",
    "resume_schedule", "retry", "retry_all", "run_now", "run_schedule", "schedule_problems", "send", "send_unblocked",
    "settled", "skip", "skip_all", "timeout_text", "was_cut_short", "why_not_moved", "write_reports",
]  # fmt: skip
