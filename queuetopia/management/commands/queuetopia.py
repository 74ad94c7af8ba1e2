"""``manage.py queuetopia``: show jobs and queues, and decide about them."""

import argparse
import getpass
import io
import json
import os
import sys
import time
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError, OutputWrapper
from django.core.management.color import no_style
from django.db import Error, close_old_connections, connections

from ... import jobs
from ...backends.trouble import database_trouble
from ...channel import uptime
from ...conf import DAY
from ...decisions import DECISIONS, HEAD_START, decisions_on
from ...exceptions import Refused
from ...models import Job, Scope
from ...monitoring import health, schedules, statistics, status
from ...monitoring.follow import PAUSE, Follower, wait_for_news
from ...monitoring.status import QueueState, outside_text, progress_text, span
from ...params import loads
from ...progress import Bar, counted
from ...registry import by_scope
from ...streams import hush
from ...terminal import Screen, TerminalCommand, duration, interval, moment, short_span, table
from ...text import MASK, visible
from ...times import local
from ...verbs import known, on_everything, on_job, on_queue, on_schedule, pruned_schedules, serving, tried, unmasked

PRUNE_BATCH = 1_000
LONG = 20  # jobs from which on a decision about them has a progress bar
READING = ("status", "explain", "check", "statistics", "tail")  # the verbs that change nothing
COLUMNS = ("STATE", "QUEUE", "JOBS", "OLDEST", "JOB", "ATTEMPT", "SINCE", "NEXT", "WHY")
SCHEDULE_COLUMNS = ("SCHEDULE", "DUE", "NEXT", "LAST", "JOB", "CREATED", "MISSED", "HELD BACK", "STATE")
SCHEDULE_VERBS = {
    "pause": "create no jobs of this schedule until it is resumed",
    "resume": "create its jobs again, from its next due time on",
    "run-now": "create a job of it now, besides those of its due times",
}
FIGURES = ("created", "started", "done", "failed", "halted", "skipped", "cancelled", "wait", "run", "blocked")
QUEUE_FIGURES = ("created", "done", "failed", "skipped", "cancelled", "took", "blocked")
LONGEST_NAME, LONGEST_TEXT = 40, 100  # characters shown unless --verbosity is 2 or more


