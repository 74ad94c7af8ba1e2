"""The admin: what it shows, to whom, at what cost; that its verbs do what they say, and nothing else anything."""

import html
import json
import re
import subprocess
import sys
from datetime import date, timedelta
from pathlib import Path

import pytest
from django.contrib.admin.filters import AllValuesFieldListFilter
from django.contrib.admin.models import CHANGE, DELETION, LogEntry
from django.contrib.admin.sites import AdminSite, site
from django.contrib.auth.models import Permission, User
from django.core.cache import cache
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone

import queuetopia
from queuetopia import pause_all
from queuetopia.admin import JobAdmin, QueueAdmin, base, lists
from queuetopia.admin import queues as queues_module
from queuetopia.jobs import delete_ended
from queuetopia.models import Job, JobEvent, Node, Queue, Schedule, Scope
from queuetopia.params import loads
from queuetopia.times import local
from queuetopia.verbs import unmasked
from tests.admin.client import HOSTILE, client_of, everything, page, plain, states, told
from tests.states import NODE, UNFINISHED, mail_queue, put, put_node

pytestmark = pytest.mark.django_db

JOBS, QUEUES = "/admin/queuetopia/job/", "/admin/queuetopia/queue/"
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
OVERVIEW = "/admin/queuetopia/scope/"
JOB_VERBS, QUEUE_VERBS = (
    ("retry", "skip", "cancel", "mark_done", "move_to_end", "run_now", "delete"),
    ("pause", "resume"),
)
SHOWN = {
    "waiting": "waiting",
    "scheduled": "waiting",
    "running first": "running",
    "running again": "running",
    "backing off": "backing off",
    "snoozed": "backing off",
    "halted": "halted",
    "halted early": "halted",
    "done": "done",
    "skipped": "skipped",
    "cancelled": "cancelled",
}


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue(sensitive_params=("token",))


@pytest.fixture
def boss(queues):
    return client_of(username="boss", is_superuser=True)


def of(job):
    return f"{JOBS}{job.pk}/"


def line_page(job):
    return f"{QUEUES}{Queue.objects.get(scope=job.scope, name=job.queue).pk}/"


def listed(client, url=JOBS, **filters):
    """Return the ids in a list, in its order."""
    page(client, url, **filters)
    return [row.pk for row in client.get(url, filters).context["cl"].result_list]


def cells(client, row, url=JOBS, **filters):
    """Return the texts in a row of a list, by column."""
    text = page(client, url, **filters)
    (found,) = [part for part in text.split("<tr>") if f'name="_selected_action" value="{row.pk}"' in part]
    pairs = re.findall(r'<t[dh] class="(?:[^"]* )?field-(\w+)[^"]*">(.*?)</t[dh]>', found, re.S)
    return {name: plain(cell) for name, cell in pairs}


def fields(client, url):
    """Return the texts of a page's fields."""
    pairs = re.findall(r'field-(\w+)">.*?<div class="readonly">(.*?)</div>', page(client, url), re.S)
    return {name: plain(cell) for name, cell in pairs}


def say(client, verb, *rows, url=JOBS, reason="", **more):
    """Choose rows in a list, and confirm; return the answer to the confirmation."""
    name = "delete_selected" if verb == "delete" else verb
    ids = [row.pk for row in rows]
    asked = client.post(url, {"action": name, "_selected_action": ids, "index": 0, **more})
    assert asked.status_code == 200, told(asked)
    action = html.unescape(re.search(r'<form method="post" action="([^"]+)"', asked.content.decode())[1])
    chosen = re.findall(r'name="_selected_action" value="([^"]+)"', asked.content.decode())
    return client.post(action, {"_selected_action": chosen, "confirmed": "yes", "reason": reason})


class TestListOfJobs:
    @pytest.mark.capability("E7")
    @pytest.mark.parametrize("state", SHOWN)
    def test_says_what_each_does(self, boss, queues, state):
        job = put(queues, state)
        assert cells(boss, job)["state_now"] == SHOWN[state]

    @pytest.mark.capability("E7")
    def test_says_where_and_since_when_a_running_job_runs(self, boss, queues):
        job = put(queues, "running again")
        put_node(workers=[{"pid": 777, "jobs": [job.pk]}])
        expected = f"attempt 3 on web1:4242, worker 777 since {local(Queue.objects.get().held_since)}"
        assert cells(boss, job)["details"] == expected
        assert fields(boss, f"{of(job)}change/")["details"] == expected

    def test_shows_what_its_columns_say(self, boss, queues):
        job = put(queues, "backing off", error="ConnectionError: no route\nsecond line", max_attempts=7)
        shown = cells(boss, job)
        assert {name: shown[name] for name in ("queue_name", "action_name", "attempts_made")} == {
            "queue_name": "tests.mail/customer-42",
            "action_name": "send_mail",
            "attempts_made": "2 of 7",
        }
        assert shown["details"] == "ConnectionError: no route"
        assert shown["next_attempt"] == local(job.next_attempt_at)
        assert shown["scheduled"] == local(job.scheduled_at)

    def test_begins_with_the_newest(self, boss, queues):
        first, second = put(queues, "done"), put(queues, "waiting")
        assert listed(boss) == [second.pk, first.pk]
        assert listed(boss, o="1") == [first.pk, second.pk]

    @pytest.mark.parametrize("state", sorted(set(SHOWN.values())))
    def test_is_filtered_by_state(self, boss, queues, state):
        jobs = {put(queues, name, queue=name).pk: shown for name, shown in SHOWN.items()}
        found = listed(boss, state=state)
        assert found and set(found) == {pk for pk, shown in jobs.items() if shown == state}

    def test_is_filtered_by_unfinished_ones(self, boss, queues):
        jobs = {put(queues, name, queue=name).pk: name for name in SHOWN}
        assert {jobs[pk] for pk in listed(boss, state="unfinished")} == set(UNFINISHED)

    def test_is_filtered_by_scope_and_queue(self, boss, queues):
        other = mail_queue("tests.more")
        here, elsewhere = put(queues, "waiting", queue="a"), put(other, "waiting", queue="a")
        put(other, "waiting", queue="b")
        assert listed(boss, scope="tests.mail") == [here.pk]
        assert listed(boss, scope="tests.more", queue="a") == [elsewhere.pk]
        assert listed(boss, queue="a") == [elsewhere.pk, here.pk]
        assert listed(boss, queue="\x00") == listed(boss, scope="\x00") == listed(boss, queue="") == []
        assert len(listed(boss, state="nonsense")) == 3

    def test_finds_scopes_that_no_code_knows(self, boss, queues):
        put(queues, "waiting")
        stray = put(queues, "waiting", scope="gone.away")
        assert listed(boss, scope="?") == listed(boss, scope="gone.away") == [stray.pk]
        assert cells(boss, stray)["queue_name"] == "gone.away/customer-42 (scope unknown to this code)"

    def test_has_no_other_filters_in_its_address(self, boss, queues):
        put(queues, "waiting", params={"token": "hunter2"})
        for lookup in ("params__token__startswith", "params__contains", "error__startswith", "pk__in", "id"):
            assert boss.get(JOBS, {lookup: "h"}).status_code == 400, lookup


class TestSearch:
    @pytest.fixture
    def jobs(self, queues):
        self.open = mail_queue("tests.open")
        return {
            name: put(self.open, "waiting", queue=queue, params=params).pk
            for name, queue, params in [
                ("plain", "customer-42", {"address": "toto@mail.com"}),
                ("percent", "100%_\\ 'quoted' \"twice\"", {"text": "50% off_ \\"}),
                ("umlaut", "Zoë 🦊", {"name": "Café 🦊"}),
            ]
        }

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("customer", {"plain"}),
            ("ustomer", set()),
            ("send_", {"plain", "percent", "umlaut"}),
            ("toto@", {"plain"}),
            ("TOTO@mail", {"plain"}),
            ("100%_", {"percent"}),
            ("100_", set()),
            ("%", {"percent"}),
            ("off_ ", {"percent"}),
            ("'quoted'", set()),
            ("100%_\\ 'quoted' \"tw", {"percent"}),
            ("Zoë", {"umlaut"}),
            ("Café 🦊", {"umlaut"}),
            ("   ", {"plain", "percent", "umlaut"}),
            ("\x00", {"plain", "percent", "umlaut"}),  # Django's own form refuses it, and says so
            ("9" * 30, set()),
            ("9" * 5_000, set()),
            ("²", set()),
            ("x" * 5_000, set()),
        ],
    )
    def test_finds_the_beginning_of_names_and_anything_in_params(self, boss, jobs, text, found):
        assert set(listed(boss, q=text)) == {jobs[name] for name in found}

    def test_finds_numbers(self, boss, jobs):
        assert listed(boss, q=str(jobs["umlaut"])) == [jobs["umlaut"]]

    def test_looks_into_params_only_for_those_who_may_see_them(self, jobs):
        assert listed(client_of("view_job"), q="toto") == []
        assert listed(client_of("view_job", "view_params", username="bob"), q="toto") == [jobs["plain"]]

    def test_does_not_look_where_params_are_masked_or_may_have_to_be(self, boss, queues):
        put(queues, "waiting", params={"token": "hunter2", "name": "hunter2"})
        put(queues, "waiting", scope="gone.away", params={"token": "hunter2"})
        assert listed(boss, q="hunter") == []


