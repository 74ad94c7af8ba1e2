"""Text that users wrote: masked, and fit for the eyes."""

import ast
import base64
import html
import json
import re
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from urllib.parse import quote, quote_plus, urlencode

import pytest
from django.db import IntegrityError, connection, transaction
from hypothesis import assume, given
from hypothesis import strategies as st

from queuetopia import Performer, action
from queuetopia.attempts import MESSAGE_LIMIT, TRACEBACK_LIMIT, describe, raised
from queuetopia.backends.trouble import database_trouble
from queuetopia.models import Job, JobEvent, Queue, Scope
from queuetopia.models import Node as NodeRow
from queuetopia.testing import drain
from queuetopia.text import MASK, brief, covered, mask, masked, secrets_of, visible, visible_json
from tests.admin.client import client_of, page
from tests.conftest import REPOSITORY
from tests.states import mail_queue, put

TEXT = 'tök€n-1 "it\'s"\n\t\\new & <a> 100% 😀/+end'
CARD = "4111222233334444"
ID = uuid.UUID("0b9c11de-21e4-4d4a-9f1c-5d8e7a60b3f2")
BORN = date(1984, 11, 23)
SEEN = datetime(2031, 5, 17, 4, 9, 33, tzinfo=UTC)
DATA = TEXT.encode()

FORMS = {
    "str": (TEXT, TEXT),
    "repr": (TEXT, repr(TEXT)),
    "repr with the other quotes": ("it's", repr("it's")),
    "repr of both quotes": ("""it's "so" then""", repr("""it's "so" then""")),
    "repr of a repr": (TEXT, repr(repr(TEXT))),
    "ascii": (TEXT, ascii(TEXT)),
    "JSON": (TEXT, json.dumps(TEXT)),
    "JSON as Unicode": (TEXT, json.dumps(TEXT, ensure_ascii=False)),
    "JSON in JSON": (TEXT, json.dumps(json.dumps({"a": TEXT}))),
    "JSON with escaped slashes": (TEXT, json.dumps(TEXT).replace("/", "\\/")),
    "URL": (TEXT, quote(TEXT)),
    "URL, plus for a space": (TEXT, quote_plus(TEXT)),
    "URL, small letters": (TEXT, quote(TEXT).lower()),
    "URL twice": (TEXT, quote(quote(TEXT))),
    "JSON in a URL": (TEXT, urlencode({"q": json.dumps(TEXT)})),
    "HTML": (TEXT, html.escape(TEXT)),
    "HTML twice": (TEXT, html.escape(html.escape(TEXT))),
    "bytes": (TEXT, repr(DATA)),
    "bytearray": (TEXT, repr(bytearray(DATA))),
    "upper case": (TEXT, TEXT.upper()),
    "hexadecimal": (TEXT, DATA.hex()),
    "Base64": (TEXT, base64.b64encode(DATA).decode()),
    "Base64 for URLs": (TEXT, base64.urlsafe_b64encode(DATA).decode()),
    "Base64 with a name before it": ("hunter2hunter2", base64.b64encode(b"ann:hunter2hunter2").decode()[6:-2]),
    "key of a dict": ({CARD: 1}, repr({CARD: "x"})),
    "in a list": ([["a", {"n": CARD}]], f"x {CARD} y"),
    "pieces of a card": (CARD, "4111 2222 3333 4444"),
    "pieces of a card, dashes": (CARD, "4111-2222-3333-4444"),
    "lines": ("first line\nsecond line", "  | first line\n  | second line"),
    "the beginning": (CARD * 3, CARD + "..."),
    "the end": (CARD * 3, "..." + CARD),
    "a number": (31337, "31337"),
    "a formatted number": (1234.5, "1,234.50"),
    "a number with commas": (1234567, "1,234,567"),
    "a number as in Germany": (Decimal("1234.5"), "1.234,50"),
    "a number with fewer digits": (1234.567, "1234.57"),
    "a decimal": (Decimal("1234.50"), "Decimal('1234.50')"),
    "a decimal as a number": (Decimal("1234.50"), "1234.5"),
    "a UUID": (ID, str(ID)),
    "a UUID's repr": (ID, repr(ID)),
    "a UUID's digits": (ID, ID.hex.upper()),
    "a UUID's number": (ID, str(ID.int)),
    "a UUID's bytes": (ID, repr(ID.bytes)),
    "a UUID as a text": (str(ID), ID.hex.upper()),
    "a date": (BORN, str(BORN)),
    "a date's repr": (BORN, repr(BORN)),
    "a date as in Germany": (BORN, f"{BORN:%d.%m.%Y}"),
    "a time": (SEEN, str(SEEN)),
    "a time's repr": (SEEN, repr(SEEN)),
    "a time in JSON": (SEEN, json.dumps(SEEN.isoformat())),
    "a time's date": (SEEN, str(SEEN.date())),
    "a duration": (timedelta(days=4, seconds=54321), "4 days, 15:05:21"),
    "a duration's repr": (timedelta(days=4, seconds=54321), repr(timedelta(days=4, seconds=54321))),
}