class Command(TerminalCommand):
    help = "Look at jobs and queues, and decide about them. Exit code 1 if anything was refused."
    # A failing check of something else must not keep an operator from unblocking a queue.
    requires_system_checks = []

    def add_arguments(self, parser):
        verbs = parser.add_subparsers(title="verbs", dest="verb", metavar="VERB", required=True)
        verb = _add_verb(verbs, "status", "show the nodes, what they run, and the queues, blocked ones first")
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes if none is given")
        verb.add_argument("--queues", type=int, default=20, metavar="N", help="listed per scope (20)")
        what = verb.add_mutually_exclusive_group()
        what.add_argument("--check", action="store_true", help="one line for each problem, exit code 1 if there is one")
        what.add_argument(
            "--watch", type=interval, nargs="?", const=2.0, metavar="TIME", help="show it again and again, each 2 s"
        )
        verb.add_argument(
            "--oldest", type=duration, default=health.OLDEST, metavar="TIME",
            help="with --check: for how long a due job may wait for a worker (10m)",
        )  # fmt: skip
        verb.add_argument(
            "--blocked", type=duration, default=health.BLOCKED, metavar="TIME",
            help="with --check: for how long a queue may be blocked (1h)",
        )  # fmt: skip
        verb.add_argument(
            "--paused", type=duration, default=health.PAUSED, metavar="TIME",
            help="with --check: for how long a scope or queue may be paused (1d)",
        )  # fmt: skip
        verb = _add_verb(verbs, "explain", "say why a queue runs, waits or is blocked")
        verb.add_argument("scope", metavar="SCOPE")
        verb.add_argument("queue", metavar="QUEUE")
        verb = _add_verb(verbs, "check", "check whether this code can run what waits, before a deploy")
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes, unknown ones too, if none is given")
        verb.add_argument(
            "--pending", action="store_true", required=True, help="every unfinished job: its scope, action and params"
        )
        verb = _add_verb(verbs, "statistics", "show what was done, how often it failed, and how long it took")
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes if none is given")
        verb.add_argument(
            "--since", type=duration, default=duration("24h"), metavar="TIME", help="90m, 24h, 7d … ago (24h)"
        )
        verb.add_argument("--by", choices=statistics.BY, default="action", help="what a row is about (action)")
        verb = _add_verb(verbs, "tail", "follow what happens to jobs, in any process, until Ctrl-C")
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes if none is given")
        verb.add_argument(
            "--every",
            type=interval,
            default=1.0,
            metavar="TIME",
            help="between two polls, where the database does not notify (1s)",
        )
        for name in decisions_on("job"):
            verb = _add_verb(verbs, name.replace("_", "-"), DECISIONS[name].help, decides=True)
            number = {"edit": 1, "retry": "*", "skip": "*", "move": "*"}.get(name, "+")
            verb.add_argument("job_ids", nargs=number, type=int, metavar="JOB_ID")
            if name in ("retry", "skip"):
                verb.add_argument("--all", action="store_true", help="all jobs that hold queues, instead of ids")
                verb.add_argument("--queue", metavar="QUEUE", help="with --all: of this queue")
                verb.add_argument("--error", metavar="TEXT", help="with --all: whose last error contains this text")
                verb.add_argument("--dry-run", action="store_true", help="with --all: only say how many")
            if name == "retry":
                verb.add_argument(
                    "--gently",
                    action="store_true",
                    help="with --all: 1, 2, 4, 8 … queues at a time",
                )
            if name == "move":
                verb.add_argument("--to", required=True, metavar="QUEUE", help="the queue to which they move")
                verb.add_argument("--queue", metavar="QUEUE", help="all unfinished jobs of this one, instead of ids")
            if name == "reschedule":
                when = "as in 2030-01-31T08:00 or 2030-01-31T08:00+01:00"
                verb.add_argument("--at", type=moment, required=True, metavar="TIME", help=when)
            if name == "edit":
                verb.add_argument("params", metavar="PARAMS", help=f"all of them, as JSON; {MASK} keeps a masked one")
            verb.add_argument("--scope", help="of the jobs; found by their ids if left out")
            verb.add_argument("--database", choices=tuple(connections), help="where the ids are looked up")
        for name in decisions_on("queue"):
            verb = _add_verb(verbs, name.replace("_", "-"), DECISIONS[name].help, decides=True)
            if name == "edit_memory":
                verb.add_argument("scope", metavar="SCOPE")
                verb.add_argument("queue", metavar="QUEUE")
                verb.add_argument("memory", metavar="MEMORY", help=f"all of it, as JSON; {MASK} keeps a masked value")
                continue
            if name == "prioritize":
                verb.add_argument("scope", metavar="SCOPE")
                verb.add_argument("queue", metavar="QUEUE")
                verb.add_argument(
                    "--seconds", type=duration, default=HEAD_START, metavar="TIME", help="the head start (1h)"
                )
                continue
            verb.add_argument("scope", nargs="?", metavar="SCOPE")
            verb.add_argument("queue", nargs="?", metavar="QUEUE", help="the whole scope if left out")
            verb.add_argument("--all", action="store_true", help="all scopes, those to come included, instead of SCOPE")
            verb.add_argument("--database", choices=tuple(connections), help="with --all: only this one")
        verb = _add_verb(verbs, "schedules", "show the schedules; pause, resume, run or forget one", decides=True)
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes if none is given")
        what = verb.add_mutually_exclusive_group()
        for option, text in SCHEDULE_VERBS.items():
            what.add_argument(f"--{option}", metavar="NAME", help=text)
        what.add_argument("--prune", action="store_true", help="forget all that this code does not declare any more")
        verb = _add_verb(verbs, "prune", "delete jobs that ended before the retention, no unfinished one")
        verb.add_argument("scopes", nargs="*", metavar="SCOPE", help="all scopes if none is given")
        verb.add_argument("--older-than", type=float, metavar="DAYS", help="instead of the option retention")

    def handle(self, *, verb, **options):
        self.verbosity, self.as_json = options["verbosity"], options["json"]
        verb = verb.replace("-", "_")
        is_list = verb == "schedules" and not any(options[name] for name in ("pause", "resume", "run_now", "prune"))
        self.is_reading = verb in READING or is_list
        self.is_followed = verb == "tail" or bool(options.get("watch"))  # then each answer in JSON is one line
        if os.environ.get("NO_COLOR") and not options.get("force_color"):
            self.style = no_style()
        answer = getattr(self, f"answer_{verb}")
        try:
            if self.is_reading:
                answer(**options)
            else:
                self.report(verb, answer(**options))
        except (Refused, ImproperlyConfigured) as exc:
            raise CommandError(visible(exc)) from exc
        except Error as exc:
            raise CommandError(visible(database_trouble(exc).message)) from exc

    # The verbs: each yields one result per job, queue or scope.

    def answer_retry(self, **options):
        return self.some_or_all("retry", **options)

    def answer_skip(self, **options):
        return self.some_or_all("skip", **options)

    def some_or_all(self, verb, all, queue, error, dry_run, gently=False, **options):
        narrows = [name for name, value in (("--queue", queue), ("--error", error)) if value is not None]
        narrows += ["--gently"] if gently else []
        if all and options["job_ids"]:
            raise CommandError("Error: name jobs by their ids or say --all, not both.")
        if not all and (narrows or dry_run):
            raise CommandError(f"Error: {' and '.join(narrows) or '--dry-run'}: only together with --all.")
        if not all and not options["job_ids"]:
            raise CommandError("Error: name jobs by their ids, or say --all.")
        if all:
            return self.all_blocking(verb, queue, error, dry_run, gently, **options)
        return self.each_job(verb, **options)

    def all_blocking(self, verb, queue, error, dry_run, gently, scope, database, by, reason, **options):
        """Yield a result for each scope."""
        for queuetopia in _chosen([scope] if scope else []):
            if database in (None, queuetopia.database()):
                why = {"by": _person(by), "reason": reason}
                act = partial(self.decide, verb, queuetopia, queue, error, dry_run, gently, why)
                yield tried(act, scope=queuetopia.scope)

    def decide(self, verb, queuetopia, queue, error, dry_run, gently, why):
        ids = jobs.blocking(queuetopia, verb, queue, error)
        done = "retried" if verb == "retry" else "skipped"
        if dry_run:
            return {"found": len(ids), "message": f"{queuetopia.scope}: jobs that would be {done}: {len(ids)}."}
        if gently and ids:
            jobs.begin_ramp(queuetopia)
        number = self.with_bar(len(ids), jobs.batches(queuetopia, verb, ids, **why))
        return _of_many(f"{queuetopia.scope}: jobs {done}", len(ids), number, "run, have ended or are locked")

    def answer_cancel(self, **options):
        return self.each_job("cancel", **options)

    def answer_mark_done(self, **options):
        return self.each_job("mark_done", **options)

    def answer_edit(self, params, **options):
        try:
            params = loads(params)
        except ValueError as exc:
            raise Refused(f"PARAMS is no JSON object of the action's arguments: {exc}.") from exc
        return self.each_job("edit", **options, params=params)

    def answer_move_to_end(self, **options):
        return self.each_job("move_to_end", **options)

    def answer_move(self, job_ids, queue, to, scope, by, reason, **options):
        if bool(job_ids) == (queue is not None):
            raise CommandError("Error: name jobs by their ids, or one queue by --queue and --scope.")
        if queue is None:
            return self.each_job("move", job_ids, scope=scope, by=by, reason=reason, to=to, **options)
        if scope is None:
            raise CommandError("Error: --queue: say of which --scope.")
        act = partial(self.move_queue, known(scope), queue, to, {"by": _person(by), "reason": reason})
        return iter([tried(act, scope=scope, queue=queue)])

    def move_queue(self, queuetopia, queue, to, why):
        ids = jobs.movable(queuetopia, queue, to)
        number = self.with_bar(len(ids), jobs.moves(queuetopia, ids, to, **why))
        return _of_many(f"{queuetopia.scope}/{queue}: jobs moved to {to}", len(ids), number, "run or have ended")

    def with_bar(self, most, parts):
        """Go through batches with a progress bar; return how many jobs were changed."""
        bar, number = Bar(most, stream=sys.stderr) if most and self.has_bar() else None, 0
        for batch, changed in parts:
            number += len(changed)
            if bar is not None:
                bar.advance(len(batch))
        if bar is not None:
            bar.end()
        return number

    def answer_reschedule(self, **options):
        return self.each_job("reschedule", **options)

    def answer_run_now(self, **options):
        return self.each_job("run_now", **options)

    def each_job(self, verb, job_ids, **options):
        results = _each_job(verb, job_ids, **options)
        # Where each is printed on the same terminal, the lines are the progress.
        prints_each = self.stdout.isatty() and self.verbosity and not self.as_json
        is_long = len(job_ids) >= LONG and not prints_each
        return counted(results, Bar(len(job_ids), stream=sys.stderr)) if is_long and self.has_bar() else results

    def has_bar(self):
        return bool(self.verbosity) and sys.stderr.isatty()

    def answer_prioritize(self, scope, queue, seconds, by, reason, **options):
        why = {"by": _person(by), "reason": reason, "seconds": seconds}
        yield tried(partial(on_queue, "prioritize", known(scope), queue, **why), scope=scope, queue=queue)

    def answer_edit_memory(self, scope, queue, memory, by, reason, **options):
        try:
            memory = loads(memory)
        except ValueError as exc:
            raise Refused(f"MEMORY is no JSON object: {exc}.") from exc
        queuetopia = known(scope)
        memory = unmasked(memory, queuetopia.memory(queue), queuetopia.option("sensitive_params"))
        why = {"by": _person(by), "reason": reason, "memory": memory}
        yield tried(partial(on_queue, "edit_memory", queuetopia, queue, **why), scope=scope, queue=queue)

    def answer_pause(self, **options):
        return _one_queue_or_all("pause", **options)

    def answer_resume(self, **options):
        return _one_queue_or_all("resume", **options)

    def answer_prune(self, scopes, older_than, **options):
        seconds = None if older_than is None else older_than * DAY
        for queuetopia in _chosen(scopes):
            bar = Bar(unit="jobs deleted", stream=sys.stderr) if self.has_bar() else None
            yield tried(partial(_prune, queuetopia, seconds, bar), scope=queuetopia.scope)

    def report(self, verb, results):
        """Print what was done; raise CommandError with what was refused."""
        reported = []
        for result in results:
            reported.append(result)
            if result["ok"] and self.verbosity and not self.as_json:
                self.write(result["message"])
        if self.as_json:
            self.write_json({"verb": verb, "results": reported})
        if refused := [visible(result["message"]) for result in reported if not result["ok"]]:
            raise CommandError("\n".join(refused))

    # Status

    def answer_status(self, scopes, queues, check, watch, oldest, blocked, paused, **options):
        if check:
            self.check_health(scopes, health.Limits(oldest, blocked, paused))
        elif watch:
            self.watch(scopes, queues, every=watch)
        else:
            self.show(scopes, queues)

    def check_health(self, scopes, limits):
        found = health.problems(_chosen(scopes), limits=limits, is_all=not scopes)
        if self.as_json:
            self.write_json({"problems": found})
        else:
            for problem in found:
                self.write(problem["message"], self.style.ERROR)
        if found:
            raise SystemExit(1)
        if self.verbosity and not self.as_json:
            self.write("ok", self.style.SUCCESS)

    def watch(self, scopes, queues, every):
        out = self.stdout
        # Ctrl-C is how a watch ends, and so is a reader that goes away.
        with suppress(KeyboardInterrupt, BrokenPipeError), Screen(out) as screen:
            while True:
                self.stdout = OutputWrapper(io.StringIO())
                try:
                    self.show(scopes, queues)
                except CommandError as exc:
                    self.write(exc, self.style.ERROR)
                screen.draw(self.stdout.getvalue())
                time.sleep(every)

    def show(self, scopes, queues):
        chosen = _chosen(scopes)
        databases = {queuetopia.database() for queuetopia in chosen} if scopes else status.databases()
        answer: dict[str, list] = {"nodes": [], "scopes": [], "unknown_scopes": [], "unreachable": []}
        for alias in sorted(databases):
            here = [queuetopia for queuetopia in chosen if queuetopia.database() == alias]
            try:
                answer["nodes"] += status.nodes(alias)
                answer["scopes"] += [status.scope_status(queuetopia, queues=queues) for queuetopia in here]
                answer["unknown_scopes"] += [] if scopes else status.unknown_scopes(alias)
            except Error as exc:  # the others are still worth reporting
                trouble = database_trouble(exc)
                answer["unreachable"].append({"database": alias, "problem": trouble.kind, "error": trouble.message})
        if self.as_json or len(answer["unreachable"]) < len(databases):
            self.show_status(answer)
        if answer["unreachable"]:
            lines = [
                f"database {visible(each['database'])}: {visible(each['error'])}" for each in answer["unreachable"]
            ]
            raise CommandError("\n".join(lines))

    def show_status(self, answer):
        if self.as_json:
            self.write_json(answer)
            return
        self.write_nodes(answer["nodes"])
        for scope in answer["scopes"]:
            self.write_scope(scope)
        for scope in answer["unknown_scopes"]:
            self.stdout.write()
            self.write(
                f"{scope['scope']} (database {scope['database']}): unfinished jobs: {scope['unfinished']}, "
                f"untouched, because {scope['problem']}.",
                self.style.ERROR,
            )

    # Explain

    def answer_explain(self, scope, queue, **options):
        explained = known(scope).explain(queue)
        if self.as_json:
            self.write_json(explained)
        else:
            self.write(explained["sentence"])

    # Check

    def answer_check(self, scopes, **options):
        number, found = 0, list[dict]()
        for alias in status.databases():
            count, problems = jobs.pending_problems(alias, scopes or None)
            number, found = number + count, found + problems
        if self.as_json:
            self.write_json({"jobs": number, "problems": found})
        else:
            for each in found:
                self.write(_cannot_run(each), self.style.ERROR)
        if found:
            raise SystemExit(1)
        if self.verbosity and not self.as_json:
            self.write(f"ok: this code can run the unfinished jobs, {number}", self.style.SUCCESS)

    # Schedules

    def answer_schedules(self, scopes, prune, by, reason, **options):
        for verb in ("pause", "resume", "run_now"):
            if (name := options[verb]) is not None:
                return self.decide_schedule(verb, scopes, name, {"by": _person(by), "reason": reason})
        return self.prune_schedules(scopes) if prune else self.show_schedules(scopes)

    def decide_schedule(self, verb, scopes, name, why):
        if len(scopes) != 1:
            raise CommandError("Error: name the one scope that the schedule is of.")
        yield tried(partial(on_schedule, verb, known(scopes[0]), name, **why), scope=scopes[0], schedule=name)

    def prune_schedules(self, scopes):
        for alias in status.databases():
            for scope in scopes or schedules.scopes(alias):
                yield tried(partial(pruned_schedules, alias, scope), scope=scope, database=alias)

    def show_schedules(self, scopes):
        found = [{"scope": each.scope, "schedules": each.list_schedules()} for each in _chosen(scopes)]
        if self.as_json:
            self.write_json({"scopes": found})
            return
        for scope in found:
            if scope["schedules"]:
                self.write(scope["scope"], self.style.MIGRATE_HEADING)
                for line in table([SCHEDULE_COLUMNS, *map(self.schedule_cells, scope["schedules"])]):
                    self.write(f"  {line}")

    def schedule_cells(self, each):
        state = "" if each["declared"] else "no longer declared"
        if each["paused"]:
            state = f"paused {_paused(each['paused'])}"
        elif each["late"] > schedules.LATE:
            state = f"late for {span(each['late'])}: no node creates its jobs"
        moments = [local(moment) if moment else "" for moment in (each["next_at"], each["last_due_at"])]
        return (
            self.cut(each["schedule"], LONGEST_NAME),
            each["times"] or "",
            *moments,
            str(each["last_job"] or ""),
            *(str(each[name]) for name in ("created", "missed", "held_back")),
            self.cut(state, LONGEST_TEXT),
        )

    # Statistics

    def answer_statistics(self, scopes, since, by, **options):
        try:
            answer = [found.statistics(since=timedelta(seconds=since), by=by) for found in _chosen(scopes)]
        except (ValueError, OverflowError) as exc:
            raise Refused(f"--since: {exc}") from exc
        if self.as_json:
            self.write_json({"statistics": answer})
            return
        for scope in answer:
            self.write_statistics(scope)

    def write_statistics(self, scope):
        self.write(f"{scope['scope']} since {local(scope['since'])}, by {scope['by']}", self.style.MIGRATE_HEADING)
        by, columns = scope["by"], QUEUE_FIGURES if scope["by"] == "queue" else FIGURES
        rows = [self.figures(row, by, columns) for row in scope["rows"]]
        total = ("all", *self.figures(scope["total"], by, columns)[1:])
        head = (by.upper(), *(name.upper() for name in columns))
        for line in table([head, *rows, total]):
            self.write(f"  {line}")
        if not scope.get("complete", True):
            self.write(
                f"  of the {statistics.MOST_JOBS} jobs that ended last, and as many that were created last",
                self.style.WARNING,
            )

    def figures(self, row, by, columns):
        name = local(row["at"]) if "at" in row else self.cut(row.get(by, ""), LONGEST_NAME)
        return (name, *(_figure(row, column) for column in columns))

    # Tail

    def answer_tail(self, scopes, every, **options):
        aliases: dict[str, list[str]] = {}
        for queuetopia in _chosen(scopes):
            aliases.setdefault(queuetopia.database(), []).append(queuetopia.scope)
        followers = [Follower(alias, names) for alias, names in aliases.items()]
        try:
            self.follow(followers, every)
        except (KeyboardInterrupt, BrokenPipeError):
            pass  # how it ends
        finally:
            for follower in followers:
                follower.close()

    def follow(self, followers, every):
        while True:
            began = uptime()
            for event in self.events(followers):
                self.print_event(event)
            self.stdout.flush()
            wait_for_news(followers, every, pause=max(PAUSE, 2 * (uptime() - began)))

    def events(self, followers):
        """Return what is new, as far as the databases answer; the rest follows when they do."""
        found = []
        for follower in followers:
            try:
                found += follower.poll()
            except Error as exc:
                self.stderr.write(visible(f"database {follower.alias}: {database_trouble(exc).message}"))
                close_old_connections()
        return sorted(found, key=lambda event: event["at"])

    def print_event(self, event):
        if self.as_json:
            self.write_json(event)
            return
        styles = {"halted": self.style.ERROR, "failed": self.style.WARNING, "done": self.style.SUCCESS}
        where = f"{event['scope']}/{event['queue']}" if event["queue"] is not None else event["scope"]
        where = "everything" if where == Scope.EVERYTHING else where
        job = "" if event["job"] is None else f" job {event['job']}"
        details = (
            event["action"] and f" ({event['action']})",
            event["attempt"] and f", attempt {event['attempt']}",
            event["node"] and f" on {event['node']}",
            event["by"] and f" by {event['by']}",
            (why := event["error"] or event["reason"] or progress_text(event["progress"]))
            and f": {self.cut(why, LONGEST_TEXT)}",
        )
        text = "".join(filter(None, details))
        self.write(f"{local(event['at'])}  {event['event']:9}  {where}{job}{text}", styles.get(event["event"]))

    # Words of status

    def write_nodes(self, nodes):
        if not nodes:
            self.write("No node is running. Start one: manage.py run_queuetopia", self.style.WARNING)
        for node in nodes:
            alive = "alive" if node["alive"] else "fenced" if node["fenced_at"] else "silent"
            self.write(
                f"node {node['node']} (database {node['database']}): {alive}, last seen {span(node['age'])} "
                f"ago, started {local(node['started_at'])}, queues held: {node['held']}, serves "
                f"{', '.join(node['scopes'])}",
                self.style.SUCCESS if node["alive"] else self.style.ERROR,
            )
            for worker in node["workers"]:
                self.write_worker(worker, node["at"])

    def write_worker(self, worker, now):
        name = "claimed or started since the last heartbeat" if worker["pid"] is None else f"worker {worker['pid']}"
        if worker["age"] is not None:
            name += f" (for {span(worker['age'])}, attempts: {worker['attempts']}{_of(worker['max_attempts'])}"
            memory = "" if worker["memory"] is None else f", {worker['memory']}{_of(worker['max_memory'])} MB"
            name += f"{memory})"
        self.write(f"  {name}:{'' if worker['jobs'] else ' idle'}")
        for job in worker["jobs"]:
            self.write(
                f"    job {job['job']} ({job['action']} of {job['scope']}/{job['queue']}), attempt "
                f"{job['attempt']}, for {_ago(job['since'], now)}{_progress(job)}"
            )

    def write_scope(self, scope):
        found, queues = scope["jobs"], scope["queue_counts"]
        self.stdout.write()
        name = f"{scope['scope']} ({scope['class']}, database {scope['database']})"
        self.write(name, self.style.MIGRATE_HEADING)
        if scope["all_paused"]:
            self.write(f"  everything is paused {_paused(scope['all_paused'])}", self.style.WARNING)
        if scope["paused"]:
            self.write(f"  paused {_paused(scope['paused'])}", self.style.WARNING)
        if not scope["enabled"]:
            self.write(
                "  QUEUETOPIA['ENABLED'] is False for it: nodes with these settings run none of it", self.style.WARNING
            )
        waits = _waits(found["oldest"], scope["at"])
        if scope["snoozed_until"]:
            self.write(f"  snoozed until {local(scope['snoozed_until'])} by one of its jobs", self.style.WARNING)
        if scope["breaker"]:
            self.write(f"  its breaker is {scope['breaker']['sentence']}", self.style.WARNING)
        limit = "".join(f"; {words}" for words in scope["limits"])
        outside = f"{found['outside']} outside, " if found["outside"] else ""
        self.write(
            f"  unfinished jobs: {found['unfinished']} ({found['waiting']} waiting, {found['running']} running, "
            f"{outside}{found['backing_off']} backing off, {found['halted']} halted)"
            f"{f'; the oldest is due for {waits}' if waits else ''}"
        )
        self.write(
            f"  queues with work: {queues['not_empty']} ({queues['blocked']} blocked, {queues['running']} running, "
            f"{queues['paused']} paused, {queues['problem']} with a problem){limit}"
        )
        if scope["schedules"]:
            nexts = [each["next_at"] for each in scope["schedules"] if each["next_at"]]
            soonest = f"; the next is due {_ahead(min(nexts), scope['at'])}" if nexts else ""
            self.write(f"  schedules: {len(scope['schedules'])}{soonest}")
        if scope["queues"]:
            self.write_queues(scope["queues"], scope["at"])
        if (more := queues["not_empty"] - len(scope["queues"])) > 0:
            self.write(f"  and {more} more; --queues N lists up to {status.MOST_QUEUES}")

    def write_queues(self, queues, now):
        rows = [self.cells(queue, now) for queue in queues]
        styles = {
            QueueState.HALTED: self.style.ERROR,
            QueueState.BACKING_OFF: self.style.WARNING,
            QueueState.PAUSED: self.style.WARNING,
            QueueState.RUNNING: self.style.SUCCESS,
        }
        rows = [COLUMNS, *rows]
        for row, line in zip(rows, table(rows), strict=True):
            self.write(f"  {line}", styles.get(row[0]))

    def cells(self, queue, now):
        begun = queue["job"] is not None
        starts_later = queue["state"] not in (QueueState.RUNNING, QueueState.PAUSED) and not queue["paused"]
        return (
            queue["state"],
            self.cut(queue["queue"], LONGEST_NAME),
            str(queue["depth"]),
            _waits(queue["oldest"], now),
            self.cut(f"{queue['job']} {queue['action']}", LONGEST_NAME) if begun else "",
            (f"{queue['attempt']}/{queue['max_attempts']}" if queue["max_attempts"] else str(queue["attempt"]))
            if begun
            else "",
            _ago(queue["since"], now),
            _ahead(queue["next_attempt_at"] or queue["due_at"], now) if starts_later else "",
            self.cut(_why(queue), LONGEST_TEXT),
        )

    def cut(self, text, limit):
        text = visible(text)
        return text if len(text) <= limit or self.verbosity > 1 else text[: limit - 1] + "…"

    def write(self, text, style=None):
        try:
            self.stdout.write((style or str)(visible(text)))
        except BrokenPipeError:
            if self.is_reading:
                raise
            hush(self.stdout)  # the decision is carried out all the same

    def write_json(self, answer):
        # Escaped to ASCII, so that no text in it can steer a terminal.
        self.stdout.write(json.dumps(answer, indent=None if self.is_followed else 2, default=_json_default))


