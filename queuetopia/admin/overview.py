"""The overview: how everything does now, on one page that costs little and renews itself.

What is shown is the same for everybody who may see it, so it is read once in some seconds for all of them, and kept in
Django's cache. Whatever could be many is bounded, and the page says so.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from hashlib import sha256
from typing import Any

from django.contrib import admin, messages
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db.models import Count, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce, Substr
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from .. import statistics, status
from ..backends import backend_for
from ..declaration import by_scope
from ..models import Job, Queue, Scope
from ..status import span, visible
from ..verbs import on_job, on_queue, serving, tried
from .base import MOST_AT_ONCE, ReadOnlyAdmin, paused
from .charts import Line, chart
from .lists import address, default_database, link_to, list_address

logger = logging.getLogger(__name__)

KEPT = 5  # seconds that what was read is shown to others
EVERY = 10  # seconds between two looks of an open page
MOST_COUNTED = 10_000  # jobs counted
MOST_GROUPED = 2_000  # blocked queues whose errors are read
MOST_GROUPS = 20
MOST_WORKERS = 50  # workers with a job shown of one node
EXAMPLES = 3
CHARTED = timedelta(hours=3)


@admin.register(Scope)
class ScopeAdmin(ReadOnlyAdmin):
    """One page about all scopes: totals, nodes, and what blocks queues, by error."""

    verbs = {
        "pause": "start nothing new in the whole scope; what runs finishes",
        "resume": "serve the whole scope again, at once",
    }
    verbs_of_one = ("pause", "resume")

    class Media:
        js = ["queuetopia/overview.js"]

    def has_delete_permission(self, request, obj=None):
        return False

    def has_pause_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.pause_scope")

    def has_resume_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.resume_scope")

    def has_retry_group_permission(self, request, obj=None):
        return request.user.has_perm("queuetopia.retry_job")

    # Scopes: their names are their ids, for most have no row

    def _chosen(self, rows, object_ids):
        found = []
        for name in object_ids:
            if name in by_scope():
                alias = by_scope()[name].database()
                row = rows.using(alias).filter(name=name).first() or Scope(name=name)
                row._state.db = alias
                found.append(row)
        return found

    def look_at(self, rows):
        for row in rows:
            row.state_seen = "paused" if row.paused_at else "served"

    def act(self, verb, row, *, by, reason, **more):
        forget(row._state.db)
        return on_queue(verb, serving(row.name, row._state.db, "The queues"), None, by=by, reason=reason)

    def applies(self, verb, row):
        return verb != "resume" or row.paused_at is not None

    def _named(self, number):
        return "scope" if number == 1 else "scopes"

    def change_view(self, request, object_id, form_url="", extra_context=None):
        if not self.has_view_permission(request):
            raise PermissionDenied
        return self._back(request)

    def history_view(self, request, object_id, extra_context=None):
        return self.change_view(request, object_id)

    def _back(self, request, row=None):
        alias = row._state.db if row is not None else default_database()
        return HttpResponseRedirect(self._address(alias))

    def _address(self, alias, view="changelist"):
        chosen = "" if alias == default_database() else f"?{urlencode({'database': alias})}"
        return f"{list_address(self.admin_site, Scope, view)}{chosen}"

    # The page

    def get_urls(self):
        view = self.admin_site.admin_view
        return [
            path("live/", view(self.live_view), name="queuetopia_scope_live"),
            path("retry_group/", view(self.retry_group_view), name="queuetopia_scope_retry_group"),
            *super().get_urls(),
        ]

    def changelist_view(self, request, extra_context=None):
        return self._shown(request, "admin/queuetopia/overview.html")

    def live_view(self, request):
        """Show what changes, for the page to put in place of what it has."""
        return self._shown(request, "admin/queuetopia/overview_live.html")

    def _shown(self, request, template):
        if not self.has_view_permission(request):
            raise PermissionDenied
        alias = self._database(request)
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request),
            "title": _("Overview"),
            "opts": self.opts,
            "media": self.media,
            "live_address": self._address(alias, "live"),
            "every": EVERY,
            "databases": [(name, self._address(name), name == alias) for name in status.databases()],
            "sight": self._sight(request, alias),
        }
        return TemplateResponse(request, template, context)

    def _database(self, request):
        alias = request.GET.get("database")
        return alias if alias in status.databases() else default_database()

    def _sight(self, request, alias):
        """Return what was read for everybody, with the links that this person may follow."""
        sight = kept(alias)
        may = {verb: self.may(request, verb) for verb in ("pause", "resume", "retry_group")}
        queues = list_address_or_none(self.admin_site, Queue)
        database = {} if alias == default_database() else {"database": alias}
        for scope in sight["scopes"]:
            row = Scope(name=scope["name"])
            verb = "resume" if scope["paused"] else "pause"
            scope["verb"] = (verb, address(self.admin_site, row, verb)) if scope["known"] and may[verb] else None
            scope["address"] = queues and f"{queues}?{urlencode({**database, 'scope': scope['name']})}"
        for group in sight["groups"]:
            filters = urlencode({**database, "group": group["id"]})
            url = list_address(self.admin_site, Scope, "retry_group")
            group["retry_address"] = f"{url}?{filters}" if may["retry_group"] else None
            group["examples"] = [
                link_to(self.admin_site, _queue(alias, queue_id), visible(name)) for queue_id, name in group["examples"]
            ]
        for node in sight["nodes"]:
            for worker in node["workers"]:
                for job in worker["jobs"]:
                    row = _job(alias, job["job"])
                    job["link"] = link_to(self.admin_site, row, f"{job['job']} {visible(job['action'])}")
        sight["blocked_address"] = queues and f"{queues}?{urlencode({**database, 'state': 'blocked'})}"
        return sight

    # Retry all heads of a group

    def retry_group_view(self, request):
        """Show whose heads would be retried; a POST that says ``confirmed`` does it, in the order of the jobs."""
        if not self.may(request, "retry_group"):
            raise PermissionDenied
        alias, group_id = self._database(request), request.GET.get("group", "")
        blocked, _is_all = blocked_queues(alias)
        group = {group.id: group for group in grouped(blocked)}.get(group_id)
        if group is None:
            self.message_user(request, "No queue is blocked by that error any more.", messages.WARNING)
            return HttpResponseRedirect(self._address(alias))
        heads = self._heads(alias, group)
        if "confirmed" in request.POST:
            self._retry_heads(request, alias, heads, request.POST.get("reason", "").strip())
            forget(alias)
            return HttpResponseRedirect(self._address(alias))
        request.current_app = self.admin_site.name
        more = group.number - len(heads)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Retry what blocks {len(heads)} {'queue' if len(heads) == 1 else 'queues'}",
            "opts": self.opts,
            "media": self.media,
            "verb": "Retry",
            "does": f"make the next attempt now of the jobs that failed with: {visible(group.text)}",
            "note": f"{more} more are due already, or too many at once: look again afterwards." if more else "",
            "rows": [
                (head.pk, address_or_none(self.admin_site, head), visible(head), str(status.job_state(head, None)))
                for head in heads
            ],
            "asks_for_reason": True,
            "action": request.get_full_path(),
            "back": self._address(alias),
            "action_checkbox_name": "job",
        }
        return TemplateResponse(request, "admin/queuetopia/confirm_verb.html", context)

    def _heads(self, alias, group):
        """Return the jobs of the group that wait for a person or their time, first in order first."""
        now = backend_for(alias).now()
        jobs = Job.objects.using(alias).unfinished().filter(pk__in=group.jobs).defer("params", "errors", "result")
        waits = Q(state=Job.State.HALTED) | Q(next_attempt_at__gt=now)
        return list(jobs.filter(waits, attempted_at__isnull=False).in_order()[:MOST_AT_ONCE])

    def _retry_heads(self, request, alias, heads, reason):
        results = [tried(partial(self._retry_and_log, request, head, reason)) for head in heads]
        refused = [result["message"] for result in results if not result["ok"]]
        for text in refused[:10]:
            self.message_user(request, visible(text), messages.ERROR)
        level = messages.WARNING if refused else messages.SUCCESS
        text = f"Retried: {len(heads) - len(refused)}; refused: {len(refused)}."
        self.message_user(request, text, level)

    def _retry_and_log(self, request, head, reason):
        def act(by):
            queuetopia = serving(head.scope, head._state.db, f"Job {head.pk}")
            return on_job("retry", queuetopia, head.pk, by=by, reason=reason)

        return self.logged(request, "retry", head, reason, act)


def kept(alias) -> dict[str, Any]:
    """Return what ``look`` returned at most KEPT seconds ago."""
    try:
        sight: Any = cache.get_or_set(_key(alias), partial(look, alias), KEPT)
    except Exception as exc:  # the page is for bad days: a cache that is down must not take it along
        logger.warning("cache failed alias=%s error=%r", alias, str(exc))
        return look(alias)
    return sight


def forget(alias) -> None:
    """Let the next page look anew, because somebody has decided something."""
    try:
        cache.delete(_key(alias))
    except Exception as exc:
        logger.warning("cache failed alias=%s error=%r", alias, str(exc))


def _key(alias):
    return f"queuetopia:overview:{alias}"


def list_address_or_none(site, model):
    return list_address(site, model) if site.is_registered(model) else None


def address_or_none(site, row):
    return address(site, row) if site.is_registered(type(row)) else ""


def _queue(alias, queue_id):
    return _of(alias, Queue(pk=queue_id))


def _job(alias, job_id):
    return _of(alias, Job(pk=job_id))


def _of(alias, row):
    row._state.db = alias
    return row


# What is read


def look(alias: str) -> dict[str, Any]:
    """Return how the scopes of a database do: texts and numbers, the same for whoever may see them."""
    nodes, now = status.node_rows(alias)
    blocked, is_all = blocked_queues(alias)
    groups = grouped(blocked)
    scopes = _scopes(alias)
    return {
        "at": now,
        "charts": _charts(alias, [scope["name"] for scope in scopes], now),
        "totals": _totals(alias, scopes, now),
        "scopes": scopes,
        "nodes": [_node_shown(node) for node in status.nodes_of(alias, nodes, now)],
        "groups": [
            {
                "id": group.id,
                "text": visible(group.text),
                "number": group.number,
                "scopes": ", ".join(sorted(map(visible, group.scopes))),
                "since": span((now - group.since).total_seconds()) if group.since else "",
                "examples": group.examples,
            }
            for group in groups[:MOST_GROUPS]
        ],
        "more_groups": max(0, len(groups) - MOST_GROUPS),
        "grouped": None if is_all else len(blocked),
    }


def _scopes(alias):
    """Return the numbers of queues of each scope that this code knows here, and of those that have a row."""
    blocked = Q(current_job__isnull=False, held_by=None)
    counts = (
        Queue.objects.using(alias)
        .order_by()
        # An expression: with the plain column two databases go through the index of names, one row after the other.
        .values(of=Coalesce("scope", Value("")))
        .annotate(
            running=Count("id", filter=Q(held_by__isnull=False)),
            halted=Count("id", filter=blocked & Q(due_at=None)),
            backing_off=Count("id", filter=blocked & Q(due_at__isnull=False)),
            paused_queues=Count("id", filter=Q(paused_at__isnull=False)),
            queues=Count("id"),
        )
    )
    found = {row["of"]: row for row in counts}
    pauses = {scope.name: paused(scope) for scope in Scope.objects.using(alias).filter(paused_at__isnull=False)}
    known = {scope for scope, queuetopia in by_scope().items() if queuetopia.database() == alias}
    nothing = dict.fromkeys(("running", "halted", "backing_off", "paused_queues", "queues"), 0)
    return [
        {
            **found.get(name, nothing),
            "name": name,
            "shown": visible(name),
            "known": name in known,
            "paused": pauses.get(name, ""),
        }
        for name in sorted(known | set(found))
    ]


def _totals(alias, scopes, now):
    unfinished = Job.objects.using(alias).unfinished().order_by()
    number = unfinished[: MOST_COUNTED + 1].count()
    names = ("running", "halted", "backing_off", "paused_queues", "queues")
    return {
        "jobs": f"more than {MOST_COUNTED:,}" if number > MOST_COUNTED else f"{number:,}",
        **{name: sum(scope[name] for scope in scopes) for name in names},
    }


def _charts(alias, scopes, now):
    """Return what was done lately, how often it failed, and how long jobs waited and blocked, as charts."""
    rows = statistics.of_scopes(alias, scopes, CHARTED, now)
    moments = [row["at"] for row in rows]

    def counts(name):
        return [row[name] for row in rows]

    def seconds(name, rank):
        return [row[name] and row[name][rank] for row in rows]

    per = _("in five minutes")
    return [
        chart(
            _("Jobs created and done"),
            moments,
            [Line(_("done"), counts("done")), Line(_("created"), counts("created"), "second")],
            per,
        ),
        chart(
            _("Failures"),
            moments,
            [Line(_("failed attempts"), counts("failed")), Line(_("halted jobs"), counts("halted"), "second")],
            per,
        ),
        chart(
            _("Wait before the first attempt"),
            moments,
            [
                Line(_("half of them, up to"), seconds("wait", "p50")),
                Line(_("99 %, up to"), seconds("wait", "p99"), "second"),
            ],
            _("seconds"),
        ),
        chart(
            _("Time that queues were blocked"),
            moments,
            [
                Line(_("half of them, up to"), seconds("blocked", "p50")),
                Line(_("longest"), seconds("blocked", "max"), "second"),
            ],
            _("seconds"),
        ),
    ]


def _node_shown(node):
    """Return a node with at most some of its workers, busy ones first, as texts."""
    busy = [worker for worker in node["workers"] if worker["jobs"]]
    return {
        "node": visible(node["node"]),
        "alive": node["alive"],
        "fenced": node["fenced_at"] is not None,
        "age": span(node["age"]),
        "scopes": ", ".join(map(visible, node["scopes"])),
        "held": node["held"],
        "number": sum(worker["pid"] is not None for worker in node["workers"]),
        "busy": sum(worker["pid"] is not None for worker in busy),
        "more": max(0, len(busy) - MOST_WORKERS),
        "workers": [
            {
                "pid": worker["pid"],
                "jobs": [
                    {
                        **{name: job[name] for name in ("job", "action", "attempt")},
                        "queue": visible(f"{job['scope']}/{job['queue']}"),
                        "for": span((node["at"] - job["since"]).total_seconds()),
                    }
                    for job in worker["jobs"]
                ],
            }
            for worker in busy[:MOST_WORKERS]
        ],
    }


# Errors by what they have in common


def blocked_queues(alias: str) -> tuple[list[dict[str, Any]], bool]:
    """Return up to MOST_GROUPED blocked queues with their heads' errors, and whether these are all."""
    heads = Job.objects.using(alias).filter(pk=OuterRef("current_job"))
    rows = Queue.objects.using(alias).blocked().values("id", "scope", "name", "current_job").order_by()
    rows = rows.annotate(
        error=Subquery(heads.annotate(first=Substr("error", 1, 300)).values("first")),
        since=Subquery(heads.values("failed_at")),
    )
    found = list(rows[: MOST_GROUPED + 1])
    return found[:MOST_GROUPED], len(found) <= MOST_GROUPED


