"""When schedules are due, and what a class may declare: no row is read or written."""

import sys
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from django.core.checks import run_checks

from queuetopia import Cron, Every, Queuetopia
from queuetopia.registry import only
from queuetopia.schedules import MOST, Periodic
from queuetopia.testing import due_times
from tests.testapp.queues import LedgerPerformer

pytestmark = pytest.mark.capability("X10")

VIENNA = ZoneInfo("Europe/Vienna")
NEW_YEAR, NEXT_YEAR = datetime(2026, 1, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)
SPRING, AUTUMN = datetime(2026, 3, 29, 1, tzinfo=UTC), datetime(2026, 10, 25, 1, tzinfo=UTC)  # the clocks are changed


def every(**interval):
    return Every("tick", **interval, queue="a", action="noop")


def cron(expression, tz="Europe/Vienna", **options):
    return Cron("tick", expression, tz=tz, queue="a", action="noop", **options)


def one_after_the_other(schedule, since, until):
    """Return the due times as nodes find them: each is derived from the last one alone."""
    found, moment = [], since
    while (moment := schedule.after(moment)) <= until:
        found.append(moment)
    return found


class TestEvery:
    def test_is_due_at_its_multiples_since_a_monday(self):
        at = datetime(2026, 11, 25, 12, 34, 56, 789, tzinfo=UTC)
        assert every(hours=1).after(at) == datetime(2026, 11, 25, 13, tzinfo=UTC)
        assert every(days=1).after(at) == datetime(2026, 11, 26, tzinfo=UTC)
        assert every(weeks=1).after(at) == datetime(2026, 11, 30, tzinfo=UTC)
        assert every(minutes=1, seconds=30).after(at) == datetime(2026, 11, 25, 12, 36, tzinfo=UTC)

    def test_the_time_itself_is_not_after_it(self):
        assert every(hours=1).after(NEW_YEAR) == NEW_YEAR + timedelta(hours=1)

    @pytest.mark.parametrize("interval", [{"hours": 7}, {"minutes": 90}, {"days": 1}, {"weeks": 2}, {"hours": 1.5}])
    def test_in_a_year_all_times_are_found_one_after_the_other_and_together(self, interval):
        schedule = every(**interval)
        times = one_after_the_other(schedule, NEW_YEAR, NEXT_YEAR)
        assert schedule.between(NEW_YEAR, NEXT_YEAR, most=10_000) == times
        assert len(times) == sum(1 for time in times if NEW_YEAR < time <= NEXT_YEAR)

    def test_only_the_last_ones_of_many_are_returned(self):
        times = every(seconds=1).between(NEW_YEAR, NEXT_YEAR)
        assert (len(times), times[-1]) == (MOST, NEXT_YEAR)


class TestCron:
    @pytest.mark.parametrize(
        ("expression", "number"),
        [
            ("0 6 1 * *", 12),
            ("30 2 * * *", 365),  # a time that one day does not have, and another one has twice
            ("0 2 * * *", 365),
            ("15,45 2 * * *", 729),  # both at once where the clocks are put forward
            ("0 * * * *", 8760),
            ("*/15 2 * * *", 1460),  # four more in autumn, four fewer in spring
            ("0 0 L * *", 12),
        ],
    )
    def test_in_a_year_with_both_changes_of_clocks_all_times_are_found_once(self, expression, number):
        schedule = cron(expression)
        times = one_after_the_other(schedule, NEW_YEAR, NEXT_YEAR)
        assert len(times) == len(set(times)) == number
        assert schedule.between(NEW_YEAR, NEXT_YEAR, most=10_000) == times

    @pytest.mark.parametrize("expression", ["30 2 * * *", "15,45 2 * * *", "0 * * * *", "*/20 1-3 * * *", "0 3 * * *"])
    @pytest.mark.parametrize("change", [SPRING, AUTUMN], ids=["spring", "autumn"])
    def test_from_any_moment_around_a_change_the_same_times_follow(self, expression, change):
        schedule, hours = cron(expression), timedelta(hours=5)
        times = one_after_the_other(schedule, change - hours, change + hours)
        for minute in range(-300, 301, 7):
            moment = change + timedelta(minutes=minute, seconds=1)
            assert schedule.between(moment, change + hours) == [time for time in times if time > moment]
            assert schedule.between(change - hours, moment) == [time for time in times if time <= moment]
            later = [time for time in times if time > moment]
            assert not later or schedule.after(moment) == later[0]

    def test_a_time_of_day_that_is_left_out_is_due_right_after_and_one_that_comes_twice_once(self):
        schedule = cron("30 2 * * *")
        assert schedule.after(SPRING - timedelta(hours=2)) == SPRING
        assert [time.hour for time in schedule.between(AUTUMN - timedelta(hours=3), AUTUMN + timedelta(hours=3))] == [0]

    def test_follows_the_clock_of_its_zone(self):
        schedule = cron("0 6 * * *")
        assert {time.astimezone(VIENNA).hour for time in schedule.between(NEW_YEAR, NEXT_YEAR)} == {6}
        assert {time.hour for time in schedule.between(NEW_YEAR, NEXT_YEAR)} == {4, 5}

    def test_its_zone_is_that_of_the_project_unless_it_names_one(self, settings):
        settings.TIME_ZONE = "Asia/Tokyo"
        assert cron("0 6 * * *", tz=None).after(NEW_YEAR) == datetime(2026, 1, 1, 21, tzinfo=UTC)


