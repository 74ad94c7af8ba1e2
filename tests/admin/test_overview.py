"""The overview: what it says, to whom, how often it asks the database, and what a person may decide there."""

import html
import re
import uuid
from datetime import timedelta

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.admin.sites import AdminSite
from django.core.cache import cache
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import path
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from queuetopia import Breaker, registry
from queuetopia.admin import ScopeAdmin, overview
from queuetopia.admin.charts import Line, chart
from queuetopia.admin.overview import fingerprint, grouped
from queuetopia.models import Job, JobEvent, Node, Queue, Scope, Statistic
from queuetopia.monitoring import health
from tests.admin.client import HOSTILE, client_of, everything, page, plain, states, told
from tests.states import HOUR, MINUTE, NODE, mail_queue, put, put_node

pytestmark = pytest.mark.django_db

OVERVIEW = "/admin/queuetopia/scope/"
LIVE = f"{OVERVIEW}live/"
REFUSED = "ConnectionError: api.acme:443 refused"


@pytest.fixture(autouse=True)
def nothing_kept():
    cache.clear()
    yield
    cache.clear()


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


@pytest.fixture
def boss(queues):
    return client_of(username="boss", is_superuser=True)


def words(client, url=OVERVIEW):
    cache.clear()
    return re.sub(r"\s+", " ", plain(page(client, url)))


def rows_of(text, heading):
    """Return the cells of the table under a heading."""
    part = text[text.index(f'id="{heading}-heading"') :].split("</section>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", part, re.S)
    return [[plain(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S)] for row in rows[1:]]


class TestNumbers:
    def test_are_those_of_the_queues(self, boss, queues):
        for name in ("waiting", "running first", "backing off", "halted", "halted early", "done"):
            put(queues, name, queue=name)
        queues.pause("waiting")
        text = page(boss, OVERVIEW)
        assert rows_of(text, "scopes") == [["tests.mail", "6", "1", "2", "1", "1", "Pause"]]
        seen = plain(text)
        for number, what in ((5, "unfinished jobs"), (1, "queues running"), (2, "queues halted"), (1, "queues paused")):
            assert re.search(rf"\b{number}\s+{what}", seen), what

    def test_are_counted_to_an_end(self, boss, queues, monkeypatch):
        monkeypatch.setattr(overview, "MOST_COUNTED", 2)
        for _ in range(3):
            put(queues, "waiting")
        assert "more than 2 unfinished jobs" in words(boss)
        Job.objects.earliest("pk").delete()
        assert " 2 unfinished jobs" in words(boss)

    def test_are_there_for_a_scope_without_queues_and_one_no_code_knows(self, boss, queues):
        Queue.objects.create(scope="gone.away", name="x", current_job=put(queues, "halted", scope="gone.away").pk)
        Queue.objects.filter(scope="tests.mail").delete()
        found = rows_of(page(boss, OVERVIEW), "scopes")
        assert found == [
            ["gone.away (unknown to this code)", "1", "0", "1", "0", "0", ""],
            ["tests.mail", "0", "0", "0", "0", "0", "Pause"],
        ]

    @pytest.mark.django_db(databases=["default", "other"])
    def test_are_of_one_database_at_a_time(self, boss, queues):
        assert "Database:" not in words(boss)
        far = mail_queue("tests.far", using="other")
        put(queues, "halted"), put(far, "halted")
        text = page(boss, OVERVIEW)
        assert [row[0] for row in rows_of(text, "scopes")] == ["tests.mail"]
        there = re.search(r'<a href="([^"]+)">other</a>', text)[1]
        text = page(boss, there)
        assert [row[0] for row in rows_of(text, "scopes")] == ["tests.far"]
        answer = boss.post(
            re.search(r'href="([^"]*retry_group[^"]*)"', text)[1].replace("&amp;", "&"), {"confirmed": 1}
        )
        assert answer.headers["Location"] == there and told(answer) == ["Retried: 1; refused: 0."]
        assert told(boss.post(f"{OVERVIEW}tests.far/pause/", {"confirmed": 1}))[0].startswith("tests.far is paused")
        assert boss.get(f"{OVERVIEW}?database=nonsense").status_code == 200


