"""The overview: how everything does now, on one page that costs little and renews itself.

All viewers get the same figures, so they are read once in some seconds for all, and kept in Django's cache. Whatever
could be many is bounded, and the page says so.
"""

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from hashlib import sha256
from itertools import islice
from typing import Any

from django.contrib import admin, messages
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import Error, connections
from django.db.models.functions import Substr
from django.http import HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import path
from django.utils import timezone
from django.utils.crypto import salted_hmac
from django.utils.http import urlencode
from django.utils.translation import gettext_lazy as _

from .. import jobs as decisions
from ..backends import backend_for
from ..models import Job, Queue, Scope
from ..monitoring import health, statistics, status
from ..monitoring.status import span
from ..registry import by_scope
from ..text import brief, visible
from ..times import local_time
from ..verbs import on_everything, on_queue, serving
from .base import MOST_AT_ONCE, ReadOnlyAdmin, paused, words
from .charts import Line, chart
from .lists import ScopeFilter, address, default_database, link_to, list_address

logger = logging.getLogger(__name__)

KEPT = 5  # seconds that what was read is shown to others
EVERY = 10  # seconds between two reloads of an open page
MOST_COUNTED = 10_000  # jobs counted
MOST_WRONG = 20  # lines of what is wrong
MOST_GROUPS = 20
MOST_WORKERS = 50  # workers with a job shown of one node
EXAMPLES = 3
CHARTED = timedelta(hours=3)
EVERYWHERE = {
    "pause": "start nothing new in any scope of this database, those to come included; what runs finishes",
    "resume": "serve all scopes again, at once; scopes and queues that are paused themselves stay so",
}
STATES = {"halted": "halted", "blocked": "blocked", "late": "ready", "problem": "problem", "paused": "paused"}


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
        for object_id in object_ids:
            alias, _colon, name = object_id.rpartition(":")
            if object_id in by_scope():
                alias, name = by_scope()[object_id].database(), object_id
            if name in by_scope() or (name == Scope.EVERYTHING and alias in status.databases()):
                row = rows.using(alias).filter(name=name).first() or Scope(name=name)
                row._state.db = alias
                found.append(row)
        return found

    def load_details(self, rows):
        for row in rows:
            row.state_seen = "paused" if row.paused_at else "served"

    def act(self, verb, row, *, by, reason, **more):
        forget(row._state.db)
        if row.name == Scope.EVERYTHING:
            return on_everything(verb, row._state.db, by=by, reason=reason)
        return on_queue(verb, serving(row.name, row._state.db, "The queues"), None, by=by, reason=reason)

    def applies(self, verb, row):
        return verb != "resume" or any(at is not None for at in (row.paused_at, row.snoozed_until, row.ramp))

    def _named(self, number):
        return "scope" if number == 1 else "scopes"

    def _title(self, verb, rows):
        return f"{words(verb)} everything" if rows[0].name == Scope.EVERYTHING else super()._title(verb, rows)

    def _does(self, verb, rows):
        return EVERYWHERE[verb] if rows[0].name == Scope.EVERYTHING else super()._does(verb, rows)

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
            "overview": self._overview(request, alias),
        }
        return TemplateResponse(request, template, context)

    def _database(self, request):
        alias = request.GET.get("database")
        return alias if alias in status.databases() else default_database()

    def _overview(self, request, alias):
        """Return what was read for all viewers, with the links that this one may follow."""
        overview = kept(alias)
        overview["as_of"] = local_time(overview["at"])  # in the viewer's time zone
        may = {verb: self.may(request, verb) for verb in ("pause", "resume", "retry_group")}
        queues, jobs = (list_address_or_none(self.admin_site, model) for model in (Queue, Job))
        database = {} if alias == default_database() else {"database": alias}
        for line in overview["wrong"]["lines"]:
            line["address"] = self._place(line, database, queues, jobs)
        verb = "resume" if overview.get("all_paused") else "pause"
        if "totals" in overview and may[verb]:
            overview["verb_of_all"] = (verb, address(self.admin_site, _of(alias, Scope(name=Scope.EVERYTHING)), verb))
        for scope in overview["scopes"]:
            row = Scope(name=scope["name"])
            verb = "resume" if scope["paused"] or scope["snoozed_until"] or scope["breaker"] else "pause"
            scope["verb"] = (verb, address(self.admin_site, row, verb)) if scope["known"] and may[verb] else None
            scope["address"] = queues and f"{queues}?{urlencode({**database, 'scope': scope['name']})}"
        for group in overview["groups"]:
            filters = urlencode({**database, "group": group["id"]})
            url = list_address(self.admin_site, Scope, "retry_group")
            group["retry_address"] = f"{url}?{filters}" if may["retry_group"] else None
            group["examples"] = [
                (
                    queues and f"{queues}?{urlencode({**database, 'scope': scope, 'q': queue})}",
                    visible(f"{scope}/{queue}"),
                )
                for scope, queue in group["examples"]
            ]
        for node in overview["nodes"]:
            for worker in node["workers"]:
                for job in worker["jobs"]:
                    row = _job(alias, job["job"])
                    job["link"] = link_to(self.admin_site, row, f"{job['job']} {visible(job['action'])}")
        overview["blocked_address"] = queues and f"{queues}?{urlencode({**database, 'state': 'blocked'})}"
        return overview

    def _place(self, line, database, queues, jobs):
        """Return the page that shows more about what is wrong."""
        scope = {"scope": line["scope"]} if line["scope"] in by_scope() else {"scope": ScopeFilter.UNKNOWN}
        if line["problem"] in STATES and queues:
            return f"{queues}?{urlencode({**database, **scope, 'state': STATES[line['problem']]})}"
        if line["scope"] and jobs:
            return f"{jobs}?{urlencode({**database, **scope, 'state': 'unfinished'})}"
        return "#nodes-heading"

    # Retry all heads of a group

    def retry_group_view(self, request):
        """Show whose heads would be retried; a POST that says ``confirmed`` does it, in the order of the jobs."""
        if not self.may(request, "retry_group"):
            raise PermissionDenied
        alias, group_id = self._database(request), request.GET.get("group", "")
        errors = health.read(alias, [], in_depth=False).errors
        group = {group.id: group for group in grouped(errors)}.get(group_id)
        if group is None:
            self.message_user(request, "No queue is blocked by that error any more.", messages.WARNING)
            return HttpResponseRedirect(self._address(alias))
        heads = self._heads(alias, group)
        if "confirmed" in request.POST:
            reason, gently = request.POST.get("reason", "").strip(), "gently" in request.POST
            self._retry_heads(request, alias, heads, reason, gently)
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
            "note": f"{more} more are due already, or too many at once: reload afterwards." if more else "",
            "rows": [
                (head.pk, address_or_none(self.admin_site, head), visible(head), str(status.job_state(head, None)))
                for head in heads
            ],
            "asks_for_reason": True,
            "may_be_gentle": any(_has_breaker(scope) for scope in group.scopes),
            "action": request.get_full_path(),
            "back": self._address(alias),
            "action_checkbox_name": "job",
        }
        return TemplateResponse(request, "admin/queuetopia/confirm_verb.html", context)

    def _heads(self, alias, group):
        """Return the jobs of the group that wait for an operator or their time, first in order first."""
        now = backend_for(alias).now()
        current = Queue.objects.using(alias).blocked().values("current_job")
        heads = Job.objects.using(alias).unfinished().filter(pk__in=current, scope__in=group.scopes)
        jobs = heads.kept_from_running(now).in_order()
        errors = jobs.values_list("pk", Substr("error", 1, health.ERROR_READ)).iterator()
        ids = islice((pk for pk, error in errors if fingerprint(error) == group.text), MOST_AT_ONCE)
        return list(jobs.filter(pk__in=list(ids)).defer("params", "errors", "result"))

    def _retry_heads(self, request, alias, heads, reason, gently):
        results: dict[str, dict[str, Any]] = {}
        for scope in sorted({head.scope for head in heads}):
            if gently and _has_breaker(scope):
                decisions.begin_ramp(by_scope()[scope])
            pairs = [(head, head) for head in heads if head.scope == scope]
            results |= self.decide_scope(request, "retry", alias, scope, pairs, reason)
        refused = dict.fromkeys(result["message"] for result in results.values() if not result["ok"])
        for text in [*refused][:10]:
            self.message_user(request, visible(text), messages.ERROR)
        done = sum(result["ok"] for result in results.values())
        level = messages.SUCCESS if done == len(heads) else messages.WARNING
        self.message_user(request, f"Retried: {done}; refused: {len(heads) - done}.", level)


