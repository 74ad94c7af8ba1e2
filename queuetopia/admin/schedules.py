"""The pages of schedules."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from ..backends import backend_for
from ..models import Job, JobEvent, Schedule
from ..monitoring import schedules
from ..text import visible
from ..verbs import on_schedule, pruned_schedules, serving
from .base import MOST_EVENTS, NOTHING, ReadOnlyAdmin, event_shown, full_name, paused, when
from .lists import DatabaseFilter, ScopeFilter, default_database, link_to


@admin.register(Schedule)
class ScheduleAdmin(ReadOnlyAdmin):
    """Schedules that nodes have served: when each was due last and is next, and what was left out."""

    verbs = {
        "run_now": "create a job of these schedules now, besides those of their due times",
        "pause": "create no jobs of these schedules until they are resumed",
        "resume": "create jobs of these schedules again, from their next due times on",
        "delete": "forget these schedules, which this code does not declare any more",
    }
    order_of_verbs = ("scope", "name")
    actions = ["run_now", "pause", "resume", "delete_selected"]

    list_display = [
        "schedule_name",
        "state_now",
        "times",
        "next",
        "last",
        "pause_now",
    ]
    list_display_links = ["schedule_name"]
    list_filter = [DatabaseFilter, ScopeFilter]
    ordering = ["scope", "name"]
    fieldsets = [
        (None, {"fields": ["state_now", "schedule_name", "times", "creates", "next", "last", "pause_now"]}),
        (_("Due times"), {"fields": ["created", "missed", "held_back", "dealt_with"]}),
    ]

    def has_delete_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.delete_schedule")

    def has_run_now_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.run_now_schedule")

    def has_pause_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.pause_schedule")

    def has_resume_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.resume_schedule")

    @admin.action(permissions=["run_now"], description=_("Run selected schedules now"))
    def run_now(self, request, queryset):
        return self.confirm_selected(request, queryset, "run_now")

    @admin.action(permissions=["pause"], description=_("Pause selected schedules"))
    def pause(self, request, queryset):
        return self.confirm_selected(request, queryset, "pause")

    @admin.action(permissions=["resume"], description=_("Resume selected schedules"))
    def resume(self, request, queryset):
        return self.confirm_selected(request, queryset, "resume")

    @admin.action(permissions=["delete"], description=_("Forget selected schedules"))
    def delete_selected(self, request, queryset):
        return self.confirm_selected(request, queryset, "delete")

    def act(self, verb, row, *, by, reason, **more):
        if verb == "delete":
            return pruned_schedules(row._state.db, row.scope, row.name)
        return on_schedule(
            verb, serving(row.scope, row._state.db, f"Schedule {row.name}"), row.name, by=by, reason=reason
        )

    def applies(self, verb, row):
        if verb == "delete":
            return not row.facts["declared"]
        if verb == "run_now":
            return row.facts["declared"]
        return (row.paused_at is None) == (verb == "pause")

    def load_details(self, rows):
        """Put beside each schedule what this code declares (``facts``), and its last job if that is still there."""
        alias = rows[0]._state.db if rows else default_database()
        now = backend_for(alias).now()
        found = Job.objects.using(alias).only("pk").in_bulk([row.last_job for row in rows if row.last_job])
        for row in rows:
            row.facts, row.job_seen = schedules.of_row(row, now), found.get(row.last_job)
            row.state_seen = _state(row.facts)

    # Columns and fields

    @admin.display(description=_("schedule"))
    def schedule_name(self, row):
        return full_name(row.scope, row.name)

    @admin.display(description=_("due"))
    def times(self, row):
        return visible(row.facts["times"] or NOTHING)

    @admin.display(description=_("creates"))
    def creates(self, row):
        facts = row.facts
        return visible(f"{facts['action']} in queue {facts['queue']}") if facts["declared"] else NOTHING

    @admin.display(description=_("next"))
    def next(self, row):
        return when(row.facts["next_at"])

    @admin.display(description=_("last"))
    def last(self, row):
        if row.last_job is None:
            return NOTHING
        text = f"{when(row.last_due_at)} ({row.last_job})"
        return link_to(self.admin_site, row.job_seen, text) if row.job_seen else text

    @admin.display(description=_("dealt with until"))
    def dealt_with(self, row):
        return when(row.until)

    @admin.display(description=_("paused"))
    def pause_now(self, row):
        return paused(row) or NOTHING

    def shown(self, request, row):
        events = JobEvent.objects.using(row._state.db).filter(scope=row.scope, verb__endswith="_schedule", job=None)
        ours = [each for each in events.order_by("-id")[:MOST_EVENTS] if each.after.get("schedule") == row.name]
        return {"events": [event_shown(event) for event in ours]}


def _state(facts) -> str:
    if not facts["declared"]:
        return "no longer declared"
    return "paused" if facts["paused"] else "late" if facts["late"] > schedules.LATE else "scheduled"
