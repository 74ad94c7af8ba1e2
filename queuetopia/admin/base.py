"""What the pages of jobs and queues share: nothing is added or edited, and each verb asks before it acts."""

from collections import Counter
from functools import partial
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.templatetags.admin_urls import add_preserved_filters
from django.contrib.admin.utils import flatten_fieldsets, quote, unquote
from django.contrib.admin.views.main import ChangeList
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.db.models import Case, OuterRef, Subquery, Value, When
from django.db.models.constants import LOOKUP_SEP
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.html import escape, format_html
from django.utils.safestring import mark_safe
from django.utils.translation import gettext_lazy as _

from ..jobs import again_after_deadlock, decide, refusals
from ..models import Job, Node, Scope
from ..monitoring import status
from ..monitoring.search import id_in
from ..registry import by_scope
from ..text import storable, visible
from ..times import local
from ..verbs import name_of, serving, tried
from .lists import PER_PAGE, BoundedPaginator, address, default_database, list_address, row_id

MOST_AT_ONCE = 500  # rows of one confirmation; Django takes 1,000 fields in one form
MOST_LISTED = 10  # results listed one by one, of each kind
MOST_EVENTS = 50
NOTHING = "-"


class BoundedChangeList(ChangeList):
    """The list of a ReadOnlyAdmin: all about its rows is read with them, whatever their database."""

    model_admin: "ReadOnlyAdmin"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Only shown from here on. Django's template repeats the filters in hidden fields.
        self.query = visible(self.query)
        self.params = {name: _referenced(value) for name, value in self.params.items()}

    def get_queryset(self, request, exclude_parameters=None):
        return super().get_queryset(request, exclude_parameters).defer(*self.model_admin.heavy)

    def get_results(self, request):
        super().get_results(request)
        # The search form would show the bound as if it were the count.
        self.full_result_count = self.result_count
        self.result_list = list(self._rows())
        self.model_admin.load_details(self.result_list)

    def _rows(self):
        # Rows found and sorted by a full scan are not searched again.
        first = (self.page_num - 1) * self.list_per_page
        ids = self.paginator.listed_ids[first : first + self.list_per_page]
        rows = self.model._default_manager.using(self.queryset.db).defer(*self.model_admin.heavy)
        found = rows.in_bulk(ids) if ids else {}
        return [found[pk] for pk in ids if pk in found]  # some may be gone since

    def url_for_result(self, result):
        return address(self.model_admin.admin_site, result)


def _referenced(text):
    """Return text for HTML with references to the characters that are not printable."""
    return mark_safe("".join(escape(char) if char.isprintable() else f"&#{ord(char)};" for char in text))  # noqa: S308