class TestCost:
    """Of the lists, for somebody whose permissions have to be read too."""

    @pytest.fixture
    def ann(self, queues):
        return client_of("view_job", "view_queue", "view_scope", "retry_job", "skip_job", "pause_queue")

    def put_rows(self, queues, number):
        put_node()
        Node.objects.create(host="web2", pid=1)
        for index in range(number):
            put(queues, list(SHOWN)[index % len(SHOWN)], queue=f"queue-{index}", error=f"Error: {index}")
        Scope.objects.create(name="tests.mail", paused_at=timezone.now())

    def queries(self, client, url, **filters):
        with CaptureQueriesContext(
            connection,
        ) as context:
            page(client, url, **filters)
        return [query["sql"] for query in context]

    @pytest.mark.parametrize("url", [JOBS, QUEUES])
    def test_is_under_10_queries_whatever_the_number_of_rows(self, ann, queues, url):
        self.put_rows(queues, 11)
        few = self.queries(ann, url)
        Node.objects.all().delete()
        Scope.objects.all().delete()
        for model in (Job, Queue):
            model.objects.all().delete()
        self.put_rows(queues, 90)
        many = self.queries(ann, url)
        assert len(many) == len(few) < 10, many
        for state in ("running", "waiting", "halted", "done", "blocked"):
            found = self.queries(ann, url, state=state, scope="tests.mail", q="queue")
            assert len([sql for sql in found if "queuetopia_" in sql]) < 10, found

    def test_where_nothing_is_found_is_looked_once(self, ann, queues):
        self.put_rows(queues, 11)
        queries = self.queries(ann, JOBS, q="nothing like it")
        tables = [re.search(r"FROM \W?(queuetopia_\w+)", sql)[1] for sql in queries if "nothing like it" in sql]
        assert tables == ["queuetopia_job", "queuetopia_queue"]

    def test_of_pages_does_not_grow_with_the_line(self, ann, queues):
        self.put_rows(queues, 11)
        job = put(queues, "halted", queue="one")
        urls = [f"{of(job)}change/", f"{line_page(job)}change/", f"{of(job)}skip/"]
        for url in urls:
            page(ann, url)  # Django keeps the content types from then on
        put(queues, "waiting", queue="one")
        put(queues, "halted", queue="one", id=job.pk)
        few = [len(self.queries(ann, url)) for url in urls]
        for _ in range(30):
            put(queues, "waiting", queue="one")
            JobEvent.objects.create(verb="retry", scope=job.scope, queue="one", job=job.pk)
        put(queues, "halted", queue="one", id=job.pk)
        put(queues, "waiting", queue="one")
        put(queues, "halted", queue="one", id=job.pk)
        many = [self.queries(ann, url) for url in urls]
        assert [len(found) for found in many] == few, many

    @pytest.mark.parametrize("head", ["halted", "backing off", "running again"])
    def test_of_every_page_is_under_10_queries_in_total(self, ann, boss, queues, head):
        """For whoever may do everything; of others Django reads in two more what they may do."""
        self.put_rows(queues, 30)
        job = put(queues, head, queue="one")
        waiting = put(queues, "waiting", queue="one")
        put(queues, head, queue="one", id=job.pk)
        rows = [f"{of(job)}change/", f"{of(waiting)}change/", f"{line_page(job)}change/", f"{of(job)}skip/"]
        for url in (*rows, JOBS, QUEUES, OVERVIEW, f"{OVERVIEW}live/"):
            for client, most in ((boss, 9), (ann, 11)):
                page(client, url)  # Django keeps the content types from then on
                cache.clear()
                total = self.queries(client, url)
                assert 4 <= len(total) <= most, "\n".join([url, *total])

    @pytest.mark.parametrize("url", [JOBS, QUEUES])
    def test_does_not_grow_with_the_tables(self, ann, queues, url):
        """What reads jobs or queues has a LIMIT, or names the rows it wants."""
        self.put_rows(queues, 11)
        tables = [sql for sql in self.queries(ann, url) if re.search(r"FROM \W?queuetopia_(job|queue)\b", sql)]
        assert len(tables) >= 3
        for sql in tables:
            assert " LIMIT " in sql or re.search(r"WHERE .*\b(id|name)\W? IN \(", sql), sql
            assert "DISTINCT" not in sql
            assert not re.search(r"\b(params|errors|result)\b", sql), sql  # each may be some hundred kilobytes

    @pytest.mark.parametrize(("url", "things"), [(JOBS, "jobs"), (QUEUES, "queues")])
    def test_a_list_ends_somewhere_and_says_so(self, ann, queues, url, things, monkeypatch):
        monkeypatch.setattr(lists, "MOST_LISTED", 5)
        monkeypatch.setattr(base.ReadOnlyAdmin, "list_per_page", 2)
        self.put_rows(queues, 5)
        assert f"5 {things}" in plain(page(ann, url)) and "more than" not in page(ann, url)
        put(queues, "waiting", queue="one more")
        assert f"more than 5 {things}: only the first 5 are listed; filter or search" in plain(page(ann, url))
        assert len(listed(ann, url, p=3)) == 1
        assert ann.get(url, {"p": 4}).headers["Location"].endswith("?e=1")
        assert "1 result" not in page(ann, url, q="queue")


class TestPageOfAJob:
    def test_shows_everything_about_it(self, boss, queues):
        job = put(queues, "done", params={"a": [1, {"b": None}], "é": "ü"}, result={"sent": True})
        text = plain(page(boss, f"{of(job)}change/"))
        assert json.dumps(job.params, indent=2, ensure_ascii=False) in text
        assert json.dumps(job.result, indent=2) in text
        shown = fields(boss, f"{of(job)}change/")
        assert shown["state_now"] == "done"
        assert shown["last_node"] == "web1:1"
        assert shown["option_timeout"] == "60.0 s (MailQueue)"
        assert shown["ended"] == local(job.done_at)

    def test_masks_sensitive_params_for_everybody(self, boss, queues):
        job = put(queues, "done", params={"token": 'hun"ter2', "name": "toto"}, result=['it was hun"ter2'])
        text = plain(page(boss, f"{of(job)}change/"))
        assert '"token": "********"' in text and '"name": "toto"' in text and "it was ********" in text
        assert "ter2" not in text
        job = put(queues, "done", result={"token": "hunter3", "sent": 1})
        text = plain(page(boss, f"{of(job)}change/"))
        assert '"token": "********"' in text and '"sent": 1' in text and "hunter3" not in text

    def test_masks_all_params_of_a_scope_that_may_have_sensitive_ones(self, boss, queues):
        job = put(queues, "done", scope="gone.away", params={"token": "hunter2", "x": "toto"}, result="hunter2")
        text = plain(page(boss, f"{of(job)}change/"))
        assert '"token": "********"' in text and '"x": "********"' in text
        assert "hunter2" not in text and "toto" not in text

    def test_hides_params_and_result_from_those_who_may_not_see_them(self, queues):
        job = put(queues, "done", params={"name": "toto"}, result="secret")
        text = page(client_of("view_job", "retry_job", "skip_job", "cancel_job", "delete_job"), f"{of(job)}change/")
        assert "Hidden" in text and "toto" not in text and "secret" not in text

    def test_shows_the_errors_newest_first(self, boss, queues):
        entry = {"at": "2026-11-22T10:00:00+00:00", "by": "web1:1", "duration": 0.5, "type": "ValueError"}
        errors = [
            {**entry, "attempt": number, "message": f"boom {number}", "counted": number > 1, "traceback": traceback}
            for number, traceback in ((1, "Traceback 1\n  <line>\x1b[31m"), (2, "Traceback 2"))
        ]
        text = plain(page(boss, f"{of(put(queues, 'halted', errors=errors))}change/"))
        assert "Attempt 1 (not counted), 2026-11-22 11:00:00+01:00, web1:1, 0.5 s: ValueError boom 1" in text
        assert "Traceback 1\n  <line>\\x1b[31m" in text
        assert text.index("boom 2") < text.index("boom 1")
        assert "Please correct" not in text  # the admin's own "errors" are those of a form

    @pytest.mark.parametrize(
        "corrupt",
        [
            {"params": [1, 2]},
            {"params": {"__queuetopia__": "date", "value": "no date"}},
            {"params": "just text"},
            {"result": {"__queuetopia__": "no such tag", "value": 1}},
            {"errors": {"no": "list"}},
            {"errors": "text"},
            {"errors": ["no dict", {"traceback": 5}, {"message": None, "counted": "?"}]},
        ],
        ids=str,
    )
    @pytest.mark.parametrize("scope", ["tests.mail", "tests.open", "gone.away"])
    def test_shows_rows_that_cannot_be_read(self, boss, queues, corrupt, scope):
        mail_queue("tests.open")
        job = put(queues, "halted", scope=scope)
        ((column, value),) = corrupt.items()
        table, name = Job._meta.db_table, connection.ops.quote_name(column)
        with connection.cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET {name} = %s WHERE id = %s", [json.dumps(value), job.pk])  # noqa: S608
        assert listed(boss) == [job.pk]
        text = plain(page(boss, f"{of(job)}change/"))
        if scope == "tests.open" and isinstance(value, list | str) and column == "params":
            assert "unreadable" in text
        if value == {"no": "list"}:
            assert "unreadable {'no': 'list'}" in re.sub(r"\s+", " ", text)

    def test_shows_what_is_nested_or_long(self, boss):
        queues = mail_queue("tests.open")
        value = "x" * 60_000
        for _ in range(25):  # MariaDB takes 32
            value = [value]
        text = page(boss, f"{of(put(queues, 'done', params={'deep': value}, result=value))}change/")
        assert "characters more" in text and len(text) < 200_000

    def test_tells_its_place_in_line(self, boss, queues):
        now = timezone.now()
        later, last = (put(queues, "waiting", scheduled_at=now + hours * HOUR) for hours in (2, 3))
        head = put(queues, "halted", scheduled_at=now + HOUR)
        place = fields(boss, f"{of(last)}change/")["place"]
        assert place == f"2 jobs ahead; the head is job {head.pk}."
        assert fields(boss, f"{of(later)}change/")["place"].startswith("1 job ahead;")
        assert fields(boss, f"{of(head)}change/")["place"] == "It is the head of its queue."

    def test_an_attempted_head_is_ahead_whatever_its_time(self, boss, queues):
        waiting = put(queues, "waiting")
        head = put(queues, "halted", scheduled_at=timezone.now() + HOUR)
        assert f"1 job ahead; the head is job {head.pk}" in fields(boss, f"{of(waiting)}change/")["place"]

    def test_tells_what_else_holds_its_queue_up(self, boss, queues):
        job = put(queues, "waiting")
        queues.pause("customer-42", by="bob", reason="audit")
        queues.pause(by="eve", reason="deploy")
        Queue.objects.update(problem="no such action")
        told = fields(boss, f"{of(job)}change/")["explained"]
        assert "all of tests.mail is paused for 0 s by eve (deploy)" in told
        assert "customer-42 is paused for 0 s by bob (audit)" in told
        assert "no such action" in told

    def test_shows_a_job_without_a_row_of_its_queue(self, boss, queues):
        job = put(queues, "waiting")
        Queue.objects.all().delete()
        shown = fields(boss, f"{of(job)}change/")
        assert (shown["state_now"], shown["place"]) == ("waiting", "It is the head of its queue.")

    def test_links_to_its_queue_and_back(self, boss, queues):
        job = put(queues, "waiting", queue="a/b ?&é")
        text = page(boss, f"{of(job)}change/")
        assert f'href="{line_page(job)}change/"' in text
        jobs = html.unescape(re.search(r'href="([^"]*\?scope=[^"]*)"', text)[1])
        assert f'value="{job.pk}"' in page(boss, jobs)

    @pytest.mark.parametrize("job_id", ["12345", "x", "9" * 40, "9" * 5_000, "nowhere:1", ":", "a:b:c", "-1"])
    def test_a_job_that_is_not_there_is_no_error(self, boss, job_id):
        for view in ("change", "history", "retry", "delete"):
            answer = boss.get(f"{JOBS}{job_id}/{view}/")
            assert answer.status_code == 302, view