class TestNodes:
    def test_are_shown_with_what_each_worker_runs(self, boss, queues):
        job = put(queues, "running again")
        put_node(workers=[{"pid": 777, "jobs": [job.pk]}, {"pid": 778, "jobs": []}])
        text = page(boss, OVERVIEW)
        assert "web1:4242: alive, last seen" in re.sub(r"\s+", " ", plain(text))
        assert "1 of 2 workers busy" in text
        assert rows_of(text, "nodes")[0][:4] == ["777", f"{job.pk} send_mail", "tests.mail/customer-42", "3"]
        assert f'href="/admin/queuetopia/job/{job.pk}/change/"' in text

    def test_that_are_dead_are_told_in_words(self, boss, queues):
        put_node(last_seen=timezone.now() - HOUR)
        assert "silent, last seen" in words(boss)
        Node.objects.update(fenced_at=timezone.now())
        assert "fenced" in words(boss)

    def test_that_are_missing_are_missed(self, boss, queues):
        assert "No node is running. Start one" in words(boss)

    def test_that_have_begun_a_job_since_their_heartbeat_are_busy(self, boss, queues):
        put(queues, "running first")
        node = put_node()
        assert "holds 1 queues, has not reported its workers yet" in words(boss)
        Node.objects.filter(pk=node.pk).update(workers=[{"pid": 777, "jobs": []}, {"pid": 778, "jobs": []}])
        assert "1 of 2 workers busy" in words(boss)


class TestVerdict:
    def verdict(self, client):
        """Return what is said first, and where each line leads."""
        cache.clear()
        text = page(client, OVERVIEW)
        part = text[text.index('id="verdict-heading"') :].split("</section>")[0]
        heading = plain("<h2 " + part.split("</h2>")[0]).removeprefix("⚠").strip()
        return heading, re.findall(r'<a href="([^"]*)">(.*?)</a>', part)

    def test_is_all_well(self, boss, queues):
        assert self.verdict(boss) == ("All is well", [])

    def test_is_that_of_the_check_with_the_place_of_each(self, boss, queues):
        put_node()
        other = mail_queue("tests.lonely")
        put(queues, "halted", queue="h")
        put(queues, "backing off", queue="b", failed_at=timezone.now() - 5 * HOUR)
        put(queues, "waiting", queue="l")
        put(queues, "waiting", queue="p")
        Queue.objects.filter(name="p").update(problem="This code has no action 'send_mail'.")
        put(other, "scheduled")
        put(queues, "halted", scope="gone.away", queue="x")
        Queue.objects.filter(name="x").update(scope="gone.away")
        Scope.objects.create(name="tests.idle", paused_at=timezone.now() - 30 * HOUR, paused_by="ann")
        mail_queue("tests.idle")

        heading, lines = self.verdict(boss)

        assert [html.unescape(text) for _, text in lines] == [
            found["message"] for found in health.problems(registry.registered())
        ]
        assert heading == "7 things are wrong"
        for address, _ in lines:
            assert boss.get(html.unescape(address)).status_code == 200
        assert html.unescape(lines[2][0]).endswith("?scope=tests.mail&state=ready")

    def test_counts_paused_scopes(self, boss, queues):
        queues.pause(by="ann", reason="deploy")
        assert "1 scopes paused" in words(boss) and "by ann: deploy" in words(boss)


