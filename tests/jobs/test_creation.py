"""Creating jobs: what is stored, what is refused before anything is stored, and the caller's transaction."""

import json
import re
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from uuid import UUID

import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import example, given

from queuetopia import InvalidJob, Performer, Queuetopia, QueuetopiaError, ReadOnlyJob, action, signals
from queuetopia.models import Job, Queue
from queuetopia.testing import perform_job
from tests.jobs.strategies import PARAMS

pytestmark = pytest.mark.django_db


class MailPerformer(Performer):
    @action
    def send_mail(self, job, email_address, body="", *, attachments=()):
        pass

    @action("any-params")
    def any_params(self, job, **params):
        pass

    @action
    def ping(self, job):
        pass

    @action
    async def wait_for(self, this, address):
        pass

    @action
    def renamed(this, the_job, **params):
        pass


class OwnPerform(Performer):
    actions = ("resize", "rotate")

    def perform(self, job):
        pass


class SilentPerform(Performer):
    def perform(self, job):
        pass


class Mail(Queuetopia):
    scope = "creation.mail"
    performer = MailPerformer


class OtherMail(Queuetopia):
    scope = "creation.other"
    performer = MailPerformer


class Images(Queuetopia):
    scope = "creation.images"
    performer = OwnPerform


class Silent(Queuetopia):
    scope = "creation.silent"
    performer = SilentPerform


class Elsewhere(Queuetopia):
    scope = "creation.elsewhere"
    performer = MailPerformer
    using = "other"


class Ordered(Queuetopia):
    scope = "creation.ordered"
    performer = MailPerformer
    commit_ordered = True


HELLO = {"email_address": "toto@mail.com"}
MOMENT = datetime(2030, 1, 31, 12, 30, 15, 123456, tzinfo=UTC)


def stored(job):
    return Job.objects.get(pk=job.pk)


def refused(call, *args, **kwargs):
    """Return the messages of the InvalidJob that the call raises, and see that it wrote nothing."""
    with pytest.raises(InvalidJob) as caught:
        call(*args, **kwargs)
    assert not Job.objects.exists()
    assert not Queue.objects.exists()
    return caught.value.message_dict


def inserts(jobs):
    """The queries of creating them, inside a transaction."""
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        jobs()
    return [query["sql"] for query in queries if "SAVEPOINT" not in query["sql"]]


# What is stored


@pytest.mark.capability("Q13", "Q15")
def test_a_job_is_stored_as_it_was_given():
    job = Mail.create_job(
        "customer-42",
        "send_mail",
        {"email_address": "toto@mail.com", "body": "Welcome"},
        scheduled_at=MOMENT,
        timeout=30,
        max_backoff=timedelta(hours=1),
        max_attempts=5,
        on_exhausted="skip",
    )
    for seen in (job, stored(job)):
        assert (seen.scope, seen.queue, seen.action) == ("creation.mail", "customer-42", "send_mail")
        assert seen.params == {"email_address": "toto@mail.com", "body": "Welcome"}
        assert (seen.scheduled_at, seen.timeout, seen.max_backoff) == (MOMENT, 30.0, 3600.0)
        assert (seen.max_attempts, seen.on_exhausted) == (5, "skip")
        assert (seen.state, seen.attempts, seen.error, seen.errors, seen.result) == ("pending", 0, "", [], None)
        assert (seen.attempted_at, seen.next_attempt_at, seen.done_at) == (None, None, None)


@pytest.mark.capability("Q13", "Q15")
def test_what_is_not_given_is_not_stored():
    job = stored(Mail.create_job("customer-42", "ping"))
    assert (job.timeout, job.max_backoff, job.max_attempts, job.on_exhausted) == (None, None, None, None)
    assert job.params == {}


def test_a_job_without_a_time_has_that_of_the_database_at_once():
    before = timezone.now()
    job = Mail.create_job("customer-42", "ping")
    assert before - timedelta(seconds=2) < job.scheduled_at <= timezone.now() + timedelta(seconds=2)
    assert job.scheduled_at == stored(job).scheduled_at