class TestPagesOfQueues:
    @pytest.mark.parametrize(
        ("state", "shown"),
        [("waiting", "ready"), ("scheduled", "scheduled"), ("running again", "running"), ("backing off", "backing off"),
         ("halted", "halted"), ("done", "empty")],
    )  # fmt: skip
    def test_say_what_each_does_and_find_it_by_that(self, boss, queues, state, shown):
        for name in SHOWN:
            put(queues, name, queue=name)
        line = Queue.objects.get(name=state)
        assert cells(boss, line, QUEUES)["state_now"] == shown
        assert fields(boss, f"{QUEUES}{line.pk}/change/")["state_now"] == shown
        found = listed(boss, QUEUES, state=shown)
        rows = {row.pk: cells(boss, row, QUEUES)["state_now"] for row in Queue.objects.all()}
        assert set(found) == {pk for pk, seen in rows.items() if seen == shown}

    def test_show_what_holds_a_queue_up(self, boss, queues):
        job = put(queues, "halted", error="ValueError: boom\nmore")
        Queue.objects.update(problem="no such action")
        queues.pause("customer-42", by="bob", reason="audit")
        line = Queue.objects.get()
        shown = cells(boss, line, QUEUES)
        assert shown["job"] == f"{job.pk} send_mail"
        assert shown["details"] == "no such action; ValueError: boom"
        assert re.fullmatch(r"since \S+ \S+ by bob: audit", shown["pause_now"])
        assert f'href="{of(job)}change/"' in page(boss, QUEUES)

    def test_show_who_holds_it(self, boss, queues):
        put(queues, "running again")
        line = Queue.objects.get()
        since = f"since {local(line.held_since)}"
        assert cells(boss, line, QUEUES)["details"] == f"attempt 3 on a node that is gone {since}"
        assert fields(boss, f"{QUEUES}{line.pk}/change/")["holder"] == f"unknown node {NODE} {since}"
        put_node()
        Queue.objects.update(stop_requested=True)
        assert fields(boss, f"{QUEUES}{line.pk}/change/")["holder"] == f"web1:4242 {since}"
        for ahead, claimed in ((-1, ""), (1, ", claimed, not begun or only just")):
            held_since = timezone.now() + ahead * timedelta(minutes=1)
            Queue.objects.update(held_since=held_since)
            expected = f"attempt 3 on web1:4242 since {local(held_since)}{claimed}, asked to stop"
            assert cells(boss, line, QUEUES)["details"] == expected

    @pytest.mark.capability("H29")
    def test_say_that_the_whole_scope_is_paused(self, boss, queues):
        put(queues, "waiting")
        queues.pause(by="eve", reason="deploy")
        shown = cells(boss, Queue.objects.get(), QUEUES)
        assert shown["state_now"] == "paused" and "the whole scope since" in shown["pause_now"]

    def test_say_that_everything_is_paused(self, boss, queues):
        put(queues, "waiting")
        queues.pause(by="eve", reason="deploy")
        pause_all(by="ann", reason="moving")
        shown = cells(boss, line := Queue.objects.get(), QUEUES)
        assert shown["state_now"] == "paused"
        assert shown["pause_now"].startswith("everything since") and shown["pause_now"].endswith("by ann: moving")
        assert "everything is paused" in fields(boss, f"{QUEUES}{line.pk}/change/")["explained"]

    def test_are_found_by_name_scope_and_trouble(self, boss, queues):
        for name in ("a%", "ab", "b"):
            put(queues, "waiting", queue=name)
        put(mail_queue("tests.more"), "halted", queue="ab")
        Queue.objects.filter(name="b").update(problem="broken", paused_at=timezone.now())

        def names(**filters):
            rows = Queue.objects.in_bulk(listed(boss, QUEUES, **filters))
            return [(row.scope, row.name) for row in rows.values()]

        assert names(q="a%") == [("tests.mail", "a%")]
        assert sorted(names(q="a")) == [("tests.mail", "a%"), ("tests.mail", "ab"), ("tests.more", "ab")]
        assert names(scope="tests.more") == names(state="blocked") == [("tests.more", "ab")]
        assert names(state="problem") == names(state="paused") == [("tests.mail", "b")]

    def test_are_in_the_order_in_which_they_appeared(self, boss, queues):
        for name in ("b", "a"):
            put(queues, "waiting", queue=name)
        assert [Queue.objects.get(pk=pk).name for pk in listed(boss, QUEUES)] == ["b", "a"]

    def test_show_the_line(self, boss, queues):
        head = put(queues, "halted", error="ValueError: boom")
        waiting = put(queues, "waiting")
        text = page(boss, f"{line_page(head)}change/")
        assert fields(boss, f"{line_page(head)}change/")["jobs_in_line"] == "2 (all its jobs)"
        assert text.index(f'href="{of(head)}change/"') < text.index(f'href="{of(waiting)}change/"')


AT_REST = ("mark done", "edit", "move to end", "move")


class TestTimeline:
    def test_tells_all_that_happened_in_its_order(self, boss, queues):
        now = timezone.now()
        errors = [
            {"attempt": number, "at": (now - (9 - number) * MINUTE).isoformat(), "by": "web1:1", "type": "ValueError",
             "message": f"boom {number}", "counted": number > 1}
            for number in (1, 2)
        ]  # fmt: skip
        job = put(queues, "halted", errors=errors)
        queues.skip(job, by="ann", reason="customer called")
        text = page(boss, f"{of(job)}change/")
        rows = re.findall(r"<tr>(.*?)</tr>", text[text.index('id="timeline"') :], re.S)
        told = [[plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)][1:] for row in rows[1:]]
        assert told == [
            ["Due", "", ""],
            ["Attempt 1 did not count", "web1:1", "ValueError: boom 1"],
            ["Attempt 2 failed", "web1:1", "ValueError: boom 2"],
            ["Skip", "ann", "customer called; state: halted → skipped"],
            ["Skipped", "", ""],
        ]  # fmt: skip

    def test_has_what_a_hook_raised_after_the_end(self, boss, queues):
        now = timezone.now()
        hook = {
            "kind": "hook", "hook": "handle_done_job", "attempt": 1, "at": (now + MINUTE).isoformat(), "by": "web1:7",
            "counted": False, "type": "LookupError", "message": "no mailbox", "traceback": "",
        }  # fmt: skip
        text = page(boss, f"{of(put(queues, 'done', errors=[hook]))}change/")
        timeline = plain(text[text.index('id="timeline"') :])
        assert timeline.index("Done") < timeline.index("handle_done_job failed, after attempt 1")
        assert "web1:7: LookupError no mailbox" in " ".join(plain(text[: text.index('id="timeline"')]).split())