def _add_verb(verbs, name, text, decides=False):
    verb = verbs.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
    verb.add_argument("--json", action="store_true", help="for machines")
    if decides:
        verb.add_argument("--by", help="who decides; the user of the operating system if left out")
        verb.add_argument("--reason", default="", help="why; kept with who and when")
    # Django's own options may stand behind the verb too; a default here would win over one given before it.
    again = {"default": argparse.SUPPRESS, "help": argparse.SUPPRESS}
    verb.add_argument("-v", "--verbosity", type=int, choices=[0, 1, 2, 3], **again)
    for option in ("--settings", "--pythonpath"):
        verb.add_argument(option, **again)
    for option in ("--traceback", "--no-color", "--force-color"):
        verb.add_argument(option, action="store_true", **again)
    return verb


def _chosen(scopes):
    return [known(scope) for scope in scopes] if scopes else list(by_scope().values())


def _of_many(what, found, number, why):
    """Return what became of so many of the jobs that were found; ``why`` says of the others what they do meanwhile."""
    left = found - number
    note = f"; left alone, because they {why} meanwhile: {left}" if left else ""
    return {"found": found, "done": number, "left": left, "message": f"{what}: {number}{note}."}


def _person(by):
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


# Verbs on jobs


def _each_job(verb, job_ids, scope, database, by, reason, **options):
    if scope is not None:
        known(scope)
    why: dict[str, Any] = {name: options[name] for name in ("params", "to", "at") if name in options}
    why |= {"by": _person(by), "reason": reason}
    for job_id in job_ids:
        yield tried(partial(_on_job, verb, job_id, scope, database, why), job=job_id)


