"""How durations are counted: in bins with fixed bounds, so that the counts of different nodes and spans can be added.

A row of statistics covers ``SPAN`` seconds. A bin's upper bound is 2 ** (1 / 4) = 1.19 times its lower one.
"""

from bisect import bisect_right

SPAN = 300  # seconds of one row
SHORTEST = 0.001  # seconds: all that is shorter is in bin 0
BINS_PER_OCTAVE = 4
LAST_BIN = 140  # from 1.1 years on

BOUNDS = [SHORTEST * 2 ** (edge / BINS_PER_OCTAVE) for edge in range(LAST_BIN)]


def bin_of(seconds: float) -> int:
    """Return the number of the bin of a duration; its upper bound is 2 ** (1 / 4) = 1.19 times its lower one."""
    return bisect_right(BOUNDS, seconds)


def bounds_of(number: int) -> tuple[float, float]:
    """Return from how many seconds to how many a bin goes."""
    return (BOUNDS[number - 1] if number else 0.0), BOUNDS[min(number, LAST_BIN - 1)]
