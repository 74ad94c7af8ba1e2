"""Lists that stay cheap: nothing here counts, sorts or compares all of a big table."""

from django.contrib.admin import SimpleListFilter
from django.contrib.admin.utils import quote
from django.core.paginator import Paginator
from django.db import router
from django.db.models import QuerySet
from django.urls import NoReverseMatch, reverse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from ..models import Job, Queue, Scope, has_name
from ..monitoring import status
from ..registry import by_scope
from ..text import visible

MOST_LISTED = 1_000  # rows a list leads to, page by page; what is further away is found by filters and search
PER_PAGE = 50


def default_database() -> str:
    return router.db_for_write(Job)


def row_id(row) -> str:
    """Return what names a row in addresses and in the admin's log: its id, after its database if not the default."""
    if isinstance(row, Scope):
        # It has a row only after its first pause; the row of everything is in each database.
        return f"{row._state.db}:{row.name}" if row.name == Scope.EVERYTHING else row.name
    alias = row._state.db
    return str(row.pk) if alias in (None, default_database()) else f"{alias}:{row.pk}"


def address(site, row, view="change") -> str:
    """Return the path of a page about the row in an AdminSite."""
    name = f"admin:queuetopia_{row._meta.model_name}_{view}"
    return reverse(name, args=(quote(row_id(row)),), current_app=site.name)


def list_address(site, model, view="changelist") -> str:
    """Return the path of the list of jobs or queues in an AdminSite, or of another page about all of them."""
    return reverse(f"admin:queuetopia_{model._meta.model_name}_{view}", current_app=site.name)


def link_to(site, row, text) -> str:
    """Return a link to the row's page; only the text if its model is not in that AdminSite."""
    try:
        return format_html('<a href="{}">{}</a>', address(site, row), text)
    except NoReverseMatch:
        return text


def link_to_jobs(site, scope, queue, alias, text) -> str:
    """Return a link to the list of a queue's jobs; an empty text if jobs are not in that AdminSite."""
    database = {} if alias in (None, default_database()) else {"database": alias}
    filters = urlencode({**database, "scope": scope, "queue": queue})
    try:
        return format_html('<a href="{}?{}">{}</a>', list_address(site, Job), filters, text)
    except NoReverseMatch:
        return ""


class BoundedPaginator(Paginator):
    """Counts no further than to the last row it leads to."""

    object_list: QuerySet

    @cached_property
    def count(self):
        return min(self._counted, MOST_LISTED)

    @property
    def has_more(self):
        return self._counted > MOST_LISTED

    @property
    def listed_ids(self) -> list[int]:
        return self._ids[:MOST_LISTED]

    @property
    def _counted(self):
        return len(self._ids)

    @cached_property
    def _ids(self) -> list[int]:
        return list(self.object_list.values_list("pk", flat=True)[: MOST_LISTED + 1])


class DatabaseFilter(SimpleListFilter):
    """Which database to read; it must be the first filter, because the others read the same one."""

    title = _("database")
    parameter_name = "database"

    def lookups(self, request, model_admin):
        aliases = status.databases()
        return [(alias, alias) for alias in aliases] if len(aliases) > 1 else []

    def choices(self, changelist):
        for alias, title in self.lookup_choices:
            yield {
                "selected": alias == (self.value() or default_database()),
                "query_string": changelist.get_query_string({self.parameter_name: alias}),
                "display": title,
            }

    def queryset(self, request, queryset):
        return queryset.using(self.value()) if self.value() in dict(self.lookup_choices) else queryset


class ScopeFilter(SimpleListFilter):
    """The scopes this code knows, from the registry; and all others together."""

    title = _("scope")
    parameter_name = "scope"
    UNKNOWN = "?"

    def lookups(self, request, model_admin):
        return [*((scope, scope) for scope in sorted(by_scope())), (self.UNKNOWN, _("unknown to this code"))]

    def queryset(self, request, queryset):
        if self.value() is None:
            return queryset
        if self.value() == self.UNKNOWN:
            return queryset.exclude(scope__in=list(by_scope()))
        return _exactly(queryset, scope=self.value())