class TestFingerprint:
    @pytest.mark.parametrize(
        ("error", "text"),
        [
            ("ConnectionError: api.acme", "ConnectionError: api.acme"),
            ("OSError: [Errno 28] disk 7 is full\nmore", "OSError: [Errno #] disk # is full"),
            ("E: order 1234-5678 of 2026-01-31T10:00:00", "E: order #-# of #-#-#T#"),
            ("E: 6f1c2b1e-8a3d-4c0e-9f57-0a1b2c3d4e5f", "E: #"),
            ("E: at 0x7f60bae87c50>", "E: at #>"),
            ("E: commit deadbeef12", "E: commit #"),
            ("E: feedbeef is a word of letters", "E: feedbeef is a word of letters"),
            ("E: <toto@mail.com> is unknown", "E: <#> is unknown"),
            ("E: 10.0.0.1:5432 refused", "E: # refused"),
            ("", "no error recorded"),
            ("\n\n", "no error recorded"),
        ],
    )
    def test_leaves_out_what_differs_from_job_to_job(self, error, text):
        assert fingerprint(error) == text

    @given(st.text(max_size=400))
    def test_of_any_text_is_short_and_the_same_again(self, error):
        assert len(fingerprint(error)) <= 200
        assert fingerprint(error) == fingerprint(error)

    def test_groups_by_it_the_most_frequent_first(self):
        errors = ["E: 1", "F: x", "E: 2", "E: 3", None]
        row = {"scope": "s", "number": 2, "long": 0, "since": None, "one": "a", "other": "b"}
        assert [(group.text, group.number) for group in grouped({**row, "text": error} for error in errors)] == [
            ("E: #", 6), ("F: x", 2), ("no error recorded", 2)
        ]  # fmt: skip


