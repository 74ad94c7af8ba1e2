"""The pages of queues."""

from django.contrib import admin
from django.utils import timezone
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..models import Job, JobEvent, Node, Queue, Scope
from ..status import job_state, queue_state, visible
from ..verbs import on_queue, serving
from .base import MOST_EVENTS, NOTHING, ReadOnlyAdmin, event_shown, first_line, full_name, paused, running, when
from .lists import MOST_LISTED, DatabaseFilter, QueueStateFilter, ScopeFilter, default_database, link_to, link_to_jobs

NEXT_JOBS = 20


@admin.register(Queue)
class QueueAdmin(ReadOnlyAdmin):
    """Queues by scope and name: what each does, who holds it, what keeps it."""

    verbs = {
        "pause": "start nothing new in these queues; what runs finishes",
        "resume": "serve these queues again, at once",
    }
    order_of_verbs = ("scope", "name")
    actions = ["pause", "resume"]

    list_display = ["queue_name", "state_now", "job", "details", "due", "pause_now"]
    list_display_links = ["queue_name"]
    list_filter = [DatabaseFilter, QueueStateFilter, ScopeFilter]
    ordering = ["scope", "name"]  # the unique index; blocked ones first would sort them all
    search_fields = ["name"]  # makes the form appear; get_search_results says what is searched
    search_help_text = _("The beginning of a queue's name.")
    fieldsets = [
        (None, {"fields": ["state_now", "details", "queue_name", "job", "jobs_in_line", "pause_now"]}),
        (_("Scheduler"), {"fields": ["due", "holder", "fence_now"]}),
    ]

    def has_delete_permission(self, request, obj=None):
        return False

    def has_pause_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.pause_queue")

    def has_resume_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.resume_queue")

    @admin.action(permissions=["pause"], description=_("Pause selected queues"))
    def pause(self, request, queryset):
        return self.confirm_selected(request, queryset, "pause")

    @admin.action(permissions=["resume"], description=_("Resume selected queues"))
    def resume(self, request, queryset):
        return self.confirm_selected(request, queryset, "resume")

    def act(self, verb, row, *, by, reason):
        queuetopia = serving(row.scope, row._state.db, f"Queue {row.name}")
        return on_queue(verb, queuetopia, row.name, by=by, reason=reason)

    def applies(self, verb, row):
        return verb != "resume" or row.paused_at is not None

    def get_search_results(self, request, queryset, search_term):
        return (queryset.filter(name__startswith=search_term) if search_term.strip() else queryset), False

    def look_at(self, rows):
        """Put beside each queue its current job (``head``), who holds it (``node``) and its scope's pause."""
        alias = rows[0]._state.db if rows else default_database()
        current = [row.current_job for row in rows if row.current_job]
        heads = Job.objects.using(alias).defer("params", "errors", "result").in_bulk(current) if current else {}
        holders = {row.held_by for row in rows if row.held_by}
        nodes = Node.objects.using(alias).in_bulk(holders) if holders else {}
        pauses = {scope.name: scope for scope in Scope.objects.using(alias).filter(paused_at__isnull=False)}
        now = timezone.now()
        for row in rows:
            row.head, row.node = heads.get(row.current_job), nodes.get(row.held_by)
            row.scope_paused = pauses.get(row.scope)
            row.state_seen = queue_state(row, row.head, now, scope_is_paused=row.scope in pauses)

    # Columns and fields

    @admin.display(description=_("queue"))
    def queue_name(self, queue):
        return full_name(queue.scope, queue.name)

    @admin.display(description=_("current job"))
    def job(self, queue):
        if queue.head is None:
            return NOTHING
        return link_to(self.admin_site, queue.head, f"{queue.head.pk} {visible(queue.head.action)}")

    @admin.display(description=_("details"))
    def details(self, queue):
        """Say what is wrong with it, and where its job runs or what went wrong with that last."""
        about_job = running(queue, queue.node) if queue.held_by else first_line(queue.head.error) if queue.head else ""
        return "; ".join(text for text in (visible(queue.problem), about_job) if text) or NOTHING

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
        whole = f"the whole scope {paused(queue.scope_paused)}" if queue.scope_paused else ""
        return "; ".join(text for text in (paused(queue), whole) if text) or NOTHING

    @admin.display(description=_("fence"))
    def fence_now(self, queue):
        return str(queue.fence)

    @admin.display(description=_("jobs in line"))
    def jobs_in_line(self, queue):
        number = _line(queue)[: MOST_LISTED + 1].count()
        text = f"more than {MOST_LISTED}" if number > MOST_LISTED else number
        jobs = link_to_jobs(self.admin_site, queue.scope, queue.name, queue._state.db, _("all its jobs"))
        return format_html("{} ({})", text, jobs)

    def shown(self, request, row):
        jobs = list(_line(row).in_order().defer("params", "errors", "result")[:NEXT_JOBS])
        events = JobEvent.objects.using(row._state.db).filter(scope=row.scope, queue=row.name, job=None)
        return {
            "next_jobs": [
                {
                    "job": link_to(self.admin_site, job, f"{job.pk} {visible(job.action)}"),
                    "state": str(job_state(job, row)),
                    "scheduled_at": when(job.scheduled_at),
                    "error": first_line(job.error),
                }
                for job in jobs
            ],
            "events": [event_shown(event) for event in events.order_by("-id")[:MOST_EVENTS]],
        }


def _line(queue):
    return Job.objects.using(queue._state.db).unfinished().in_queue(queue.scope, queue.name)