def test_a_job_made_later_in_one_transaction_has_a_later_time_or_number():
    jobs = [Mail.create_job("customer-42", "ping") for _ in range(3)]
    assert list(Mail.list_jobs(queue="customer-42")) == jobs


@pytest.mark.capability("E17", "H9")
def test_params_of_every_type_come_back_from_the_database():
    params = {
        "at": MOMENT,
        "naive": datetime(2026, 1, 31, 12, 30),
        "day": date(2026, 1, 31),
        "price": Decimal("19.90"),
        "pause": timedelta(days=-1, microseconds=3),
        "key": UUID(int=7),
        "deep": [{"🙂": [None, True, 1.5, 2**63 - 1, ""]}],
    }
    job = Mail.create_job("customer-42", "any-params", params)
    assert job.params == params
    assert repr(sorted(stored(job).params.items())) == repr(sorted(params.items()))


@pytest.mark.capability("E17", "H9")
@given(PARAMS)
@example({"big": [6.099793795087163e16, -1e16, 9e18, {"e+1": 2.0**63, "int": 10**16, "less": 1e16 - 2}]})
def test_any_params_come_back_from_the_database(params):
    params = {"any": params}  # in one that is not named like an argument of perform
    assert stored(Silent.create_job("customer-42", "store", params)).params == params


@pytest.mark.parametrize(
    "fields", [{"timeout": 0.001}, {"max_backoff": 0}, {"max_attempts": 1}, {"timeout": 366 * 86_400}]
)
def test_the_limits_of_the_options_can_be_stored(fields):
    job = stored(Mail.create_job("customer-42", "ping", **fields))
    assert {name: getattr(job, name) for name in fields} == fields


# One INSERT, in the caller's transaction


def test_creating_a_job_is_one_insert():
    statements = inserts(lambda: Mail.create_job("never seen before", "ping"))
    assert statements[0].split()[:2] == ["INSERT", "INTO"]
    # MySQL, unlike the others, returns no column from an INSERT: the time has to be read.
    assert len(statements) == (1 if connection.features.can_return_columns_from_insert else 2)


def test_creating_many_jobs_is_one_insert_a_thousand():
    jobs = [Mail.job(f"queue {number % 7}", "ping", scheduled_at=MOMENT) for number in range(2_500)]
    statements = inserts(lambda: Mail.create_jobs(jobs))
    assert {statement.split()[0] for statement in statements} == {"INSERT"}
    # SQLite bounds the variables of a statement, so it may take some more.
    assert 3 <= len(statements) <= 100


@pytest.mark.capability("Q19")
@pytest.mark.django_db(transaction=True)
def test_a_rollback_leaves_no_job_and_wakes_nobody():
    told = []
    signals.job_created.connect(receiver := lambda job, **kwargs: told.append(job), sender=Mail)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Mail.create_job("customer-42", "ping")
        Mail.create_jobs([Mail.job("customer-43", "ping"), Mail.job("customer-44", "ping")])
        raise ZeroDivisionError
    signals.job_created.disconnect(receiver, sender=Mail)
    assert not Job.objects.exists()
    assert not Queue.objects.exists()
    assert told == []


@pytest.mark.capability("Q19", "E19", "H13")
@pytest.mark.django_db(transaction=True)
def test_a_commit_stores_the_job_and_then_wakes_its_queue():
    told = []
    signals.job_created.connect(receiver := lambda job, **kwargs: told.append(job), sender=Mail)
    with transaction.atomic():
        job = Mail.create_job("customer-42", "ping")
        assert told == []
        assert not Queue.objects.exists()
    signals.job_created.disconnect(receiver, sender=Mail)
    assert Job.objects.get() == job
    assert told == [job]
    queue = Queue.objects.get()
    assert (queue.scope, queue.name) == ("creation.mail", "customer-42")
    assert queue.due_at <= job.scheduled_at


@pytest.mark.django_db(transaction=True)
def test_the_earliest_job_of_a_commit_says_when_its_queue_is_due():
    with transaction.atomic():
        late, early = Mail.create_jobs(
            [Mail.job("a", "ping", scheduled_at=MOMENT + timedelta(days=day)) for day in (1, 0)]
        )
        Mail.create_job("b", "ping", scheduled_at=late.scheduled_at)
    assert dict(Queue.objects.values_list("name", "due_at")) == {"a": early.scheduled_at, "b": late.scheduled_at}


