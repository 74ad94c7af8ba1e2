"""The pages of queues."""

import json

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Case, Count, OuterRef, Subquery, When
from django.db.models.functions import Coalesce
from django.http import JsonResponse
from django.urls import path
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..decisions import DECISIONS, HEAD_START
from ..exceptions import Refused
from ..lines import given_name
from ..models import Job, JobEvent, Queue, QueueIs, Scope
from ..monitoring.explain import Seen, explain_queue
from ..monitoring.status import QueueState, job_state, queue_state, span
from ..registry import by_scope
from ..text import MASK, masked, visible
from ..verbs import on_job, on_queue, serving
from .base import (
    MOST_EVENTS,
    NOTHING,
    ReadOnlyAdmin,
    event_shown,
    first_line,
    full_name,
    outside,
    pause_of_scope,
    paused,
    running,
    scope_of,
    when,
)
from .jobs import JSONInput, ParamsForm, as_json
from .lists import MOST_LISTED, DatabaseFilter, QueueStateFilter, ScopeFilter, default_database, link_to, link_to_jobs

NEXT_JOBS = 20
MOST_COMPLETED = 20  # names offered for the beginning of one


def blocked_first() -> Case:
    """Return what queues are ordered by: halted ones, those that back off or have a problem, all others."""
    return Case(
        When(QueueIs.HALTED, then=0),
        When(QueueIs.BLOCKED | QueueIs.WITH_A_PROBLEM, then=1),
        default=2,
    )


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """Queues, blocked ones first, the others as they appeared: what each does, who holds it, what keeps it."""

    verbs = {
        "prioritize": "give these queues, which are ready, a head start of an hour in line",
        "edit_memory": DECISIONS["edit_memory"].help,
        "pause": "start nothing new in these queues; what runs finishes",
        "resume": "serve these queues again, at once",
        "retry_head": "make the next attempt of the jobs that block these queues now",
        "skip_head": "give the jobs up that block these queues; the queues go on",
    }
    verbs_of_one = ("edit_memory",)
    heavy = ("memory",)
    verbs_of_many = {"retry_head": "retry", "skip_head": "skip"}
    order_of_verbs = ("scope", "name")
    actions = ["prioritize", "pause", "resume", "retry_head", "skip_head"]

    list_display = [
        "queue_name", "state_now", "depth", "oldest", "blocked_since", "job", "details", "due", "pause_now",
    ]  # fmt: skip
    list_display_links = ["queue_name"]
    list_filter = [DatabaseFilter, QueueStateFilter, ScopeFilter]
    ordering = [blocked_first(), "id"]  # numbers: a database would sort 100,000 names for too long
    search_fields = ["name"]  # makes the form appear; get_search_results says what is searched
    search_help_text = _("The beginning of a queue's name.")
    fieldsets = [
        (None, {"fields": ["state_now", "explained", "details", "queue_name", "job", "jobs_in_line", "pause_now"]}),
        (_("Scheduler"), {"fields": ["due", "holder", "fence_now"]}),
    ]

    def has_delete_permission(self, request, obj=None):
        return False

    def has_prioritize_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.prioritize_queue")

    def has_edit_memory_permission(self, request, obj=None):
        # The edit page shows the memory.
        return request.user.has_perm("queuetopia.edit_memory_queue") and self._sees_memory(request)

    def _sees_memory(self, request):
        return request.user.has_perm("queuetopia.view_params")

    def has_pause_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.pause_queue")

    def has_resume_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.resume_queue")

    def has_retry_head_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.retry_job")

    def has_skip_head_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.skip_job")

    @admin.action(permissions=["prioritize"], description=_("Give selected queues a head start"))
    def prioritize(self, request, queryset):
        return self.confirm_selected(request, queryset, "prioritize")

    @admin.action(permissions=["pause"], description=_("Pause selected queues"))
    def pause(self, request, queryset):
        return self.confirm_selected(request, queryset, "pause")

    @admin.action(permissions=["resume"], description=_("Resume selected queues"))
    def resume(self, request, queryset):
        return self.confirm_selected(request, queryset, "resume")

    @admin.action(permissions=["retry_head"], description=_("Retry what blocks selected queues"))
    def retry_head(self, request, queryset):
        return self.confirm_selected(request, queryset, "retry_head")

    @admin.action(permissions=["skip_head"], description=_("Skip what blocks selected queues"))
    def skip_head(self, request, queryset):
        return self.confirm_selected(request, queryset, "skip_head")

    def act(self, verb, row, *, by, reason, **more):
        queuetopia = serving(row.scope, row._state.db, f"Queue {row.name}")
        if verb == "prioritize":
            return on_queue(verb, queuetopia, row.name, by=by, reason=reason, seconds=HEAD_START)
        if not verb.endswith("_head"):
            return on_queue(verb, queuetopia, row.name, by=by, reason=reason, **more)
        if why := self.refusal(verb, row):
            raise Refused(why[1])
        return on_job(verb.removesuffix("_head"), queuetopia, row.current_job, by=by, reason=reason)

    def form_of(self, verb, row, data=None):
        return MemoryForm(row, data) if verb == "edit_memory" else None

    def refusal(self, verb, row):
        if row.current_job is None:
            return "not blocked", f"Queue {row.name} of {row.scope} is not blocked."
        if row.seen not in (None, self.seen_of(row)):
            return "held by another job", f"{row} is held by another job now, {row.current_job}: check it."
        return None

    def jobs_of(self, rows, alias):
        light = Job.objects.using(alias).defer("params", "errors", "result")
        heads = light.in_bulk([row.current_job for row in rows])
        return {row.pk: heads[row.current_job] for row in rows if row.current_job in heads}

    def seen_of(self, row):
        return str(row.current_job)

    def applies(self, verb, row):
        if verb.endswith("_head"):
            return row.state_seen in (QueueState.HALTED, QueueState.BACKING_OFF, QueueState.OUTSIDE)
        if verb == "prioritize":
            return row.state_seen == QueueState.READY
        if verb == "edit_memory":
            is_outside = row.head is not None and row.head.is_outside()
            return row.scope in by_scope() and row.held_by is None and not is_outside
        return verb != "resume" or row.paused_at is not None

    def get_search_results(self, request, queryset, search_term):
        return (queryset.filter(name__startswith=search_term) if search_term.strip() else queryset), False

    def get_urls(self):
        names = self.admin_site.admin_view(self.names_view)
        return [path("names/", names, name="queuetopia_queue_names"), *super().get_urls()]

    def names_view(self, request):
        """Complete the name of a queue for the search fields."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        begins = request.GET.get("q", "").replace("\x00", "")
        found = self.get_queryset(request).filter(name__startswith=begins).order_by().values_list("name", flat=True)
        return JsonResponse({"names": sorted(set(found[:MOST_COMPLETED])) if begins else []})

    def load_details(self, rows):
        """Put beside each queue its current job (``head``), who holds it (``node``), its scope's pause and its line."""
        alias = rows[0]._state.db if rows else default_database()
        current = [row.current_job for row in rows if row.current_job]
        heavy = ("result",) if len(rows) == 1 else ("params", "errors", "result")  # a queue's own page explains it
        heads = Job.objects.using(alias).defer(*heavy).in_bulk(current) if current else {}
        nodes, seen = self.holders(rows, rows, alias)
        lines = _lines_of(rows, alias) if rows else {}
        now = timezone.now()
        for row in rows:
            row.head, row.node, row.nodes_seen = heads.get(row.current_job), nodes.get(row.held_by), seen
            line = lines.get(row.pk)
            row.depth_seen, row.oldest_job = (line.depth, line.oldest_job) if line else (0, None)
            row.scope_seen = scope_of(line) if line else Scope(name=row.scope)
            row.state_seen = queue_state(row, row.head, now, scope_is_paused=row.scope_seen.paused_at is not None)

    # Columns and fields

    @admin.display(description=_("queue"))
    def queue_name(self, queue):
        return full_name(queue.scope, queue.name)

    @admin.display(description=_("jobs"))
    def depth(self, queue):
        return str(queue.depth_seen) if queue.depth_seen is not None else f"more than {MOST_LISTED}"

    @admin.display(description=_("oldest due for"))
    def oldest(self, queue):
        return _ago(queue.oldest_job)

    @admin.display(description=_("blocked for"))
    def blocked_since(self, queue):
        is_blocked = queue.state_seen in (QueueState.HALTED, QueueState.BACKING_OFF)
        return _ago(blocked_since(queue.head)) if is_blocked else NOTHING

    @admin.display(description=_("explained"))
    def explained(self, queue):
        """Return why it runs, waits or is blocked."""
        seen = Seen(queue, [queue.head], queue.scope_seen, _next_jobs(queue), queue.nodes_seen)
        return visible(explain_queue(queue.scope, given_name(queue.name), queue._state.db, seen)["sentence"])

    @admin.display(description=_("current job"))
    def job(self, queue):
        if queue.head is None:
            return NOTHING
        return link_to(self.admin_site, queue.head, f"{queue.head.pk} {visible(queue.head.action)}")

    @admin.display(description=_("details"))
    def details(self, queue):
        """Return its problem, and where its job runs or that job's last error."""
        return "; ".join(text for text in (visible(queue.problem), _about_head(queue)) if text) or NOTHING

    @admin.display(description=_("held by"))
    def holder(self, queue):
        if queue.held_by is None:
            return NOTHING
        node = visible(queue.node) if queue.node else f"unknown node {queue.held_by}"
        return f"{node} since {when(queue.held_since)}"

    @admin.display(description=_("due at"))
    def due(self, queue):
        return when(queue.due_at)

    @admin.display(description=_("paused"))
    def pause_now(self, queue):
        what = "everything" if queue.scope_seen.name == Scope.EVERYTHING else "the whole scope"
        whole = f"{what} {paused(queue.scope_seen)}" if queue.scope_seen.paused_at else ""
        return "; ".join(text for text in (paused(queue), whole) if text) or NOTHING

    @admin.display(description=_("fence"))
    def fence_now(self, queue):
        return str(queue.fence)

    @admin.display(description=_("jobs in line"))
    def jobs_in_line(self, queue):
        jobs = link_to_jobs(self.admin_site, queue.scope, queue.name, queue._state.db, _("all its jobs"))
        return format_html("{} ({})", self.depth(queue), jobs)

    def shown(self, request, row):
        events = JobEvent.objects.using(row._state.db).filter(scope=row.scope, queue=row.name, job=None)
        sees_memory = self._sees_memory(request)
        return {
            "memory": _memory_text(row) if sees_memory else None,
            "next_jobs": [
                {
                    "job": link_to(self.admin_site, job, f"{job.pk} {visible(job.action)}"),
                    "state": str(job_state(job, row)),
                    "scheduled_at": when(job.scheduled_at),
                    "error": first_line(job.error),
                }
                for job in _next_jobs(row)
            ],
            "events": [
                event_shown(_without_memory(event, sees_memory)) for event in events.order_by("-id")[:MOST_EVENTS]
            ],
        }


