"""Jobs by the clock: what a class declares in ``schedules``, and when that is due. Reads and writes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import dropwhile, islice, takewhile
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from django.utils import timezone

from .params import text_problem

MISSED = ("last", "all", "none")
MOST = 1_000  # due times dealt with at once
LATE = timedelta(seconds=60)  # a due time that no node has dealt with for so long was missed
MONDAY = datetime(1970, 1, 5, tzinfo=UTC)  # what intervals are counted from: weeks begin on it
SHORTEST, LONGEST = timedelta(seconds=1), timedelta(days=366)
CHANGE = timedelta(hours=3)  # no time zone puts its clocks forward or back by more
NAME = 'Name it by 1 to 128 characters, as in Every("digest", hours=1, …).'


class Problem(NamedTuple):
    """What is wrong with a schedule: of which argument, the cause, the remedy."""

    argument: str
    cause: str
    remedy: str


class Periodic(ABC):
    """What all schedules have in common: which job is created at each due time."""

    def __init__(self, name: str, *, queue: str, action: str, params=None, missed="last", pile_up=False):
        self.name, self.queue, self.action = name, queue, action
        self.params: dict[str, Any] = {} if params is None else params
        self.missed, self.pile_up = missed, pile_up

    def __repr__(self):
        return f"<{type(self).__name__} {self.name!r}: {self}>"

    @abstractmethod
    def after(self, moment: datetime) -> datetime:
        """Return the first due time after ``moment``."""

    @abstractmethod
    def between(self, after: datetime, until: datetime, most: int = MOST) -> list[datetime]:
        """Return the due times after ``after`` and up to ``until``, oldest first; the last ``most`` of them."""

    def wanted(self, due: list[datetime], now: datetime) -> list[datetime]:
        """Return those of the due times that get a job, as ``missed`` says."""
        if self.missed == "all":
            return due
        is_missed = bool(due) and now - due[-1] > LATE
        return [] if self.missed == "none" and is_missed else due[-1:]

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with it; of queue, action and params only its class knows."""
        if not isinstance(self.name, str) or not 1 <= len(self.name) <= 128:
            yield Problem("name", f"{self.name!r} is no text of 1 to 128 characters", NAME)
        elif trouble := text_problem(self.name):
            yield Problem("name", trouble, NAME)
        if self.missed not in MISSED:
            yield Problem("missed", f"{self.missed!r} is none of {', '.join(map(repr, MISSED))}", "Use one of them.")
        if not isinstance(self.pile_up, bool):
            yield Problem("pile_up", f"{self.pile_up!r} is neither True nor False", "Use one of them.")
        if self.missed == "all" and self.pile_up is False:
            cause = "the jobs of all missed times are created together, so that they pile up"
            yield Problem("missed", cause, 'Add pile_up=True, or use missed="last".')


def listed(queuetopia) -> dict[str, Periodic]:
    """Return {name: schedule} of what a class declares, without those that are wrong by themselves."""
    found = queuetopia.schedules if isinstance(queuetopia.schedules, list | tuple) else ()
    return {each.name: each for each in found if isinstance(each, Periodic) and not any(each.problems())}


