"""The pages of jobs."""

import json
from datetime import datetime

from django import forms
from django.contrib import admin
from django.db.models import Q
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from ..attempts import HOOK
from ..backends.values import attempts_of, history
from ..decisions import DECISIONS, decisions_on
from ..exceptions import Refused
from ..jobs import delete_ended
from ..models import Job, JobEvent, Queue
from ..monitoring.explain import Seen, explain_queue
from ..monitoring.search import matching
from ..monitoring.status import JobState, job_state, most_attempts, span
from ..moving import name_problem
from ..params import ParamsEncoder, loads
from ..registry import by_scope
from ..text import MASK, covered, mask, masked, secrets_of, visible, visible_json, visible_lines
from ..verbs import name_of, on_job, serving, unmasked
from .base import (
    MOST_EVENTS,
    NOTHING,
    ReadOnlyAdmin,
    event_shown,
    first_line,
    full_name,
    outside,
    pause_of_scope,
    running,
    scope_of,
    when,
)
from .lists import (
    MOST_LISTED,
    DatabaseFilter,
    JobStateFilter,
    QueueFilter,
    ScopeFilter,
    default_database,
    link_to,
    link_to_jobs,
)

LONGEST_JSON = 50_000  # characters of params or a result shown
ERROR_TEXTS = ("hook", "attempt", "by", "duration", "type", "message", "traceback")


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin):
    """Jobs, newest first: what each does, what went wrong, and which verbs apply."""

    verbs = {
        **{verb: DECISIONS[verb].help for verb in decisions_on("job")},
        "delete": "delete jobs that have ended, and their events; no unfinished one",
    }
    verbs_of_one = ("edit",)
    verbs_of_many = {"retry": "retry", "skip": "skip", "move": "move"}
    order_of_verbs = ("scheduled_at", "id")
    heavy = ("params", "errors", "result")
    actions = [
        "retry", "skip", "cancel", "mark_done", "move_to_end", "move", "reschedule", "run_now", "delete_selected",
    ]  # fmt: skip

    list_display = [
        "number", "state_now", "queue_name", "action_name", "details", "attempts_made", "scheduled", "age",
        "next_attempt",
    ]  # fmt: skip
    list_display_links = ["number"]
    list_filter = [DatabaseFilter, JobStateFilter, ScopeFilter, QueueFilter]
    ordering = ["-id"]
    search_fields = ["queue"]  # makes the form appear; get_search_results says what is searched
    fieldsets = [
        (
            None,
            {
                "fields": [
                    "state_now",
                    "explained",
                    "details",
                    "place",
                    "scope_name",
                    "queue_link",
                    "action_name",
                    "key",
                ]
            },
        ),
        (
            _("Attempts"),
            {"fields": ["attempts_made", "scheduled", "last_attempt", "last_node", "next_attempt", "ended"]},
        ),
        (_("Options"), {"fields": ["option_timeout", "option_max_backoff", "option_on_exhausted"]}),
    ]

    # Who may do what

    def has_retry_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.retry_job")

    def has_skip_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.skip_job")

    def has_cancel_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.cancel_job")

    def has_mark_done_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.mark_done_job")

    def has_edit_permission(self, request, obj=None):
        # The edit page shows the params.
        return request.user.has_perm("queuetopia.edit_job") and self.has_params_permission(request, obj)

    def has_move_to_end_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.move_to_end_job")

    def has_move_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.move_job")

    def has_reschedule_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.reschedule_job")

    def has_run_now_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.run_now_job")

    def has_delete_permission(self, request, obj=None):
        return super().has_delete_permission(request, obj) and (obj is None or obj.is_ended())

    def has_params_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.view_params")

    # Verbs

    @admin.action(permissions=["retry"], description=_("Retry selected jobs"))
    def retry(self, request, queryset):
        return self.confirm_selected(request, queryset, "retry")

    @admin.action(permissions=["skip"], description=_("Skip selected jobs"))
    def skip(self, request, queryset):
        return self.confirm_selected(request, queryset, "skip")

    @admin.action(permissions=["cancel"], description=_("Cancel selected jobs"))
    def cancel(self, request, queryset):
        return self.confirm_selected(request, queryset, "cancel")

    @admin.action(permissions=["mark_done"], description=_("Mark selected jobs as done"))
    def mark_done(self, request, queryset):
        return self.confirm_selected(request, queryset, "mark_done")

    @admin.action(permissions=["move_to_end"], description=_("Move selected jobs to the end of their queues"))
    def move_to_end(self, request, queryset):
        return self.confirm_selected(request, queryset, "move_to_end")

    @admin.action(permissions=["move"], description=_("Move selected jobs to another queue"))
    def move(self, request, queryset):
        return self.confirm_selected(request, queryset, "move")

    @admin.action(permissions=["reschedule"], description=_("Give selected jobs another time"))
    def reschedule(self, request, queryset):
        return self.confirm_selected(request, queryset, "reschedule")

    @admin.action(permissions=["run_now"], description=_("Run selected jobs that are scheduled for later now"))
    def run_now(self, request, queryset):
        return self.confirm_selected(request, queryset, "run_now")

    @admin.action(permissions=["delete"], description=_("Delete selected ended jobs"))
    def delete_selected(self, request, queryset):
        return self.confirm_selected(request, queryset, "delete")

    def act(self, verb, row, *, by, reason, **more):
        if verb != "delete":
            queuetopia = serving(row.scope, row._state.db, f"Job {row.pk}")
            return on_job(verb, queuetopia, row.pk, by=by, reason=reason, **more)
        if not delete_ended(row.pk, alias=row._state.db):
            raise Refused(f"{name_of(row)} has not ended, and no unfinished job is deleted. Skip or cancel it first.")
        return {"message": f"{name_of(row)} is deleted."}

    def form_of(self, verb, row, data=None):
        if verb == "edit":
            return ParamsForm(row, data)
        form = {"move": QueueForm, "reschedule": TimeForm}.get(verb)
        return form(data) if form else None

    def applies(self, verb, row):
        blocked = (JobState.OUTSIDE, JobState.BACKING_OFF, JobState.HALTED)
        states = {
            "retry": blocked,
            "skip": blocked,
            "cancel": (JobState.WAITING, JobState.RUNNING, JobState.OUTSIDE),
            "reschedule": (JobState.WAITING,),
            **dict.fromkeys(("mark_done", "edit", "move_to_end"), (JobState.WAITING, *blocked)),
            "move": (JobState.WAITING, JobState.BACKING_OFF, JobState.HALTED),
        }
        if verb == "run_now":
            return row.state_seen == JobState.WAITING and row.scheduled_at > timezone.now()
        if verb == "edit" and row.scope not in by_scope():
            return False  # without its class, the params to mask are unknown
        return verb not in states or row.state_seen in states[verb]

    # Lists

    def get_search_results(self, request, queryset, search_term):
        return matching(queryset, search_term, in_params=self.has_params_permission(request)), False

    search_help_text = _(
        "A number, the beginning of a queue's name, or, among the newest 20,000 jobs, the beginning of an action or "
        "something in the error or the params."
    )

    def load_details(self, rows):
        """Put beside each unfinished job its queue's row (``line``) and who holds that (``node``)."""
        alias = rows[0]._state.db if rows else default_database()
        lines = _queues_of([row for row in rows if not row.is_ended()], alias)
        nodes, seen = self.holders(rows, lines.values(), alias)
        for row in rows:
            row.nodes_seen = seen
            row.line = lines.get((row.scope, row.row_name))
            row.state_seen = job_state(row, row.line)
            row.node = nodes.get(row.line.held_by) if row.state_seen is JobState.RUNNING else None

    # Columns and fields

    @admin.display(description=_("job"), ordering="id")
    def number(self, job):
        return job.pk

    @admin.display(description=_("queue"))
    def queue_name(self, job):
        return full_name(job.scope, job.queue)

    @admin.display(description=_("queue"))
    def queue_link(self, job):
        jobs = link_to_jobs(self.admin_site, job.scope, job.queue, job._state.db, _("its jobs"))
        queue = link_to(self.admin_site, job.line, visible(job.queue)) if job.line else visible(job.queue)
        return format_html("{} ({})", queue, jobs)

    @admin.display(description=_("action"))
    def action_name(self, job):
        return visible(job.action)

    @admin.display(description=_("key"))
    def key(self, job):
        """Return what its creator gave so that there is only one such job."""
        keys = {"unique": job.unique_key, "coalesce": job.coalesce_key}
        return ", ".join(f"{visible(key)} ({kind})" for kind, key in keys.items() if key is not None) or NOTHING

    @admin.display(description=_("attempts"))
    def attempts_made(self, job):
        most = most_attempts(by_scope()[job.scope], job) if job.scope in by_scope() else job.max_attempts
        return f"{job.attempts} of {most}" if most else str(job.attempts)

    @admin.display(description=_("scheduled at"))
    def scheduled(self, job):
        return when(job.scheduled_at)

    @admin.display(description=_("age"))
    def age(self, job):
        """Return for how long an unfinished job has been due."""
        seconds = (timezone.now() - job.scheduled_at).total_seconds()
        if job.is_ended():
            return NOTHING
        return span(seconds) if seconds >= 0 else f"due in {span(-seconds)}"

    @admin.display(description=_("explained"))
    def explained(self, job):
        """Return why its queue runs, waits or is blocked."""
        return NOTHING if job.is_ended() else visible(_explained(job)["sentence"])

    @admin.display(description=_("last attempt at"))
    def last_attempt(self, job):
        return when(job.attempted_at)

    @admin.display(description=_("attempted by"))
    def last_node(self, job):
        return visible(job.attempted_by) or NOTHING

    @admin.display(description=_("next attempt at"))
    def next_attempt(self, job):
        return NOTHING if job.state_seen is JobState.RUNNING else when(job.next_attempt_at)

    @admin.display(description=_("ended at"))
    def ended(self, job):
        return when(job.done_at)

    @admin.display(description=_("details"))
    def details(self, job):
        """Return where it runs, or its last error."""
        if job.state_seen is JobState.RUNNING:
            return running(job.line, job, job.node)
        if job.state_seen is JobState.OUTSIDE:
            return outside(job.line, job)
        return first_line(job.error) or NOTHING

    @admin.display(description=_("place in line"))
    def place(self, job):
        return NOTHING if job.is_ended() else _place(self.admin_site, job)

    @admin.display(description=_("timeout"))
    def option_timeout(self, job):
        return _option(job, "timeout", " s")

    @admin.display(description=_("max. backoff"))
    def option_max_backoff(self, job):
        return _option(job, "max_backoff", " s")

    @admin.display(description=_("on exhausted"))
    def option_on_exhausted(self, job):
        return _option(job, "on_exhausted", "")

    # The page's other parts

    def shown(self, request, row):
        sees_params = self.has_params_permission(request, row)
        events = JobEvent.objects.using(row._state.db).filter(job=row.pk).order_by("-id")[:MOST_EVENTS]
        return {
            "sees_params": sees_params,
            "params": _params_text(row) if sees_params else None,
            "result": _result_text(row) if sees_params else None,
            "errors": _errors(row),
            "timeline": _timeline(row, events, sees_params),
        }