class MemoryForm(ParamsForm):
    """All of a queue's memory as JSON text, as it is stored, sensitive values masked."""

    about = "memory"
    have_changed = _("The queue's memory has changed meanwhile: begin anew.")

    params = None  # type: ignore[assignment] # not this field of ParamsForm
    memory = forms.CharField(
        label=_("Memory"),
        widget=JSONInput,
        help_text=_("All of it, as JSON. A value that says ******** stays as it is."),
    )

    def __init__(self, row, data=None):
        super().__init__(row, data)
        self.old = {} if self.old is None else self.old

    def clean_memory(self):
        return self.read()


def _memory_text(queue):
    """Return what the queue remembers, for its page; None if nothing."""
    if queue.memory is None:
        return None
    if queue.scope in by_scope():
        return as_json(masked(queue.memory, by_scope()[queue.scope].option("sensitive_params")))
    # Only its class knows what of it is sensitive.
    return as_json(dict.fromkeys(queue.memory if isinstance(queue.memory, dict) else ["unreadable"], MASK))


def _without_memory(event, sees_memory):
    """Leave out of an edit what the user may not view; what is sensitive today may not have been then."""
    for values in (event.before, event.after):
        if not isinstance(values, dict) or "memory" not in values:
            continue
        if not sees_memory or event.scope not in by_scope():
            values.pop("memory")
            values.pop("changed", None)
        else:
            sensitive = by_scope()[event.scope].option("sensitive_params")
            values["memory"] = json.dumps(masked(values["memory"], sensitive), ensure_ascii=False)
    return event


