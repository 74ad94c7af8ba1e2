"""What nodes count, what is written of it, and what is read from that."""

import json
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from queuetopia.attempts import Claim, Outcome, Verdict
from queuetopia.backends import backend_for, upkeep
from queuetopia.backends.values import Ending
from queuetopia.models import Chore, Job, Statistic
from queuetopia.monitoring import census
from queuetopia.monitoring import statistics as module
from queuetopia.monitoring.histogram import LAST_BIN, SPAN, bin_of, bounds_of
from queuetopia.node.tally import Tally
from tests.commands import HOSTILE, run, run_json
from tests.states import HOUR, mail_queue, put

pytestmark = [pytest.mark.django_db, pytest.mark.capability("J7", "H30")]

NODE = uuid.UUID(int=3)
DAY = 24 * HOUR


@pytest.fixture
def queues(declare_only):
    declare_only()
    return mail_queue()


def ending(verdict, *, action="send_mail", waited=0.0, lasted=0.0, blocked=None, attempt=1, scope="tests.mail"):
    now = timezone.now()
    claim = Claim(
        1, 1, scope, "a", action, "{}", attempt, 1, 0,
        scheduled_at=(now - timedelta(seconds=waited + lasted)).isoformat(),
        timeout=None, max_backoff=None, max_attempts=None, on_exhausted=None, attempted=attempt > 1,
        failed_at=blocked and (now - timedelta(seconds=blocked)).isoformat(),
    )  # fmt: skip
    return Ending(claim, Outcome(1, 1, verdict, duration=lasted))


def save(*endings, node=NODE):
    tally = Tally()
    tally.add(endings)
    upkeep.save_statistics(backend_for("default"), node, tally.unsaved())
    return tally


