"""Endings of attempts in one database that are not recorded yet."""

from ..attempts import Claim, Verdict
from ..backends import rows
from ..backends.values import Ending
from ..channel import uptime
from ..repeats import pause

FREE = 10  # attempts of a queue that may follow each other at once, because their pauses are shorter than …
AT_ONCE = 0.1  # … these seconds; then they are …
APART = 1.0  # … so many seconds apart: what fails or is put off for ever must not spin
LONGEST_APART = 5.0  # seconds between two tries to hand out what a worker gave back …
LONGEST_PROBLEM = 30.0  # … and what it could not run, because of an unknown action or a setup() that fails
LOCK_RETRY = 0.1  # seconds until a retry of what another transaction had locked
LONGEST_LOCK_RETRY = 1.0  # the same when it has been locked for some seconds

_AGAIN = {Verdict.RETRY, Verdict.SNOOZE, Verdict.RETURN}


class Endings:
    def __init__(self, backend):
        self.new: list[Ending] = []  # to be recorded
        self.returned: list[Ending] = []  # claims that no worker has begun, to be given back
        self.put_off: list[Ending] = []  # another session has the queue's lock or the rows locked
        self.put_off_until = 0.0  # uptime
        self._backend = backend
        self._locked_since = 0.0  # uptime at which the first of them was put off
        self._refused: list[tuple[float, Ending]] = []  # (uptime of the next try, ended); the database refuses the row
        self._times_refused: dict[tuple[int, int], int] = {}  # by job and fence
        self._losses: dict[tuple[int, int], int] = {}  # by job and fence: sessions lost while it was written
        self._repeated: dict[int, int] = {}  # by queue: attempts in a row that were to follow each other at once

    def add(self, ending: Ending) -> None:
        self.new.append(ending)

    def all(self) -> list[Ending]:
        return [*self.new, *self.returned, *self.put_off, *(ending for _, ending in self._refused)]

    def next(self, most: int) -> list[Ending]:
        """Return the endings of the next transaction; they stay here until ``done_with`` drops them."""
        return self.new[:most]

    def done_with(self, endings: list[Ending]) -> None:
        del self.new[: len(endings)]

    def timers(self):
        """Yield the uptimes at which endings are retried."""
        if self.put_off:
            yield self.put_off_until
        if self._refused:
            yield min(at for at, _ in self._refused)

    def apart(self, ending: Ending) -> Ending:
        """Return the ending, with a pause added if its queue has come back at once time after time."""
        queue_id, outcome = ending.claim.queue_id, ending.outcome
        is_long = outcome.delay >= AT_ONCE and outcome.verdict != Verdict.RETURN
        if outcome.verdict not in _AGAIN or is_long:
            self._repeated.pop(queue_id, None)
            return ending
        times = self._repeated[queue_id] = self._repeated.get(queue_id, 0) + 1
        if outcome.verdict == Verdict.RETURN:
            longest = max(LONGEST_PROBLEM, outcome.delay) if outcome.delay else LONGEST_APART
            delay = pause(times - 1, max(outcome.delay, AT_ONCE), longest)
        elif times > FREE:
            delay = APART
        else:
            return ending
        return ending._replace(outcome=outcome._replace(delay=delay))

    # Claims that no worker has begun

    def give_back(self, ending: Ending) -> None:
        self.returned.append(ending)

    def take_returned(self) -> list[Ending]:
        returned, self.returned = self.returned, []
        return returned

    def record_returned(self) -> None:
        """Record the claims that were to be given back: the session for that is lost."""
        self.new += self.take_returned()

    # Endings that are put off

    def put_off_recording(self, endings: list[Ending], seconds: float | None = None) -> None:
        """Record these endings later, so that they hold up no others.

        seconds: None means a pause that grows as long as rows are locked, from LOCK_RETRY to LONGEST_LOCK_RETRY.
        """
        if not endings:
            return
        self.put_off += endings
        now = uptime()
        if now > self.put_off_until + LONGEST_LOCK_RETRY:
            self._locked_since = now
        if seconds is None:
            seconds = min(max(LOCK_RETRY, (now - self._locked_since) / 4), LONGEST_LOCK_RETRY)
        self.put_off_until = now + seconds

    def begin_session(self) -> None:
        """Put all endings off until the queues' locks are ours: the last session may still have them."""
        endings, self.new = self.new, []
        self.put_off_recording(endings, seconds=0.0)

    def take_up_again(self) -> None:
        """Retry the endings that were put off, if they are due and the queues' locks are ours."""
        now = uptime()
        if due := [ending for at, ending in self._refused if at <= now]:
            self._refused = [(at, ending) for at, ending in self._refused if at > now]
            self.put_off_recording(due, seconds=0.0)
        if not self.put_off or now < self.put_off_until:
            return
        endings = self.put_off
        locked = set(self._backend.try_lock([ending.claim.queue_id for ending in endings]))
        others = [ending for ending in endings if ending.claim.queue_id not in locked]
        standing = rows.still_held(self._backend.alias, [ending.claim for ending in others])
        self.put_off = []
        self.put_off_recording([ending for ending in others if ending.claim.queue_id in standing])
        # If another node has taken a queue over, ``record`` refuses the ending as stale.
        self.new += [ending for ending in endings if ending.claim.queue_id not in standing]

    # Endings that the database refuses

    def refuse(self, ending: Ending, seconds: float) -> None:
        """Keep an ending that the database refuses out of the way of the others; record it again after ``seconds``."""
        self._times_refused[_attempt(ending)] = self.times_refused(ending) + 1
        self._refused.append((uptime() + seconds, ending))

    def times_refused(self, ending: Ending) -> int:
        return self._times_refused.get(_attempt(ending), 0)

    def note_loss(self, endings: list[Ending]) -> None:
        for ending in endings:
            self._losses[_attempt(ending)] = self.losses(ending) + 1

    def losses(self, ending: Ending) -> int:
        return self._losses.get(_attempt(ending), 0)

    def is_suspect(self, ending: Ending) -> bool:
        """True for an ending to be recorded alone, because the database may refuse its row."""
        return _attempt(ending) in self._times_refused or _attempt(ending) in self._losses

    def forget_refusals(self, endings: list[Ending]) -> None:
        if self._times_refused or self._losses:
            for ending in endings:
                self._times_refused.pop(_attempt(ending), None)
                self._losses.pop(_attempt(ending), None)


class Streaks:
    """How many jobs each queue has run straight on, and how long they took."""

    def __init__(self):
        self._streaks: dict[int, tuple[int, float]] = {}  # by queue

    def of(self, claim: Claim) -> tuple[int, float]:
        return self._streaks.get(claim.queue_id, (0, 0.0))

    def count(self, endings: list[Ending]) -> None:
        for ending in endings:
            jobs, seconds = self.of(ending.claim)
            self._streaks[ending.claim.queue_id] = jobs + 1, seconds + ending.outcome.duration

    def end(self, endings: list[Ending], claims: list[Claim]) -> None:
        """Forget the streaks of the queues that ended a job and go on with none of these claims."""
        kept = {claim.queue_id for claim in claims}
        for ending in endings:
            if ending.claim.queue_id not in kept:
                self._streaks.pop(ending.claim.queue_id, None)


def _attempt(ending):
    return ending.claim.job_id, ending.claim.fence