class TestGroups:
    def put_blocked(self, queues, number=3, **columns):
        return [
            put(queues, "halted", queue=f"q{index}", error=f"ConnectionError: order {index}", **columns)
            for index in range(number)
        ]

    @pytest.mark.capability("E5")
    def test_say_how_many_queues_are_blocked_by_what(self, boss, queues):
        self.put_blocked(queues, failed_at=timezone.now() - 5 * MINUTE)
        put(queues, "backing off", queue="other", error="ValueError: boom")
        put(queues, "running again", queue="runs", error="ValueError: boom")
        first, second = rows_of(page(boss, OVERVIEW), "blocked")
        assert first == [
            "3", "ConnectionError: order #", "tests.mail", "5 min", "tests.mail/q0, tests.mail/q1, tests.mail/q2",
            "Retry all",
        ]  # fmt: skip
        assert second[:2] == ["1", "ValueError: boom"]

    def test_are_of_all_blocked_queues(self, boss, queues):
        now = timezone.now()
        jobs = Job.objects.bulk_create(
            Job(
                scope="tests.mail", queue=f"q{number}", action="send_mail", state="halted", attempted_at=now,
                error=f"E: {number}" if number % 2 else "F: down", scheduled_at=now,
            )
            for number in range(3_000)
        )  # fmt: skip
        jobs = Job.objects.in_bulk(field_name="pk") if connection.vendor == "mysql" else {job.pk: job for job in jobs}
        Queue.objects.bulk_create(Queue(scope=job.scope, name=job.queue, current_job=job.pk) for job in jobs.values())
        first, second = rows_of(page(boss, OVERVIEW), "blocked")
        assert (first[:2], second[:2]) == (["1500", "E: #"], ["1500", "F: down"])

    def test_say_when_there_is_none(self, boss, queues):
        assert "No queue is blocked." in words(boss)

    def test_do_not_count_queues_whose_attempt_goes_on_elsewhere(self, boss, queues):
        job = put(queues, "backing off")
        Job.objects.filter(pk=job.pk).update(outside={}, error="", failed_at=None)
        text = words(boss)
        assert "No queue is blocked." in text
        assert "no error recorded" not in text

    def test_are_bounded_and_say_so(self, boss, queues, monkeypatch):
        monkeypatch.setattr(health, "MOST_ERRORS", 2)
        self.put_blocked(queues)
        assert "And 1 other queues, most of them with an error of their own." in words(boss)
        monkeypatch.setattr(health, "MOST_ERRORS", 10)
        monkeypatch.setattr(overview, "MOST_GROUPS", 1)
        put(queues, "halted", queue="other", error="ValueError: boom")
        assert "And 1 other errors." in words(boss)

    def retry_address(self, client):
        cache.clear()
        found = re.search(r'href="([^"]*retry_group[^"]*)"', page(client, OVERVIEW))
        return found and found[1].replace("&amp;", "&")

    @pytest.mark.capability("E5")
    def test_are_retried_in_the_order_of_the_jobs_after_a_question(self, queues):
        ann = client_of("view_scope", "retry_job")
        now = timezone.now()
        jobs = [
            put(queues, "halted", queue=f"q{hours}", error=f"E: {hours}", scheduled_at=now - hours * HOUR)
            for hours in (1, 3, 2)
        ]
        other = put(queues, "halted", queue="other", error="ValueError: boom")
        address, before = self.retry_address(ann), everything()
        text = plain(page(ann, address))
        assert re.findall(r"/q\d: (\w+)", text) == ["halted"] * 3
        assert "Retry what blocks 3 queues" in text and "that failed with: E: #" in text
        assert everything() == before
        answer = ann.post(address, {"confirmed": "yes", "reason": "acme is back"})
        assert answer.headers["Location"] == OVERVIEW and told(answer) == ["Retried: 3; refused: 0."]
        assert states(*jobs, other) == ["pending"] * 3 + ["halted"]
        events = JobEvent.objects.order_by("pk")
        assert [event.queue for event in events] == ["q3", "q2", "q1"]
        assert {(event.verb, event.by, event.reason) for event in events} == {("retry", "ann", "acme is back")}
        assert {entry.object_id for entry in LogEntry.objects.all()} == {str(job.pk) for job in jobs}

    def test_leave_heads_alone_that_are_due_already(self, boss, queues):
        job = self.put_blocked(queues)[0]
        queues.retry(job)
        text = plain(page(boss, self.retry_address(boss)))
        assert "Retry what blocks 2 queues" in text and "1 more are due already" in text

    def test_are_retried_so_many_at_once(self, boss, queues, monkeypatch):
        monkeypatch.setattr(overview, "MOST_AT_ONCE", 2)
        jobs = self.put_blocked(queues)
        assert told(boss.post(self.retry_address(boss), {"confirmed": "yes"})) == ["Retried: 2; refused: 0."]
        assert states(*jobs) == ["pending", "pending", "halted"]

    def test_say_what_was_refused(self, boss, queues):
        put(queues, "halted", scope="gone.away")
        refused, counted = told(boss.post(self.retry_address(boss), {"confirmed": "yes"}))
        assert refused.startswith("No class of this code has the scope") and counted == "Retried: 0; refused: 1."

    @pytest.mark.capability("X6")
    def test_of_a_class_with_a_breaker_are_retried_gently_if_that_is_wanted(self, boss, declare_only):
        declare_only()
        queues = mail_queue(breaker=Breaker(ValueError))
        jobs = self.put_blocked(queues)
        assert 'name="gently"' in page(boss, self.retry_address(boss))
        boss.post(self.retry_address(boss), {"confirmed": "yes", "gently": "on"})
        assert set(states(*jobs)) == {"pending"}
        assert Scope.objects.get().ramp == 1
        assert "its breaker is catching up, 1 at a time, as asked for" in words(boss)

    def test_of_other_classes_are_not_retried_gently(self, boss, queues):
        self.put_blocked(queues)
        assert 'name="gently"' not in page(boss, self.retry_address(boss))

    def test_that_are_gone_are_no_error(self, boss, queues):
        answer = boss.post(f"{OVERVIEW}retry_group/?group=nonsense", {"confirmed": "yes"})
        assert told(answer) == ["No queue is blocked by that error any more."]

    def test_need_the_permission_to_retry_jobs(self, queues):
        ann, address = client_of("view_scope"), self.retry_address(client_of(username="boss", is_superuser=True))
        self.put_blocked(queues)
        address = self.retry_address(client_of(username="chef", is_superuser=True))
        assert self.retry_address(ann) is None
        before = everything()
        assert ann.get(address).status_code == ann.post(address, {"confirmed": "yes"}).status_code == 403
        assert everything() == before