class TestWanted:
    TIMES = [NEW_YEAR + timedelta(hours=n) for n in range(3)]

    @pytest.mark.parametrize(("missed", "number"), [("last", 1), ("all", 3), ("none", 0)])
    def test_after_an_outage(self, missed, number):
        schedule = Every("tick", hours=1, queue="a", action="noop", missed=missed, pile_up=True)
        wanted = schedule.wanted(self.TIMES, self.TIMES[-1] + timedelta(minutes=30))
        assert wanted == self.TIMES[3 - number :]

    def test_a_time_of_the_last_minute_is_not_missed(self):
        schedule = Every("tick", hours=1, queue="a", action="noop", missed="none")
        assert schedule.wanted(self.TIMES, self.TIMES[-1] + timedelta(seconds=59)) == self.TIMES[-1:]


def problems_of(*schedules):
    with only():

        class Scheduled(Queuetopia):
            scope = "test.scheduled"
            performer = LedgerPerformer

        Scheduled.schedules = schedules[0] if len(schedules) == 1 and not hasattr(schedules[0], "name") else schedules
        return [found for found in run_checks(tags=["queuetopia"]) if found.id == "queuetopia.E020"]


class TestChecks:
    def test_right_ones_are_right(self):
        right = Every("a", hours=1, queue="a", action="write", params={"seq": 1})
        assert problems_of(right, Cron("b", "0 6 1 * *", tz="Europe/Vienna", queue="a", action="noop")) == []

    @pytest.mark.parametrize(
        ("schedule", "argument", "cause"),
        [
            (Every("", hours=1, queue="a", action="noop"), "name", "no text of 1 to 128"),
            (Every("a\x00", hours=1, queue="a", action="noop"), "name", "NUL"),
            (every(), "interval", "not between a second and 366 days"),
            (every(hours=-1), "interval", "not between"),
            (every(hours="1"), "interval", "str"),
            (every(days=1e12), "interval", ""),
            (Every("x", hours=1, queue="", action="noop"), "queue", "0 characters"),
            (Every("x", hours=1, queue="a", action="nop"), "action", "did you mean 'noop'"),
            (Every("x", hours=1, queue="a", action="write"), "params", "missing param 'seq'"),
            (Every("x", hours=1, queue="a", action="write", params={"seq": 1, "z": 2}), "params", "unknown param 'z'"),
            (Every("x", hours=1, queue="a", action="noop", missed="some"), "missed", "'some' is none of"),
            (Every("x", hours=1, queue="a", action="noop", missed="all"), "missed", "pile up"),
            (Every("x", hours=1, queue="a", action="noop", pile_up=1), "pile_up", "neither True nor False"),
            (cron("0 6 1 *"), "expression", "Wrong number of fields"),
            (cron("61 6 1 * *"), "expression", "Bad minute"),
            (cron("0 0 31 2 *"), "expression", "Bad day"),
            (cron(None), "expression", "no line of cron"),
            (cron("0 6 1 * *", tz="Europe/Wien"), "tz", "'Europe/Wien' is no time zone"),
            (cron("0 6 1 * *", tz=3), "tz", "no time zone"),
        ],
        ids=lambda value: value if isinstance(value, str) else None,
    )
    def test_a_wrong_one_names_the_argument_the_cause_and_the_remedy(self, schedule, argument, cause):
        (problem,) = problems_of(schedule)
        assert f"schedule {schedule.name!r}, {argument}: " in problem.msg
        assert cause in problem.msg
        assert problem.hint

    def test_doubled_names(self):
        (problem,) = problems_of(every(hours=1), every(hours=2))
        assert "two schedules 'tick'" in problem.msg

    def test_what_is_no_list_of_schedules(self):
        assert "is no list" in problems_of("digest")[0].msg
        assert "neither an Every nor a Cron" in problems_of([3])[0].msg

    def test_without_cronsim_a_cron_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "cronsim", None)
        (problem,) = problems_of(cron("0 6 1 * *"))
        assert "cronsim is not installed" in problem.msg
        assert problem.hint == "Run: pip install 'queuetopia[cron]'"


class TestDueTimes:
    def test_are_those_of_the_schedule_of_that_name(self):
        with only():

            class Scheduled(Queuetopia):
                scope = "test.scheduled"
                performer = LedgerPerformer
                schedules = [cron("0 6 1 * *")]

        assert len(due_times(Scheduled, "tick", NEW_YEAR, NEXT_YEAR)) == 12
        with pytest.raises(LookupError, match=r"no schedule 'tock' .* it has: tick"):
            due_times(Scheduled, "tock", NEW_YEAR, NEXT_YEAR)


def test_what_has_no_times_is_no_schedule():
    with pytest.raises(TypeError, match="abstract"):
        Periodic("digest", queue="digest", action="send")


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ({"days": 1}, "every day"),
        ({"minutes": 30}, "every 30 minutes"),
        ({"hours": 1, "minutes": 30}, "every 1 hour 30 minutes"),
        ({"days": 2, "seconds": 1}, "every 2 days 1 second"),
        ({"seconds": 1.5}, "every 1.5 seconds"),
    ],
)
def test_an_interval_in_words(interval, words):
    assert str(every(**interval)) == words