def _on_job(verb, job_id, scope, database, why):
    queuetopia = _class_of(job_id, scope, database)
    if "params" in why:
        was = queuetopia.jobs().get(pk=job_id).params
        why |= {"params": unmasked(why["params"], was, queuetopia.option("sensitive_params")), "was": was}
    return on_job(verb, queuetopia, job_id, **why)


def _class_of(job_id, scope, database):
    """Return the Queuetopia that owns the job's row. Raises Refused when there is none, or more than one."""
    aliases = [database] if database else [known(scope).database()] if scope else status.databases()
    found = {}
    for alias in aliases:
        for name in Job.objects.using(alias).filter(pk=job_id).values_list("scope", flat=True):
            if scope in (None, name):
                found[alias] = name
    if not found:
        raise Refused(
            f"There is no job {job_id} in {f'{scope} in ' if scope else ''}database {' or '.join(aliases)}. "
            "Ended jobs are deleted after their retention; manage.py queuetopia status lists blocked ones."
        )
    if len(found) > 1:
        raise Refused(f"There is a job {job_id} in each of the databases {', '.join(found)}: add --database.")
    ((alias, name),) = found.items()
    return serving(name, alias, f"Job {job_id}")


# Verbs on queues and scopes


def _one_queue_or_all(verb, scope, queue, all, database, by, reason, **options):
    if all == (scope is not None) or (database and not all):
        raise CommandError("Error: name a scope, or say --all; --database goes with --all.")
    why = {"by": _person(by), "reason": reason}
    return _everything(verb, database, why) if all else _one_queue(verb, scope, queue, why)