class TestScopes:
    @pytest.mark.capability("H29")
    def test_are_paused_and_resumed(self, queues):
        ann = client_of("view_scope", "pause_scope", "resume_scope")
        pause, resume = f"{OVERVIEW}tests.mail/pause/", f"{OVERVIEW}tests.mail/resume/"
        assert f'href="{pause}"' in page(ann, OVERVIEW)
        assert "start nothing new in the whole scope" in page(ann, pause)
        assert not Scope.objects.exists()
        answer = ann.post(pause, {"confirmed": "yes", "reason": "deploy"})
        assert answer.headers["Location"] == OVERVIEW
        assert told(answer) == ["tests.mail is paused: what runs finishes, nothing new starts."]
        row = Scope.objects.get()
        assert (row.paused_by, row.paused_reason) == ("ann", "deploy")
        text = page(ann, OVERVIEW)
        assert "by ann: deploy" in plain(text) and f'href="{resume}"' in text
        ann.post(resume, {"confirmed": "yes"})
        assert Scope.objects.get().paused_at is None
        assert [event.verb for event in JobEvent.objects.order_by("pk")] == ["pause", "resume"]
        assert [entry.object_id for entry in LogEntry.objects.all()] == ["tests.mail"] * 2

    def test_are_paused_and_resumed_all_at_once(self, queues):
        ann = client_of("view_scope", "pause_scope", "resume_scope")
        (pause,) = re.findall(r'href="([^"]+)">Pause everything', page(ann, OVERVIEW))
        assert "start nothing new in any scope of this database" in page(ann, pause)
        assert not Scope.objects.exists()
        answer = ann.post(pause, {"confirmed": "yes", "reason": "moving"})
        assert told(answer) == ["Everything in database default is paused: what runs finishes, nothing new starts."]
        row = Scope.objects.get()
        assert (row.name, row.paused_by, row.paused_reason) == ("*", "ann", "moving")
        text = page(ann, OVERVIEW)
        assert "Everything is paused since" in plain(text) and "by ann: moving" in plain(text)
        (resume,) = re.findall(r'href="([^"]+)">Resume everything', text)
        ann.post(resume, {"confirmed": "yes"})
        assert Scope.objects.get().paused_at is None
        assert [entry.object_repr for entry in LogEntry.objects.all()] == ["everything"] * 2

    def test_are_paused_all_at_once_only_with_the_permission(self, queues):
        text = page(client_of(username="bob", is_superuser=True), OVERVIEW)
        (pause,) = re.findall(r'href="([^"]+)">Pause everything', text)
        eve = client_of("view_scope")
        assert "Pause everything" not in page(eve, OVERVIEW)
        assert eve.post(pause, {"confirmed": "yes"}).status_code == 403
        assert not Scope.objects.exists()

    def test_that_nobody_knows_are_not(self, boss, queues):
        put(queues, "waiting", scope="gone.away")
        assert boss.post(f"{OVERVIEW}gone.away/pause/", {"confirmed": "yes"}).status_code == 302
        assert not Scope.objects.exists()