def _queues_of(jobs, alias):
    """Return {(scope, queue): the queue's row}, found by the unique index."""
    names: dict[str, set[str]] = {}
    for job in jobs:
        names.setdefault(job.scope, set()).add(job.row_name)
    if not names:
        return {}
    wanted = Q.create([Q(scope=scope, name__in=found) for scope, found in names.items()], connector=Q.OR)
    lines = Queue.objects.using(alias).filter(wanted).defer("memory").annotate(**pause_of_scope(alias))
    return {(line.scope, line.name): line for line in lines}


def _explained(job):
    """Return what is known of the job's queue; read once for its page."""
    if not hasattr(job, "explanation"):
        seen = Seen(job.line, [job], job.line and scope_of(job.line), nodes=job.nodes_seen)
        job.explanation = explain_queue(job.scope, job.queue, job._state.db, seen)
    return job.explanation


def _place(site, job):
    line = Job.objects.using(job._state.db).unfinished().in_queue(job.scope, job.queue).order_by()
    head = Job(pk=_explained(job)["job"])
    head._state.db = job._state.db
    if head.pk in (None, job.pk):
        return _("It is the head of its queue.")
    before = Q(scheduled_at__lt=job.scheduled_at) | Q(scheduled_at=job.scheduled_at, pk__lt=job.pk)
    # A head that was attempted comes first, whatever its time.
    ahead = 1 + line.filter(before).exclude(pk=head.pk)[: MOST_LISTED + 1].count()
    number = f"More than {MOST_LISTED} jobs" if ahead > MOST_LISTED else f"{ahead} job{'s' if ahead > 1 else ''}"
    link = link_to(site, head, f"job {head.pk}")
    return format_html("{} ahead; the head is {}.", number, link)