class ReadOnlyAdmin(admin.ModelAdmin):
    """Shows rows of any database, and lets operators decide about them by verbs.

    A subclass lists its ``verbs`` ({name: what it does}), has an action of each name and a ``has_<verb>_permission``,
    and carries a verb out in ``act``.
    """

    verbs: dict[str, str] = {}
    verbs_of_one: tuple[str, ...] = ()  # those that never apply to several rows at once
    verbs_of_many: dict[str, str] = {}  # {verb: retry, skip or move} that is done to several rows in a few statements
    order_of_verbs: tuple[str, ...] = ()  # the rows' order in which a verb comes to them
    heavy: tuple[str, ...] = ()  # columns that only a row's own page needs

    list_per_page = PER_PAGE
    list_max_show_all = PER_PAGE
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator

    class Media:
        css = {"all": ["queuetopia/admin.css"]}
        js = ["queuetopia/search.js"]

    def act(self, verb: str, row, *, by: str, reason: str, **more) -> dict[str, Any]:
        """Apply the verb to the row; return a ``message``. ``more`` comes from ``form_of``. Raises Refused."""
        raise NotImplementedError

    def form_of(self, verb: str, row, data=None) -> forms.Form | None:
        """Return the form for what the verb needs besides a reason, filled with ``data``; None if nothing."""
        return None

    def seen_of(self, row) -> str:
        """Return what a confirmation remembers of a row; ``act`` finds it in ``row.seen``, None if it was not asked."""
        return ""

    def applies(self, verb: str, row) -> bool:
        """True unless the verb would be refused for the row as read: its page does not offer it then."""
        raise NotImplementedError

    def load_details(self, rows) -> None:
        """Read what is shown beside the rows, in a fixed number of queries; set ``state_seen`` on each."""
        raise NotImplementedError

    def holders(self, rows, lines, alias):
        """Return the nodes that hold these queues, by id; and of a lone row's page, which explains it, all nodes."""
        if len(rows) == 1:
            seen = status.node_rows(alias)
            return {node.pk: node for node in seen[0]}, seen
        holders = {line.held_by for line in lines if line.held_by}
        return (Node.objects.using(alias).in_bulk(holders) if holders else {}), None

    # Who may do what

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False

    def may(self, request, verb, row=None) -> bool:
        return self.has_view_permission(request, row) and getattr(self, f"has_{verb}_permission")(request, row)

    def lookup_allowed(self, lookup, value, request=None):
        # Only of the filters shown: params__name__startswith=… in the address would reveal what the page hides.
        for known in self.get_list_filter(request):
            name = known[0] if isinstance(known, tuple | list) else known
            if lookup == getattr(name, "parameter_name", None) or lookup.split(LOOKUP_SEP)[0] == name:
                return True
        return False

    # Reading

    def get_queryset(self, request):
        return super().get_queryset(request).using(default_database())

    def get_changelist(self, request, **kwargs):
        return BoundedChangeList

    def get_object(self, request, object_id, from_field=None):
        found = self._chosen(self.get_queryset(request), [object_id])
        return found[0] if found else None

    def _chosen(self, rows, object_ids):
        """Return those of ``rows`` that have these ids, in the order in which verbs come to them."""
        by_alias: dict[str, list[int]] = {}
        for object_id in object_ids:
            alias, _colon, pk = object_id.rpartition(":")
            if (number := id_in(pk)) is not None:
                by_alias.setdefault(alias or default_database(), []).append(number)
        return [
            row
            for alias in status.databases()
            if alias in by_alias
            for row in rows.using(alias).filter(pk__in=by_alias[alias]).order_by(*self.order_of_verbs)
        ]

    def render_change_form(self, request, context, add=False, change=False, form_url="", obj=None):
        self.load_details([obj])
        context |= {
            "show_delete": False,  # it is one of our verbs
            "verbs": [
                (words(verb), address(self.admin_site, obj, verb))
                for verb in self.verbs
                if self.may(request, verb, obj) and self.applies(verb, obj)
            ],
            "history": address(self.admin_site, obj, "history"),
            "shown": self.shown(request, obj),
        }
        return super().render_change_form(request, context, add, change, form_url, obj)

    def get_readonly_fields(self, request, obj=None):
        return flatten_fieldsets(self.get_fieldsets(request, obj))

    def shown(self, request, row) -> dict[str, Any]:
        """Return what the row's page shows under its fields."""
        return {}

    def _get_obj_does_not_exist_redirect(self, request, opts, object_id):
        shown = quote(visible(unquote(object_id)))
        return super()._get_obj_does_not_exist_redirect(request, opts, shown)  # type: ignore[misc] # not in the stubs

    def history_view(self, request, object_id, extra_context=None):
        row = self.get_object(request, unquote(object_id))
        known = {"address": address(self.admin_site, row)} if row else {}
        answer = super().history_view(request, object_id, {**(extra_context or {}), **known})
        for entry in getattr(answer, "context_data", {}).get("action_list", ()):
            _show_names(entry.user)
        return answer

    # Verbs: chosen in a list or on the row's page, then confirmed, then done to one row after the other

    def get_urls(self):
        about = f"queuetopia_{self.opts.model_name}"
        pages = []
        for verb in self.verbs:
            view = self.admin_site.admin_view(partial(self.verb_view, verb=verb))
            if verb not in self.verbs_of_one:
                pages.append(path(f"{verb}/", view, name=f"{about}_{verb}_selected"))
            pages.append(path(f"<path:object_id>/{verb}/", view, name=f"{about}_{verb}"))
        return pages + super().get_urls()

    def verb_view(self, request, object_id=None, *, verb):
        """Show what the verb would do; a POST that says ``confirmed`` does it."""
        if not self.may(request, verb):
            raise PermissionDenied
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        chosen = selected[:MOST_AT_ONCE] if object_id is None else [unquote(object_id)]
        heavy = () if verb in self.verbs_of_one else self.heavy
        rows = self._chosen(self.get_queryset(request).defer(*heavy), chosen)
        if not rows:
            self.message_user(request, "What was chosen is not there any more.", messages.WARNING)
            return self._back(request)
        seen = dict(text.rpartition("=")[::2] for text in request.POST.getlist("seen"))
        for row in rows:
            row.seen = seen.get(row_id(row))
        if "confirmed" not in request.POST:
            return self._confirmation(request, verb, rows, one=object_id is not None)
        form = self.form_of(verb, rows[0], request.POST)
        if form is not None and object_id is not None:
            return self._do_one(request, verb, rows[0], form)
        if form is not None and not form.is_valid():
            return self._confirmation(request, verb, rows, form=form)
        more = {} if form is None else form.cleaned_data
        if missing := len(chosen) - len(rows):
            self.message_user(request, f"Not there any more: {missing} of {len(chosen)}.", messages.WARNING)
        self._do(request, verb, rows, request.POST.get("reason", "").strip(), **more)
        return self._back(request, rows[0] if object_id is not None and verb != "delete" else None)

    def confirm_selected(self, request, queryset, verb):
        """Be the action of a list: ask before the verb is done to what was selected there."""
        rows = list(queryset.order_by(*self.order_of_verbs)[: MOST_AT_ONCE + 1])
        if len(rows) > MOST_AT_ONCE:
            text = f"More than {MOST_AT_ONCE} {self.opts.verbose_name_plural} were selected: choose fewer at once."
            self.message_user(request, text, messages.ERROR)
            return None
        return self._confirmation(request, verb, rows) if rows else None

    def _do_one(self, request, verb, row, form):
        """Apply a verb with a form; errors are shown beside the input."""
        if form.is_valid():
            reason = request.POST.get("reason", "").strip()
            result = tried(partial(self._act_and_log, request, verb, row, reason, **form.cleaned_data))
            if result["ok"]:
                self.message_user(request, visible(result["message"]), messages.SUCCESS)
                return self._back(request, row)
            form.add_error(None, visible(result["message"]))
        return self._confirmation(request, verb, [row], one=True, form=form)

    def _confirmation(self, request, verb, rows, one=False, form=None):
        self.load_details(rows)
        site, row = self.admin_site, rows[0]
        if one:
            action, back = address(site, row, verb), address(site, row)
        else:
            action, back = list_address(site, row, f"{verb}_selected"), list_address(site, row)
        request.current_app = self.admin_site.name
        return TemplateResponse(
            request,
            "admin/queuetopia/confirm_verb.html",
            {
                **self.admin_site.each_context(request),
                "title": self._title(verb, rows),
                "opts": self.opts,
                "media": self.media,
                "preserved_filters": self.get_preserved_filters(request),
                "verb": words(verb),
                "form": form or self.form_of(verb, row),
                "reason": visible(request.POST.get("reason", "")),
                "does": self._does(verb, rows),
                "rows": [(row_id(row), address(site, row), visible(row), str(row.state_seen)) for row in rows],
                "seen": [f"{row_id(row)}={self.seen_of(row)}" for row in rows if self.seen_of(row)],
                "asks_for_reason": verb != "delete",
                "action": action,
                "back": back,
                "action_checkbox_name": ACTION_CHECKBOX_NAME,
            },
        )

    def _do(self, request, verb, rows, reason, **more):
        if verb in self.verbs_of_many and len(rows) > 1:
            results = self._do_together(request, verb, rows, reason, **more)
        else:
            results = [tried(partial(self._act_and_log, request, verb, row, reason, **more)) for row in rows]
        done = [result["message"] for result in results if result["ok"]]
        refused = [result["message"] for result in results if not result["ok"]]
        for level, texts in ((messages.SUCCESS, done), (messages.ERROR, refused)):
            for text in texts[:MOST_LISTED]:
                self.message_user(request, visible(text), level)
        if len(rows) > MOST_LISTED:
            level = messages.WARNING if refused else messages.SUCCESS
            self.message_user(request, f"{words(verb)}: {len(done)} done, {_numbered(results, len(refused))}.", level)

    def _do_together(self, request, verb, rows, reason, **more):
        """Retry, skip or move the jobs of rows, in few statements for each scope; return a result for each."""
        results = {row_id(row): _refused(*why) for row in rows if (why := self.refusal(verb, row))}
        for alias in dict.fromkeys(row._state.db for row in rows):
            tries = [row for row in rows if row._state.db == alias and row_id(row) not in results]
            jobs = self.jobs_of(tries, alias) if tries else {}
            for scope in sorted({row.scope for row in tries}):
                of_scope = [(row, jobs[row.pk]) for row in tries if row.scope == scope and row.pk in jobs]
                results |= self.decide_scope(request, self.verbs_of_many[verb], alias, scope, of_scope, reason, **more)
        return [results.get(row_id(row)) or _refused("gone", f"{row} has no job any more.") for row in rows]

    def refusal(self, verb, row) -> tuple[str, str] | None:
        """Return why the verb is not even tried, in a word or two and as a sentence; None if it is."""
        return None

    def jobs_of(self, rows, alias) -> dict[int, Job]:
        """Return {id of a row: the job that a verb of many is about}."""
        return {row.pk: row for row in rows}

    def decide_scope(self, request, verb, alias, scope, pairs, reason, **more) -> dict[str, dict[str, Any]]:
        """Retry, skip or move jobs of one scope, and write each into the admin's own log, in one transaction.

        pairs: (row, its job). Return {id of the row: the result}, with ``why`` in a word or two if it is not ``ok``.
        """
        decided = tried(partial(self._decide, request, verb, alias, scope, pairs, reason, **more))
        if not decided["ok"]:
            return {row_id(row): decided for row, _ in pairs}
        done, left = decided["done"], decided["left"]
        return {
            row_id(row): {"ok": True, "message": _decided(verb, job)} if job.pk in done else _refused(*left[job.pk])
            for row, job in pairs
        }

    def _decide(self, request, verb, alias, scope, pairs, reason, **more):
        queuetopia = serving(scope, alias, "The jobs")
        act = partial(self._decide_and_log, request, verb, queuetopia, pairs, reason, **more)
        done = again_after_deadlock(alias, act)
        rest = [job.pk for _, job in pairs if job.pk not in done]
        return {"done": done, "left": refusals(queuetopia, verb, rest, **more) if rest else {}}

    def _decide_and_log(self, request, verb, queuetopia, pairs, reason, **more) -> set[int]:
        with transaction.atomic(using=queuetopia.database()):
            by = request.user.get_username()
            done = set(decide(queuetopia, verb, [job.pk for _, job in pairs], by=by, reason=reason, **more))
            self.log_all(request, [(row, _decided(verb, job)) for row, job in pairs if job.pk in done], reason)
        return done

    def _act_and_log(self, request, verb, row, reason, **more):
        return self.logged(request, verb, row, reason, partial(self.act, verb, row, reason=reason, **more))

    def logged(self, request, verb, row, reason, act):
        """Call ``act(by=…)`` for the row, and write it into the admin's own log, both or none."""
        # The verb in it is not tried again by itself: after a deadlock both are gone.
        return again_after_deadlock(row._state.db, partial(self._logged_once, request, verb, row, reason, act))

    def _logged_once(self, request, verb, row, reason, act):
        with transaction.atomic(using=row._state.db):
            result = act(by=request.user.get_username())
            LogEntry(
                user_id=request.user.pk,
                content_type=ContentType.objects.get_for_model(type(row)),
                object_id=row_id(row),
                object_repr=storable(visible(row), 200),
                action_flag=DELETION if verb == "delete" else CHANGE,
                change_message=storable(visible(f"{result['message']}{reason and f' Reason: {reason}'}"), 2_000),
            ).save()
        return result

    def log_all(self, request, done, reason):
        """Write what was done to many rows, (row, text) each, into the admin's own log, in one statement."""
        if not done:
            return
        kind = ContentType.objects.get_for_model(type(done[0][0]))
        LogEntry.objects.bulk_create(
            LogEntry(
                user_id=request.user.pk,
                content_type=kind,
                object_id=row_id(row),
                object_repr=storable(visible(row), 200),
                action_flag=CHANGE,
                change_message=storable(visible(f"{text}{reason and f' Reason: {reason}'}"), 2_000),
            )
            for row, text in done
        )

    def _back(self, request, row=None):
        """Go to the row's page, or to the list as it was."""
        to = list_address(self.admin_site, self.model) if row is None else address(self.admin_site, row)
        filters: dict[str, Any] = {"preserved_filters": self.get_preserved_filters(request), "opts": self.opts}
        return HttpResponseRedirect(add_preserved_filters(filters, to))

    # Words

    @admin.display(description=_("state"))
    def state_now(self, row):
        kind = row.state_seen.replace(" ", "-")
        return format_html('<span class="queuetopia-state queuetopia-{}">{}</span>', kind, str(row.state_seen))

    @admin.display(description=_("scope"))
    def scope_name(self, row):
        return f"{visible(row.scope)}{_unless_known(row.scope)}"

    def _title(self, verb, rows):
        return f"{words(verb)} {len(rows)} {self._named(len(rows))}"

    def _does(self, verb, rows):
        return self.verbs[verb]

    def _named(self, number):
        return self.opts.verbose_name if number == 1 else self.opts.verbose_name_plural


