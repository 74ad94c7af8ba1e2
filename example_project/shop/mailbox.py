"""Reads back what Django's file backend wrote."""

from email import message_from_bytes, policy
from pathlib import Path

from django.conf import settings

SEPARATOR = b"-" * 79 + b"\n"  # what the backend writes after each mail


def mail_files():
    """Return the paths of all mail files, the newest first."""
    return sorted(Path(settings.MAIL_FOLDER).glob("*.log"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def mails_in(path):
    # Without the last part: what follows the last separator is empty, or still being written.
    return [message_from_bytes(mail, policy=policy.default) for mail in path.read_bytes().split(SEPARATOR)[:-1]]


def mails_to(address):
    """Return the mails that reached ``address``, in the order they were sent."""
    mails = [mail for path in mail_files() for mail in mails_in(path) if mail["To"] == address]
    return sorted(mails, key=lambda mail: mail["X-Sent-At"])