def _has_breaker(scope) -> bool:
    return scope in by_scope() and by_scope()[scope].option("breaker") is not None


def kept(alias) -> dict[str, Any]:
    """Return what ``read`` returned at most KEPT seconds ago."""
    try:
        overview: Any = cache.get_or_set(_key(alias), partial(read, alias), KEPT)
    except Exception as exc:  # the page is for bad days: a cache that is down must not take it along
        logger.warning("cache failed alias=%s error=%r", alias, brief(exc))
        return read(alias)
    return overview


def forget(alias) -> None:
    """Discard the cached page after a decision."""
    try:
        cache.delete(_key(alias))
    except Exception as exc:
        logger.warning("cache failed alias=%s error=%r", alias, brief(exc))


def _key(alias):
    """Return a key that no other site has which shares the cache."""
    settings = connections[alias].settings_dict
    # A file's name may be relative to the site's folder.
    database = [os.path.abspath(settings["NAME"]), *(settings[name] for name in ("HOST", "PORT", "USER", "OPTIONS"))]
    about = repr([alias, *database, Job._meta.db_table, sorted(by_scope())])
    return f"queuetopia:overview:{salted_hmac('queuetopia.overview', about, algorithm='sha256').hexdigest()}"


def list_address_or_none(site, model):
    return list_address(site, model) if site.is_registered(model) else None