def _decided(verb, job):
    return f"{name_of(job)} is { {'retry': 'retried', 'skip': 'skipped', 'move': 'moved'}[verb] }."


def _refused(why, message) -> dict[str, Any]:
    return {"ok": False, "why": why, "message": message}


def _numbered(results, number) -> str:
    """Return how many were refused, and why as far as that is known."""
    whys = Counter(result["why"] for result in results if "why" in result)
    reasons = ", ".join(f"{count} {why}" for why, count in whys.most_common())
    return f"{number} refused{f' ({reasons})' if reasons else ''}"


def _show_names(user):
    """Let Django's template print the names of a user visibly."""
    for name in ("get_username", "get_full_name"):
        if written := getattr(user, name, None):
            setattr(user, name, partial(visible, written()))


def pause_of_scope(alias) -> dict[str, Subquery]:
    """Return the annotations of queues that ``scope_of`` needs."""
    names = [OuterRef("scope"), Value(Scope.EVERYTHING)]
    widest = Case(When(name=Scope.EVERYTHING, then=0), default=1)
    scope = Scope.objects.using(alias).filter(name__in=names, paused_at__isnull=False).order_by(widest)
    fields = ("name", "paused_at", "paused_by", "paused_reason")
    return {f"scope_{name}": Subquery(scope.values(name)[:1]) for name in fields}


