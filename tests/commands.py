"""``manage.py queuetopia`` in this process: what it prints, and what it refuses."""

import io
import json

from django.core.management import CommandError, call_command

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\nfake line\u202e\x9b31m"


def run(*arguments):
    """Return (what went to stdout, the text of the CommandError or None)."""
    stdout, refused = io.StringIO(), None
    try:
        call_command("queuetopia", *map(str, arguments), "--no-color", stdout=stdout, stderr=io.StringIO())
    except CommandError as exc:
        assert exc.returncode == 1
        refused = str(exc)
    return stdout.getvalue(), refused


def run_json(*arguments):
    text, refused = run(*arguments, "--json")
    assert text.isascii()
    return json.loads(text), refused


def check(*arguments):
    """Return (exit code, lines)."""
    stdout = io.StringIO()
    try:
        call_command("queuetopia", "status", "--check", *arguments, "--no-color", stdout=stdout)
    except SystemExit as exc:
        return exc.code, stdout.getvalue().splitlines()
    return 0, stdout.getvalue().splitlines()
