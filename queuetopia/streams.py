"""Standard streams that take any text, whatever is at their other end: closed, of few characters, or gone."""

import io
import os
import sys
from contextlib import suppress


def prepare_streams() -> None:
    """Let standard output and error take any text.

    A closed one becomes the null device: else the next file or socket takes its number, and gets what is printed. What
    an encoding lacks is escaped.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def as_typed(argument: str) -> str:
    """Return a command's argument as it was typed, also where the locale knows ASCII only."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        return os.fsencode(argument).decode("utf-8", "backslashreplace")
    return argument


def end_streams() -> None:
    """Flush standard output and error before the interpreter does, which complains about a reader that is gone."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as exc:
            hush(stream)
            if not isinstance(exc, BrokenPipeError):
                sys.exit(f"Cannot write: {exc.strerror}")


def hush(stream) -> None:
    """Let all that the stream still holds, and all that is written to it from now on, go to the null device."""
    with suppress(AttributeError, ValueError, OSError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