def put_row(action="send_mail", at=None, **columns):
    at = at or datetime.fromtimestamp(timezone.now().timestamp() // SPAN * SPAN, UTC)
    return Statistic.objects.create(scope="tests.mail", action=action, at=at, node=uuid.uuid4(), **columns)


def rows_of(queues, **arguments):
    answer = queues.statistics(**arguments)
    return {row.pop(next(iter(row))): row for row in answer["rows"]}


class TestBins:
    @pytest.mark.parametrize("seconds", [0.001, 0.0014, 0.0015, 0.02, 1, 59.9, 3600, 86_400 * 7])
    def test_hold_what_lies_between_their_bounds(self, seconds):
        low, high = bounds_of(bin_of(seconds))
        assert low * 0.999 <= seconds <= high * 1.001
        assert high / low == pytest.approx(2**0.25)

    def test_take_what_is_shorter_or_longer_than_all_bounds(self):
        assert [bin_of(seconds) for seconds in (-5, 0, 0.0009, 1e12)] == [0, 0, 0, LAST_BIN]
        assert bounds_of(0) == (0, 0.001)


class TestCounting:
    def test_counts_each_verdict_as_what_it_is(self, queues):
        save(
            *[ending(Verdict.DONE)] * 3, ending(Verdict.RETRY), ending(Verdict.HALT, attempt=2), ending(Verdict.SKIP),
            ending(Verdict.CANCEL), ending(Verdict.SNOOZE), ending(Verdict.RETURN), ending(Verdict.INTERRUPT),
        )  # fmt: skip
        row = rows_of(queues)["send_mail"]
        counts = {name: row[name] for name in module.COUNTS}
        assert counts == {"created": 0, "started": 6, "done": 3, "failed": 3, "halted": 1, "skipped": 1, "cancelled": 1}

    def test_takes_verdicts_as_they_come_from_a_worker(self, queues):
        save(ending(json.loads(json.dumps(Verdict.DONE))))
        assert rows_of(queues)["send_mail"]["done"] == 1

    def test_measures_waits_runs_and_blocks(self, queues):
        save(
            ending(Verdict.DONE, waited=100, lasted=5),
            ending(Verdict.RETRY, waited=100, lasted=5),
            ending(Verdict.DONE, attempt=2, waited=9999, lasted=5, blocked=3600),
        )
        row = rows_of(queues)["send_mail"]
        assert (row["wait"]["count"], row["run"]["count"], row["blocked"]["count"]) == (2, 3, 1)
        assert row["wait"]["p50"] == pytest.approx(100, rel=0.2)
        assert row["run"]["p99"] == pytest.approx(5, rel=0.2)
        assert row["blocked_seconds"] == pytest.approx(3600, abs=30)
        assert row["run_seconds"] == pytest.approx(15)

    def test_goes_by_the_databases_clock(self, queues):
        tally = Tally()
        tally.set_clock(timezone.now() - DAY)
        tally.add([ending(Verdict.DONE, waited=DAY.total_seconds() + 100)])
        (row,) = tally.unsaved()
        assert row["at"] < timezone.now() - DAY + HOUR
        assert row["waits"] == {bin_of(100): 1}

    def test_tells_actions_and_scopes_apart_to_a_bound(self, monkeypatch):
        monkeypatch.setattr("queuetopia.node.tally.MOST_ACTIONS", 3)
        tally = Tally()
        tally.add(ending(Verdict.DONE, action=f"action {number}") for number in range(10))
        tally.add([ending(Verdict.DONE, scope="tests.other")])
        assert [(row["scope"], row["action"], row["done"]) for row in tally.unsaved()] == [
            ("tests.mail", "", 7), ("tests.mail", "action 0", 1), ("tests.mail", "action 1", 1),
            ("tests.mail", "action 2", 1), ("tests.other", "", 1),
        ]  # fmt: skip


class TestSaving:
    def test_again_writes_over_what_was_written(self, queues):
        tally = save(ending(Verdict.DONE))
        upkeep.save_statistics(backend_for("default"), NODE, tally.unsaved())
        tally.saved()
        assert tally.unsaved() == []
        tally.add([ending(Verdict.DONE, action="other")])
        assert [row["action"] for row in tally.unsaved()] == ["other"]
        tally.add([ending(Verdict.DONE)])
        upkeep.save_statistics(backend_for("default"), NODE, tally.unsaved())
        assert {action: row["done"] for action, row in rows_of(queues).items()} == {"send_mail": 2, "other": 1}
        assert Statistic.objects.count() == 2

    def test_is_one_statement(self):
        tally = Tally()
        tally.add(ending(Verdict.DONE, action=f"action {number}") for number in range(10))
        with CaptureQueriesContext(connection) as queries:
            upkeep.save_statistics(backend_for("default"), NODE, tally.unsaved())
        assert len([query for query in queries if "INSERT" in query["sql"]]) == 1

    def test_of_several_nodes_adds_up(self, queues):
        for number in range(3):
            save(ending(Verdict.DONE, lasted=5), node=uuid.UUID(int=number))
        assert rows_of(queues)["send_mail"]["run"]["count"] == 3

    def test_forgets_spans_that_are_over_once_they_are_written(self):
        tally = Tally()
        tally.set_clock(timezone.now() - HOUR)
        tally.add([ending(Verdict.DONE)])
        tally.saved()
        tally.set_clock(timezone.now())
        tally.saved()
        tally.add([ending(Verdict.DONE)])
        (row,) = tally.unsaved()
        assert row["done"] == 1

    def test_pruning_deletes_what_is_older_of_these_scopes_in_batches(self):
        old = timezone.now() - 31 * DAY
        for number in range(3):
            put_row(at=old + number * HOUR)
        put_row()
        backend = backend_for("default")
        assert upkeep.prune_statistics(backend, ["tests.other"], DAY.total_seconds()) == 0
        assert upkeep.prune_statistics(backend, ["tests.mail"], DAY.total_seconds(), limit=2) == 2
        assert upkeep.prune_statistics(backend, ["tests.mail"], DAY.total_seconds(), limit=2) == 1
        assert Statistic.objects.exclude(at=Statistic.BEGINNING).count() == 1


class TestReading:
    def test_is_of_the_last_day_and_this_scope(self, queues):
        put_row(done=1)
        put_row(at=timezone.now() - DAY - HOUR, done=10)
        Statistic.objects.create(scope="tests.other", at=timezone.now(), action="send_mail", node=NODE, done=100)
        answer = queues.statistics()
        assert answer["total"]["done"] == 1
        assert (answer["by"], answer["step"], answer["scope"]) == ("action", None, "tests.mail")

    @pytest.mark.parametrize(("by", "step"), [("span", 300), ("hour", 3600), ("day", 86_400)])
    def test_by_time_has_a_row_for_each_step(self, queues, by, step):
        until = datetime(2026, 3, 5, 12, 30, tzinfo=UTC)
        put_row(at=datetime(2026, 3, 5, 11, 55, tzinfo=UTC), done=2, runs={"5": 2})
        put_row(at=until, done=100)
        answer = queues.statistics(since=timedelta(hours=3), until=until, by=by)
        times = [row["at"] for row in answer["rows"]]
        assert {int(moment.timestamp()) % step for moment in times} == {0}
        assert len(times) == {300: 36, 3600: 4, 86_400: 1}[step]
        assert sum(row["done"] for row in answer["rows"]) == 2
        assert [row["run"]["count"] for row in answer["rows"] if row["run"]] == [2]

    def test_of_one_action_counts_that_one(self, queues):
        put_row(done=1)
        put_row("other", done=5)
        assert queues.statistics(by="hour", action="other")["total"]["done"] == 5
        assert list(rows_of(queues)) == ["other", "send_mail"]

    def test_has_percentiles_that_are_right_to_a_fifth(self, queues):
        save(*(ending(Verdict.DONE, lasted=number / 10) for number in range(1, 1001)))
        run = rows_of(queues)["send_mail"]["run"]
        assert run["count"] == 1000
        for name, exact in (("p50", 50), ("p90", 90), ("p99", 99)):
            assert run[name] == pytest.approx(exact, rel=0.2)
        assert run["max"] >= 100

    def test_without_a_job_is_all_zero(self, queues):
        answer = queues.statistics()
        assert answer["rows"] == []
        assert {answer["total"][name] for name in module.COUNTS} == {0}
        assert answer["total"]["run"] is None

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            ({"by": "week"}, "by='week' is none of 'action', 'queue'"),
            ({"since": datetime(2026, 1, 1)}, "since is a naive datetime"),
            ({"since": timedelta(days=-1)}, "is not before until"),
            ({"since": timedelta(days=400), "by": "span"}, "more than 10000 steps of 300 s"),
            ({"by": "queue", "action": "a"}, "action= goes with"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, queues, arguments, told):
        with pytest.raises(ValueError, match=told):
            queues.statistics(**arguments)

    @pytest.mark.parametrize("by", module.BY)
    def test_takes_a_few_reads_however_much_there_is(self, queues, by):
        for number in range(5):
            put_row(f"action {number}")
            put(queues, "done", f"queue-{number}")
            queues.skip(put(queues, "halted", f"halted-{number}"))
        with CaptureQueriesContext(connection) as queries:
            queues.statistics(by=by)
        assert len(queries) == (3 if by == "queue" else 8)
        assert all(query["sql"].lstrip().upper().startswith("SELECT") for query in queries)


class TestCensus:
    """What no node records: jobs that are created, and what people end."""

    def take(self, times=1):
        """Take so many censuses, as if their time had come."""
        for _ in range(times):
            while upkeep.take_census(backend_for("default"), census.look, every=-1):
                pass

    def counted(self, queues, by="action", name="created", **arguments):
        return {key: row[name] for key, row in rows_of(queues, by=by, **arguments).items() if row[name]}

    def test_counts_each_created_job_once_whether_a_census_was_taken_or_not(self, queues):
        for number in range(5):
            queues.create_job(f"queue-{number % 2}", "send_mail", {"to": "a@b.c"})
            assert self.counted(queues) == {"send_mail": number + 1}
            self.take(number)
            assert self.counted(queues) == {"send_mail": number + 1}
        assert list(Statistic.objects.values_list("node", "created")) == [(Statistic.NOBODY, 5)]

    def test_counts_by_action_and_scope(self, queues):
        other = mail_queue("tests.other")
        other.create_job("a", "send_mail", {"to": "a@b.c"})
        put(queues, "waiting", action="resend")
        self.take(2)
        assert self.counted(queues) == {"resend": 1}
        assert self.counted(other) == {"send_mail": 1}

    def test_counts_what_was_created_while_no_node_ran_in_its_span(self, queues):
        hour = datetime(2026, 3, 5, 11, tzinfo=UTC)
        put(queues, "waiting", "a", scheduled_at=hour + timedelta(minutes=17))
        put(queues, "done", "b", scheduled_at=hour + timedelta(minutes=58))
        put(queues, "waiting", "c", scheduled_at=hour + HOUR)
        self.take(2)
        assert self.counted(queues, by="hour", since=hour, until=hour + 2 * HOUR) == {hour: 2, hour + HOUR: 1}

    def test_counts_a_job_for_another_time_when_it_is_created(self, queues):
        self.take(2)
        for scheduled_at in (timezone.now() + DAY, timezone.now() - DAY):
            queues.create_job("a", "send_mail", {"to": "a@b.c"}, scheduled_at=scheduled_at)
        self.take(2)
        assert self.counted(queues, since=HOUR) == {"send_mail": 2}

    def test_goes_on_in_steps_when_there_is_much(self, queues, monkeypatch):
        monkeypatch.setattr(census, "MOST_JOBS", 2)
        monkeypatch.setattr(census, "MOST_EVENTS", 1)
        for number in range(5):
            queues.skip(put(queues, "halted", f"queue-{number}"))
        self.take(2)
        assert self.counted(queues) == self.counted(queues, name="skipped") == {"send_mail": 5}

    def test_is_not_held_up_by_ids_that_are_far_apart(self, queues, monkeypatch):
        monkeypatch.setattr(census, "MOST_JOBS", 2)
        first = put(queues, "waiting")
        for far in (10**6, 10**7, 10**8):
            Job.objects.bulk_create([Job(pk=first.pk + far, scope=first.scope, queue="far", action=first.action)])
        assert self.counted(queues) == {"send_mail": 2}
        backend = backend_for("default")
        calls = 1
        upkeep.take_census(backend, census.look, every=-1)
        while upkeep.take_census(backend, census.look, every=-1):
            calls += 1
        assert calls == 2
        assert self.counted(queues) == {"send_mail": 4}

    def test_goes_on_where_ids_start_again(self, queues):
        put(queues, "waiting", pk=10**6)
        self.take(2)
        Job.objects.all().delete()
        self.take(2)
        put(queues, "waiting", pk=1)
        self.take(2)
        assert self.counted(queues) == {"send_mail": 2}

    def test_waits_for_what_becomes_visible_later_than_newer_ids(self, queues):
        late = put(queues, "waiting", "late")
        Job.objects.filter(pk=late.pk).delete()
        put(queues, "waiting", "newer")
        self.take()
        late.save(force_insert=True)
        self.take()
        assert self.counted(queues) == {"send_mail": 2}

    def test_counts_what_people_end_once_and_for_how_long_it_was_blocked(self, queues):
        halted = [put(queues, "halted", f"queue-{number}", failed_at=timezone.now() - HOUR) for number in range(3)]
        queues.skip(halted[0])
        queues.mark_done(halted[1])
        queues.move_to_end(halted[2])
        queues.cancel(put(queues, "waiting", "a"))
        queues.cancel(put(queues, "running first", "b"))  # its node will say what came of it
        queues.move_to_end(put(queues, "waiting", "c"))
        queues.retry(put(queues, "halted", "d"))
        for _ in range(3):
            row = rows_of(queues)["send_mail"]
            assert {name: row[name] for name in ("done", "skipped", "cancelled")} == {
                "done": 1, "skipped": 2, "cancelled": 1,
            }  # fmt: skip
            assert row["blocked"]["count"] == 3
            assert row["blocked_seconds"] == pytest.approx(3 * 3600, abs=60)
            self.take()

    def test_is_taken_once_for_all_nodes(self, queues):
        queues.create_job("a", "send_mail", {"to": "a@b.c"})
        backend = backend_for("default")
        upkeep.take_census(backend, census.look, every=60)
        marks = Chore.objects.get(name="census").marks
        upkeep.take_census(backend, census.look, every=60)
        assert Chore.objects.get(name="census").marks == marks


class TestByQueue:
    def test_has_the_queues_that_were_blocked_longest_first(self, queues):
        now = timezone.now()
        put(queues, "done", "fine", done_at=now - HOUR / 2)
        done_at = now - timedelta(seconds=1)  # SQLite's clock has milliseconds only
        put(queues, "done", "slow", attempts=4, failed_at=now - HOUR, done_at=done_at)
        put(queues, "skipped", "slow", attempts=3, failed_at=now - HOUR, done_at=done_at)
        rows = rows_of(queues, by="queue")
        assert list(rows) == ["slow", "fine"]
        slow = rows["slow"]
        assert (slow["done"], slow["skipped"], slow["failed"]) == (1, 1, 6)
        assert slow["blocked_seconds"] == pytest.approx(7200, abs=60)
        assert rows["fine"]["took"]["p50"] == pytest.approx(1800, rel=0.2)
        assert rows["fine"]["blocked"] is None

    def test_counts_the_jobs_whose_time_it_was(self, queues):
        for state in ("done", "waiting", "halted"):
            put(queues, state, "a", scheduled_at=timezone.now() - HOUR)
        put(queues, "done", "a", scheduled_at=timezone.now() - 2 * DAY)
        put(queues, "waiting", "b", scheduled_at=timezone.now() - HOUR)
        assert {queue: row["created"] for queue, row in rows_of(queues, by="queue").items()} == {"a": 3, "b": 1}

    def test_reads_no_more_than_the_newest_jobs_and_says_so(self, queues, monkeypatch):
        monkeypatch.setattr(module, "MOST_JOBS", 2)
        now = timezone.now()
        for number in range(3):
            put(queues, "done", f"queue-{number}", done_at=now - number * HOUR, scheduled_at=now - number * DAY)
        answer = queues.statistics(by="queue")
        assert [row["queue"] for row in answer["rows"] if row["done"]] == ["queue-0", "queue-1"]
        assert not answer["complete"]
        monkeypatch.setattr(module, "MOST_JOBS", 3)
        assert queues.statistics(by="queue")["complete"]


def test_failed_at_is_when_a_job_failed_first(backend):
    from tests.testapp.queues import SlowRetryQueue

    job = SlowRetryQueue.create_job("a", "noop")
    (claim,), _ = backend.claim([SlowRetryQueue.scope], 1, NODE)
    backend.record([Ending(claim, Outcome(job.pk, claim.fence, Verdict.RETRY))], NODE, "web1:1", lambda claim: False)
    first = Job.objects.get().failed_at
    assert first is not None
    (claim,), _ = backend.claim([SlowRetryQueue.scope], 1, NODE)
    assert datetime.fromisoformat(claim.failed_at) == first
    backend.record([Ending(claim, Outcome(job.pk, claim.fence, Verdict.DONE))], NODE, "web1:1", lambda claim: False)
    assert Job.objects.get().failed_at == first


class TestCommand:
    def test_shows_a_table(self, queues):
        put_row(done=3, started=4, failed=1, runs={bin_of(0.02): 4}, blocked_seconds=7300)
        text, refused = run("statistics")
        assert refused is None
        head, row, total = [line.split() for line in text.splitlines()[1:]]
        assert head == [
            "ACTION", "CREATED", "STARTED", "DONE", "FAILED", "HALTED", "SKIPPED", "CANCELLED", "WAIT", "RUN",
            "BLOCKED",
        ]  # fmt: skip
        assert row[:8] == ["send_mail", "0", "4", "3", "1", "0", "0", "0"]
        assert row[-2:] == ["2", "h"]
        assert "ms" in row
        assert total[0] == "all"

    @pytest.mark.parametrize("by", module.BY)
    def test_shows_each_view_and_is_json_for_machines(self, queues, by):
        put_row(done=3)
        put(queues, "done", "a")
        text, refused = run("statistics", "tests.mail", "--by", by, "--since", "2h")
        assert refused is None
        assert by.upper() in text
        answer, refused = run_json("statistics", "tests.mail", "--by", by)
        assert (answer["statistics"][0]["by"], refused) == (by, None)

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["tests.mai1"], "Did you mean tests.mail?"),
            (["--since", "yesterday"], "'yesterday' is no duration; write 90s, 10m, 2h or 7d"),
            (["--since", "400d", "--by", "span"], "--since: From"),
            (["--since", "99999999d"], "--since: "),
            (["--by", "week"], "invalid choice"),
        ],
    )
    def test_refuses_what_makes_no_sense(self, queues, arguments, told):
        assert told in run("statistics", *arguments)[1]

    def test_escapes_what_could_steer_a_terminal(self, queues):
        put_row(HOSTILE[:100])
        put(queues, "done", HOSTILE)
        for by in module.BY:
            text, _ = run("statistics", "--by", by)
            assert all(char.isprintable() or char == "\n" for char in text)