class TestEdit:
    def form(self, client, job):
        text = page(client, f"{of(job)}edit/")
        return {
            "params": html.unescape(re.search(r"<textarea[^>]*>\s*(.*?)</textarea>", text, re.S)[1]),
            "was": re.search(r'name="was" value="([^"]*)"', text)[1],
        }

    def save(self, client, job, params, **more):
        given = {**self.form(client, job), "confirmed": "yes", "reason": "typo", **more}
        return client.post(f"{of(job)}edit/", {**given, "params": params})

    @pytest.mark.capability("E5")
    def test_changes_the_params_and_retries(self, queues):
        ann = client_of("view_job", "view_params", "edit_job")
        job = put(queues, "halted", params={"token": "hunter2", "day": date(2026, 1, 31), "name": "toto"})
        typed = self.form(ann, job)["params"]
        assert "hunter2" not in typed and '"token": "********"' in typed
        (said,) = told(self.save(ann, job, typed.replace("toto", "titi")))
        assert said.endswith("has new params and is retried: attempt 21 of 21 is due now.")
        job.refresh_from_db()
        assert job.params == {"token": "hunter2", "day": date(2026, 1, 31), "name": "titi"}
        event, entry = JobEvent.objects.get(), LogEntry.objects.get()
        assert (event.verb, event.by, event.reason, event.after["changed"]) == ("edit", "ann", "typo", ["name"])
        assert "Reason: typo" in entry.change_message
        shown = plain(page(ann, f"{of(job)}change/"))
        assert '"name": "toto"' in shown and '"name": "titi"' in shown and "hunter" not in shown

    def test_changes_a_masked_param_too(self, boss, queues):
        job = put(queues, "waiting", params={"token": "hunter2"})
        self.save(boss, job, '{"token": "hunter3"}')
        job.refresh_from_db()
        assert job.params == {"token": "hunter3"}
        assert "hunter" not in page(boss, f"{of(job)}change/") + str(JobEvent.objects.values())

    @pytest.mark.parametrize("typed", ["{", "[1]", "", '{"self": 1}', '{"a": NaN}'])
    def test_keeps_what_was_typed_and_says_what_is_wrong(self, boss, queues, typed):
        job = put(queues, "halted", params={"name": "toto"})
        before = everything()
        answer = self.save(boss, job, typed)
        assert answer.status_code == 200
        text = html.unescape(answer.content.decode())
        assert "errorlist" in text and f"{typed}</textarea>" in text and 'value="typo"' in text
        assert everything() == before

    def test_is_refused_when_somebody_else_was_faster(self, boss, queues):
        job = put(queues, "halted", params={"name": "toto"})
        seen = self.form(boss, job)
        queues.edit(job, {"name": "titi"})
        before = everything()
        answer = boss.post(f"{of(job)}edit/", {**seen, "confirmed": "yes"})
        assert "have changed meanwhile" in plain(answer.content.decode())
        assert everything() == before

    @pytest.mark.parametrize("state", ["running again", "done"])
    def test_is_refused_with_the_reason(self, boss, queues, state):
        job = put(queues, state, params={"name": "toto"})
        before = everything()
        answer = self.save(boss, job, '{"name": "titi"}')
        assert "cannot be edited: it is " in plain(answer.content.decode())
        assert everything() == before

    @pytest.mark.parametrize("permissions", [(), ("edit_job",), ("view_params",)])
    def test_needs_to_see_and_to_edit(self, queues, permissions):
        ann, job = client_of("view_job", *permissions), put(queues, "halted")
        assert "Edit</a>" not in page(ann, f"{of(job)}change/")
        assert (
            ann.get(f"{of(job)}edit/").status_code == ann.post(f"{of(job)}edit/", {"params": "{}"}).status_code == 403
        )

    def test_shows_nothing_of_its_params_to_who_may_not_see_them(self, queues):
        job = put(queues, "halted", params={"name": "toto"})
        queues.edit(job, {"name": "titi"})
        shown = page(client_of("view_job"), f"{of(job)}change/")
        assert "toto" not in shown and "titi" not in shown and "Edit" in shown

    def test_is_for_one_job_at_a_time(self, boss, queues):
        assert boss.get(f"{JOBS}edit/").status_code == 302
        assert 'value="edit"' not in page(boss, JOBS)

    def test_is_not_for_scopes_nobody_knows(self, boss, queues):
        job = put(queues, "halted", scope="gone.away", params={"token": "hunter2"})
        assert "Edit</a>" not in page(boss, f"{of(job)}change/")
        assert "hunter2" not in page(boss, f"{of(job)}edit/")


class TestHeads:
    @pytest.mark.capability("E5")
    @pytest.mark.parametrize(("verb", "after"), [("retry_head", "pending"), ("skip_head", "skipped")])
    def test_of_queues_are_retried_and_skipped(self, queues, verb, after):
        ann = client_of("view_queue", f"{verb.removesuffix('_head')}_job")
        jobs = [put(queues, "halted", queue=name) for name in ("a", "b")]
        put(queues, "waiting", queue="c")
        messages = told(say(ann, verb, *Queue.objects.all(), url=QUEUES, reason="up again"))
        assert states(*jobs) == [after, after]
        assert "Queue c of tests.mail is not blocked." in messages and len(messages) == 3
        assert {event.reason for event in JobEvent.objects.all()} == {"up again"}
        assert LogEntry.objects.count() == 2

    def test_that_have_changed_since_the_question_are_left_alone(self, boss, queues):
        put(queues, "halted")
        line = Queue.objects.get()
        seen = re.search(r'name="seen" value="([^"]+)"', page(boss, f"{QUEUES}{line.pk}/skip_head/"))[1]
        other = put(queues, "halted")
        (refused,) = told(boss.post(f"{QUEUES}{line.pk}/skip_head/", {"confirmed": "yes", "seen": seen}))
        assert f"is held by another job now, {other.pk}" in refused
        assert set(states(*Job.objects.all())) == {"halted"}

    @pytest.mark.parametrize("verb", ["retry_head", "skip_head"])
    def test_are_nobodys_without_the_permission_for_jobs(self, queues, verb):
        put(queues, "halted")
        ann = client_of("view_queue", "pause_queue", "resume_queue")
        assert f'value="{verb}"' not in page(ann, QUEUES)
        assert ann.post(f"{QUEUES}{Queue.objects.get().pk}/{verb}/", {"confirmed": "yes"}).status_code == 403


class TestNames:
    def test_of_queues_are_completed(self, queues):
        for name in ("customer-42", "customer-7", "100%_", "other"):
            put(queues, "waiting", queue=name)
        put(mail_queue("tests.more"), "waiting", queue="customer-42")
        ann = client_of("view_queue")
        found = {
            text: ann.get(f"{QUEUES}names/", {"q": text}).json()["names"] for text in ("cust", "100%", "1_", "", "\x00")
        }
        assert found == {"cust": ["customer-42", "customer-7"], "100%": ["100%_"], "1_": [], "": [], "\x00": []}

    def test_are_some_of_many(self, boss, queues):
        Queue.objects.bulk_create(Queue(scope="tests.mail", name=f"q{number}") for number in range(50))
        with CaptureQueriesContext(connection) as context:
            assert len(boss.get(f"{QUEUES}names/", {"q": "q"}).json()["names"]) == queues_module.MOST_COMPLETED
        assert " LIMIT " in context[-1]["sql"]

    def test_are_nobodys_who_may_not_see_queues(self, client, queues):
        assert client_of("view_job").get(f"{QUEUES}names/", {"q": "c"}).status_code == 403
        assert client.get(f"{QUEUES}names/", {"q": "c"}).status_code == 302


class TestLines:
    def test_show_depth_and_times(self, boss, queues):
        now = timezone.now()
        head = put(queues, "halted", scheduled_at=now - 3 * HOUR, attempted_at=now - 5 * MINUTE)
        put(queues, "waiting")
        put(queues, "done")
        Queue.objects.update(current_job=head.pk, due_at=None)
        shown = cells(boss, Queue.objects.get(), QUEUES)
        assert (shown["depth"], shown["oldest"], shown["blocked_since"]) == ("2", "3 h", "5 min")

    def test_of_an_empty_queue_show_nothing(self, boss, queues):
        put(queues, "done")
        shown = cells(boss, Queue.objects.get(), QUEUES)
        assert (shown["depth"], shown["oldest"], shown["blocked_since"]) == ("0", "-", "-")

    def test_are_not_counted_without_end(self, boss, queues, monkeypatch):
        monkeypatch.setattr(queues_module, "MOST_LISTED", 3)
        for _ in range(4):
            put(queues, "waiting")
        assert cells(boss, Queue.objects.get(), QUEUES)["depth"] == "more than 3"
        Job.objects.earliest("pk").delete()
        assert cells(boss, Queue.objects.get(), QUEUES)["depth"] == "3"

    def test_begin_with_blocked_ones(self, boss, queues):
        for name, state in (("a", "waiting"), ("b", "backing off"), ("c", "running again"), ("d", "halted")):
            put(queues, state, queue=name)
        put(queues, "waiting", queue="e")
        Queue.objects.filter(name="e").update(problem="no such action")
        assert [Queue.objects.get(pk=pk).name for pk in listed(boss, QUEUES)] == ["d", "b", "e", "a", "c"]

    def test_are_explained_on_their_page(self, boss, queues):
        job = put(queues, "halted", attempted_at=timezone.now() - 5 * MINUTE)
        sentence = fields(boss, f"{line_page(job)}change/")["explained"]
        assert sentence.startswith(f"customer-42 is held by job {job.pk} (send_mail), halted: attempt 20 of 20 failed")
        assert fields(boss, f"{of(job)}change/")["explained"] == sentence