def _option(job, name, unit):
    if (given := getattr(job, name)) is not None:
        return f"{visible(given)}{unit}"
    if job.scope not in by_scope():
        return NOTHING
    queuetopia = by_scope()[job.scope]
    value = queuetopia.option(name)
    return f"{getattr(value, '__name__', value)}{unit} ({queuetopia.__name__})"


def _params_text(job):
    if job.scope in by_scope():
        return as_json(masked(job.params, by_scope()[job.scope].option("sensitive_params")))
    # Only its class knows which of them are sensitive.
    names = job.params if isinstance(job.params, dict) else ["unreadable"]
    return as_json(dict.fromkeys(names, MASK))


def _result_text(job):
    if job.result is None:
        return None
    if job.scope not in by_scope():
        return MASK
    sensitive = by_scope()[job.scope].option("sensitive_params")
    result = masked(job.result, sensitive) if isinstance(job.result, dict) else job.result
    return as_json(result, secrets_of(job.params, sensitive))


def as_json(value, secrets=None):
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except RecursionError:
        return "nested too deep to be shown"
    text = mask(text, secrets)
    more = len(text) - LONGEST_JSON
    return visible_json(text) if more <= 0 else f"{visible_json(text[:LONGEST_JSON])}\n… {more} characters more"


class JSONInput(forms.Textarea):
    def __init__(self):
        super().__init__({"rows": 12, "cols": 80, "class": "vLargeTextField", "spellcheck": "false"})