@pytest.mark.django_db(transaction=True)
def test_a_receiver_that_raises_harms_nobody(caplog):
    def receiver(**kwargs):
        raise ZeroDivisionError("not my day")

    signals.job_created.connect(receiver, sender=Mail)
    job = Mail.create_job("customer-42", "ping")
    signals.job_created.disconnect(receiver, sender=Mail)
    assert stored(job) == job
    assert "not my day" in caplog.text


def test_commit_ordered_jobs_are_stored_as_others_are():
    one, two, three = Ordered.create_job("a", "ping"), *Ordered.create_jobs([Ordered.job(q, "ping") for q in "ba"])
    assert list(Ordered.list_jobs()) == [one, two, three]


@pytest.mark.django_db(databases=["default", "other"])
def test_a_class_can_have_its_jobs_in_another_database():
    job = Elsewhere.create_job("customer-42", "ping")
    jobs = Elsewhere.create_jobs([Elsewhere.job("customer-42", "ping"), Elsewhere.job("b", "ping")])
    assert list(Elsewhere.list_jobs()) == [job, *jobs]
    assert list(Job.objects.using("other").in_order()) == [job, *jobs]
    assert not Job.objects.using("default").exists()


def test_a_job_can_be_created_from_async_code():
    job = async_to_sync(Mail.acreate_job)("customer-42", "send_mail", HELLO, timeout=5)
    assert (stored(job).params, stored(job).timeout) == (HELLO, 5.0)


def test_a_wrong_job_is_refused_in_async_code_too():
    assert "action" in refused(async_to_sync(Mail.acreate_job), "customer-42", "nope")


# Actions and params


@pytest.mark.capability("Q9")
def test_an_unknown_action_is_refused_with_the_nearest_one():
    assert refused(Mail.create_job, "customer-42", "send_mial", HELLO) == {
        "action": ["MailPerformer has no action 'send_mial'; did you mean 'send_mail'?"]
    }


@pytest.mark.capability("Q9")
@pytest.mark.parametrize("name", ["", "perform", "setup", "any_params", "os.system", "x" * 10_000, "a\0", "\udcff"])
def test_only_a_marked_method_is_an_action(name):
    assert list(refused(Mail.create_job, "customer-42", name)) == ["action"]


@pytest.mark.parametrize("name", [None, 5, b"ping", MailPerformer.ping, ["ping"]])
def test_an_action_is_a_text(name):
    (message,) = refused(Mail.create_job, "customer-42", name)["action"]
    assert message.startswith(f"must be a str, not {type(name).__name__}")
    if callable(name):
        assert message.endswith("; give its name, 'ping'.")


@pytest.mark.capability("Q9")
def test_the_actions_of_an_own_perform_are_those_it_lists():
    assert Images.create_job("a", "resize", {"anything": 1}).pk
    Job.objects.all().delete()
    assert "it knows: resize, rotate" in refused(Images.create_job, "a", "xyz")["action"][0]


def test_an_own_perform_that_lists_none_takes_any_action():
    assert stored(Silent.create_job("a", "whatever 🙂", {"anything": 1})).action == "whatever 🙂"


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0", "\udcff"])
def test_an_action_that_cannot_be_stored_is_refused_always(name):
    assert list(refused(Silent.create_job, "a", name)) == ["action"]


