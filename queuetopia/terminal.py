"""What commands need to read from and write to a terminal."""

import argparse
import errno
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime

from django.core.management.base import BaseCommand
from django.utils import timezone
from django.utils.dateparse import parse_datetime

from .conf import DAY
from .monitoring.status import span
from .streams import as_typed, end_streams, prepare_streams
from .text import visible

_UNITS = {"": 1, "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": DAY}


class TerminalCommand(BaseCommand):
    """A command for any terminal, and for none."""

    def __init__(self, *args, **kwargs):
        prepare_streams()
        super().__init__(*args, **kwargs)

    def create_parser(self, *args, **kwargs):
        parser = super().create_parser(*args, **kwargs)
        tell = parser.error
        parser.error = lambda message: tell(visible(message))  # type: ignore[method-assign] # it repeats what was typed
        return parser

    def run_from_argv(self, argv):
        try:
            super().run_from_argv([as_typed(word) for word in argv])
        except BrokenPipeError:  # the reader, as ``head``, has all that it wanted
            pass
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            sys.exit(f"Cannot write: {exc.strerror}")
        finally:
            end_streams()


def duration(text: str) -> float:
    """Return the seconds of "90", "90s", "10m", "2h" or "7d": a type for arguments."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip())
    if not found or found[2] not in _UNITS:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write 90s, 10m, 2h or 7d")
    return float(found[1]) * _UNITS[found[2]]


def moment(text: str) -> datetime:
    """Return the time that ISO text names, without an offset in the project's time zone: a type for arguments."""
    try:
        at = parse_datetime(text.strip())
    except ValueError:
        at = None
    if at is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 2030-01-31T08:00")
    return at if timezone.is_aware(at) else timezone.make_aware(at)


def interval(text: str) -> float:
    """Return the seconds of a duration that is not too short to be waited for again and again."""
    if (seconds := duration(text)) < 0.1:
        raise argparse.ArgumentTypeError(f"{text!r} is too short; take 100ms at least")
    return seconds


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


class Screen:
    """A page that is drawn over and over: in place on a terminal, one below the other elsewhere.

    stream: a command's ``stdout``.
    """

    def __init__(self, stream):
        self._stream = stream
        self._is_terminal = stream.isatty()

    def __enter__(self):
        # An alternate screen, so that what stood there before comes back; no cursor; long lines are cut.
        self._control("\x1b[?1049h\x1b[?25l\x1b[?7l")
        return self

    def __exit__(self, *exc):
        self._control("\x1b[?7h\x1b[?25h\x1b[?1049l")

    def _control(self, sequence):
        if self._is_terminal:
            self._stream.write(sequence, ending="")
            self._stream.flush()

    def draw(self, page: str) -> None:
        lines = page.splitlines()
        if self._is_terminal:
            lines = lines[: shutil.get_terminal_size().lines - 1]
            # Over what is there, not on an emptied screen: that would flicker.
            drawn = "".join(f"{line}\x1b[K\r\n" for line in lines)
            self._stream.write(f"\x1b[H{drawn}\x1b[J", ending="")
        else:
            self._stream.write("\n".join([*lines, "", ""]), ending="")
        self._stream.flush()