class TestVerbs:
    @pytest.mark.parametrize(
        ("state", "verbs"),
        [("waiting", {"cancel", "reschedule", *AT_REST}), ("running again", {"cancel"}),
         ("backing off", {"retry", "skip", *AT_REST}),
         ("halted", {"retry", "skip", *AT_REST}), ("done", {"delete"})],
    )  # fmt: skip
    def test_are_offered_where_they_apply(self, boss, queues, state, verbs):
        job = put(queues, state)
        offered = re.compile(r'class="queuetopia-verb">([\w ]+)<')
        assert {verb.lower() for verb in offered.findall(page(boss, f"{of(job)}change/"))} == verbs
        head = ["Retry head", "Skip head"] if "retry" in verbs else []
        first = ["Prioritize"] if state == "waiting" else []
        memory = [] if state == "running again" else ["Edit memory"]
        assert offered.findall(page(boss, f"{line_page(job)}change/")) == [*first, *memory, "Pause", *head]
        queues.pause("customer-42")
        assert offered.findall(page(boss, f"{line_page(job)}change/")) == [*memory, "Pause", "Resume", *head]

    def test_halted_jobs_behind_a_halted_head_are_found_as_such(self, queues):
        ann, jobs = client_of("view_job"), [put(queues, "halted") for _ in range(3)]
        assert sorted(listed(ann, f"{JOBS}?state=halted")) == sorted(job.pk for job in jobs)

    @pytest.mark.capability("X5")
    def test_move_one_job_to_another_queue(self, queues):
        ann, job = client_of("view_job", "move_job"), put(queues, "halted")
        assert 'name="to"' in page(ann, f"{of(job)}move/")
        answer = ann.post(f"{of(job)}move/", {"confirmed": "yes", "to": "b", "reason": "one line"})
        (said,) = told(answer)
        assert said.startswith(f"Job {job.pk} (send_mail of tests.mail/b) is moved to the end of queue b")
        event = JobEvent.objects.get()
        assert (event.verb, event.by, event.reason) == ("move", "ann", "one line")
        assert (Job.objects.get().queue, Job.objects.get().state) == ("b", "halted")

    @pytest.mark.capability("X5")
    def test_move_selected_jobs_together_in_their_order(self, queues, django_assert_max_num_queries):
        ann = client_of("view_job", "move_job")
        jobs = [put(queues, "waiting") for _ in range(20)] + [put(queues, "done", queue="c")]
        Job.objects.filter(pk=jobs[3].pk).update(scheduled_at=jobs[0].scheduled_at - HOUR)
        chosen = {"_selected_action": [f"default:{job.pk}" for job in jobs], "confirmed": "yes"}
        with django_assert_max_num_queries(60):
            answer = ann.post(f"{JOBS}move/", {**chosen, "to": "b"})
        order = [3, 0, 1, 2, *range(4, 20)]
        moved = Job.objects.filter(queue="b").in_order()
        assert list(moved.values_list("pk", flat=True)) == [jobs[place].pk for place in order]
        assert any(f"Job {jobs[20].pk} cannot be moved: it is done since " in text for text in told(answer))
        assert JobEvent.objects.count() == LogEntry.objects.count() == 20

    def test_a_move_names_a_queue(self, queues):
        ann, job = client_of("view_job", "move_job"), put(queues, "waiting")
        for address, to in ((f"{of(job)}move/", "x" * 256), (f"{JOBS}move/", "")):
            chosen = {"_selected_action": f"default:{job.pk}", "confirmed": "yes", "to": to}
            assert "It was not done: see below." in ann.post(address, chosen).content.decode()
        assert Job.objects.get().queue == "customer-42"

    @pytest.mark.capability("X5")
    def test_reschedule_a_job(self, queues):
        ann, job = client_of("view_job", "reschedule_job"), put(queues, "waiting")
        answer = ann.post(f"{of(job)}reschedule/", {"confirmed": "yes", "at": "2042-01-31 08:00"})
        assert told(answer)[0].startswith(
            f"Job {job.pk} (send_mail of tests.mail/customer-42) is scheduled for 2042-01"
        )
        assert Job.objects.get().scheduled_at.year == 2042
        answer = ann.post(f"{of(job)}reschedule/", {"confirmed": "yes", "at": "2020-01-31 08:00"})
        assert "is over" in answer.content.decode()

    @pytest.mark.capability("E5", "E27")
    @pytest.mark.parametrize(
        ("verb", "state", "after", "message"),
        [
            ("retry", "halted", "pending", "is retried: attempt 21 of 21 is due now."),
            ("retry", "backing off", "pending", "is retried: attempt 3 of 20 is due now."),
            ("skip", "halted", "skipped", "is skipped; its queue goes on."),
            ("cancel", "waiting", "cancelled", "is cancelled."),
            ("cancel", "running again", "pending", "is running and asked to stop"),
            ("mark_done", "halted", "done", "is marked as done; its queue goes on."),
            ("move_to_end", "waiting", "pending", "is moved to the end of its queue."),
            ("run_now", "scheduled", "pending", "is due now, and starts when it is its turn."),
        ],
    )
    def test_are_confirmed_done_and_remembered(self, queues, verb, state, after, message):
        ann = client_of("view_job", f"{verb}_job")
        job = put(queues, state)
        before = everything()
        assert f'href="{of(job)}{verb}/"' in page(ann, f"{of(job)}change/")
        assert "This will" in page(ann, f"{of(job)}{verb}/")
        assert everything() == before
        answer = ann.post(f"{of(job)}{verb}/", {"confirmed": "yes", "reason": " the provider is back "})
        assert answer.headers["Location"] == f"{of(job)}change/"
        (said,) = told(answer)
        assert said.startswith(f"Job {job.pk} (send_mail of tests.mail/customer-42) {message}")
        assert states(job) == [after]
        event = JobEvent.objects.get()
        assert (event.verb, event.job, event.by, event.reason) == (verb, job.pk, "ann", "the provider is back")
        entry = LogEntry.objects.get()
        assert (entry.user.username, entry.object_id, entry.action_flag) == ("ann", str(job.pk), CHANGE)
        assert entry.change_message == f"{said} Reason: the provider is back"
        assert "the provider is back" in page(ann, f"{of(job)}history/")
        assert "the provider is back" in page(ann, f"{of(job)}change/")

    def test_prioritize_a_queue(self, queues):
        ann = client_of("view_queue", "prioritize_queue")
        line = line_page(put(queues, "waiting"))
        assert "prioritize/" in page(ann, f"{line}change/")
        answer = ann.post(f"{line}prioritize/", {"confirmed": "yes", "reason": "a complaint"})
        assert told(answer) == ["tests.mail/customer-42 has a head start of 60 min in line."]
        assert JobEvent.objects.get().by == "ann"

    @pytest.mark.capability("X4")
    def test_edit_the_memory_of_a_queue(self, queues):
        ann = client_of("view_queue", "view_params", "edit_memory_queue")
        line = line_page(put(queues, "waiting"))
        assert "Memory</h2>" not in page(ann, f"{line}change/")
        queues.edit_memory("customer-42", {"token": "open sesame", "html": "<b>"})
        shown = page(ann, f"{line}change/")
        assert "open sesame" not in shown and "<b>" not in shown
        assert "&lt;b&gt;" in shown and "edit_memory/" in shown
        asked = page(ann, f"{line}edit_memory/")
        assert "open sesame" not in asked and "<b>" not in asked
        (was,) = re.findall('name="was" value="([^"]+)"', asked)
        new = {"confirmed": "yes", "reason": "a gap", "was": was, "memory": '{"token": "********", "sum": 2}'}
        answer = ann.post(f"{line}edit_memory/", new)
        assert told(answer) == ["tests.mail/customer-42 has another memory, for its next attempt."]
        assert queues.memory("customer-42") == {"token": "open sesame", "sum": 2}
        event = JobEvent.objects.order_by("-pk")[0]
        assert (event.verb, event.by, event.reason) == ("edit_memory", "ann", "a gap")
        changed = ann.post(f"{line}edit_memory/", {**new, "memory": "[1]"})
        assert "has changed meanwhile: begin anew" in changed.content.decode()
        assert "This is no JSON object of memory" in changed.content.decode()
        assert "open sesame" not in page(ann, f"{line}change/")

    @pytest.mark.capability("X4")
    def test_a_memory_is_for_users_who_may_view_params(self, queues):
        line = line_page(put(queues, "waiting"))
        queues.edit_memory("customer-42", {"sum": 4711})
        ann = client_of("view_queue", "edit_memory_queue")
        shown = page(ann, f"{line}change/")
        assert "4711" not in shown and "edit_memory/" not in shown
        assert ann.get(f"{line}edit_memory/").status_code == 403

    @pytest.mark.capability("E5", "H29")
    def test_pause_and_resume_a_queue(self, queues):
        ann = client_of("view_queue", "pause_queue", "resume_queue")
        job = put(queues, "waiting")
        line = line_page(job)
        answer = ann.post(f"{line}pause/", {"confirmed": "yes", "reason": "audit"})
        assert told(answer) == ["tests.mail/customer-42 is paused: what runs finishes, nothing new starts."]
        row = Queue.objects.get()
        assert row.paused_at and (row.paused_by, row.paused_reason) == ("ann", "audit")
        assert told(ann.post(f"{line}resume/", {"confirmed": "yes"})) == ["tests.mail/customer-42 is resumed."]
        assert Queue.objects.get().paused_at is None
        (refused,) = told(ann.post(f"{line}resume/", {"confirmed": "yes"}))
        assert refused == "tests.mail/customer-42 is not paused."
        assert [event.verb for event in JobEvent.objects.order_by("pk")] == ["pause", "resume"]
        assert [entry.object_id for entry in LogEntry.objects.all()] == [str(row.pk)] * 2
        assert "audit" in page(ann, f"{line}change/")

    @pytest.mark.capability("E5")
    def test_of_a_list_are_done_in_the_order_of_the_jobs(self, boss, queues):
        now = timezone.now()
        jobs = [put(queues, "waiting", queue=f"q{hours}", scheduled_at=now - hours * HOUR) for hours in (1, 3, 2)]
        asked = boss.post(JOBS, {"action": "cancel", "_selected_action": [job.pk for job in jobs], "index": 0})
        assert re.findall(r"/q\d", plain(asked.content.decode())) == ["/q3", "/q2", "/q1"]
        answer = say(boss, "cancel", *jobs, reason="all wrong")
        assert answer.headers["Location"] == JOBS
        assert states(*jobs) == ["cancelled"] * 3
        assert [event.queue for event in JobEvent.objects.order_by("pk")] == ["q3", "q2", "q1"]
        assert {event.reason for event in JobEvent.objects.all()} == {"all wrong"}
        assert LogEntry.objects.count() == len(told(answer)) == 3

    @pytest.mark.capability("E5")
    def test_of_a_list_say_what_was_refused_and_why(self, boss, queues):
        jobs = {name: put(queues, name, queue=name) for name in ("running again", "halted", "done", "waiting")}
        messages = told(say(boss, "skip", *jobs.values()))
        assert [states(job)[0] for job in jobs.values()] == ["pending", "skipped", "done", "pending"]
        assert f"Job {jobs['halted'].pk} (send_mail of tests.mail/halted) is skipped." in messages
        refused = "\n".join(messages)
        assert f"Job {jobs['running again'].pk} cannot be skipped: it is running, attempt 3 since" in refused
        assert f"Job {jobs['done'].pk} cannot be skipped: it is done since" in refused
        assert f"Job {jobs['waiting'].pk} cannot be skipped: it waits in line" in refused
        assert len(messages) == 4
        assert LogEntry.objects.get().object_id == str(jobs["halted"].pk)

    def test_of_a_list_tell_ten_of_each_and_the_numbers(self, boss, queues):
        jobs = [put(queues, "halted" if number < 15 else "waiting", queue=f"q{number}") for number in range(30)]
        messages = told(say(boss, "skip", *jobs))
        assert len(messages) == 21
        assert messages[-1] == "Skip: 15 done, 15 refused (15 waiting in line)."

    def test_of_a_list_count_why_they_were_refused(self, boss, queues):
        kinds = ["halted"] * 3 + ["waiting"] * 5 + ["done"] * 4 + ["running again"] * 2
        jobs = [put(queues, kind, queue=f"q{number}") for number, kind in enumerate(kinds)]
        messages = told(say(boss, "retry", *jobs))
        assert messages[-1] == "Retry: 3 done, 11 refused (5 waiting in line, 4 done, 2 running)."

    @pytest.mark.parametrize(
        ("verb", "url", "model"),
        [("retry", JOBS, Job), ("skip", JOBS, Job), ("retry_head", QUEUES, Queue), ("skip_head", QUEUES, Queue)],
    )
    def test_of_a_list_take_as_many_queries_for_200_as_for_5(self, boss, queues, verb, url, model):
        def queries(number):
            kinds = ["halted", "waiting", "running again", "halted", "backing off"]
            for index in range(number):
                put(queues, kinds[index % 5], queue=f"{number}-{index}")
            names = {"queue__startswith" if model is Job else "name__startswith": f"{number}-"}
            chosen = {"_selected_action": [*model.objects.filter(**names).values_list("pk", flat=True)]}
            with CaptureQueriesContext(connection) as context:
                boss.post(f"{url}{verb}/", {**chosen, "confirmed": "yes", "reason": "up again"})
            done = Job.objects.filter(queue__startswith=f"{number}-").exclude(state="halted")
            assert done.count() == number and JobEvent.objects.filter(reason="up again").count() >= number * 3 // 5
            # SQLite takes about 100 rows in one INSERT.
            return [query["sql"] for query in context if not query["sql"].startswith("INSERT")]

        few, many = queries(5), queries(200)
        assert len(few) == len(many) < 40, many
        assert JobEvent.objects.count() == LogEntry.objects.count() == 123

    def test_of_a_list_reach_the_jobs_of_each_database_and_scope(self, boss, queues):
        known, unknown = put(queues, "halted", queue="a"), put(queues, "halted", queue="b", scope="gone.away")
        messages = told(say(boss, "retry", known, unknown))
        assert states(known, unknown) == ["pending", "halted"]
        assert len(messages) == 2 and any(
            "No class of this code has the scope 'gone.away'" in text for text in messages
        )

    def test_go_back_to_the_list_as_it_was(self, boss, queues):
        job = put(queues, "halted")
        url = f"{JOBS}?state=halted&scope=tests.mail"
        answer = say(boss, "skip", job, url=url)
        assert answer.headers["Location"] == url

    def test_refuse_a_job_that_began_to_run_while_it_was_asked(self, boss, queues):
        job = put(queues, "halted")
        assert boss.get(f"{of(job)}skip/").status_code == 200
        put(queues, "running again", id=job.pk)
        (refused,) = told(boss.post(f"{of(job)}skip/", {"confirmed": "yes"}))
        assert "cannot be skipped: it is running, attempt 3 since" in refused
        assert states(job) == ["pending"] and not LogEntry.objects.exists() and not JobEvent.objects.exists()

    def test_of_a_list_reach_jobs_that_left_its_filter_meanwhile(self, boss, queues):
        job, gone = put(queues, "halted"), put(queues, "done", queue="gone")
        chosen = {"_selected_action": [job.pk, gone.pk], "confirmed": "yes"}
        queues.retry(job)
        gone.delete()
        messages = told(boss.post(f"{JOBS}skip/?_changelist_filters=state%3Dhalted", chosen))
        assert messages[0] == "Not there any more: 1 of 2." and "is skipped" in messages[1]

    def test_of_too_many_are_not_even_asked(self, boss, queues, monkeypatch):
        monkeypatch.setattr(base, "MOST_AT_ONCE", 2)
        jobs = [put(queues, "halted", queue=f"q{number}") for number in range(3)]
        chosen = {"action": "skip", "index": 0, "_selected_action": [jobs[0].pk], "select_across": 1}
        assert told(boss.post(JOBS, chosen)) == ["More than 2 jobs were selected: choose fewer at once."]
        assert boss.post(f"{JOBS}skip/", {"_selected_action": []}).headers["Location"] == JOBS
        assert set(states(*jobs)) == {"halted"}

    @pytest.mark.parametrize("verb", ["retry", "skip", "cancel"])
    def test_are_refused_for_jobs_no_code_knows(self, boss, queues, verb):
        job = put(queues, "halted", scope="gone.away")
        (refused,) = told(boss.post(f"{of(job)}{verb}/", {"confirmed": "yes"}))
        assert refused.startswith("No class of this code has the scope 'gone.away'.")
        assert states(job) == ["halted"] and not JobEvent.objects.exists()
        Queue.objects.create(scope="gone.away", name="customer-42")
        (refused,) = told(boss.post(f"{line_page(job)}pause/", {"confirmed": "yes"}))
        assert refused.startswith("No class of this code has the scope 'gone.away'.")

    def test_need_the_token_that_a_page_of_ours_carries(self, boss, queues):
        job = put(queues, "halted")
        strict = Client(enforce_csrf_checks=True)
        strict.cookies = boss.cookies
        assert strict.post(f"{of(job)}skip/", {"confirmed": "yes"}).status_code == 403
        assert strict.post(JOBS, {"action": "skip", "_selected_action": [job.pk], "index": 0}).status_code == 403
        assert states(job) == ["halted"]

    def test_are_not_said_by_an_address(self, boss, queues):
        job = put(queues, "halted")
        before = everything()
        assert boss.get(f"{of(job)}skip/", {"confirmed": "yes"}).status_code == 200
        assert boss.get(f"{JOBS}skip/", {"confirmed": "yes", "_selected_action": job.pk}).status_code == 302
        assert boss.get(JOBS, {"action": "skip", "_selected_action": job.pk, "index": 0}).status_code == 400
        assert everything() == before


