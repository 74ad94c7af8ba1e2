"""Independent jobs, of a class with ``ordered = False``: each has a queue of its own, under the name it was given.

The row of that queue is named by the given name and a random number, which is known before the INSERT; the job's id is
not, on any database without a second statement or another right. Should two numbers ever be the same, those two jobs
run one after the other. A job carries the row's name where every other job has its queue's, so all that serves, blocks
and takes over queues serves these too.
"""

import re
import secrets

MARK, DIGITS = "#job-", 16
ADDED = len(MARK) + DIGITS  # characters
LONGEST = 255  # characters of the name of a queue's row
LONGEST_GIVEN = LONGEST - ADDED
_OWN = re.compile(f"{MARK}[0-9a-f]{{{DIGITS}}}", re.ASCII)


class GivenName(str):
    """The name that an independent job was given. It is stored as ``row_name``, by the ORM too."""

    row_name: str

    def __new__(cls, queue, row_name):
        self = super().__new__(cls, queue)
        self.row_name = row_name
        return self

    def __getnewargs__(self):
        return str(self), self.row_name


def own_name(queue: str) -> GivenName:
    """Return the given name of an independent job, with a new name for the row of its queue."""
    return GivenName(queue, f"{queue}{MARK}{secrets.token_hex(DIGITS // 2)}")


def given_name(name: str) -> str:
    """Return the given name of the job whose queue's row has this name; of every other queue the name itself."""
    return GivenName(name[:-ADDED], name) if is_own(name) else name


def row_name(queue: str) -> str:
    """Return the name of the queue's row."""
    return getattr(queue, "row_name", queue)


def is_own(name: str) -> bool:
    """True for the name of a row that is an independent job's."""
    return MARK in name and _OWN.fullmatch(name, max(0, len(name) - ADDED)) is not None