def address_or_none(site, row):
    return address(site, row) if site.is_registered(type(row)) else ""


def _job(alias, job_id):
    return _of(alias, Job(pk=job_id))


def _of(alias, row):
    row._state.db = alias
    return row


# What is read


def read(alias: str) -> dict[str, Any]:
    """Return the state of the scopes of a database: texts and numbers, the same for each user."""
    known = sorted(scope for scope, queuetopia in by_scope().items() if queuetopia.database() == alias)
    try:
        return _read(alias, known)
    except Error as exc:  # the page itself may come from another database
        lines = [health.unusable(alias, exc)]
        return {"at": timezone.now(), "wrong": _wrong(lines), "scopes": [], "nodes": [], "groups": [], "charts": []}


def _read(alias, known):
    facts = health.read(alias, known, in_depth=False)
    lines = health.judge(facts, known, is_all=bool(set(facts.counts) - set(known)))
    groups = grouped(facts.errors)
    scopes = [_scope_shown(facts, name, known) for name in sorted({*known, *facts.counts})]
    totals = _totals(alias, scopes)
    return {
        "at": facts.now,
        "wrong": _wrong(lines),
        "charts": _charts(alias, [scope["name"] for scope in scopes], facts.now),
        "totals": totals,
        "all_paused": paused(facts.pauses.get(Scope.EVERYTHING)),
        "scopes": scopes,
        "nodes": [_node_shown(node) for node in status.nodes_of(alias, facts.nodes, facts.now)],
        "groups": [
            {
                "id": group.id,
                "text": visible(group.text),
                "number": group.number,
                "scopes": ", ".join(sorted(map(visible, group.scopes))),
                "since": span((facts.now - group.since).total_seconds()) if group.since else "",
                "examples": group.examples,
            }
            for group in groups[:MOST_GROUPS]
        ],
        "more_groups": max(0, len(groups) - MOST_GROUPS),
        "not_grouped": max(0, totals["halted"] + totals["backing_off"] - sum(group.number for group in groups)),
    }