@pytest.mark.capability("E13")
@pytest.mark.parametrize(
    ("name", "params", "problems"),
    [
        ("send_mail", None, ["missing param 'email_address' of action 'send_mail'"]),
        ("send_mail", {"body": "x"}, ["missing param 'email_address'"]),
        ("send_mail", {**HELLO, "bodi": "x"}, ["unknown param 'bodi'"]),
        ("send_mail", {"recipient": "x"}, ["missing param 'email_address'", "unknown param 'recipient'"]),
        ("ping", {"a": 1}, ["unknown param 'a' of action 'ping' (it takes: none)"]),
        ("wait_for", {}, ["missing param 'address'"]),
        ("ping", {"job": 1}, ["a param cannot be named 'job'"]),
        ("any-params", {"self": 1}, ["a param cannot be named 'self'"]),
        ("any-params", {"self": 1, "job": 2}, ["named 'job'", "named 'self'"]),
        ("wait_for", {"address": "x", "this": 1}, ["a param cannot be named 'this'"]),
        ("renamed", {"the_job": 1}, ["a param cannot be named 'the_job'"]),
    ],
)
def test_params_that_the_action_does_not_take_are_refused(name, params, problems):
    messages = refused(Mail.create_job, "customer-42", name, params)
    assert list(messages) == ["params"]
    assert len(messages["params"]) == len(problems)
    for message, problem in zip(messages["params"], problems, strict=True):
        assert problem in message


@pytest.mark.capability("E13")
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("send_mail", HELLO),
        ("send_mail", {**HELLO, "attachments": ["a.pdf"]}),
        ("any-params", {}),
        ("any-params", {"class": 1, "no identifier": 2, "": 3}),
        ("wait_for", {"address": "x"}),
    ],
)
def test_params_that_the_action_takes_are_stored(name, params):
    assert stored(Mail.create_job("customer-42", name, params)).params == params


@pytest.mark.capability("E17", "H9")
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"a": float("nan")}, "params.a: nan is not JSON; leave it out or pass None."),
        ({"a": ["x\0"]}, "params.a[0]: contains a NUL character, which PostgreSQL cannot store."),
        ({"a": (1,)}, "params.a: a tuple would come back as a list; pass a list."),
        ({"a": Queue(pk=3)}, "params.a: a model instance (Queue) cannot be stored; "),
        ({"a": lambda: 5}, "params.a: function cannot be stored; "),
        ([1, 2], "must be a dict of the action's keyword arguments, not list."),
        ("text", "must be a dict of the action's keyword arguments, not str."),
    ],
)
def test_params_that_cannot_be_stored_are_refused_with_their_path(params, message):
    messages = refused(Mail.create_job, "customer-42", "any-params", params)
    assert list(messages) == ["params"]
    assert messages["params"][0].startswith(message)


def test_params_may_be_as_large_as_the_setting_says(settings):
    settings.QUEUETOPIA = {"MAX_PARAMS_BYTES": 100}
    fits = {"a": "x" * (100 - len(json.dumps({"a": ""})))}
    (message,) = refused(Mail.create_job, "q", "any-params", {"a": fits["a"] + "x"})["params"]
    assert "101 bytes" in message
    assert "QUEUETOPIA['MAX_PARAMS_BYTES'] = 100" in message
    assert stored(Mail.create_job("q", "any-params", fits)).params == fits


def test_a_quarter_of_a_megabyte_of_params_is_the_limit_by_default():
    assert Mail.create_job("q", "any-params", {"a": "x" * 262_000}).pk
    Job.objects.all().delete()
    assert "params" in refused(Mail.create_job, "q", "any-params", {"a": "x" * 262_144})


# Options and times

NO_NUMBERS = [True, "5", b"5", [], float("nan"), float("inf"), float("-inf")]


@pytest.mark.capability("Q13", "Q15")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("timeout", value) for value in [0, 0.0, -1, timedelta(0), timedelta(-1), 10**9, timedelta.max, *NO_NUMBERS]],
        *[("timeout", 10**400), ("max_backoff", 10**400), ("max_attempts", 10**400)],
        *[("max_backoff", value) for value in [-1, -0.001, timedelta(-1), 10**9, timedelta.max, *NO_NUMBERS]],
        *[("max_attempts", value) for value in [0, -1, 1.0, 1.5, 2**31, 10**12, timedelta(5), *NO_NUMBERS]],
        *[("on_exhausted", value) for value in ["", "HALT", "stop", True, 5, b"halt", ["halt"], print]],
    ],
)
def test_a_wrong_option_is_refused_by_name(name, value):
    messages = refused(Mail.create_job, "customer-42", "ping", **{name: value})
    assert list(messages) == [name]
    assert "Leave it out to use the option of Mail." in messages[name][0]


