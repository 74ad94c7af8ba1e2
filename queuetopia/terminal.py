"""What commands need to read from and write to a terminal."""

import argparse
import re
from collections.abc import Iterator, Sequence

from .conf import DAY
from .status import span

_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": DAY}


def duration(text: str) -> float:
    """Return the seconds of "90", "90s", "10m", "2h" or "7d": a type for arguments."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip())
    if not found or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 10m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield the rows as lines with their columns under each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def short_span(seconds: float | None) -> str:
    """Return a duration for a table: "12 ms", "3.4 s", "5 min"."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 120 else span(seconds)