@pytest.mark.django_db(databases=["default", "other"])
class TestOtherDatabases:
    @pytest.fixture
    def other(self, queues):
        return mail_queue("tests.other", using="other")

    def test_are_chosen_by_a_filter(self, boss, queues, other):
        here, there = put(queues, "waiting"), Job(id=77, scope="tests.other", queue="a", action="send_mail")
        there.save(using="other")
        assert listed(boss) == listed(boss, database="nowhere") == [here.pk]
        assert listed(boss, database="other", state="waiting", q="a") == [77]
        text = page(boss, JOBS, database="other")
        assert 'href="/admin/queuetopia/job/other_3A77/change/?_changelist_filters=database%3Dother"' in text
        assert "Database" not in page(client_of(username="x", is_superuser=True), "/admin/")

    def test_are_where_the_verb_goes(self, boss, queues, other):
        here = put(queues, "halted")
        there = Job.objects.using("other").create(
            id=here.pk, scope="tests.other", queue="a", action="send_mail", state="halted", attempted_at=timezone.now()
        )
        Queue.objects.using("other").create(scope="tests.other", name="a", current_job=there.pk)
        url = f"{JOBS}?database=other"
        answer = say(boss, "skip", there, url=url, reason="wrong")
        assert answer.headers["Location"] == url
        assert "is skipped" in told(answer)[0]
        there.refresh_from_db()
        assert (there.state, states(here)) == ("skipped", ["halted"])
        assert JobEvent.objects.using("other").get().by == "boss" and not JobEvent.objects.exists()
        assert LogEntry.objects.get().object_id == f"other:{there.pk}"
        there_page = f"{JOBS}other_3A{there.pk}/"
        assert LogEntry.objects.get().get_admin_url() == f"{there_page}change/"
        history = page(boss, f"{there_page}history/")
        assert "wrong" in history and f'href="{there_page}change/"' in history
        assert "wrong" not in page(boss, f"{of(here)}history/")
        assert fields(boss, f"{there_page}change/")["state_now"] == "skipped"
        assert boss.post(f"{there_page}delete/", {"confirmed": "yes"}).status_code == 302
        assert not Job.objects.using("other").exists() and Job.objects.count() == 1

    def test_a_job_that_lies_where_nobody_serves_it_says_so(self, boss, queues, other):
        job = put(queues, "halted", scope="tests.other")
        (refused,) = told(boss.post(f"{of(job)}skip/", {"confirmed": "yes"}))
        assert "is in database default, where nothing serves it" in refused
        assert states(job) == ["halted"]


class TestNothingElse:
    def test_can_be_added(self, boss):
        for url in (JOBS, QUEUES):
            assert boss.get(f"{url}add/").status_code == 403
            assert boss.post(f"{url}add/", {}).status_code == 403
            assert f"{url}add/" not in page(boss, url) + page(boss, "/admin/")

    def test_can_be_changed(self, boss, queues):
        job = put(queues, "halted")
        before = everything()
        for url in (of(job), line_page(job)):
            assert boss.post(f"{url}change/", {"state": "done", "queue": "x", "_save": "Save"}).status_code == 403
            assert 'name="_save"' not in page(boss, f"{url}change/")
            assert not re.search(r'<(input|textarea|select)[^>]* name="(?!csrf)', page(boss, f"{url}change/"))
        assert boss.post(JOBS, {"form-0-state": "done", "_save": "Save"}).status_code in (200, 302)
        assert everything() == before

    def test_is_a_permission(self, queues):
        codenames = set(
            Permission.objects.filter(content_type__app_label="queuetopia").values_list("codename", flat=True)
        )
        assert {name for name in codenames if name.endswith(("_job", "_queue", "_params"))} == {
            "view_job", "delete_job", "retry_job", "skip_job", "cancel_job", "mark_done_job", "edit_job",
            "move_to_end_job", "move_job", "reschedule_job",
            "run_now_job", "view_params", "view_queue", "prioritize_queue", "edit_memory_queue",
            "pause_queue", "resume_queue",
        }  # fmt: skip