@dataclass
class Group:
    """Blocked queues whose heads failed with the same error, but for numbers and ids."""

    text: str
    number: int = 0
    scopes: set[str] = field(default_factory=set)
    jobs: list[int] = field(default_factory=list)
    examples: list[tuple[int, str]] = field(default_factory=list)
    since: Any = None

    @property
    def id(self):
        return sha256(self.text.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def add(self, queue):
        self.number += 1
        self.scopes.add(queue["scope"])
        self.jobs.append(queue["current_job"])
        if len(self.examples) < EXAMPLES:
            self.examples.append((queue["id"], f"{queue['scope']}/{queue['name']}"))
        if queue["since"] is not None and (self.since is None or queue["since"] < self.since):
            self.since = queue["since"]


def grouped(blocked: Iterable[dict[str, Any]]) -> list[Group]:
    """Return blocked queues by their errors, the most frequent one first."""
    groups: dict[str, Group] = {}
    for queue in blocked:
        text = fingerprint(queue["error"] or "")
        groups.setdefault(text, Group(text)).add(queue)
    return sorted(groups.values(), key=lambda group: (-group.number, group.text))


_CHANGING = re.compile(
    r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"  # UUIDs
    r"|0x[0-9a-fA-F]+"
    r"|\b(?=[a-fA-F]*\d)[0-9a-fA-F]{8,}\b"  # hashes and such
    r"|[^\s@'\"<>]+@[^\s@'\"<>]+"  # addresses
    r"|\d+(?:[.,:]\d+)*"
)


def fingerprint(error: str) -> str:
    """Return the first line of an error with a # for each part that differs from job to job."""
    line = (error.splitlines() or [""])[0].strip()
    return _CHANGING.sub("#", line)[:200] or "no error told"