def test_a_timeout_in_milliseconds_is_told_so():
    (message,) = refused(Mail.create_job, "customer-42", "ping", timeout=60_000_000)["timeout"]
    assert "the unit is seconds, not milliseconds" in message


def test_params_given_as_keywords_are_told_where_they_belong():
    with pytest.raises(TypeError, match="unexpected keyword argument 'number'") as caught:
        Mail.create_job("customer-42", "ping", number=7)
    note = "The params of the action stand in one dict: Mail.create_job(queue, action, {'number': …}, timeout=30)"
    assert caught.value.__notes__ == [note]


@pytest.mark.parametrize(
    ("value", "instead"),
    [(Job.objects.all(), "pass a list of pks"), ({1}, "pass a sorted list"), (frozenset("a"), "pass a sorted list")],
)
def test_params_that_cannot_be_stored_are_told_what_can(value, instead):
    (message,) = refused(Mail.create_job, "customer-42", "any_params", {"x": value})["params"]
    assert message.startswith("params.x: a ") and instead in message


@pytest.mark.parametrize(
    ("moment", "reason"),
    [
        (datetime(2030, 1, 31, 12), "is a naive datetime; use django.utils.timezone.now()"),
        (date(2030, 1, 31), "must be an aware datetime, not date"),
        ("2030-01-31T12:00Z", "must be an aware datetime, not str"),
        (1_900_000_000, "must be an aware datetime, not int"),
        (timedelta(minutes=5), "must be an aware datetime, not timedelta; as in timezone.now() + timedelta("),
        (datetime.min.replace(tzinfo=UTC), "is in the year 1, outside"),
        (datetime.max.replace(tzinfo=UTC), "is in the year 9999, outside"),
    ],
)
def test_a_job_is_scheduled_at_an_aware_datetime(moment, reason):
    (message,) = refused(Mail.create_job, "customer-42", "ping", scheduled_at=moment)["scheduled_at"]
    assert reason in message


def test_a_time_of_another_zone_is_the_same_moment():
    moment = MOMENT.astimezone(timezone.get_fixed_timezone(-330))
    assert stored(Mail.create_job("customer-42", "ping", scheduled_at=moment)).scheduled_at == MOMENT


def test_all_that_is_wrong_is_told_at_once():
    messages = refused(Mail.create_job, "", "nope", {"a": (1,)}, scheduled_at="now", timeout=-1, max_attempts=0)
    assert list(messages) == ["queue", "action", "params", "scheduled_at", "timeout", "max_attempts"]


def test_an_invalid_job_is_an_error_of_queuetopia():
    with pytest.raises(QueuetopiaError):
        Mail.job("", "ping")


@pytest.mark.parametrize("call", [Mail.create_job, Mail.job])
def test_an_unknown_keyword_is_a_type_error_as_in_any_call(call):
    with pytest.raises(TypeError, match="time_out"):
        call("customer-42", "ping", time_out=5)
    with pytest.raises(TypeError):
        call("customer-42", "ping", {}, MOMENT)


# Queues


@pytest.mark.parametrize(
    ("queue", "reason"),
    [
        ("", "has 0 characters; a queue's name has 1 to 255"),
        ("x" * 256, "has 256 characters"),
        ("x" * 10_000, "has 10000 characters"),
        ("a\0b", "NUL"),
        ("a\ud83d", "lone surrogate"),
        (None, "must be a str, not NoneType; name it by one, as in"),
        (42, "must be a str, not int"),
        (b"customer", "must be a str, not bytes"),
    ],
)
def test_a_name_that_no_queue_can_have_is_refused(queue, reason):
    messages = refused(Mail.create_job, queue, "ping")
    assert list(messages) == ["queue"]
    assert reason in messages["queue"][0]


