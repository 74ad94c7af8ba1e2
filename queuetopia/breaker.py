"""``breaker = Breaker(ConnectionError, after=20)``: an outage of what a class's jobs call uses up no attempts.

Without Django, so that settings may hold one. ``conf`` checks it, ``backends.breakers`` has what it does.
"""

from typing import NamedTuple


class Breaker:
    """Failures of these types, so many in a row, open the scope: then they are not counted, and one job is tried.

    types: exception classes.
    after: so many attempts of the scope in a row, of whatever queues, have to fail so.
    backoff_base: seconds from then to the first try. From each try that fails until the next one it takes as long as
        the outage has lasted by then, so that the waits double …
    max_backoff: … up to so many seconds (or a timedelta).

    What is wrong with them is reported by the system checks, as for other options.
    """

    def __init__(self, *types, after=20, backoff_base=1.0, max_backoff=60.0):
        self.types, self.after = types, after
        self.backoff_base, self.max_backoff = backoff_base, max_backoff

    def __repr__(self):
        types = ", ".join(getattr(cls, "__name__", repr(cls)) for cls in self.types)
        return f"Breaker({types}, after={self.after!r})"

    @property
    def terms(self) -> "Terms":
        return Terms(self.after, self.backoff_base, self.max_backoff)


class Terms(NamedTuple):
    """What a failed attempt carries of its class's breaker: all but the types, which are known in workers."""

    after: int
    backoff_base: float
    max_backoff: float
