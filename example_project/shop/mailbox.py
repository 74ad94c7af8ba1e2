"""Reads back what Django's file backend wrote."""

from email import message_from_bytes, policy
from pathlib import Path

from django.conf import settings

SEPARATOR = b"-" * 79 + b"\n"  # what the backend writes after each mail


def mails_to(address):
    """Return the mails that reached ``address``, in the order they were sent."""
    mails = [mail for mail in _all_mails() if mail["To"] == address]
    return sorted(mails, key=lambda mail: mail["X-Sent-At"])


def _all_mails():
    for path in Path(settings.MAIL_FOLDER).glob("*.log"):
        # Without the last part: what follows the last separator is empty, or still being written.
        for mail in path.read_bytes().split(SEPARATOR)[:-1]:
            yield message_from_bytes(mail, policy=policy.default)