class QueueForm(forms.Form):
    """To which queue jobs move."""

    to = forms.CharField(label=_("To queue"), strip=False, help_text=_("Of the same scope; its name, exactly."))

    def clean_to(self):
        if problem := name_problem(self.cleaned_data["to"]):
            raise forms.ValidationError(f"It {problem}.")
        return self.cleaned_data["to"]


class TimeForm(forms.Form):
    """When a job is due."""

    at = forms.DateTimeField(label=_("At"), help_text=_("As in 2030-01-31 08:00, later than now."))


class ParamsForm(forms.Form):
    """All params of a job as JSON text, as they are stored, sensitive ones masked."""

    about = "params"  # the column, and the field
    have_changed = _("The job's params have changed meanwhile: begin anew.")

    params = forms.CharField(
        label=_("Params"),
        widget=JSONInput,
        help_text=_("All of them, as JSON. A value that says ******** stays as it is."),
    )
    was = forms.CharField(widget=forms.HiddenInput, required=False)  # shows whether another user was faster

    def __init__(self, row, data=None):
        self.old = getattr(row, self.about)
        readable = self.old if isinstance(self.old, dict) else {}
        # Only its class knows which params are sensitive.
        is_known = row.scope in by_scope()
        self.sensitive = by_scope()[row.scope].option("sensitive_params") if is_known else tuple(readable)
        shown = covered(readable, self.sensitive)
        text = json.dumps(json.loads(json.dumps(shown, cls=ParamsEncoder)), indent=2, ensure_ascii=False)
        if data is not None:
            data = {**dict(data.items()), self.about: visible_json(data.get(self.about, ""))}
        super().__init__(data, initial={self.about: visible_json(text), "was": self._mark()})

    def _mark(self):
        # Keyed: a plain hash would let a user find a short secret by trying.
        text = repr(self.old).encode("utf-8", "backslashreplace")
        return salted_hmac(f"queuetopia.{self.about}", text, algorithm="sha256").hexdigest()

    def clean_params(self):
        return self.read()

    def read(self):
        try:
            return unmasked(loads(self.cleaned_data[self.about]), self.old, self.sensitive)
        except (ValueError, RecursionError) as exc:
            text = _("This is no JSON object of %s: %s.") % (self.about, visible(exc))
            raise forms.ValidationError(text) from exc

    def clean(self):
        if self.cleaned_data.pop("was", "") != self._mark():
            raise forms.ValidationError(self.have_changed)
        return {**self.cleaned_data, "was": self.old}