class TestDeleting:
    @pytest.mark.parametrize("state", SHOWN)
    def test_is_for_ended_jobs(self, queues, state):
        ann = client_of("view_job", "delete_job")
        job = put(queues, state)
        is_ended = job.is_ended()
        assert (f'href="{of(job)}delete/"' in page(ann, f"{of(job)}change/")) is is_ended
        answer = ann.post(f"{of(job)}delete/", {"confirmed": "yes"})
        assert Job.objects.exists() is not is_ended
        if is_ended:
            assert answer.headers["Location"] == JOBS
            assert LogEntry.objects.get().action_flag == DELETION
        else:
            assert "has not ended, and no unfinished job is deleted" in told(answer)[0]
            assert not LogEntry.objects.exists()

    def test_of_a_list_leaves_unfinished_jobs(self, boss, queues):
        jobs = [put(queues, state, queue=state) for state in SHOWN]
        for job in jobs:
            JobEvent.objects.create(verb="retry", scope=job.scope, queue=job.queue, job=job.pk)
        answer = say(boss, "delete", *jobs)
        left = {job.pk for job in jobs if not job.is_ended()}
        assert set(Job.objects.values_list("pk", flat=True)) == left
        assert set(JobEvent.objects.values_list("job", flat=True)) == left
        assert LogEntry.objects.count() == 3
        assert sum(message.endswith("is deleted.") for message in told(answer)) == 3

    @pytest.mark.parametrize("state", UNFINISHED)
    def test_knows_the_state_at_the_last_moment(self, queues, state):
        """Whatever was read before: the row's own state decides, in the statement that deletes."""
        job = put(queues, state)
        with CaptureQueriesContext(connection) as context:
            assert delete_ended(job.pk, alias="default") is False
        deletes = [query["sql"] for query in context if query["sql"].startswith("DELETE")]
        assert len(deletes) == 1 and re.search(r"done_at\W+ IS NOT NULL", deletes[0])
        assert Job.objects.exists()

    def test_of_queues_is_nobodys(self, boss, queues):
        line = line_page(put(queues, "done"))
        assert boss.get(f"{line}delete/").status_code == boss.post(f"{line}delete/", {"post": "yes"}).status_code == 403
        assert "delete_selected" not in page(boss, QUEUES)
        assert Queue.objects.exists()

    def test_needs_no_code_that_knows_the_scope(self, boss, queues):
        job = put(queues, "done", scope="gone.away")
        boss.post(f"{of(job)}delete/", {"confirmed": "yes"})
        assert not Job.objects.exists()


ALL = (*(f"{verb}_job" for verb in JOB_VERBS), *(f"{verb}_queue" for verb in QUEUE_VERBS))
VIEWERS = ("view_job", "view_queue")
USERS = {
    "nobody": None,
    "customer": ((), {"is_staff": False}),
    "customer with all permissions": ((*VIEWERS, *ALL), {"is_staff": False}),
    "staff": ((), {}),
    "staff with verbs but no view": (ALL, {}),
    "viewer": (VIEWERS, {}),
    **{f"viewer with {name}": ((*VIEWERS, name), {}) for name in ALL},
    "inactive superuser": ((), {"is_superuser": True, "is_active": False}),
    "superuser": ((), {"is_superuser": True}),
}


class TestWhoMayDoWhat:
    @pytest.fixture
    def jobs(self, queues):
        put(queues, "waiting", queue="paused")
        queues.pause("paused")
        ready = {"retry": "halted", "skip": "halted", "cancel": "waiting", "mark_done": "waiting",
                 "move_to_end": "waiting", "run_now": "scheduled", "delete": "done"}  # fmt: skip
        return {verb: put(queues, state, queue=verb) for verb, state in ready.items()}

    def targets(self, jobs):
        yield from ((f"{verb}_job", verb, JOBS, jobs[verb].pk) for verb in JOB_VERBS)
        yield "pause_queue", "pause", QUEUES, Queue.objects.get(name="retry").pk
        yield "resume_queue", "resume", QUEUES, Queue.objects.get(name="paused").pk

    @pytest.mark.capability("E5", "H29")
    @pytest.mark.parametrize("name", USERS)
    def test_matrix(self, jobs, name):
        client = client_of(*USERS[name][0], **USERS[name][1]) if USERS[name] else Client()
        permissions = set(USERS[name][0]) if USERS[name] else set()
        is_staff = name.startswith(("staff", "viewer", "superuser"))
        sees = is_staff and (name == "superuser" or permissions >= set(VIEWERS))
        pages = [
            JOBS,
            QUEUES,
            *(f"{url}{pk}/{view}/" for _, _, url, pk in self.targets(jobs) for view in ("change", "history")),
        ]
        for url in pages:
            assert client.get(url).status_code == (200 if sees else 403 if is_staff else 302), url
        for permission, verb, url, pk in self.targets(jobs):
            may = sees and (name == "superuser" or permission in permissions)
            before = everything()
            single, many = f"{url}{pk}/{verb}/", f"{url}{verb}/"
            if sees:
                action = "delete_selected" if verb == "delete" else verb
                assert (f'<option value="{action}">' in page(client, url)) is may
                assert (f'href="{single}"' in page(client, f"{url}{pk}/change/")) is may
                # A forged choice of an action that is not offered does nothing.
                client.post(url, {"action": action, "_selected_action": [pk], "index": 0, "confirmed": "yes"})
                assert everything() == before
            refusal = 403 if is_staff else 302
            assert client.get(single).status_code == (200 if may else refusal), single
            assert everything() == before
            many_answer = client.post(many, {"_selected_action": [pk], "reason": "x"})
            assert many_answer.status_code == (200 if may else refusal)
            assert everything() == before
            answer = client.post(many, {"_selected_action": [pk], "confirmed": "yes", "reason": "x"})
            assert answer.status_code == (302 if may else refusal)
            assert (everything() != before) is may, (verb, told(answer) if may else "")
            if not may:
                assert client.post(single, {"confirmed": "yes"}).status_code == refusal
                assert everything() == before
                assert answer.status_code == 403 or "/login/" in answer.headers["Location"]

    def test_every_page_there_is_asks_who_is_there(self, jobs):
        """The matrix knows the pages by name; this one asks the admin which there are."""
        registered = [type(model_admin)(model, site) for model, model_admin in site._registry.items()]
        ours = [admin for admin in registered if admin.opts.app_label == "queuetopia"]
        addresses = {}
        Scope.objects.create(name="no.such.scope")
        Schedule.objects.create(scope="no.such.scope", name="tick", until=timezone.now())
        for admin in ours:
            row = admin.model.objects.first()
            for pattern in admin.get_urls():
                way = (
                    str(pattern.pattern).replace("<path:object_id>", str(row.pk)).replace("<path:content_type_id>", "1")
                )
                addresses[f"/admin/queuetopia/{admin.opts.model_name}/{way}"] = pattern.name
        assert len(addresses) > 2 * len(ALL)
        staff, before = client_of(), everything()
        for address, name in addresses.items():
            for ask in ("get", "post"):
                answer = getattr(Client(), ask)(address, {"confirmed": "yes"})
                assert "/login/" in answer.headers.get("Location", ""), (ask, address)
                if name is not None:  # Django's old addresses only lead to the new ones
                    assert getattr(staff, ask)(address, {"confirmed": "yes"}).status_code == 403, (ask, address)
        assert everything() == before

    def test_staff_without_permissions_do_not_even_see_that_it_is_there(self, queues):
        assert "queuetopia" not in page(client_of(), "/admin/").lower()


class TestHostileText:
    @pytest.fixture
    def job(self, queues):
        errors = [{"attempt": 1, "at": HOSTILE, "by": HOSTILE, "duration": HOSTILE, "type": HOSTILE, "message": HOSTILE,
                   "traceback": HOSTILE}]  # fmt: skip
        job = put(
            queues, "halted", queue=HOSTILE, action=HOSTILE, params={HOSTILE: HOSTILE}, errors=errors,
            error=f"Error: {HOSTILE}", attempted_by=HOSTILE, result={HOSTILE: HOSTILE}, on_exhausted=HOSTILE[:16],
        )  # fmt: skip
        Queue.objects.update(problem=HOSTILE)
        put(queues, "waiting", queue=HOSTILE, action=HOSTILE)
        put(queues, "running again", queue="runs", action=HOSTILE)
        put_node(host=HOSTILE)
        put(queues, "halted", scope=HOSTILE, queue=HOSTILE)
        queues.pause(HOSTILE, by=HOSTILE, reason=HOSTILE)
        queues.pause(by=HOSTILE, reason=HOSTILE)
        return job

    def test_is_text_on_every_page(self, queues, job):
        hostile = client_of(username=HOSTILE, is_superuser=True)
        chosen = {"_selected_action": list(Job.objects.values_list("pk", flat=True))}
        lines = {"_selected_action": list(Queue.objects.values_list("pk", flat=True))}
        for url, rows, verbs in ((JOBS, chosen, JOB_VERBS), (QUEUES, lines, QUEUE_VERBS)):
            for verb in verbs:
                self.check(hostile.post(f"{url}{verb}/", rows))
        self.check(hostile.post(f"{of(job)}retry/", {"confirmed": "yes", "reason": HOSTILE}, follow=True))
        self.check(hostile.post(f"{JOBS}cancel/", {**chosen, "confirmed": "yes", "reason": HOSTILE}, follow=True))
        self.check(hostile.post(f"{QUEUES}resume/", {**lines, "confirmed": "yes", "reason": HOSTILE}, follow=True))
        assert LogEntry.objects.count() >= 2
        rows = [f"{url}{row.pk}/" for url, model in ((JOBS, Job), (QUEUES, Queue)) for row in model.objects.all()]
        for url in ["/admin/", JOBS, QUEUES, *(f"{row}{view}/" for row in rows for view in ("change", "history"))]:
            self.check(hostile.get(url))
        for name in ("q", "queue", "scope", "state", "database"):
            self.check(hostile.get(JOBS, {name: HOSTILE}), is_there=False)

    def check(self, answer, is_there=True):
        text = answer.content.decode()
        assert answer.status_code == 200
        assert "<img src=x" not in text
        assert ("&lt;img" in text) or not is_there

    def test_without_meaning_to_the_eye_is_escaped(self, boss, queues):
        """A name that turns the direction of writing, or goes on in a new line, must not pose as another."""
        job = put(queues, "halted", queue="a\u202eb\nc", error="x\u202ey")
        shown = cells(boss, job)
        (said,) = told(boss.post(f"{of(job)}skip/", {"confirmed": "yes"}))
        assert said == f"Job {job.pk} (send_mail of tests.mail/a\\u202eb\\nc) is skipped; its queue goes on."
        assert (shown["queue_name"], shown["details"]) == ("tests.mail/a\\u202eb\\nc", "x\\u202ey")

    def test_that_a_database_cannot_store_does_no_harm(self, boss, queues):
        job = put(queues, "halted")
        answer = boss.post(f"{of(job)}skip/", {"confirmed": "yes", "reason": "a\x00b" + "x" * 9_000})
        assert "is skipped" in told(answer)[0]
        assert JobEvent.objects.get().reason.startswith("a␀b") and len(JobEvent.objects.get().reason) == 500