def _everything(verb, database, why):
    aliases = [database] if database else status.databases() if verb == "pause" else status.paused_databases()
    for alias in aliases:
        yield tried(partial(on_everything, verb, alias, **why), database=alias)


def _one_queue(verb, scope, queue, why):
    yield tried(partial(on_queue, verb, known(scope), queue, **why), scope=scope, queue=queue)


def _prune(queuetopia, seconds, bar):
    deleted = 0
    try:
        while batch := jobs.prune(queuetopia, older_than=seconds, batch=PRUNE_BATCH):
            deleted += batch
            if bar is not None:
                bar.advance(batch)
            if batch < PRUNE_BATCH:
                break
    except ValueError as exc:
        raise Refused(f"--older-than: {exc}.") from exc
    if bar is not None and deleted:
        bar.end()
    keeps_all = seconds is None and queuetopia.option("retention") is None
    note = "; its retention is None, for ever" if keeps_all else ""
    return {"deleted": deleted, "message": f"{queuetopia.scope}: ended jobs deleted: {deleted}{note}."}


# Words


def _figure(row, column):
    """Return a cell: a count, a duration, or the median and the 99th percentile of one."""
    if column == "blocked":
        return short_span(row["blocked_seconds"]) if row["blocked_seconds"] else ""
    if column in row and isinstance(row[column], int):
        return str(row[column])
    if (times := row[column]) is None:
        return ""
    return f"{short_span(times['p50'])} / {short_span(times['p99'])}"