class Every(Periodic):
    """A job in each interval: ``Every("digest", hours=1, queue="digest", action="send")``.

    The parts of the interval add up: a second at least, 366 days at most. Due are its multiples since Monday,
    5 January 1970, 00:00 UTC: full hours, midnights in UTC, Mondays. See ``Cron`` for a time of day in a time zone.

    queue, action, params: the job, as for ``create_job``; the same each time.
    missed: what follows a time without a node: "last" (a job for the last due time), "all" (for each, the last 1,000
    at most) or "none" (for those of the last minute only).
    pile_up: also create a job while the last one of this schedule has not ended.
    """

    def __init__(
        self, name, *, weeks=0, days=0, hours=0, minutes=0, seconds=0,
        queue, action, params=None, missed="last", pile_up=False,
    ):  # fmt: skip
        super().__init__(name, queue=queue, action=action, params=params, missed=missed, pile_up=pile_up)
        self._parts = {"weeks": weeks, "days": days, "hours": hours, "minutes": minutes, "seconds": seconds}

    @property
    def interval(self) -> timedelta:
        return timedelta(**self._parts)

    def __str__(self):
        parts = [(number, name) for name, number in self._parts.items() if number]
        words = [f"{number:g} {name.removesuffix('s') if number == 1 else name}" for number, name in parts]
        return f"every {' '.join(words).removeprefix('1 ') if len(parts) == 1 else ' '.join(words)}"

    def after(self, moment):
        return MONDAY + ((moment - MONDAY) // self.interval + 1) * self.interval

    def between(self, after, until, most=MOST):
        first, last = (after - MONDAY) // self.interval, (until - MONDAY) // self.interval
        return [MONDAY + n * self.interval for n in range(max(first, last - most) + 1, last + 1)]

    def problems(self):
        yield from super().problems()
        remedy = "Give it as numbers, as in hours=1 or minutes=30."
        try:
            interval = self.interval
        except (TypeError, ValueError, OverflowError) as exc:
            yield Problem("interval", str(exc), remedy)
            return
        if not SHORTEST <= interval <= LONGEST:
            yield Problem("interval", f"{interval} is not between a second and 366 days", remedy)


class Cron(Periodic):
    """A job at the times of a line of cron: ``Cron("bills", "0 6 1 * *", tz="Europe/Vienna", queue=…, action=…)``.

    expression: minute, hour, day of the month, month, day of the week, as Debian's cron has them.
    tz: name of the time zone; None means the setting TIME_ZONE. A time of day that is left out when clocks are put
    forward is due right after that; one that comes twice when they are put back is due once.

    The other arguments are those of ``Every``. Needs cronsim: ``pip install 'queuetopia[cron]'``.
    """

    def __init__(self, name, expression, *, tz=None, queue, action, params=None, missed="last", pile_up=False):
        super().__init__(name, queue=queue, action=action, params=params, missed=missed, pile_up=pile_up)
        self.expression, self.tz = expression, tz

    def __str__(self):
        return f"cron {self.expression} {self._zone()}"

    def _zone(self):
        return timezone.get_default_timezone() if self.tz is None else ZoneInfo(self.tz)

    def _times(self, moment, *, reverse=False) -> Iterator[datetime]:
        from cronsim import CronSim  # an extra

        for time in CronSim(self.expression, moment.astimezone(self._zone()), reverse=reverse):
            yield time.astimezone(UTC)

    def after(self, moment):
        # In the hour that comes twice it knows the time of day only, and may begin with one that was.
        return next(time for time in self._times(moment) if time > moment)

    def between(self, after, until, most=MOST):
        begin, zone = until + timedelta(seconds=1), self._zone()
        if (until - CHANGE).astimezone(zone).utcoffset() != (until + CHANGE).astimezone(zone).utcoffset():
            begin += CHANGE
        back = dropwhile(lambda time: time > until, self._times(begin, reverse=True))
        return [*islice(takewhile(lambda time: time > after, back), most)][::-1]

    def problems(self):
        yield from super().problems()
        try:
            self._zone()
        except (ValueError, TypeError, OSError, LookupError) as exc:
            cause = f"{self.tz!r} is no time zone: {exc}"
            yield Problem("tz", cause, 'Name one of the time zone database, as in tz="Europe/Vienna".')
            return
        try:
            next(self._times(datetime.now(UTC)))
        except ModuleNotFoundError:
            yield Problem("expression", "cronsim is not installed", "Run: pip install 'queuetopia[cron]'")
        except StopIteration:
            yield Problem("expression", f"{self.expression!r} is never due", "Check its day and month.")
        except Exception as exc:  # cronsim's own, and whatever a value of another type makes it raise
            cause = f"{self.expression!r} is no line of cron: {exc}"
            yield Problem("expression", cause, 'Write minute, hour, day, month, weekday, as in "0 6 1 * *".')
