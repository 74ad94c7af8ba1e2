r"""Text that users wrote: without secrets, without characters that act on a terminal or page, fit to be stored.

Masking does not search for a list of encodings. It reads the text as a decoder would: escapes of Python, JSON,
URLs and HTML become the characters they stand for, quotes, white space and letter case go. In what is left a secret
looks the same however it was written, and a piece of a cut one is recognized too.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote, quote_plus
from uuid import UUID

MASK = "********"  # shown, and stored in errors, instead of a sensitive value
PIECE = 12  # characters in a row by which a part of a longer secret is recognized
WORD = 3  # a secret with fewer characters is masked only where it stands alone
KEY = 8  # so is the key of an object with fewer: "type" must not hide each TypeError
MOST = 200_000  # characters of all secrets of a job: with more, nothing of a text is shown
LONG = 10_000  # characters of a secret that is searched in hexadecimal and Base64 too
SHORT, FEW = 1_000, 500  # characters, and number, of those whose white space and quotes are masked too
AHEAD = 8  # times as much text is masked as is kept of it: masks are shorter than secrets
EDGE = 64  # characters at a cut


# Secrets


class _Form(NamedTuple):
    """How secrets are searched: ``size`` characters that are among ``pieces``."""

    size: int
    only_letters: bool  # in a text of which only letters and digits are left
    alone: bool  # only where no letter or digit adjoins


class Secrets:
    """The secrets to mask, in all the forms that Python, JSON, URLs and HTML make of them."""

    def __init__(self):
        self.pieces: dict[_Form, set[str]] = {}
        self.exact: set[str] = set()
        self.size = 0

    def __bool__(self):
        return bool(self.pieces or self.exact)

    @property
    def are_too_many(self):
        return self.size > MOST

    def add(self, value: Any) -> None:
        """Add a value as JSON has it, or of a type that params can hold."""
        if self.are_too_many:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                self._add_text(key, alone=len(key) < KEY)
                self.add(item)
        elif isinstance(value, list):
            for item in value:
                self.add(item)
        elif isinstance(value, str):
            self._add_text(value)
            for encoded in _encoded(value.encode("utf-8", "surrogatepass")) if len(value) <= LONG else ():
                self._add_text(encoded)
        elif value is not None and not isinstance(value, bool):
            for text in _written(value):
                self._add_text(text, whole=True)

    def _add_text(self, text, *, whole=False, alone=False):
        self.size += len(text)
        if self.are_too_many:
            return
        if WORD <= len(text) <= SHORT and text.strip() and not alone and len(self.exact) < FEW:
            self.exact.update(_literals(text))
        # In bytes, and in URLs, a character is some bytes of UTF-8.
        for variant in {text, text.encode("utf-8", "surrogatepass").decode("latin-1")}:
            folded = "".join(_folded(variant)[0])
            self._add_folded(folded, only_letters=False, whole=whole, alone=alone)
            letters = "".join(filter(str.isalnum, folded))
            if len(letters) >= KEY:
                self._add_folded(letters, only_letters=True, whole=whole, alone=False)

    def _add_folded(self, folded, *, only_letters, whole, alone):
        if not folded:
            return
        size = len(folded) if whole else min(len(folded), PIECE)
        form = _Form(size, only_letters, alone or len(folded) < WORD)
        pieces = self.pieces.setdefault(form, set())
        pieces.update(folded[start : start + size] for start in range(len(folded) - size + 1))


def secrets_of(params: Any, sensitive: Iterable[str]) -> Secrets:
    """Return the values of the sensitive params, to be masked wherever else they are written."""
    secrets = Secrets()
    if isinstance(params, dict):
        for name in sensitive:
            secrets.add(params.get(name))
    elif sensitive and isinstance(params, str):
        secrets.add(params)  # unreadable: what in it is sensitive is unknown
    return secrets


def mask(text: str, secrets: Secrets | None = None) -> str:
    """Return the text with all that is secret in it replaced by ``********``.

    Values of one or two characters are masked where no letter or digit adjoins, true, false and null never.
    """
    if not secrets:
        return text
    if secrets.are_too_many:
        return MASK
    parts: list[str] = []
    end = 0
    for start, stop in sorted(_places(text, secrets)):
        if start > end or (start == end and not parts):
            parts += [text[end:start], MASK]
        end = max(end, stop)
    return "".join([*parts, text[end:]])


def _places(text, secrets) -> Iterator[tuple[int, int]]:
    if secrets.exact:
        longest_first = sorted(secrets.exact, key=len, reverse=True)
        for match in re.finditer("|".join(map(re.escape, longest_first)), text, re.IGNORECASE):
            yield match.span()
    chars, spans = _folded(text)
    letters = [place for place, char in enumerate(chars) if char.isalnum()]
    for only_letters, places in ((False, range(len(chars))), (True, letters)):
        folded = "".join(chars[place] for place in places)
        for form, pieces in secrets.pieces.items():
            if form.only_letters is only_letters:
                for first in range(len(folded) - form.size + 1):
                    if folded[first : first + form.size] in pieces:
                        start, stop = spans[places[first]][0], spans[places[first + form.size - 1]][1]
                        if not (form.alone and _adjoins(text, start, stop)):
                            yield start, stop


def _adjoins(text, start, stop):
    return text[start - 1 : start].isalnum() or text[stop : stop + 1].isalnum()


def masked_start(text: str, limit: int, secrets: Secrets | None = None) -> str:
    """Return the first ``limit`` characters of a text after masking, as databases can store them."""
    most = AHEAD * limit
    # Behind the cut may stand the rest of a secret that is too short to be known by a piece.
    read = mask(text[:most], secrets) if len(text) <= most else mask(text[:most], secrets)[:-EDGE]
    return storable(read, limit)


def masked_end(text: str, limit: int, secrets: Secrets | None = None) -> str:
    """Return the last ``limit`` characters of a text after masking, as databases can store them."""
    most = AHEAD * limit
    read = mask(text, secrets) if len(text) <= most else mask(text[-most:], secrets)[EDGE:]
    return storable(read[-limit:], limit)


def covered(params: Any, sensitive: Iterable[str]) -> dict[str, Any]:
    """Return the params with ``********`` instead of each sensitive one."""
    if not isinstance(params, dict):
        return {"unreadable": MASK if sensitive else str(params)}
    return {name: MASK if name in sensitive else value for name, value in params.items()}


def masked(params: Any, sensitive: Iterable[str]) -> dict[str, Any]:
    """Return ``covered`` params; what is secret is masked in the others too."""
    secrets = secrets_of(params, sensitive)
    shown = covered(params, sensitive)
    return {name: _masked_in(value, secrets) for name, value in shown.items()} if secrets else shown


def _masked_in(value, secrets):
    if isinstance(value, str):
        return mask(value, secrets)
    if isinstance(value, dict):
        return {mask(key, secrets): _masked_in(item, secrets) for key, item in value.items()}
    return [_masked_in(item, secrets) for item in value] if isinstance(value, list) else value


_BACKSLASHES = r"(?:\\|%(?:25)*5c)+"
_CHARACTER = re.compile(
    rf"""
      {_BACKSLASHES}u(?P<high>d[89ab][0-9a-f]{{2}}){_BACKSLASHES}u(?P<low>d[c-f][0-9a-f]{{2}})
    | {_BACKSLASHES}(?:x(?P<x>[0-9a-f]{{2}})|(?-i:u)(?P<u>[0-9a-f]{{4}})|(?-i:U)(?P<U>[0-9a-f]{{8}}))
    | {_BACKSLASHES}(?P<octal>[0-7]{{3}})
    | {_BACKSLASHES}[abfnrtv]?
    | %(?:25)*(?P<percent>[0-9a-f]{{2}})
    | &(?:amp;)*(?P<entity>\#x[0-9a-f]+|\#[0-9]+|lt|gt|quot|apos|amp);
    | \n[\t ]*\|  # the margin of an exception group
    | .
    """,
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)
_DROPPED = re.compile(r"[\s+'\"`\\\x00-\x1f]")  # a plus stands for a space in URLs


def _folded(text) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the characters that the text stands for, without quotes and white space; and the place of each."""
    chars, spans = [], []
    for match in _CHARACTER.finditer(text):
        for char in _decoded(match).casefold():
            if not _DROPPED.match(char):
                chars.append(char)
                spans.append(match.span())
    return chars, spans


def _decoded(match):
    if (kind := match.lastgroup) is None:
        return match[0] if len(match[0]) == 1 else ""
    if kind == "low":
        return chr(0x10000 + ((int(match["high"], 16) & 0x3FF) << 10) + (int(match["low"], 16) & 0x3FF))
    if kind == "entity":
        return html.unescape(f"&{match['entity'].lower()};")
    code = int(match[kind], 8 if kind == "octal" else 16)
    return chr(code) if code <= 0x10FFFF else ""


def _literals(text):
    """Return the usual forms of a text, for those that consist of what is dropped."""
    yield from (text, repr(text)[1:-1], ascii(text)[1:-1], html.escape(text))
    yield from (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    data = text.encode("utf-8", "surrogatepass")
    yield from (quote(data), quote(data, safe=""), quote_plus(data), repr(data)[2:-1])


def _encoded(data: bytes):
    """Return how bytes stand in hexadecimal, and in Base64 whatever stands before and behind them."""
    yield data.hex()
    if len(data) < KEY:
        return
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + data).decode().rstrip("=")
        encoded = encoded[(0, 2, 3)[before] : -1 if (before + len(data)) % 3 else None]
        yield from {encoded, encoded.translate(str.maketrans("+/", "-_"))}


def _written(value):
    """Return how users and programs write a number, a time or an id."""
    yield from (str(value), repr(value))
    if isinstance(value, UUID):
        yield from (value.hex, str(value.int), value.bytes.decode("latin-1"))
    elif isinstance(value, int | float | Decimal):
        for form in ("f", ".0f", ".1f", ".2f", ",", ",.0f", ",.1f", ",.2f", "e", "g"):
            text = f"{value:{form}}"
            yield from (text, text.translate(str.maketrans(",.", ".,")))
        yield from (str(float(value)), f"{Decimal(str(value)).normalize():f}")
    elif isinstance(value, timedelta):
        yield from (str(value.total_seconds()), f"{value.total_seconds():.0f}")
    elif isinstance(value, date):
        yield value.isoformat()
        yield from (f"{value:{form}}" for form in ("%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%Y%m%d"))
        yield repr(value).partition("(")[2].rstrip(")")
        if isinstance(value, datetime):
            yield from _written(value.date())


# For the eyes


def visible(text: object) -> str:
    r"""Return the text with all that is no printable character escaped: ``\x1b``, ``\n``, ``\u202e``."""
    text = str(text)
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char):
    return char.encode("unicode_escape").decode()