def _why(queue):
    """Return the most important fact about a queue."""
    reasons = [
        queue["problem"],
        queue["held_by"] and f"on {queue['held_by']}",
        queue["state"] == QueueState.OUTSIDE
        and outside_text(local(queue["since"]), local(queue["next_attempt_at"] or queue["since"])),
        progress_text(queue["progress"]),
        queue["state"] in (QueueState.BACKING_OFF, QueueState.HALTED) and queue["error"],
        queue["paused"] and f"paused {_paused(queue['paused'])}",
    ]
    return "; ".join(reason for reason in reasons if reason)


def _of(most):
    return f" of {most}" if most else ""


def _progress(job):
    return f", {progress_text(job['progress'])}" if job["progress"] else ""


def _cannot_run(found):
    first = ", ".join(f"{each['job']} of {each['queue']}" for each in found["examples"])
    more = ", …" if found["jobs"] > len(found["examples"]) else ""
    which = f"{found['scope']}, {found['action']} (database {found['database']})"
    return f"{which}: jobs that this code cannot run: {found['jobs']} ({first}{more}): {found['cause']}"


def _paused(paused):
    by = f" by {paused['by']}" if paused["by"] else ""
    reason = f": {paused['reason']}" if paused["reason"] else ""
    return f"since {local(paused['at'])}{by}{reason}"


def _ago(moment, now):
    return "" if moment is None else span((now - moment).total_seconds())


def _waits(moment, now):
    return "" if moment is None or moment > now else _ago(moment, now)


def _ahead(moment, now):
    if moment is None:
        return ""
    seconds = (moment - now).total_seconds()
    return f"in {span(seconds)}" if seconds > 0 else "now"


def _json_default(value):
    return value.isoformat() if isinstance(value, datetime) else str(value)