def test_any_other_name_is_a_queue_of_its_own():
    names = [
        *("a", "A", "a ", " a", "a\t", "á", "a\u0301", "\uff41", "ß", "ss", "SS", "\u0130", "i", "\u0131"),
        *(" ", ".", "/", "..", "%", "_", "*", "0", "00", "null", "None", "customer-42", "customer_42"),
        *("🙂", "🙃", "👩‍👧", "\U0010ffff", "\u200b", "\u200b\u200b", "\ufeff", "\x1b[31m", "a\nb", "a\r\nb", "a\\nb"),
        *("'; DROP TABLE queuetopia_job; --", "<script>alert(1)</script>", "{{ 7 }}", "${x}", "%s", "{0}", '"', "`"),
        *("x" * 255, "X" * 255, "🙂" * 255, "🙂" * 254 + "🙃"),
    ]
    Mail.create_jobs([Mail.job(name, "ping") for name in names])
    for name in names:
        assert [job.queue for job in Mail.jobs().filter(queue=name)] == [name]


# Keys


@pytest.mark.parametrize("name", ["unique", "coalesce"])
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "has 0 characters; a key has 1 to 128."),
        ("x" * 129, "has 129 characters"),
        (7, "must be a str, not int."),
        ("a\0b", "NUL"),
        ("a\ud83d", "lone surrogate"),
    ],
)
def test_a_key_that_no_job_can_have_is_refused(name, key, reason):
    messages = refused(Mail.create_job, "customer-42", "ping", **{name: key})
    assert list(messages) == [name]
    assert reason in messages[name][0]


def test_a_job_has_one_key_at_most():
    (message,) = refused(Mail.create_job, "customer-42", "ping", unique="a", coalesce="a")["coalesce"]
    assert message == "cannot be combined with unique: give one of them."
    job = Mail.job("customer-42", "ping", unique="a")
    job.coalesce_key = "x" * 129
    assert list(refused(Mail.create_jobs, [job])) == ["jobs[0].coalesce"]


@pytest.mark.parametrize("name", ["unique", "coalesce"])
def test_wrong_params_are_refused_before_the_job_with_the_key_is_touched(name):
    job = Mail.create_job("customer-42", "send_mail", HELLO, **{name: "a"})
    with pytest.raises(InvalidJob):
        Mail.create_job("customer-42", "send_mail", {"nope": 1}, **{name: "a"})
    assert stored(job).params == HELLO


@pytest.mark.parametrize("name", ["unique", "coalesce"])
def test_a_job_that_was_there_is_announced_once(name, django_capture_on_commit_callbacks):
    with django_capture_on_commit_callbacks() as callbacks:
        jobs = [Mail.create_job("customer-42", "ping", **{name: "a"}) for _ in range(3)]
    assert [job.is_new for job in jobs] == [True, False, False]
    assert len(callbacks) == 1


@pytest.mark.parametrize("name", ["unique", "coalesce"])
def test_on_postgresql_a_key_costs_one_statement_and_one_more_to_read_what_was_there(name):
    if connection.vendor != "postgresql":
        return
    create = lambda: Mail.create_job("customer-42", "ping", **{name: "a"})  # noqa: E731
    assert [len(inserts(create)), len(inserts(create))] == [1, 2]


# In bulk


def test_jobs_are_stored_in_the_order_given():
    jobs = Mail.create_jobs(
        [Mail.job(f"queue-{number % 3}", "any-params", {"number": number}) for number in range(2_100)]
    )
    assert [job.params["number"] for job in jobs] == list(range(2_100))
    assert [job.pk for job in jobs] == sorted(job.pk for job in jobs)
    for queue in ("queue-0", "queue-1", "queue-2"):
        numbers = [job.params["number"] for job in Mail.list_jobs(queue=queue)]
        assert numbers == list(range(int(queue[-1]), 2_100, 3))


def test_jobs_with_and_without_a_time_can_be_mixed():
    jobs = Mail.create_jobs([Mail.job("a", "ping"), Mail.job("a", "ping", scheduled_at=MOMENT), Mail.job("a", "ping")])
    first, second, third = jobs
    assert second.scheduled_at == MOMENT
    assert first.scheduled_at == stored(first).scheduled_at < MOMENT
    assert list(Mail.list_jobs()) == [first, third, second]


