"""Statistics are summed up by the database: they are those that adding up each row gives, in a few statements."""

import random
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queuetopia.backends import backend_for
from queuetopia.models import Statistic
from queuetopia.monitoring import statistics as module
from queuetopia.monitoring.histogram import LAST_BIN, SPAN
from tests.testapp.queues import LedgerQueue, SlowRetryQueue

pytestmark = pytest.mark.django_db
SCOPE = LedgerQueue.scope
DAYS = 3
ACTIONS = ["noop", "Noop", "écrire 'x' %s", "y" * 255]
NODES = [Statistic.NOBODY, uuid.UUID(int=1), uuid.UUID(int=2)]


def random_rows(dice, number, now):
    start = int((now - timedelta(days=DAYS)).timestamp()) // SPAN
    places = {
        (
            dice.choice([SCOPE, SlowRetryQueue.scope]),
            start + dice.randrange(DAYS * 288),
            dice.choice(ACTIONS),
            dice.choice(NODES),
        )
        for _ in range(number)
    }
    for scope, span, action, node in places:
        at = datetime.fromtimestamp(span * SPAN, UTC)
        counts = {name: dice.randrange(1_000) for name in module.COUNTS}
        seconds = {name: dice.randrange(10**9) / 1024 for name in module.SECONDS}
        bins = {
            name: {str(dice.randrange(LAST_BIN + 1)): dice.randrange(1, 10**6) for _ in range(dice.randrange(9))}
            for name in module.HISTOGRAMS
        }
        yield Statistic(scope=scope, at=at, action=action, node=node, **counts, **seconds, **bins)


@pytest.fixture(params=range(3))
def stored(request):
    """Random rows, and the database's clock."""
    now = backend_for("default").now()
    Statistic.objects.bulk_create(random_rows(random.Random(request.param), 800, now), batch_size=100)
    return now


def added_up(rows, since, until, by):
    """Return what statistics() did before: every row is read and added."""
    step = module.STEPS.get(by)
    sums = {} if step is None else {at: module.Sum() for at in module.steps_of(since, until, step)}
    total = module.Sum()
    for row in rows.filter(at__gte=since, at__lt=until).values(
        "action", "at", *module.COUNTS, *module.SECONDS, *module.HISTOGRAMS
    ):
        key = row["action"] if step is None else module.floor(row["at"], step)
        sums.setdefault(key, module.Sum()).add(row)
        total.add(row)
    name = "action" if step is None else "at"
    return {"rows": [{name: key, **sums[key].as_dict()} for key in sorted(sums)], "total": total.as_dict()}


@pytest.mark.parametrize("action", [None, *ACTIONS[1:3]])
@pytest.mark.parametrize("by", ["action", "span", "hour", "day"])
def test_the_sums_are_those_of_all_rows(stored, by, action):
    since, until = stored - timedelta(days=2, minutes=7), stored - timedelta(hours=1)
    rows = Statistic.objects.filter(scope=SCOPE)
    rows = rows if action is None else rows.filter(action=action)

    answer = LedgerQueue.statistics(since=since, until=until, by=by, action=action)

    expected = added_up(rows, answer["since"], answer["until"], by)
    assert answer["total"]["done"] > 0
    assert same(answer["rows"], expected["rows"])
    assert same([answer["total"]], [expected["total"]])


def same(rows, others):
    """Compare, without the last digit of sums of seconds, which depends on the order of adding."""

    def rounded(row):
        return {name: round(value, 2) if name in module.SECONDS else value for name, value in row.items()}

    return [*map(rounded, rows)] == [*map(rounded, others)]


def test_several_scopes_are_summed_up_together(stored):
    rows = module.of_scopes("default", [SCOPE, SlowRetryQueue.scope], timedelta(hours=30), stored)

    since, until = rows[0]["at"], stored
    expected = added_up(Statistic.objects.all(), since, until, "span")
    assert same(rows, expected["rows"])
    assert module.of_scopes("default", [], timedelta(hours=1), stored)[0]["done"] == 0


@pytest.mark.parametrize("by", ["action", "span", "hour", "day"])
def test_no_row_is_read(stored, by):
    with CaptureQueriesContext(connection) as captured:
        LedgerQueue.statistics(since=timedelta(days=DAYS), by=by)
    reading = [query["sql"] for query in captured if Statistic._meta.db_table in query["sql"]]
    assert len(reading) == 1
    assert all("GROUP BY" in sql for sql in reading)
    assert len(captured) < 15


def test_an_empty_histogram_is_none_at_all():
    now = backend_for("default").now()
    assert LedgerQueue.statistics(since=timedelta(days=1))["rows"] == []
    at = datetime.fromtimestamp(int(now.timestamp()) // SPAN * SPAN - SPAN, UTC)
    Statistic.objects.create(scope=SCOPE, at=at, action="noop", node=NODES[1], done=3)
    (row,) = LedgerQueue.statistics(since=timedelta(days=1))["rows"]
    assert (row["done"], row["wait"], row["run"], row["blocked"]) == (3, None, None, None)