@pytest.mark.parametrize(("value", "written"), FORMS.values(), ids=FORMS)
def test_a_sensitive_value_is_masked_however_it_is_written(value, written):
    shown = mask(f"before: {written} :after", secrets_of({"secret": value}, ["secret"]))
    assert MASK in shown
    left = shown.replace("before", "").replace("after", "").replace(MASK, "")
    left = re.sub("bytearray|datetime|date|timedelta|Decimal|UUID|x|%22", "", left)
    # Quotes, brackets and escapes that stood around it, and the other value or key of a container.
    assert len("".join(filter(str.isalnum, left))) <= 4, shown


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("secret-of-mine", "nothing of it in here"),
        ("7", "line 17 of 77"),
        (True, "True or False"),
        (None, "None"),
        ("  ", "two  spaces"),
        ({"type": 1}, "TypeError of a mistype"),
    ],
)
def test_what_is_no_secret_stays_as_it_is(value, text):
    assert mask(text, secrets_of({"secret": value}, ["secret"])) == text


def test_a_very_short_value_is_masked_where_it_stands_alone():
    secrets = secrets_of({"pin": 7, "code": "ab"}, ["pin", "code"])
    assert mask("pin 7 of 17, 'ab' in cab", secrets) == f"pin {MASK} of 17, '{MASK}' in cab"


CHARACTERS = st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="'\"`\\+")
AS_WRITTEN = {
    "repr": repr,
    "ascii": ascii,
    "JSON": json.dumps,
    "URL": quote,
    "HTML": html.escape,
    "bytes": lambda text: repr(text.encode()),
    "repr in JSON": lambda text: json.dumps(repr(text)),
}


def secret_text():
    """Text that begins and ends with what an encoding does not drop."""
    inner = st.text(st.characters(codec="utf-8"), max_size=60)
    return st.builds("{}{}{}".format, st.text(CHARACTERS, min_size=4), inner, st.text(CHARACTERS, min_size=1))


@given(secret_text(), st.sampled_from(sorted(AS_WRITTEN)))
def test_no_piece_of_a_sensitive_text_is_left(text, form):
    written = AS_WRITTEN[form](text)
    try:
        raise ValueError(written)
    except ValueError as exc:
        told = describe(exc, secrets_of({"secret": text}, ["secret"]))
    inner = written.removeprefix("b")[1:-1] if form in ("repr", "ascii", "JSON", "bytes", "repr in JSON") else written
    pieces = {inner[start : start + 4] for start in range(len(inner) - 3)}
    # The traceback's own lines may have some of its characters; these are masked too, but for short ones.
    message = told["message"].replace(MASK, "\n")
    assume(MASK not in inner)
    assert [piece for piece in pieces if piece in message] == []
    # A little more may be masked in it, such as an "r" before a secret that has "R" at its repeated beginning.
    assert told["traceback"].rstrip().endswith(told["message"].rstrip()[-8:])


def test_of_more_than_can_be_looked_for_nothing_is_shown():
    secrets = secrets_of({"cards": [f"{CARD}{number}" for number in range(50_000)]}, ["cards"])
    assert mask("anything", secrets) == MASK
    assert mask("anything", secrets_of({"body": "long " * 10_000}, ["body"])) == "anything"


# Where exceptions are kept


def raised_by(raise_it):
    try:
        raise_it()
    except BaseException as exc:
        return exc


def test_it_is_masked_before_it_is_cut():
    """Whatever is kept of a long text, no end of a secret begins it."""
    secrets = secrets_of({"card": "hunter2"}, ["card"])
    for extra in range(20):
        text = "hunter2" * 30_000 + "x" * extra
        error = describe(ValueError(text), secrets)
        for name, limit in (("message", MESSAGE_LIMIT), ("traceback", TRACEBACK_LIMIT)):
            assert set(error[name].replace(MASK, "").replace("ValueError: ", "").strip()) <= {"x", "…", "*"}
            assert len(error[name]) <= limit


def cause():
    try:
        raise KeyError(CARD)
    except KeyError as exc:
        raise RuntimeError("no reason") from exc


def context():
    try:
        raise KeyError(CARD)
    finally:
        raise RuntimeError("no reason")


def note():
    exc = RuntimeError("no reason")
    exc.add_note(f"for {CARD}\nand {CARD}")
    raise exc


def group():
    raise ExceptionGroup("all", [ValueError(CARD), ExceptionGroup(f"some {CARD}", [ValueError(f"a\n{CARD}")])])


def named():
    raise type(f"No{CARD}", (Exception,), {})


@pytest.mark.parametrize("raise_it", [cause, context, note, group, named])
def test_it_is_masked_in_all_parts_of_an_exception(raise_it):
    error = describe(raised_by(raise_it), secrets_of({"card": CARD}, ["card"]))
    assert CARD not in str(error)
    assert MASK in str(error)


class Leaky(Performer):
    @action
    def pay(self, job, card, address=""):
        raise ValueError(f"refused {json.dumps(card)} {address}")

    @action
    def echo(self, job, card, address=""):
        return {"url": f"https://x.example/?c={quote(card)}", address: 1}