def _about_head(queue):
    """Return where a queue's job runs, or goes on, or that job's last error."""
    if queue.held_by:
        return running(queue, queue.head, queue.node)
    if queue.state_seen is QueueState.OUTSIDE:
        return outside(queue, queue.head)
    return first_line(queue.head.error) if queue.head else ""


def blocked_since(job):
    """Return when the first attempt of a job that holds its queue failed."""
    return job.failed_at or job.attempted_at


def _ago(moment):
    if moment is None or (seconds := (timezone.now() - moment).total_seconds()) < 0:
        return NOTHING
    return span(seconds)


def _lines_of(rows, alias):
    """Return {id: the queue with its line and its scope's pause}; a ``depth`` of None is more than MOST_LISTED."""
    jobs = Job.objects.using(alias).unfinished().in_queue(OuterRef("scope"), OuterRef("name")).in_order()
    counted = jobs.order_by().values("scope").annotate(number=Count("id")).values("number")
    beyond = jobs.values("id")[MOST_LISTED : MOST_LISTED + 1]
    found = (
        Queue.objects.using(alias)
        .filter(pk__in=[row.pk for row in rows])
        .annotate(
            oldest_job=Subquery(jobs.values("scheduled_at")[:1]),
            beyond=Subquery(beyond),
            **pause_of_scope(alias),
        )
    )
    found = found.annotate(  # the count of a very long line takes too long
        depth=Case(When(beyond__isnull=False, then=None), default=Coalesce(Subquery(counted), 0))
    )
    return {row.pk: row for row in found.only("pk", "scope")}


def _next_jobs(queue):
    """Return the first jobs of the queue's line; read once for its page."""
    if not hasattr(queue, "next_jobs"):
        line = Job.objects.using(queue._state.db).unfinished().in_queue(queue.scope, queue.name)
        queue.next_jobs = list(line.in_order().defer("params", "errors", "result")[:NEXT_JOBS])
    return queue.next_jobs