class TestWhoMaySeeIt:
    @pytest.mark.parametrize(
        ("permissions", "status"), [((), 403), (("view_job", "view_queue"), 403), (("view_scope",), 200)]
    )
    def test_is_a_permission(self, queues, permissions, status):
        ann = client_of(*permissions)
        assert ann.get(OVERVIEW).status_code == ann.get(LIVE).status_code == status

    def test_who_may_only_look_is_offered_nothing(self, queues):
        put(queues, "halted")
        assert {row[-1] for row in rows_of(page(client_of("view_scope"), OVERVIEW), "scopes")} == {""}
        bob = client_of("view_scope", username="bob")
        for verb in ("pause", "resume"):
            assert bob.post(f"{OVERVIEW}tests.mail/{verb}/", {"confirmed": "yes"}).status_code == 403
        assert not JobEvent.objects.exists()

    def test_strangers_are_sent_to_the_login(self, client, queues):
        assert "/login/" in client.get(OVERVIEW).headers["Location"]
        assert "/login/" in client.get(LIVE).headers["Location"]

    def test_has_no_other_pages(self, boss, queues):
        queues.pause()
        assert boss.get(f"{OVERVIEW}tests.mail/change/").headers["Location"] == OVERVIEW
        assert boss.get(f"{OVERVIEW}add/").status_code == boss.post(f"{OVERVIEW}tests.mail/delete/").status_code == 403
        assert Scope.objects.exists()


class TestCost:
    def queries(self, client, url=LIVE):
        with CaptureQueriesContext(connection) as context:
            page(client, url)
        return [query["sql"] for query in context if "queuetopia_" in query["sql"]]

    def test_is_paid_once_in_a_while_for_everybody(self, queues):
        put(queues, "halted")
        ann, bob = client_of("view_scope"), client_of("view_scope", "retry_job", username="bob")
        assert len(self.queries(ann)) > 3
        assert self.queries(bob) == self.queries(ann) == self.queries(bob, OVERVIEW) == []

    def test_what_is_kept_for_all_has_nothing_of_what_one_may_do(self, queues):
        put(queues, "halted")
        bob, ann = client_of("view_scope", "retry_job", "pause_scope", username="bob"), client_of("view_scope")
        assert "Retry all" in page(bob, OVERVIEW) and "Pause" in page(bob, OVERVIEW)
        assert "Retry all" not in page(ann, OVERVIEW) and "/pause/" not in page(ann, OVERVIEW)

    def test_of_what_is_new_is_paid_after_a_decision(self, boss, queues):
        put(queues, "halted")
        page(boss, OVERVIEW)
        boss.post(f"{OVERVIEW}tests.mail/pause/", {"confirmed": "yes", "reason": "deploy"})
        assert "by boss: deploy" in plain(page(boss, OVERVIEW))

    def test_without_a_cache_is_paid_each_time(self, boss, queues, settings):
        """Nothing listens there: the page is for bad days, and a bad day may be the cache's."""
        folder = "/dev/null/no folder"
        settings.CACHES = {
            "default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": folder}
        }
        assert len(self.queries(boss)) == len(self.queries(boss)) > 3
        answer = boss.post(f"{OVERVIEW}tests.mail/pause/", {"confirmed": "yes"})
        assert told(answer)[0].startswith("tests.mail is paused")

    @pytest.mark.parametrize("differs", ["SECRET_KEY", "NAME", "HOST", "OPTIONS", "scopes"])
    def test_by_another_site_with_the_same_cache_is_not_shown(self, queues, settings, monkeypatch, differs):
        def halted():
            return overview.kept("default")["totals"]["halted"]

        put(queues, "halted", queue="a")
        assert halted() == 1
        put(queues, "halted", queue="b")
        assert halted() == 1  # kept
        if differs == "SECRET_KEY":
            settings.SECRET_KEY = "another"
        elif differs == "scopes":
            mail_queue("tests.of_the_other_site")
        else:
            monkeypatch.setitem(connection.settings_dict, differs, {"options": "x"} if differs == "OPTIONS" else "x")
        assert halted() == 2

    def test_does_not_grow_with_the_rows(self, boss, queues):
        def put_some(names):
            for name in names:
                put(queues, "halted", queue=f"h{name}", error=f"E{name}")
                put(queues, "running again", queue=f"r{name}")
                put_node(id=uuid.uuid4())
                mail_queue(f"tests.scope{name}")

        put_some("ab")
        few = len(self.queries(boss))
        put_some("cdefghij")
        cache.clear()
        assert len(self.queries(boss)) == few < 10