@pytest.fixture
def leaky(db):
    return mail_queue("tests.leaky", performer=Leaky, sensitive_params=("card",), max_attempts=1)


def test_errors_and_events_of_a_job_have_no_sensitive_value(leaky):
    job = leaky.create_job("a", "pay", {"card": TEXT, "address": f"https://x.example/?c={quote(TEXT)}"})
    drain(leaky)
    job.refresh_from_db()
    assert job.error == f'ValueError: refused "{MASK}" https://x.example/?c={MASK}'
    leaky.edit(job, {"card": CARD, "address": f"to {CARD}"}, by="ann")
    event = JobEvent.objects.get(job=job.pk)
    for text in (str(job.errors), str(event.before), str(event.after)):
        assert "tök" not in text and CARD not in text


def test_a_result_is_shown_without_it(leaky):
    leaky.create_job("a", "echo", {"card": TEXT, "address": CARD})
    (job,) = drain(leaky)
    assert quote(TEXT) in str(job.result)
    shown = html.unescape(page(client_of("view_job", "view_params"), f"/admin/queuetopia/job/{job.pk}/change/"))
    assert f"https://x.example/?c={MASK}" in shown
    assert quote(TEXT) not in shown


def test_other_params_are_shown_without_it_and_edited_with_it():
    params = {"card": CARD, "more": [{"url": f"?c={CARD}", CARD: 1}], "amount": 5}
    assert masked(params, ["card"]) == {"card": MASK, "more": [{"url": f"?c={MASK}", MASK: 1}], "amount": 5}
    assert covered(params, ["card"]) == {**params, "card": MASK}


def test_params_that_cannot_be_read_are_not_told(leaky):
    put(leaky, "waiting", action="pay", params={"card": {"__queuetopia__": CARD}})
    (job,) = drain(leaky)
    assert "cannot be read" in job.error
    assert CARD not in job.error + str(job.errors)


@pytest.mark.django_db
def test_the_row_that_a_database_quotes_is_not_told():
    job = put(mail_queue("tests.leaky", performer=Leaky), "waiting", params={"card": CARD})
    with pytest.raises(IntegrityError) as caught, transaction.atomic():
        Job.objects.filter(pk=job.pk).update(timeout=-1)
    assert (CARD in str(caught.value)) == (connection.vendor == "postgresql")
    for text in (brief(caught.value), database_trouble(caught.value).message, raised(caught.value)):
        assert CARD not in text
        assert "constraint" in text.lower()


# For the eyes


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢字 🙂", "plain ünïcode 漢字 🙂"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("one\ntwo\r\tthree", "one\\ntwo\\r\\tthree"),
        ("\x9b31m", "\\x9b31m"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\ud800", "\\ud800"),
        (ValueError("\x00"), "\\x00"),
    ],
)
def test_visible_escapes_what_could_steer_a_terminal(text, shown):
    assert visible(text) == shown


@given(st.recursive(st.text() | st.integers() | st.none(), lambda inner: st.dictionaries(st.text(), inner)))
def test_visible_json_means_the_same(value):
    shown = visible_json(json.dumps(value, indent=2, ensure_ascii=False))
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == value


UNSEEN = "a\x1b[2J\u202e\x9b\n\u2028b"


@pytest.mark.parametrize(
    "row",
    [
        Job(scope=UNSEEN, queue=UNSEEN, action=UNSEEN),
        Queue(scope=UNSEEN, name=UNSEEN),
        Scope(name=UNSEEN),
        NodeRow(host=UNSEEN, pid=1),
        JobEvent(verb=UNSEEN, scope=UNSEEN, queue=UNSEEN),
    ],
    ids=lambda row: type(row).__name__,
)
def test_a_row_names_itself_visibly(row):
    assert str(row).isprintable()
    assert "\\u202e" in str(row)


# What may stand in a log line as it is (%s): what code and operators write. All else is quoted (%r).
WRITTEN_BY_USERS = re.compile(
    r"\b(queue|action|params|message|reason|by|host|problem|error|params_text|result)$|^str\("
)


def log_calls():
    """Yield (place, format, arguments) of each log call."""
    for path in sorted((REPOSITORY / "queuetopia").rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
                if ast.unparse(call.func.value) == "logger" and call.func.attr in ("info", "warning", "error"):
                    yield f"{path.name}:{call.lineno}", *call.args[:1], call.args[1:]
                elif call.func.attr == "log" and call.args and ast.unparse(call.args[0]) == "logger":
                    yield f"{path.name}:{call.lineno}", *call.args[2:3], call.args[3:]


def test_a_log_line_quotes_what_users_wrote():
    seen = 0
    for place, text, arguments in log_calls():
        constants = [part.value for part in ast.walk(text) if isinstance(part, ast.Constant)]
        for kind, argument in zip(re.findall(r"%[.\d]*(\w)", "".join(map(str, constants))), arguments, strict=False):
            seen += 1
            assert kind != "s" or not WRITTEN_BY_USERS.search(ast.unparse(argument)), (place, ast.unparse(argument))
    assert seen > 100