def _timeline(job, events, sees_params):
    """Return what happened to the job, oldest first, as texts."""
    happened = [(job.scheduled_at, {"what": "Due", "by": "", "details": ""})]
    happened += [_attempt_shown(entry, job) for entry in attempts_of(job.errors)]
    happened += [(event.at, _deed_shown(job, event, sees_params)) for event in events]
    happened.sort(key=lambda entry: entry[0])
    places = [at for at, _ in happened]
    if job.is_ended():  # after the verb that led to the end, though its event is written a moment later
        by = job.attempted_by if job.attempted_at == job.done_at else ""
        happened.append((job.done_at, {"what": job.state.capitalize(), "by": visible(by), "details": ""}))
        places.append(max(places[-1], job.done_at))
    hooks = [_attempt_shown(entry, job) for entry in history(job.errors) if entry.get("kind") == HOOK]
    happened += hooks
    places += [at for at, _ in hooks]
    in_order = sorted(zip(places, happened, strict=True), key=lambda placed: placed[0])
    return [{"at": when(at), **entry} for _, (at, entry) in in_order]


def _attempt_shown(entry, job):
    try:
        at = datetime.fromisoformat(entry["at"])
        at = at if timezone.is_aware(at) else timezone.make_aware(at)
        when(at)
    except (KeyError, TypeError, ValueError, OverflowError):
        at = job.scheduled_at  # what was not written by us stands at the beginning
    failed = "failed" if entry.get("counted", True) else "did not count"
    what = f"Attempt {visible(entry.get('attempt', '?'))} {failed}"
    if entry.get("kind") == HOOK:
        what = f"{visible(entry.get('hook', '?'))} failed, after attempt {visible(entry.get('attempt', '?'))}"
    return at, {
        "what": what,
        "by": visible(entry.get("by", "")),
        "details": first_line(f"{entry.get('type', '')}: {entry.get('message', '')}"),
    }


def _deed_shown(job, event, sees_params):
    shown = event_shown(event)
    details = "; ".join(text for text in (shown["reason"], _changes(job, event, sees_params)) if text)
    return {"what": shown["verb"], "by": shown["by"], "details": details}


def _changes(job, event, sees_params):
    """Return what a verb changed, in an order that does not depend on the database."""
    event = _without_params(job, event, sees_params)
    before, after = (values if isinstance(values, dict) else {} for values in (event.before, event.after))
    return ", ".join(
        f"{visible(name)}: {visible(before.get(name, NOTHING))} → {visible(after.get(name, NOTHING))}"
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _without_params(job, event, sees_params):
    """Leave out of an edit what the user may not view; what is sensitive today may not have been then."""
    for values in (event.before, event.after):
        if not isinstance(values, dict):
            continue
        if not sees_params or job.scope not in by_scope():
            values.pop("params", None)
            values.pop("changed", None)
        elif "params" in values:
            values["params"] = json.dumps(
                masked(values["params"], by_scope()[job.scope].option("sensitive_params")), ensure_ascii=False
            )
    return event


def _time(text):
    try:
        return when(datetime.fromisoformat(text))
    except (TypeError, ValueError, OverflowError):
        return visible_lines(str(text))


def _errors(job):
    """Return the attempts that went wrong, newest first, as texts."""
    entries = history(job.errors)
    if job.errors and not entries:
        entries = [{"type": "unreadable", "traceback": str(job.errors)[:LONGEST_JSON]}]
    return [
        {
            **{name: visible_lines(str(entry.get(name, ""))) for name in ERROR_TEXTS},
            "at": _time(entry.get("at")),
            "counted": entry.get("counted", True),
        }
        for entry in reversed(entries)
    ]