class TestCharts:
    def test_show_what_the_nodes_counted(self, boss, queues):
        span = timezone.now().replace(second=0, microsecond=0)
        span -= timedelta(minutes=span.minute % 5)
        counts = {"waits": {"9": 5}, "runs": {}, "blocks": {}}
        Statistic.objects.create(
            scope="tests.mail", at=span, action="send_mail", node=NODE, created=4567, done=4321, failed=21, **counts
        )
        seen = words(boss)
        assert "done: 4,321" in seen and "created: 4,567" in seen and "failed attempts: 21" in seen
        assert page(boss, OVERVIEW).count('<path class="queuetopia-line') == 8

    def test_say_every_number_as_text_too(self, boss, queues):
        text = page(boss, OVERVIEW)
        assert text.count("As a table") == 4
        assert len(re.findall(r'<th scope="row">\d\d:\d\d[+]\d\d:\d\d</th>', text)) >= 4 * 36

    @pytest.mark.parametrize(
        ("values", "drawn"),
        [
            ([], ""),
            ([None, None], ""),
            ([0, 0], "M0.0 63.0h.1L320.0 63.0"),
            ([1, None, 2], "M0.0 32.0h.1M320.0 1.0h.1"),
        ],
    )
    def test_are_interrupted_where_nothing_is_known(self, values, drawn):
        moments = [timezone.now()] * len(values)
        assert chart("title", moments, [Line("line", values)])["lines"][0]["path"] == drawn


class TestPage:
    @pytest.mark.parametrize(("zone", "offset"), [("UTC", "+00:00"), ("Asia/Kolkata", "+05:30")])
    def test_says_as_of_when_with_its_offset(self, boss, queues, zone, offset):
        with timezone.override(zone):
            assert re.search(rf"As of <time>\d\d:\d\d:\d\d{re.escape(offset)}</time>", page(boss, OVERVIEW))

    def test_goes_without_a_script(self, boss, queues):
        text = page(boss, OVERVIEW)
        assert 'href="">Reload</a>' in text and 'src="/static/queuetopia/overview.js"' in text
        assert "aria-live" in text and text.count("<caption") >= 2
        assert page(boss, LIVE).lstrip().startswith("<p")

    def test_is_kept_by_no_browser(self, boss, queues):
        assert "no-store" in boss.get(LIVE).headers["Cache-Control"]

    def test_shows_hostile_text_as_text(self, queues):
        boss = client_of(username=HOSTILE, is_superuser=True)
        put(queues, "halted", queue=HOSTILE, error=HOSTILE)
        put(queues, "running again", queue=HOSTILE + "2", action=HOSTILE)
        put(queues, "halted", scope=HOSTILE, queue="x\u202ey", error="x\u202ey")
        put_node(host=HOSTILE, scopes=[HOSTILE])
        queues.pause(by=HOSTILE, reason=HOSTILE)
        for url in (OVERVIEW, LIVE, f"{OVERVIEW}tests.mail/pause/"):
            text = page(boss, url)
            assert "<img src=x" not in text and "\u202e" not in text
            assert "&lt;img" in text

    def test_may_be_in_an_admin_of_its_own(self, boss, queues, settings):
        ops = AdminSite(name="ops")
        ops.register(Scope, ScopeAdmin)
        settings.ROOT_URLCONF = type("urls", (), {"urlpatterns": [path("ops/", ops.urls)]})
        job = put(queues, "halted")
        put(queues, "running again", queue="runs")
        put_node()
        text = page(boss, "/ops/queuetopia/scope/")
        assert "/queuetopia/job/" not in text and "/queuetopia/queue/" not in text
        address = re.search(r'href="([^"]*retry_group[^"]*)"', text)[1]
        answer = boss.post(address, {"confirmed": "yes"})
        assert answer.headers["Location"] == "/ops/queuetopia/scope/" and states(job) == ["pending"]
        assert Queue.objects.count() == 2
