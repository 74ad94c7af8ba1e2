"""What is wrong with a database, in words that name the remedy: it is away, it lacks tables, or rights are missing."""

import re
from enum import StrEnum
from typing import NamedTuple

from django.db import Error

from ..text import brief


class Kind(StrEnum):
    UNREACHABLE = "unreachable"
    NOT_MIGRATED = "not migrated"
    NO_RIGHTS = "no rights"
    REFUSED = "refused"  # anything else


class Trouble(NamedTuple):
    kind: Kind
    message: str


# PostgreSQL: SQLSTATEs, or their first two characters. A refused connection has none: see _TEXTS.
_STATES = {
    "42501": Kind.NO_RIGHTS,
    "28": Kind.NO_RIGHTS,
    "42P01": Kind.NOT_MIGRATED,
    "42703": Kind.NOT_MIGRATED,
    "3F000": Kind.NOT_MIGRATED,
    "08": Kind.UNREACHABLE,
    "53300": Kind.UNREACHABLE,
    "57P01": Kind.UNREACHABLE,
    "57P02": Kind.UNREACHABLE,
    "57P03": Kind.UNREACHABLE,
    "57P05": Kind.UNREACHABLE,
    "3D000": Kind.UNREACHABLE,
}
# MySQL and MariaDB: numbers of errors.
_NUMBERS = {
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1370, 1410, 1698, 1820, 3118, 4151), Kind.NO_RIGHTS),
    **dict.fromkeys((1054, 1146), Kind.NOT_MIGRATED),
    **dict.fromkeys((1040, 1049, 1053, 1129, 1130, 1203, 1927, 2002, 2003, 2005, 2006, 2013, 2026), Kind.UNREACHABLE),
}
_TEXTS = (
    # SQLite, and what PostgreSQL says to a client that it does not let in.
    (r"no such (table|column)|has no column named", Kind.NOT_MIGRATED),
    (r"readonly database|unable to open|not authorized|permission denied", Kind.NO_RIGHTS),
    (r"authentication failed|no pg_hba\.conf entry|role .* does not exist|not permitted to log in", Kind.NO_RIGHTS),
    (r"no password supplied", Kind.NO_RIGHTS),
    (r"connection|could not translate|could not connect|disk I/O error|not a database", Kind.UNREACHABLE),
)
_SENTENCES = {
    Kind.UNREACHABLE: "The database cannot be reached: {}. Is it running, and are its host, port and name right?",
    Kind.NOT_MIGRATED: "The database lacks tables or columns of Queuetopia: {}. Run: manage.py migrate queuetopia",
    Kind.NO_RIGHTS: "Rights are missing in the database: {}. The guide about rights lists those that each user needs.",
    Kind.REFUSED: "The database refused: {}.",
}


def database_trouble(exc: BaseException) -> Trouble:
    """Return what an error of the database means for an operator, from the error or what caused it."""
    error = _error_of(exc)
    kind = _kind_of(error)
    return Trouble(kind, _SENTENCES[kind].format(brief(error).rstrip(".")))


def _error_of(exc):
    """Return Django's error behind ``exc``: what we raise ourselves names its cause."""
    found: BaseException | None = exc
    while found is not None and not isinstance(found, Error):
        found = found.__cause__
    return exc if found is None else found


def _kind_of(error):
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)
    if state:
        return _STATES.get(state) or _STATES.get(state[:2]) or Kind.REFUSED
    number = error.args[0] if error.args else None
    if isinstance(number, int):
        return _NUMBERS.get(number, Kind.REFUSED)
    found = (kind for pattern, kind in _TEXTS if re.search(pattern, str(error), re.IGNORECASE))
    return next(found, Kind.REFUSED)