def _wrong(lines):
    """Return what is wrong, in as many lines as a page can show."""
    shown = [{"problem": line["problem"], "scope": line["scope"], "text": visible(line["message"])} for line in lines]
    return {"lines": shown[:MOST_WRONG], "number": len(shown), "more": max(0, len(shown) - MOST_WRONG)}


def _scope_shown(facts, name, known):
    nothing = dict.fromkeys(("running", "outside", "halted", "backing_off", "paused_queues", "queues"), 0)
    return {
        **nothing,
        **facts.counts.get(name, {}),
        "name": name,
        "shown": visible(name),
        "known": name in known,
        "limits": "; ".join(status.limits_in_words(name)),
        "snoozed_until": local_time(facts.snoozes[name]) if name in facts.snoozes else "",
        "breaker": visible(facts.breakers[name]["sentence"]) if name in facts.breakers else "",
        "paused": paused(facts.pauses.get(name)),
    }


def _totals(alias, scopes):
    unfinished = Job.objects.using(alias).unfinished().order_by()
    number = unfinished[: MOST_COUNTED + 1].count()
    names = ("running", "outside", "halted", "backing_off", "paused_queues", "queues")
    return {
        "jobs": f"more than {MOST_COUNTED:,}" if number > MOST_COUNTED else f"{number:,}",
        **{name: sum(scope[name] for scope in scopes) for name in names},
        "paused_scopes": sum(bool(scope["paused"]) for scope in scopes),
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
    number = sum(worker["pid"] is not None for worker in node["workers"])
    # Jobs that began since the last heartbeat are listed under no worker.
    occupied = sum(1 if worker["pid"] is not None else len(worker["jobs"]) for worker in busy)
    return {
        "node": visible(node["node"]),
        "alive": node["alive"],
        "fenced": node["fenced_at"] is not None,
        "age": span(node["age"]),
        "scopes": ", ".join(map(visible, node["scopes"])),
        "held": node["held"],
        "number": number,
        "busy": min(occupied, number),
        "more": max(0, len(busy) - MOST_WORKERS),
        "workers": [
            {
                "pid": worker["pid"],
                "memory": worker["memory"],
                "jobs": [
                    {
                        **{name: job[name] for name in ("job", "action", "attempt")},
                        "queue": visible(f"{job['scope']}/{job['queue']}"),
                        "for": span((node["at"] - job["since"]).total_seconds()),
                        "progress": visible(status.progress_text(job["progress"])),
                    }
                    for job in worker["jobs"]
                ],
            }
            for worker in busy[:MOST_WORKERS]
        ],
    }


# Errors by what they have in common


@dataclass
class Group:
    """Blocked queues whose heads failed with the same error, except numbers and ids."""

    text: str
    number: int = 0
    scopes: set[str] = field(default_factory=set)
    examples: list[tuple[str, str]] = field(default_factory=list)  # scope and queue
    since: Any = None

    @property
    def id(self):
        return sha256(self.text.encode("utf-8", "backslashreplace")).hexdigest()[:16]

    def add(self, row):
        """Add the queues of one scope whose heads have the very same error."""
        self.number += row["number"]
        self.scopes.add(row["scope"])
        for queue in dict.fromkeys((row["one"], row["other"])):
            if len(self.examples) < EXAMPLES:
                self.examples.append((row["scope"], queue))
        if row["since"] is not None and (self.since is None or row["since"] < self.since):
            self.since = row["since"]


def grouped(errors: Iterable[dict[str, Any]]) -> list[Group]:
    """Return the errors that block queues, as ``health.read`` read them, the most frequent one first."""
    groups: dict[str, Group] = {}
    for row in errors:
        text = fingerprint(row["text"] or "")
        groups.setdefault(text, Group(text)).add(row)
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
    return _CHANGING.sub("#", line)[:200] or "no error recorded"