UNSEEN = "\x1b\x07\x9b\x85\u202e\u2066\u200f\u061c\u200b\ufeff\u2028\u2029\U000e0041\ue000"


class TestUnseenText:
    """What steers a terminal or turns the direction of writing reaches no page, mail or log of the admin as it is."""

    @pytest.fixture
    def job(self, queues):
        bad = f"a{UNSEEN}b"
        errors = [{"attempt": 1, "at": bad, "by": bad, "duration": bad, "type": bad, "message": bad, "traceback": bad}]
        job = put(
            queues, "halted", queue=bad, action=bad, params={bad: bad, "token": bad, "deep": [{bad: bad}]},
            errors=errors, error=bad, attempted_by=bad, result={bad: bad}, failed_at=timezone.now(),
        )  # fmt: skip
        Queue.objects.update(problem=bad)
        put(queues, "running again", queue=f"runs {bad}", action=bad)
        put(queues, "done", queue=f"done {bad}", action=bad)
        node = put_node(host=bad, scopes=[bad, queues.scope])
        Queue.objects.held().update(held_by=node.pk)
        put(queues, "halted", scope=bad, queue=bad, error=bad)
        queues.pause(bad, by=bad, reason=bad)
        queues.pause(by=bad, reason=bad)
        Scope.objects.create(name=bad, paused_at=timezone.now(), paused_by=bad, paused_reason=bad)
        return job

    @pytest.fixture
    def client(self, queues):
        client_of(username="bad", is_superuser=True)
        User.objects.update(username=f"a{UNSEEN}b", first_name=f"c{UNSEEN}d")
        client = Client()
        client.force_login(User.objects.get())
        return client

    def see(self, answer):
        """The page has nothing of it, but for Django's own greeting."""
        text = re.sub(r'<div id="user-tools">.*?</div>', "", answer.content.decode(), flags=re.S)
        raw = sorted({char for char in text if not char.isprintable()} - {"\n", "\xa0"})
        assert raw == [], (answer.request["PATH_INFO"], ascii(" ".join(text[: text.index(raw[0]) + 30].split())[-200:]))

    def test_is_escaped_on_every_page(self, client, job):
        rows = [f"{url}{row.pk}/" for url, model in ((JOBS, Job), (QUEUES, Queue)) for row in model.objects.all()]
        views = ("change", "history", *JOB_VERBS, "edit", *QUEUE_VERBS, "retry_head", "skip_head")
        pages = [f"{row}{view}/" for row in rows for view in views]
        pages += ["/admin/", "/admin/queuetopia/", JOBS, QUEUES, OVERVIEW, f"{OVERVIEW}live/"]
        scopes = [f"{OVERVIEW}tests.mail/{verb}/" for verb in ("pause", "resume")]
        for url in [*pages, *scopes]:
            answer = client.get(url, follow=True)
            assert answer.status_code in (200, 403, 404), url
            self.see(answer)
        for name in ("q", "queue", "scope", "state", "database", "_changelist_filters", "group", "p", "o"):
            for url in (JOBS, QUEUES, OVERVIEW, of(job), f"{of(job)}retry/", f"{OVERVIEW}retry_group/"):
                self.see(client.get(url, {name: f"a{UNSEEN}b"}, follow=True))

    def test_is_escaped_after_what_is_done_and_in_its_log(self, client, job):
        reason = {"confirmed": "yes", "reason": f"a{UNSEEN}b"}
        for url, model, verbs in ((JOBS, Job, JOB_VERBS), (QUEUES, Queue, (*QUEUE_VERBS, "retry_head"))):
            rows = {"_selected_action": list(model.objects.values_list("pk", flat=True))}
            for verb in verbs:
                self.see(client.post(f"{url}{verb}/", {**rows, "reason": reason["reason"]}))
                self.see(client.post(f"{url}{verb}/", {**rows, **reason}, follow=True))
        left = Job.objects.first()
        self.see(client.post(f"{of(left)}retry/", reason, follow=True))
        self.see(client.post(f"{of(left)}edit/", {**reason, "params": f'{{"a": "{UNSEEN}" {UNSEEN}'}))
        self.see(client.post(f"{OVERVIEW}tests.mail/resume/", reason, follow=True))
        assert LogEntry.objects.count() > 3
        for entry in LogEntry.objects.all():
            assert (entry.object_repr + entry.change_message).isprintable()
        self.see(client.get(f"{of(left)}history/"))
        self.see(client.get("/admin/"))

    @pytest.mark.parametrize("address", ["a%E2%80%AEb", "_E2_80_AE", "\u202e"])
    def test_is_escaped_of_what_is_not_there(self, client, address):
        for url in (JOBS, QUEUES, OVERVIEW):
            self.see(client.get(f"{url}{address}/change/", follow=True))

    def test_params_saved_as_they_are_shown_stay_as_they_are(self, client, queues):
        params = {"email": f"a{UNSEEN}b", f"c{UNSEEN}": ["\U0001f468\u200d\U0001f469", {"token": "x"}], "token": UNSEEN}
        job = put(queues, "halted", params=params, action="send_mail")
        form = client.get(f"{of(job)}edit/").context["form"]
        shown = str(form["params"].value())
        assert shown.replace("\n", "").isprintable()
        kept = unmasked(loads(shown), params, ["token"])
        assert kept == params


class TestProject:
    def test_needs_no_admin(self):
        """A project without the admin, and so without its log, sessions and messages, runs all the same."""
        code = """
import sys, django
from django.conf import settings
settings.configure(INSTALLED_APPS=["queuetopia"], DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3",
    "NAME": ":memory:", "OPTIONS": {"transaction_mode": "IMMEDIATE"}}})
django.setup()
from django.core.management import call_command
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
from queuetopia import Performer, Queuetopia, action
class P(Performer):
    @action
    def noop(self, job): pass
class Q(Queuetopia):
    performer, scope = P, "q"
assert Q.cancel(Q.create_job("a", "noop")) == "cancelled"
assert not [name for name in sys.modules if name.startswith(("django.contrib.admin", "queuetopia.admin"))]
"""
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_has_no_script_or_style_in_its_pages(self):
        """So that a Content-Security-Policy may forbid them."""
        templates = list(Path(queuetopia.__file__).parent.glob("templates/**/*.html"))
        assert len(templates) >= 5
        for template in templates:
            assert not re.search(r"<script|<style|\bstyle=|\bon\w+=|\|safe|autoescape", template.read_text()), template

    def test_may_have_an_admin_of_another_name_with_jobs_only(self, boss, queues, settings):
        ops = AdminSite(name="ops")
        ops.register(Job, JobAdmin)
        settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path("ops/", ops.urls)]})
        job, waiting = put(queues, "halted"), put(queues, "waiting")
        shown = page(boss, f"/ops/queuetopia/job/{waiting.pk}/change/")
        for link in (f"{job.pk}/change/", f"{waiting.pk}/cancel/", f"{waiting.pk}/history/", "?scope=tests.mail"):
            assert f'href="/ops/queuetopia/job/{link}' in shown, link
        assert "queuetopia/queue/" not in shown
        answer = say(boss, "skip", job, url="/ops/queuetopia/job/")
        assert answer.headers["Location"] == "/ops/queuetopia/job/" and states(job) == ["skipped"]
        answer = boss.post(f"/ops/queuetopia/job/{waiting.pk}/cancel/", {"confirmed": "yes"}, follow=True)
        assert "is cancelled" in plain(answer.content.decode())

    @pytest.mark.parametrize("Other", [JobAdmin, QueueAdmin], ids=lambda admin: admin.__name__)
    def test_may_choose_other_filters(self, boss, Other):
        class Ours(Other):
            list_filter = [*Other.list_filter, "problem", ("action", AllValuesFieldListFilter)]

        ours, request = Ours(Job, site), self.request(boss)
        assert {
            lookup: ours.lookup_allowed(lookup, "x", request)
            for lookup in ("state", "problem__exact", "action", "action__isnull", "params", "params__x", "scope__gt")
        } == {
            "state": True, "problem__exact": True, "action": True, "action__isnull": True,
            "params": False, "params__x": False, "scope__gt": False,
        }  # fmt: skip

    def test_can_be_registered_anew_by_a_project(self, queues):
        class Narrow(JobAdmin):
            """Only shows the jobs of one queue, and lets nobody skip."""

            def get_queryset(self, request):
                return super().get_queryset(request).filter(queue="mine")

            def has_skip_permission(self, request, obj=None):
                return False

        narrow = AdminSite()
        narrow.register(Job, Narrow)
        (ours,) = narrow._registry.values()
        mine, other = put(queues, "halted", queue="mine"), put(queues, "halted", queue="other")
        request = self.request(client_of(is_superuser=True))
        assert [row.pk for row in ours.get_changelist_instance(request).result_list] == [mine.pk]
        assert ours.get_object(request, str(other.pk)) is None
        assert set(ours.get_actions(request)) == {
            "retry",
            "cancel",
            "move",
            "reschedule",
            "mark_done",
            "move_to_end",
            "run_now",
            "delete_selected",
        }
        with pytest.raises(PermissionDenied):
            ours.verb_view(request, str(mine.pk), verb="skip")

    def request(self, client):
        return client.get("/admin/").wsgi_request