@pytest.mark.parametrize("new_jobs", [[], (), iter([])])
def test_no_jobs_are_no_jobs(new_jobs):
    assert Mail.create_jobs(new_jobs) == []
    assert not Job.objects.exists()


def test_any_iterable_of_jobs_will_do():
    assert len(Mail.create_jobs(Mail.job(queue, "ping") for queue in "abc")) == 3


def test_a_job_is_validated_when_it_is_made_and_stored_when_it_is_created():
    assert list(refused(Mail.job, "customer-42", "send_mail", {})) == ["params"]
    job = Mail.job("customer-42", "ping")
    assert job.pk is None
    assert not Job.objects.exists()


def test_one_wrong_job_of_many_is_named_by_its_place_and_none_is_stored():
    jobs = [Mail.job("a", "ping"), OtherMail.job("a", "ping"), Mail.job("b", "ping"), None, ("a", "ping", {})]
    messages = refused(Mail.create_jobs, jobs)
    assert list(messages) == ["jobs[1].scope", "jobs[3]", "jobs[4]"]
    for (message,) in messages.values():
        assert "make it with Mail.job()" in message


def test_a_job_that_is_stored_is_not_stored_again():
    job = Mail.create_job("a", "ping")
    with pytest.raises(InvalidJob) as caught:
        Mail.create_jobs([Mail.job("b", "ping"), job])
    assert caught.value.message_dict == {
        "jobs[1]": [f"was stored before, as job {job.pk}; make a new one with Mail.job()."]
    }
    assert Job.objects.get() == job


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("queue", "x" * 256),
        ("action", "nope"),
        ("params", {"a": float("nan")}),
        ("params", {"unknown": 1}),
        ("timeout", -1),
        ("max_attempts", 0),
        ("scheduled_at", datetime(2030, 1, 31)),
    ],
)
def test_a_job_that_was_changed_after_it_was_made_is_validated_again(field, value):
    jobs = [Mail.job(queue, "ping") for queue in "abcd"]
    setattr(jobs[3], field, value)
    assert list(refused(Mail.create_jobs, jobs)) == [f"jobs[3].{field}"]


def test_one_job_given_twice_is_refused():
    job = Mail.job("a", "ping")
    assert list(refused(Mail.create_jobs, [job, job])) == ["jobs[1]"]


@pytest.mark.django_db(transaction=True)
def test_a_rolled_back_job_is_refused_with_the_remedy_for_its_time_and_id_are_spent():
    job = Mail.job("a", "ping")
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        Mail.create_jobs([job])
        raise ZeroDivisionError
    (message,) = refused(Mail.create_jobs, [job])["jobs[0]"]
    assert "make a new one with Mail.job()" in message
    assert not Job.objects.exists()


# Looking


@pytest.fixture
def six_jobs():
    """Jobs of two queues of Mail, the last made being the first in time; and one of another scope."""
    moments = [MOMENT - timedelta(days=number) for number in range(6)]
    jobs = [
        Mail.create_job("ab"[number % 2], "any-params", {"number": number}, scheduled_at=at)
        for number, at in enumerate(moments)
    ]
    OtherMail.create_job("a", "ping", scheduled_at=moments[0])
    return jobs


@pytest.mark.capability("Q21")
def test_jobs_are_those_of_the_scope_only(six_jobs):
    assert set(Mail.jobs()) == set(six_jobs)
    assert OtherMail.jobs().count() == 1
    assert not Images.jobs().exists()


@pytest.mark.capability("Q21")
def test_jobs_are_listed_in_the_order_they_run_in(six_jobs):
    assert list(Mail.list_jobs()) == six_jobs[::-1]
    assert list(Mail.list_jobs(queue="a")) == [six_jobs[4], six_jobs[2], six_jobs[0]]


@pytest.mark.capability("Q21")
def test_jobs_can_be_filtered_searched_and_ordered_as_any_queryset(six_jobs):
    assert list(Mail.list_jobs(params__number=3, state="pending")) == [six_jobs[3]]
    assert list(Mail.list_jobs(action__contains="any", scheduled_at__gte=MOMENT)) == [six_jobs[0]]
    assert list(Mail.list_jobs(queue="b").order_by("-scheduled_at")) == six_jobs[1::2]
    assert list(Mail.jobs().in_queue("creation.mail", "b").unfinished().in_order()) == six_jobs[5::-2]