class QueueFilter(SimpleListFilter):
    """The queue that a link led to; there is no list of all of them."""

    title = _("queue")
    parameter_name = "queue"

    def lookups(self, request, model_admin):
        # Not self.value(), which is there only after this.
        name = request.GET.get(self.parameter_name)
        return [] if name is None else [(name, visible(name))]

    def queryset(self, request, queryset):
        name, known = self.value(), by_scope().get(request.GET.get(ScopeFilter.parameter_name))
        if name is None:
            return queryset
        is_of_many = known is not None and not known.option("ordered") and "\x00" not in name
        return queryset.filter(has_name(name)) if is_of_many else _exactly(queryset, queue=name)


def _exactly(queryset, **text):
    # PostgreSQL refuses to compare with such a text.
    return queryset.none() if any("\x00" in value for value in text.values()) else queryset.filter(**text)


class JobStateFilter(SimpleListFilter):
    title = _("state")
    parameter_name = "state"

    def lookups(self, request, model_admin):
        return [("unfinished", _("unfinished")), *((str(state), str(state)) for state in status.JobState)]

    def queryset(self, request, queryset):
        # ``done_at=None`` is what the partial index over the unfinished jobs is for.
        unfinished = queryset.unfinished()
        held = Queue.objects.using(queryset.db).held().filter(current_job__isnull=False)
        idle = unfinished.pending().exclude(pk__in=held.values("current_job"))
        # What was attempted is the current job of its queue: found there, among as many rows as there are queues.
        blocked = Queue.objects.using(queryset.db).blocked().values("current_job")
        backing_off = unfinished.filter(pk__in=blocked.backing_off()).pending()
        chosen = {
            "unfinished": unfinished,
            status.JobState.RUNNING: unfinished.filter(pk__in=held.values("current_job")),
            status.JobState.OUTSIDE: backing_off.filter(outside__isnull=False),
            status.JobState.BACKING_OFF: backing_off.filter(attempted_at__isnull=False, outside__isnull=True),
            status.JobState.WAITING: idle.filter(attempted_at=None),
            status.JobState.HALTED: queryset.halted(),  # also behind a head: they have moved there
            **{state: queryset.ended().filter(state=state) for state in ("done", "skipped", "cancelled")},
        }
        return chosen.get(self.value() or "", queryset)


class QueueStateFilter(SimpleListFilter):
    """States as ``status.queue_state`` names them, and what can be true beside them: paused, with a problem."""

    title = _("state")
    parameter_name = "state"

    def lookups(self, request, model_admin):
        states = [(str(state), str(state)) for state in status.QueueState]
        return [("blocked", _("blocked")), *states, ("problem", _("with a problem"))]

    def queryset(self, request, queryset):
        idle = queryset.idle()
        waiting = queryset.backing_off()
        outside = Job.objects.using(queryset.db).filter(pk__in=waiting.values("current_job"), outside__isnull=False)
        now = timezone.now()
        chosen = {
            "blocked": queryset.blocked(),
            status.QueueState.HALTED: queryset.halted(),
            status.QueueState.OUTSIDE: waiting.filter(current_job__in=outside.values("pk")),
            status.QueueState.BACKING_OFF: waiting.exclude(current_job__in=outside.values("pk")),
            status.QueueState.RUNNING: queryset.held(),
            status.QueueState.PAUSED: queryset.paused(),
            status.QueueState.READY: idle.filter(paused_at=None, due_at__lte=now),
            status.QueueState.SCHEDULED: idle.filter(paused_at=None, due_at__gt=now),
            status.QueueState.EMPTY: idle.filter(paused_at=None, due_at=None),
            "problem": queryset.exclude(problem=""),
        }
        return chosen.get(self.value() or "", queryset)