def scope_of(queue) -> Scope:
    """Return the scope of a queue that was read with ``pause_of_scope``, or everything if that is paused."""
    return Scope(
        name=queue.scope_name or queue.scope,
        paused_at=queue.scope_paused_at,
        paused_by=queue.scope_paused_by or "",
        paused_reason=queue.scope_paused_reason or "",
    )


def full_name(scope, queue) -> str:
    return f"{visible(scope)}/{visible(queue)}{_unless_known(scope)}"


def _unless_known(scope):
    return "" if scope in by_scope() else " (scope unknown to this code)"


def when(moment) -> str:
    """Return a time to the second, which Django's own format leaves out."""
    return NOTHING if moment is None else local(moment)


def first_line(text) -> str:
    lines = text.splitlines()
    line = visible(lines[0]) if lines else ""
    return line if len(line) <= 120 else f"{line[:119]}…"


def running(queue, job, node) -> str:
    """Return where the current job of a held queue runs, and since when; ``node`` is None when it is gone."""
    # Reported with the node's heartbeats: not there for a job that has just begun.
    workers = [worker["pid"] for worker in node.workers if queue.current_job in worker["jobs"]] if node else []
    where = f"{visible(node) if node else 'a node that is gone'}{''.join(f', worker {pid}' for pid in workers)}"
    stop = ", asked to stop" if queue.stop_requested else ""
    is_claimed = node and not workers and queue.may_not_have_begun(timezone.now())
    claimed = ", claimed, not begun or only just" if is_claimed else ""
    reported = _reported(job, queue)
    return f"attempt {queue.attempt} on {where} since {when(queue.held_since)}{claimed}{stop}{reported}"