@pytest.mark.capability("Q21")
@pytest.mark.parametrize(
    ("filters", "named"),
    [
        ({"state": "typo"}, "state='typo' matches no job: 'typo' is none of 'pending', 'done', 'halted', 'skipped', "),
        ({"state": "running"}, "A running, waiting or backing-off job is pending."),
        ({"state": ["done", "halted"]}, "['done', 'halted'] is none of 'pending'"),
        ({"state__in": ["done", "typo"]}, "state__in=['done', 'typo'] matches no job: 'typo' is none of"),
        ({"state__in": "done"}, "state__in='done' matches no job: 'd' is none of"),
        ({"scope": "creation.images"}, "'creation.images' is none of 'creation.mail'."),
        ({"on_exhausted": "stop"}, "'stop' is none of None, 'halt', 'skip', 'retry'."),
    ],
)
def test_a_filter_that_no_job_can_match_is_an_error(six_jobs, filters, named):
    for refuses in (Mail.list_jobs, Mail.paginate_jobs):
        with pytest.raises(ValueError, match=re.escape(named)):
            refuses(**filters)


@pytest.mark.capability("Q21")
def test_filters_that_jobs_can_match_may_be_anything_that_django_takes(six_jobs):
    states = Mail.jobs().values("state")
    for filters in (
        {"state": Job.State.PENDING, "scope": "creation.mail", "on_exhausted": None},
        {"state__in": {"pending", "done"}},
        {"state__in": (state for state in ("pending", "done"))},
        {"state__in": states},
        {"state": F("state")},
        {"state__in": [F("state")]},
        {"state__startswith": "pend"},
    ):
        assert list(Mail.list_jobs(**filters)) == six_jobs[::-1]


@pytest.mark.capability("Q21")
def test_jobs_come_in_pages(six_jobs):
    page = Mail.paginate_jobs(page=2, per_page=4)
    assert list(page) == [six_jobs[1], six_jobs[0]]
    assert (page.number, page.paginator.num_pages, page.paginator.count) == (2, 2, 6)
    assert list(Mail.paginate_jobs(queue="a", per_page=1)) == [six_jobs[4]]
    assert len(Mail.paginate_jobs()) == 6


@pytest.mark.capability("Q21")
@pytest.mark.parametrize(("page", "number"), [(99, 2), (0, 2), (-1, 2), ("x", 1), (None, 1)])
def test_a_page_out_of_range_is_the_last_one_and_what_is_no_number_the_first(six_jobs, page, number):
    assert Mail.paginate_jobs(page=page, per_page=4).number == number


def test_the_same_queue_of_two_scopes_holds_jobs_of_its_own(six_jobs):
    Mail.create_job("a", "ping")
    assert Mail.jobs().filter(queue="a").count() == 4
    assert OtherMail.jobs().filter(queue="a").count() == 1


# The job that a performer is handed


class WritingPerformer(Performer):
    @action
    def write(self, job, verb):
        job.action = "renamed"
        getattr(job, verb)()

    @action
    async def awrite(self, job, verb):
        await getattr(job, verb)()


@pytest.fixture
def writing(declare_only):
    declare_only()
    return type("Writing", (Queuetopia,), {"scope": "creation.writing", "performer": WritingPerformer})


@pytest.mark.parametrize("verb", ["save", "delete"])
def test_the_job_of_a_claim_cannot_be_written(writing, verb):
    job = writing.create_job("a", "write", {"verb": verb})
    with pytest.raises(ReadOnlyJob, match=rf"Job {job.pk} was handed to a performer: {verb}\(\)"):
        perform_job(job)
    assert stored(job).action == "write"


@pytest.mark.parametrize("verb", ["asave", "adelete"])
def test_the_job_of_a_claim_cannot_be_written_from_async_code(writing, verb):
    job = writing.create_job("a", "awrite", {"verb": verb})
    with pytest.raises(ReadOnlyJob):
        perform_job(job)
    assert Job.objects.exists()