def visible_lines(text: str) -> str:
    """Return text of several lines with all that is not printable escaped."""
    return "\n".join(visible(line) for line in text.split("\n"))


def visible_json(text: str) -> str:
    """Return JSON text, or what a user typed for it, with all that is not printable escaped as JSON has it."""
    return "".join(char if char.isprintable() or char in "\t\r\n" else json.dumps(char)[1:-1] for char in text)


def brief(exc: BaseException) -> str:
    """Return the first line of a database's error; the others may quote a row, and with it params."""
    return next(iter(str(exc).splitlines()), type(exc).__name__)


def without_rows(traceback_text: str) -> str:
    """Return a traceback without the DETAIL of PostgreSQL, in whatever language, which may quote a row."""
    return re.sub(r"^([^\W\d_]+:  ).*", r"\1…", traceback_text, flags=re.MULTILINE)


def loggable(traceback_text: str) -> str:
    """Return a traceback fit for a log: what user code wrote in it can neither steer a terminal nor pass for a record.

    Line by line, each indented: a message of several lines would else begin some of its own.
    """
    return "\n".join(f"  {visible(line)}" for line in traceback_text.splitlines())


def storable(text: str, limit: int) -> str:
    """Return ``text`` as every database can store it: no NUL, no lone surrogates, at most ``limit`` characters."""
    text = text[: limit + 1].replace("\x00", "␀").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else text[: limit - 1] + "…"
