"""Which scopes a node claims from first: ``QUEUETOPIA["DISPATCH"]`` names one of these classes, or one of yours.

Whatever it says: a queue is a strict line, and among the due queues of scopes that are claimed together the one that
has been due longest comes first.
"""

from collections.abc import Iterator, Mapping

SHARE = 20  # of so many starts, one is left for scopes of a lower priority while they have work


class Dispatch:
    """Asked before each claim of a node in which order to claim from its scopes of a database.

    priorities: the scopes that the node serves there, each with its option ``priority``.

    ``turns`` is a generator. It yields (scopes, most): claim from these scopes together, up to so many queues; it is
    sent how many were claimed. A node claims as long as it has room and the generator goes on. That of this class
    claims from all scopes together.
    """

    def __init__(self, priorities: Mapping[str, int]):
        self.priorities = dict(priorities)

    def turns(self, room: int) -> Iterator[tuple[list[str], int]]:
        yield [*self.priorities], room


class LongestDueFirst(Dispatch):
    """All scopes together: the queue that has been due longest is next, whatever ``priority`` says."""


class ByPriority(Dispatch):
    """The built-in one: scopes of a higher priority first; of equal ones, the queue that has been due longest.

    Each lower priority keeps a twentieth of what is started while it has work.
    """

    def __init__(self, priorities):
        super().__init__(priorities)
        levels = sorted({*self.priorities.values()}, reverse=True)
        self._levels = [[scope for scope, level in self.priorities.items() if level == each] for each in levels]
        self._owed = [0.0 for _ in levels]  # starts, to each level

    def turns(self, room):
        for place in range(len(self._levels) - 1, 0, -1):  # the lowest may have waited longest
            if owed := int(self._owed[place]):
                claimed = yield self._levels[place], min(owed, room)
                self._owed[place] = self._owed[place] - claimed if claimed else 0.0  # without work nothing is owed
        for place, scopes in enumerate(self._levels):
            claimed = yield scopes, room
            for lower in range(place + 1, len(self._levels)):
                self._owed[lower] = min(self._owed[lower] + claimed / (SHARE - 1), room)


class RoundRobin(Dispatch):
    """Each scope is the first in its turn, with an equal part of the room; what is left of it is the others'."""

    def __init__(self, priorities):
        super().__init__(priorities)
        self._order = [*self.priorities]

    def turns(self, room):
        self._order.append(self._order.pop(0))
        part = max(1, room // len(self._order))
        for most in (part, room):
            for scope in [*self._order]:
                yield [scope], most