def outside(queue, job) -> str:
    """Return for what a job waits whose attempt goes on elsewhere."""
    return f"{status.outside_text(when(job.attempted_at), when(job.next_attempt_at))}{_reported(job, queue)}"


def _reported(job, queue):
    progress = status.progress_of(job, queue)
    return f"; {visible(status.progress_text(progress))} at {when(progress['at'])}" if progress else ""


def words(verb) -> str:
    """Return a verb as text."""
    return verb.replace("_", " ").capitalize()


def event_shown(event) -> dict[str, Any]:
    """Return a JobEvent as texts."""
    return {
        "at": when(event.at),
        "verb": visible(words(event.verb)),
        "by": visible(event.by),
        "reason": visible(event.reason),
        "before": _change(event.before),
        "after": _change(event.after),
    }


def _change(values):
    return ", ".join(f"{name}: {visible(value)}" for name, value in values.items()) if isinstance(values, dict) else ""


def paused(pause) -> str:
    """Return since when, by which operator and why a queue or scope is paused; an empty text if it is not."""
    if pause is None or pause.paused_at is None:
        return ""
    by = f" by {visible(pause.paused_by)}" if pause.paused_by else ""
    reason = f": {visible(pause.paused_reason)}" if pause.paused_reason else ""
    return f"since {local(pause.paused_at)}{by}{reason}"
