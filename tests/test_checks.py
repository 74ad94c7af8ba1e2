"""System checks: each mistake is named, with its remedy; a project without mistakes hears nothing."""

from datetime import timedelta
from enum import Enum
from functools import cached_property, partial, partialmethod, wraps

import pytest
from django.core.checks import Tags, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import connections
from django.db.backends.postgresql import psycopg_any
from django.db.migrations.recorder import MigrationRecorder

from queuetopia import Breaker, Halt, Performer, Queuetopia, Snooze, action
from queuetopia.conf import OPTIONS
from queuetopia.models import Job


class MailPerformer(Performer):
    @action
    def send_mail(self, job, email_address):
        pass


@pytest.fixture(autouse=True)
def own_registry(declare_only):
    """Only the classes that the test declares are registered, and afterwards they are gone."""
    declare_only()


@pytest.fixture
def add_database(settings, monkeypatch):
    """Return add(alias, ENGINE=…, …), which adds a database for this test."""
    added = []

    def add(alias, **config):
        monkeypatch.setitem(settings.DATABASES, alias, connections.configure_settings({"default": config})["default"])
        added.append(alias)

    yield add
    for connection in connections.all(initialized_only=True):
        if connection.alias in added:
            connection.close()
            del connections[connection.alias]


@pytest.fixture
def add_sqlite(add_database):
    """Return add(alias, path, **OPTIONS): an SQLite database that nothing is wrong with."""

    def add(alias, path, **options):
        options = {"transaction_mode": "IMMEDIATE", **options}
        add_database(alias, ENGINE="django.db.backends.sqlite3", NAME=path, OPTIONS=options)

    return add


def declare(name="MailQueue", performer=MailPerformer, scope="shop.mail", **attributes):
    """Declare a Queuetopia of the module ``shop``."""
    return type(name, (Queuetopia,), {"__module__": "shop", "performer": performer, "scope": scope, **attributes})


def problems():
    return run_checks(tags=["queuetopia"])


def the_problem(number):
    """Return the only problem there is, and see that it has this id, ends with a full stop and has a hint."""
    (problem,) = problems()
    assert problem.id == f"queuetopia.{number}"
    assert problem.is_serious() == number.startswith("E")
    assert problem.msg.endswith(".")
    assert problem.hint
    return problem


def test_a_project_without_mistakes_has_no_problems(settings):
    class Base(Queuetopia):
        CONSTANT = 5
        _private = 5
        jitter = 0.5

        @property
        def a_property(self): ...

        @classmethod
        def a_method(cls): ...

        class Nested: ...

    declare(timeout=timedelta(minutes=1), on_exhausted=lambda job, exc: "skip")

    class LetterQueue(Base):
        scope = "x" * 128
        performer = MailPerformer
        retention = None
        sensitive_params = ["email_address"]
        using = "default"

    settings.QUEUETOPIA = {
        "DEFAULTS": {name: option.default for name, option in OPTIONS.items()},
        "SCOPES": {"shop.mail": {"timeout": 5}},
        "LOCK_DATABASE": {"default": "other"},
        "LEASE": timedelta(seconds=10),
        "ENABLED": False,
        "MAX_PARAMS_BYTES": 1,
        "AUTODISCOVER": None,
    }
    assert problems() == []


def test_no_settings_and_no_classes_are_no_mistake(settings):
    settings.QUEUETOPIA = {}
    assert problems() == []
    del settings.QUEUETOPIA
    assert problems() == []


# Settings


@pytest.mark.parametrize(
    ("configured", "text"),
    [
        (None, "QUEUETOPIA is a NoneType; it must be a dict."),
        (["shop"], "QUEUETOPIA is a list; it must be a dict."),
        ({"DEFAULTS": None}, "QUEUETOPIA['DEFAULTS'] is a NoneType; it must be a dict."),
        ({"DEFAULTS": [("timeout", 5)]}, "QUEUETOPIA['DEFAULTS'] is a list; it must be a dict."),
        ({"SCOPES": "shop.mail"}, "QUEUETOPIA['SCOPES'] is a str; it must be a dict."),
        ({"SCOPES": {"shop.mail": 60}}, "QUEUETOPIA['SCOPES']['shop.mail'] is a int; it must be a dict."),
    ],
)
def test_a_setting_that_is_no_dict(settings, configured, text):
    declare()
    settings.QUEUETOPIA = configured
    assert the_problem("E001").msg == text


def test_an_unknown_key(settings):
    settings.QUEUETOPIA = {"DEFAULT": {}}
    problem = the_problem("E002")
    assert (problem.msg, problem.hint) == ("QUEUETOPIA has the unknown key 'DEFAULT'.", "Did you mean 'DEFAULTS'?")


def test_an_unknown_key_that_resembles_none_is_told_all_there_are(settings):
    settings.QUEUETOPIA = {5: {}}
    assert "Known are: ALERT_AFTER, AUTODISCOVER, BACKENDS, DEFAULTS, DISPATCH, ENABLED" in the_problem("E002").hint


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("LEASE", 2, "2 is less than 3 seconds"),
        ("LEASE", "15", "'15' is neither a number of seconds nor a timedelta"),
        ("LEASE", float("nan"), "nan is not a finite number of seconds"),
        ("LEASE", 15_000_000, "the unit is seconds, not milliseconds"),
        ("DISPATCH", 5, "5 is no dotted path"),
        ("DISPATCH", "shop.no.Dispatch", "'shop.no.Dispatch' cannot be imported: No module named 'shop'"),
        ("DISPATCH", "queuetopia.dispatch.SHARE", "is 20, which is no class with a method turns(room)"),
        ("ENABLED", "False", "'False' is not True or False"),
        ("ENABLED", 0, "0 is not True or False"),
        ("ENABLED", ["shop.mail"], "['shop.mail'] is not True or False, and no dict of them by scope"),
        ("MAX_PARAMS_BYTES", 0, "0 is not a positive whole number of bytes"),
        ("MAX_PARAMS_BYTES", 1e6, "1000000.0 is not a positive"),
        ("MAX_PARAMS_BYTES", True, "True is not a positive"),
        ("MAX_PARAMS_BYTES", None, "None is not a positive"),
        ("AUTODISCOVER", 5, "5 is neither a module's name nor None"),
        ("AUTODISCOVER", "", "'' is neither"),
        ("AUTODISCOVER", "queues.py/", "'queues.py/' is neither"),
        ("AUTODISCOVER", False, "False is neither"),
        ("LOCK_DATABASE", "direct", "'direct' is not a database alias; DATABASES has default, other"),
        ("LOCK_DATABASE", {"default": "direct"}, "'direct' is not a database alias"),
        ("LOCK_DATABASE", {"primary": "other"}, "'primary' is not a database alias"),
        ("LOCK_DATABASE", {"default": None}, "None is not a database alias"),
        ("LOCK_DATABASE", ["other"], "unhashable"),
    ],
)
def test_a_bad_value_of_a_setting(settings, key, value, text):
    settings.QUEUETOPIA = {key: value}
    problem = the_problem("E003")
    assert problem.msg.startswith(f"QUEUETOPIA['{key}']: ")
    assert text in problem.msg
    assert "leave it out" in problem.hint


def test_options_for_a_scope_that_no_class_declares(settings):
    declare()
    settings.QUEUETOPIA = {"SCOPES": {"shop.mails": {"timeout": 5}}}
    problem = the_problem("W001")
    assert "options for 'shop.mails', a scope that no class declares" in problem.msg
    assert problem.hint == "Did you mean 'shop.mail'?"


def test_a_scope_can_be_disabled_if_a_class_declares_it(settings):
    declare()
    settings.QUEUETOPIA = {"ENABLED": {"shop.mail": False}}
    assert problems() == []
    settings.QUEUETOPIA = {"ENABLED": {"shop.mails": False}}
    problem = the_problem("W001")
    assert problem.msg == "QUEUETOPIA['ENABLED'] names 'shop.mails', a scope that no class declares."
    assert problem.hint == "Did you mean 'shop.mail'?"
    settings.QUEUETOPIA = {"ENABLED": {"shop.mail": 0}}
    assert "{'shop.mail': 0} is not True or False, and no dict of them by scope" in the_problem("E003").msg


# Options


@pytest.mark.parametrize("name", ["time_out", "timeouts", "maxAttempts", "poll", "jobs_table"])
def test_an_unknown_option_of_a_class(name):
    declare(**{name: 5})
    assert the_problem("E004").msg == f"shop.MailQueue has the unknown option '{name}'."


def test_an_unknown_option_has_the_nearest_one_as_its_hint():
    declare(max_atempts=5)
    assert the_problem("E004").hint == "Did you mean 'max_attempts'?"


@pytest.mark.parametrize(
    ("configured", "where"),
    [
        ({"DEFAULTS": {"time_out": 5}}, "QUEUETOPIA['DEFAULTS']"),
        ({"DEFAULTS": {"performer": 5}}, "QUEUETOPIA['DEFAULTS']"),
        ({"SCOPES": {"shop.mail": {"scope": "x"}}}, "QUEUETOPIA['SCOPES']['shop.mail']"),
        ({"SCOPES": {"shop.mail": {5: "x"}}}, "QUEUETOPIA['SCOPES']['shop.mail']"),
    ],
)
def test_an_unknown_option_in_the_settings(settings, configured, where):
    declare()
    settings.QUEUETOPIA = configured
    assert the_problem("E004").msg.startswith(f"{where} has the unknown option ")


def test_an_option_of_a_base_is_told_once_and_named_after_the_base():
    class Base(Queuetopia):
        __module__ = "shop"
        time_out = 5
        timeout = -5

    for name in ("A", "B"):
        type(name, (Base,), {"__module__": "shop", "performer": MailPerformer, "scope": name})
    base = "test_an_option_of_a_base_is_told_once_and_named_after_the_base.<locals>.Base"
    assert [problem.id for problem in problems()] == ["queuetopia.E004", "queuetopia.E005"]
    assert all(problem.msg.startswith(f"shop.{base}") for problem in problems())


class Mode(Enum):
    HALT = "halt"


BAD_OPTIONS = [
    ("timeout", 0, "0 is not more than 0 seconds"),
    ("timeout", None, "None is neither a number of seconds nor a timedelta"),
    ("timeout", 60_000_000, "the unit is seconds, not milliseconds"),
    ("backoff_base", 0, "0 is not more than 0 seconds"),
    ("backoff_base", "2", "'2' is neither a number of seconds nor a timedelta"),
    ("backoff_base", 32_000_000, "the unit is seconds, not milliseconds"),
    ("backoff_factor", 0.5, "0.5 is not a number between 1 and 100"),
    ("backoff_factor", 101, "101 is not a number between 1 and 100"),
    ("backoff_factor", float("nan"), "nan is not a number"),
    ("backoff_factor", True, "True is not a number"),
    ("backoff_factor", timedelta(2), "is not a number"),
    ("max_backoff", -1, "-1 is less than 0 seconds"),
    ("max_backoff", float("inf"), "inf is not a finite number of seconds"),
    ("max_attempts", 0, "0 is not between 1 and"),
    ("max_attempts", 2.0, "2.0 is not a whole number"),
    ("on_exhausted", "", "'' is none of 'halt', 'skip', 'retry'"),
    ("on_exhausted", "halt!", "'halt!' is none of 'halt', 'skip', 'retry'"),
    ("on_exhausted", Mode.HALT, "is none of"),
    ("on_exhausted", ["halt"], "is none of"),
    ("on_error", "halt", "'halt' is not a dict of exception classes"),
    ("on_error", {"OSError": "halt"}, "'OSError' is no exception class"),
    ("on_error", {OSError(): "halt"}, "OSError() is no exception class"),
    ("on_error", {int: "halt"}, "<class 'int'> is no exception class"),
    ("on_error", {OSError: "stop"}, "OSError: 'stop' is none of 'halt', 'skip', 'retry'"),
    ("on_error", {OSError: lambda job, exc: "halt"}, "is none of 'halt', 'skip', 'retry'"),
    ("on_error", {Halt: "skip"}, "Halt says itself what comes next"),
    ("breaker", ConnectionError, "is no Breaker, as Breaker(ConnectionError, after=20)"),
    ("breaker", Breaker(), "it names no exception class"),
    ("breaker", Breaker("OSError"), "'OSError' is no exception class"),
    ("breaker", Breaker(OSError, Snooze), "Snooze says itself what comes next"),
    ("breaker", Breaker(OSError, after=0), "after: 0 is not a whole number from 1 on"),
    ("breaker", Breaker(OSError, after=True), "after: True is not a whole number from 1 on"),
    ("breaker", Breaker(OSError, backoff_base=0), "0 is not more than 0 seconds"),
    ("breaker", Breaker(OSError, max_backoff=0.5), "0.5 is less than 1.0 seconds"),
    ("jitter", 10, "10 is not a fraction between 0 and 1"),
    ("jitter", float("nan"), "nan is not a fraction"),
    ("jitter", timedelta(0), "is not a fraction"),
    ("poll_interval", 0, "0 is not more than 0 seconds"),
    ("max_running", 0, "0 is less than 1; a scope of which nothing may run is paused"),
    ("max_running", 2.5, "2.5 is not a whole number"),
    ("rate", 50, "50 is not (number, seconds), as (50, 1) for fifty starts a second"),
    ("rate", (0, 1), "the number of (0, 1) is not a whole number from 1 on"),
    ("rate", (5, 0), "0 is not more than 0 seconds"),
    ("rate", (5, "1"), "'1' is neither a number of seconds nor a timedelta"),
    ("spacing", -1, "-1 is less than 0 seconds"),
    ("priority", 1.5, "1.5 is not a whole number; higher ones are served first"),
    ("priority", True, "True is not a whole number"),
    ("using", "primary", "'primary' is not a database alias; DATABASES has default, other"),
    ("using", ["default"], "unhashable"),
    ("commit_ordered", 1, "1 is not True or False"),
    ("retention", -1, "-1 is less than 0 seconds"),
    ("sensitive_params", "password", "'password' is not a sequence of param names"),
    ("sensitive_params", [5], "[5] is not a sequence of param names"),
    ("sensitive_params", 5, "not iterable"),
]


@pytest.mark.parametrize(("name", "value", "text"), BAD_OPTIONS)
def test_a_bad_value_of_an_option_of_a_class(name, value, text):
    declare(**{name: value})
    problem = the_problem("E005")
    assert problem.msg.startswith(f"shop.MailQueue: option '{name}': ")
    assert text in problem.msg
    assert "leave it out for" in problem.hint


@pytest.mark.parametrize(("name", "value", "text"), BAD_OPTIONS)
@pytest.mark.parametrize("where", ["QUEUETOPIA['DEFAULTS']", "QUEUETOPIA['SCOPES']['shop.mail']"])
def test_a_bad_value_of_an_option_in_the_settings(settings, where, name, value, text):
    declare()
    options = {name: value}
    settings.QUEUETOPIA = {"DEFAULTS": options} if "DEFAULTS" in where else {"SCOPES": {"shop.mail": options}}
    problem = the_problem("E005")
    assert problem.msg.startswith(f"{where}: option '{name}': ")
    assert text in problem.msg


@pytest.mark.parametrize("where", ["class", "DEFAULTS", "SCOPES"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("stop", "'stop' is none of 'halt', 'skip', 'retry', and no method of shop.DecidingPerformer"),
        ("a_number", "'a_number' is a method of shop.DecidingPerformer that cannot be called as a_number(job, exc)"),
        ("of_nothing", "that cannot be called as of_nothing(job, exc): too many positional arguments"),
        ("of_three", "that cannot be called as of_three(job, exc): missing a required argument"),
        ("generator", "that is a generator: a call would run nothing"),
    ],
)
def test_a_method_that_cannot_decide_what_exhaustion_means(settings, where, name, text):
    declare(performer=DecidingPerformer, **({"on_exhausted": name} if where == "class" else {}))
    options = {"on_exhausted": name}
    if where != "class":
        settings.QUEUETOPIA = {where: options if where == "DEFAULTS" else {"shop.mail": options}}
    problem = the_problem("E005")
    assert problem.msg.startswith("shop.MailQueue: option 'on_exhausted': ")
    assert text in problem.msg
    assert f"def {name}(self, job, exc)" in problem.hint


@pytest.mark.parametrize("name", ["decide", "decide_async", "decide_static", "decide_any"])
def test_a_method_that_can_decide_what_exhaustion_means(name):
    declare(performer=DecidingPerformer, on_exhausted=name)
    assert problems() == []


class DecidingPerformer(Performer):
    __module__ = "shop"
    __qualname__ = "DecidingPerformer"
    a_number = 5

    @action
    def act(self, job): ...

    def decide(self, job, exc): ...

    async def decide_async(self, job, exc): ...

    @staticmethod
    def decide_static(job, exc): ...

    def decide_any(self, *arguments): ...

    def of_nothing(self): ...

    def of_three(self, job, exc, more): ...

    def generator(self, job, exc):
        yield


# Scopes


@pytest.mark.parametrize(
    ("scope", "text"),
    [
        ("", "has 0 characters"),
        ("x" * 129, "has 129 characters"),
        ("a\0", "contains a NUL character"),
        ("\ud83d", "contains a lone surrogate"),
        (None, "is a NoneType, not a str"),
        ("*", "stands for all scopes"),
        (5, "is a int, not a str"),
        (["shop"], "is a list, not a str"),
    ],
)
def test_a_scope_that_cannot_be_stored(scope, text):
    declare(scope=scope)
    problem = the_problem("E006")
    assert problem.msg.startswith(f"shop.MailQueue: its scope {text}")
    assert "1 to 128 characters" in problem.hint


def test_two_classes_of_one_scope():
    for name in ("MailQueue", "LetterQueue", "OtherQueue"):
        declare(name, scope="shop.other" if name == "OtherQueue" else "shop.mail")
    problem = the_problem("E007")
    assert problem.msg.startswith("shop.MailQueue and shop.LetterQueue have one scope, 'shop.mail'")


@pytest.mark.parametrize("other", ["Shop.Mail", "shop.mail ", " shop.mail", "shop.\uff4dail"])
def test_two_scopes_that_look_alike(other):
    declare(scope="shop.mail")
    declare("LetterQueue", scope=other)
    problem = the_problem("W012")
    assert "look alike" in problem.msg and ascii(other) in problem.msg and "'shop.mail'" in problem.msg


def test_scopes_that_differ_in_a_letter_are_no_problem():
    declare(scope="shop.mail")
    declare("LetterQueue", scope="shop.mails")
    assert problems() == []


# Performers


@pytest.mark.parametrize("performer", [MailPerformer(), "shop.MailPerformer", object, print, 5])
def test_a_performer_that_is_none(performer):
    declare(performer=performer)
    problem = the_problem("E008")
    assert problem.msg.startswith("shop.MailQueue: its performer ")
    assert "is no subclass of Performer" in problem.msg


class BadPerformer(Performer):
    """Each method is wrong in its own way."""

    @action
    def no_job(self): ...

    @action
    def no_self(job, email): ...

    @action
    def nothing(): ...

    @action
    def stars_and_keyword(self, *, job, **params): ...

    @action
    def job_as_keyword(self, *, job): ...

    @action
    def positional(self, job, email, /): ...

    @action
    def stars(self, job, *emails): ...

    @action
    @staticmethod
    def static(job, email): ...

    @action
    @classmethod
    def of_class(cls, job, email): ...

    @classmethod
    @action
    def marked_within(cls, job, email): ...

    @action
    @property
    def got(self): ...

    @property
    @action
    def got_within(self): ...

    @cached_property
    @action
    def cached(self): ...

    half = action("half")(partial(print, "x"))

    @action
    def lazy(self, job):
        yield

    @action
    async def lazy_async(self, job):
        yield


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("no_job", "it must take self and job first"),
        ("no_self", "it lacks self, so that its 'job' would receive the performer"),
        ("nothing", "it must take self and job first"),
        ("job_as_keyword", "it must take self and job first"),
        ("stars_and_keyword", "it must take self and job first"),
        ("positional", "'email' is positional-only, and params arrive as keywords"),
        ("stars", "'*emails' never receives anything"),
        ("static", "it is a staticmethod"),
        ("of_class", "it is a classmethod"),
        ("marked_within", "it is a classmethod"),
        ("got", "it is a property"),
        ("got_within", "it is a property"),
        ("cached", "it is a cached_property"),
        ("half", "it is a partial, which Python gives no self"),
        ("lazy", "it is a generator"),
        ("lazy_async", "it is a generator"),
    ],
)
def test_an_action_that_cannot_be_called_with_its_params(name, text):
    method = vars(BadPerformer)[name]
    declare(performer=type("Bad", (Performer,), {"__module__": "shop", name: method}))
    problem = the_problem("E009")
    assert problem.msg.startswith(f"shop.Bad.{name} cannot run action {name!r}: {text}")
    assert "def send_mail(self, job, " in problem.hint


def test_an_action_that_a_subclass_made_something_else():
    declare(performer=type("Bad", (MailPerformer,), {"send_mail": 5}))
    assert "send_mail cannot run action 'send_mail': 5 is not a callable object." in the_problem("E009").msg


def test_a_perform_that_is_a_generator():
    class Lazy(Performer):
        actions = ("resize",)

        def perform(self, job):
            yield

    declare(performer=Lazy)
    assert "Lazy.perform is a generator: a call would run nothing." in the_problem("E009").msg


def test_an_action_may_be_a_coroutine_have_defaults_and_take_any_keyword():
    class Good(Performer):
        @action
        async def one(self, job, a, *, b=1): ...

        @action
        def two(this, the_job, /, **params): ...

    declare(performer=Good)
    assert problems() == []


def wrapping(function):
    @wraps(function)
    def wrapped(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize(
    "method",
    [
        lambda self, email: None,
        lambda self, email, body="": None,
        lambda self, email, *, job: None,
        wrapping(lambda self, email: None),
        partialmethod(lambda self, email, body: None, body="x"),
    ],
)
def test_a_first_parameter_that_seems_to_be_meant_for_a_param(method):
    performer = type("Bad", (Performer,), {"__module__": "shop", "send": action("send")(method)})
    declare(performer=performer)
    problem = the_problem("W008")
    assert problem.msg == "shop.Bad.send: its first parameter, 'email', receives the job, not a param of that name."
    assert problem.hint.startswith("Write def send(self, job, email), or name the first parameter job ")


def typed(self, current: Job, email): ...


def typed_by_name(self, current: "Job", email): ...


@pytest.mark.parametrize(
    "method",
    [
        lambda self, job, email: None,
        lambda this, the_job, email: None,
        lambda self, currentJob, email: None,
        lambda self, _job, email: None,
        lambda self, _, email: None,
        lambda self, current, /, email: None,
        lambda self, *args, **kwargs: None,
        lambda self, *jobs, email: None,
        lambda *args, **kwargs: None,
        typed,
        typed_by_name,
        wrapping(lambda self, job, email: None),
        partialmethod(lambda self, job, email, body: None, body="x"),
    ],
)
def test_a_first_parameter_that_is_meant_for_the_job(method):
    declare(performer=type("Good", (Performer,), {"send": action("send")(method)}))
    assert problems() == []


@pytest.mark.parametrize("name", ["perform", "setup", "backoff", "handle_done_job", "handle_exhausted_job"])
def test_an_action_that_has_the_name_of_a_method_that_queuetopia_calls(name):
    performer = type("Bad", (Performer,), {"__module__": "shop", name: action(name)(lambda self, job: None)})
    declare(performer=performer)
    found = [problem for problem in problems() if problem.id == "queuetopia.E016"]
    assert [problem.msg for problem in found] == [
        f"shop.Bad.{name} is marked with @action, and Queuetopia calls {name}() for something else."
    ]
    assert found[0].hint == f'Rename it; @action("{name}") keeps the name of the action.'


def test_an_action_may_be_named_like_a_hook_if_its_method_is_not():
    class Good(Performer):
        @action("setup")
        def set_the_table(self, job): ...

    declare(performer=Good)
    assert problems() == []


def lazy_hook(self, *args):
    yield


@pytest.mark.parametrize(
    ("hook", "method", "text"),
    [
        ("backoff", lambda self, job: 5, "cannot be called as backoff(job, exc): too many positional arguments."),
        ("handle_done_job", lambda self: 5, "cannot be called as handle_done_job(job): too many positional"),
        ("handle_failed_job", lambda self, job, exc, more: 5, "missing a required argument: 'more'"),
        ("setup", lambda self, job: 5, "cannot be called as setup(): missing a required argument: 'job'"),
        ("handle_done_job", lazy_hook, "is a generator"),
        ("backoff", 5, "cannot be called as backoff(job, exc): "),
    ],
)
def test_a_hook_that_cannot_be_called(hook, method, text):
    declare(performer=type("Bad", (MailPerformer,), {"__module__": "shop", hook: method}))
    problem = the_problem("E017")
    assert problem.msg.startswith(f"shop.Bad.{hook} ")
    assert text in problem.msg
    assert problem.hint.startswith(f"Write it as def {hook}(self")


def test_hooks_may_take_what_they_are_given_in_any_way():
    class Good(MailPerformer):
        def backoff(self, *args): ...

        @staticmethod
        def handle_done_job(job): ...

        @classmethod
        def setup(cls, more=1): ...

        def handle_failed_job(self, task, error, **more): ...

        async def handle_exhausted_job(self, job, exc): ...

    declare(performer=Good)
    assert problems() == []


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("handle_failed_jobs", "handle_failed_job"),
        ("handle_failed", "handle_failed_job"),
        ("handle_exausted_job", "handle_exhausted_job"),
        ("handle_done", "handle_done_job"),
        ("setUp", "setup"),
        ("set_up", "setup"),
        ("back_off", "backoff"),
        ("performs", "perform"),
    ],
)
def test_a_method_that_looks_like_a_misspelt_hook(name, hook):
    declare(performer=type("Bad", (MailPerformer,), {"__module__": "shop", name: lambda self, job: None}))
    problem = the_problem("W009")
    assert problem.msg == f"shop.Bad.{name} is nothing that Queuetopia calls, and looks like {hook}."


def test_two_actions_that_look_alike():
    performer = type(
        "Mails",
        (Performer,),
        {"__module__": "shop", "a": action("send")(lambda self, job: None), "b": action("Send ")(lambda self, job: 1)},
    )
    declare(performer=performer)
    problem = the_problem("W012")
    assert problem.msg == "shop.Mails: the actions 'Send ' and 'send' are different ones, and look alike."


@pytest.mark.parametrize("name", ["_setup", "handle_done_email", "setup_mail", "retry", "job", "transaction"])
def test_a_method_that_is_no_misspelt_hook(name):
    declare(performer=type("Good", (MailPerformer,), {name: lambda self, job: None}))
    assert problems() == []


def test_a_class_whose_performer_was_forgotten():
    declare_without = type("MailQueue", (Queuetopia,), {"__module__": "shop", "timeout": 5})
    problem = the_problem("W010")
    assert problem.msg == "shop.MailQueue has no performer, so that it can have no jobs."
    assert "performer = MailPerformer" in problem.hint
    assert "performer = None" in problem.hint
    declare_without.performer = MailPerformer
    assert problems() == []


def test_a_base_of_another_class_needs_no_performer():
    base = type("Base", (Queuetopia,), {"__module__": "shop"})
    type("MailQueue", (base,), {"__module__": "shop", "performer": MailPerformer})
    type("Plain", (Queuetopia,), {"__module__": "shop", "performer": None})
    assert problems() == []


def test_two_methods_of_a_class_for_one_action():
    class Doubled(Performer):
        __module__ = "shop"

        @action("send")
        def send_mail(self, job): ...

        @action("send")
        def send_letter(self, job): ...

    declare(performer=Doubled)
    assert "has several methods for action 'send': send_mail, send_letter." in the_problem("E010").msg


def test_a_subclass_may_give_an_action_to_another_method():
    class Other(MailPerformer):
        @action("send_mail")
        def send_mail_otherwise(self, job): ...

    declare(performer=Other)
    assert problems() == []


@pytest.mark.parametrize("actions", ["resize", 5, None, [5], [["resize"]], {"resize": 1}])
def test_actions_that_are_no_names(actions):
    declare(performer=type("Own", (Performer,), {"actions": actions, "perform": lambda self, job: None}))
    assert "no sequence of names" in the_problem("E011").msg


def test_actions_that_no_method_is():
    declare(performer=type("Bad", (MailPerformer,), {"__module__": "shop", "actions": ["send_mail", "bow"]}))
    assert the_problem("E011").msg == "shop.Bad.actions lists 'bow', and no method is that action."


def test_an_own_perform_without_actions():
    own = {"__module__": "shop", "perform": lambda self, job: None}
    declare(performer=type("Own", (Performer,), own))
    problem = the_problem("W002")
    assert problem.msg.startswith("shop.Own has its own perform and no actions")
    assert 'actions = ("send_mail", …)' in problem.hint
    declare(performer=type("Own", (Performer,), {**own, "actions": ("resize",)}))
    assert problems() == []


def test_a_performer_without_any_action():
    declare(performer=Performer)
    assert the_problem("W003").msg == "queuetopia.performer.Performer has no action: create_job would refuse every job."


# Databases; none of these tests may connect


@pytest.mark.parametrize(
    ("engine", "reason"),
    [
        ("django.db.backends.dummy", "no backend for the vendor 'unknown'"),
        ("no.such.engine", "'no.such.engine' isn't an available database backend"),
    ],
)
def test_a_database_that_cannot_be_used(add_database, engine, reason):
    add_database("bad", ENGINE=engine)
    declare(using="bad")
    problem = the_problem("E012")
    assert problem.msg.startswith("Database 'bad' of shop.MailQueue cannot be used: ")
    assert reason in problem.msg
    assert "PostgreSQL, MySQL, MariaDB or SQLite" in problem.hint


def test_a_database_that_no_class_uses_may_be_any(add_database):
    add_database("bad", ENGINE="django.db.backends.dummy")
    declare()
    assert problems() == []


def test_postgresql_without_psycopg_3(add_database, monkeypatch):
    add_database("pg", ENGINE="django.db.backends.postgresql", NAME="shop")
    declare(using="pg")
    assert problems() == []
    monkeypatch.setattr(psycopg_any, "is_psycopg3", False)
    problem = the_problem("E013")
    assert problem.msg == "Database 'pg' of shop.MailQueue is served by psycopg2."
    assert 'pip install "queuetopia[postgres]"' in problem.hint


@pytest.mark.parametrize(
    ("config", "signs"),
    [
        ({"PORT": "6432"}, "(PORT 6432)"),
        ({"PORT": 6432}, "(PORT 6432)"),
        ({"DISABLE_SERVER_SIDE_CURSORS": True}, "(DISABLE_SERVER_SIDE_CURSORS)"),
        ({"PORT": 6432, "DISABLE_SERVER_SIDE_CURSORS": True}, "(PORT 6432, DISABLE_SERVER_SIDE_CURSORS)"),
    ],
)
def test_a_database_that_looks_like_pgbouncer(add_database, settings, config, signs):
    add_database("pg", ENGINE="django.db.backends.postgresql", NAME="shop", **config)
    declare(using="pg")
    problem = the_problem("W006")
    assert f"Database 'pg' of shop.MailQueue looks like PgBouncer {signs}" in problem.msg
    assert "QUEUETOPIA = {'LOCK_DATABASE': {'pg': …}}" in problem.hint
    settings.QUEUETOPIA = {"LOCK_DATABASE": {"default": "other"}}
    assert the_problem("W006")


@pytest.mark.parametrize("lock_database", ["direct", {"pg": "direct"}])
def test_a_lock_database_goes_past_pgbouncer(add_database, settings, lock_database):
    for alias, port in (("pg", 6432), ("direct", 5432)):
        add_database(alias, ENGINE="django.db.backends.postgresql", NAME="shop", PORT=port)
    declare(using="pg")
    settings.QUEUETOPIA = {"LOCK_DATABASE": lock_database}
    assert problems() == []


@pytest.mark.parametrize("name", [":memory:", "file:shop?mode=memory&cache=shared"])
def test_sqlite_in_memory(add_database, name):
    add_database("lite", ENGINE="django.db.backends.sqlite3", NAME=name)
    declare(using="lite")
    problem = the_problem("W004")
    assert "is in memory, where no other process sees it" in problem.msg
    assert problem.hint == "Set DATABASES['lite']['NAME'] to a file."


def test_django_s_own_test_database_may_be_in_memory(add_database):
    add_database("lite", ENGINE="django.db.backends.sqlite3", NAME="file:memorydb_lite?mode=memory&cache=shared")
    declare(using="lite")
    assert problems() == []


@pytest.mark.parametrize("options", [{}, {"transaction_mode": "DEFERRED"}, {"transaction_mode": None}])
def test_sqlite_that_begins_transactions_as_a_reader(add_sqlite, tmp_path, options):
    add_sqlite("lite", tmp_path / "x.sqlite3", **{"transaction_mode": None, **options})
    declare("MailQueue", using="lite")
    declare("LetterQueue", scope="shop.letters", using="lite")
    problem = the_problem("W005")
    assert problem.msg.startswith("Database 'lite' of shop.MailQueue, shop.LetterQueue lets writes fail")
    assert 'DATABASES[\'lite\']: "OPTIONS": {"transaction_mode": "IMMEDIATE",' in problem.hint


@pytest.mark.parametrize("mode", ["IMMEDIATE", "immediate", "EXCLUSIVE"])
def test_sqlite_that_begins_transactions_as_a_writer(add_sqlite, tmp_path, mode):
    add_sqlite("lite", tmp_path / "x.sqlite3", transaction_mode=mode)
    declare(using="lite")
    assert problems() == []


class KeepOut:
    def allow_migrate(self, db, app_label, model_name=None, **hints):
        return not (db == "other" and app_label == "queuetopia" and model_name != "node")


class Broken:
    def allow_migrate(self, db, app_label, **hints):
        raise ZeroDivisionError("broken")

    def db_for_write(self, model, **hints):
        raise ZeroDivisionError("broken")


def test_routers_that_keep_the_tables_out(settings):
    settings.DATABASE_ROUTERS = ["tests.test_checks.KeepOut"]
    declare("LetterQueue", scope="shop.letters")
    assert problems() == []
    declare(using="other")
    problem = the_problem("E014")
    assert problem.msg.startswith("Database 'other' of shop.MailQueue: DATABASE_ROUTERS keep Queuetopia's tables out")
    assert "Job" in problem.msg
    assert "Node" not in problem.msg
    assert "allow_migrate('other', 'queuetopia')" in problem.hint


@pytest.mark.parametrize("using", [None, "other"])
def test_routers_that_raise(settings, using):
    settings.DATABASE_ROUTERS = ["tests.test_checks.Broken"]
    declare(using=using)
    assert "ZeroDivisionError('broken')" in the_problem("E014").msg


# Tables; these do connect


def missing_tables(*aliases):
    found = run_checks(tags=[Tags.database], databases=aliases)
    return [problem for problem in found if problem.id.startswith("queuetopia.")]


@pytest.fixture
def unblocked(django_db_blocker):
    """A database that is added can be used; pytest-django knows it not."""
    with django_db_blocker.unblock():
        yield


@pytest.mark.django_db(databases=["default", "other"])
def test_a_database_that_is_migrated_lacks_nothing():
    declare()
    declare("LetterQueue", scope="shop.letters", using="other")
    assert missing_tables("default", "other") == []


@pytest.mark.usefixtures("unblocked")
def test_a_database_without_tables(add_sqlite, tmp_path):
    add_sqlite("empty", tmp_path / "empty.sqlite3")
    declare(using="empty")
    (problem,) = missing_tables("empty")
    assert problem.id == "queuetopia.W007"
    assert problem.msg.startswith("Database 'empty' lacks Queuetopia's queuetopia_chore, ")
    assert problem.hint == "Run: manage.py migrate queuetopia --database empty"


@pytest.mark.usefixtures("unblocked")  # Django asks MySQL for its features, at the first use
def test_databases_are_looked_into_only_on_demand(add_sqlite, tmp_path):
    add_sqlite("empty", tmp_path / "empty.sqlite3")
    declare(using="empty")
    assert problems() == []
    assert missing_tables() == []
    assert missing_tables("default") == []


@pytest.mark.usefixtures("unblocked")
def test_missing_tables_do_not_stop_migrate_from_making_them(add_sqlite, tmp_path):
    add_sqlite("empty", tmp_path / "empty.sqlite3")
    declare(using="empty")
    call_command("migrate", "queuetopia", database="empty", skip_checks=False, verbosity=0)
    assert missing_tables("empty") == []


@pytest.mark.usefixtures("unblocked")
def test_a_migration_that_is_not_applied(add_sqlite, tmp_path):
    add_sqlite("old", tmp_path / "old.sqlite3")
    declare(using="old")
    call_command("migrate", "queuetopia", database="old", verbosity=0)
    recorder = MigrationRecorder(connections["old"])
    recorder.record_unapplied("queuetopia", "0001_initial")
    (problem,) = missing_tables("old")
    assert problem.id == "queuetopia.W007"
    assert "lacks Queuetopia's 0001_initial" in problem.msg


@pytest.mark.usefixtures("unblocked")
def test_a_database_that_does_not_answer(add_sqlite, tmp_path):
    add_sqlite("gone", tmp_path / "no" / "such" / "folder.sqlite3")
    declare(using="gone")
    (problem,) = missing_tables("gone")
    assert problem.id == "queuetopia.W007"
    assert "unable to open database file" in problem.msg


# As a whole

NONSENSE = [None, 5, "text", [], [5], {5: 5}, {None: {"x": object()}}, object(), float("nan"), lambda: None, {"": ""}]


@pytest.mark.parametrize(
    "key", ["DEFAULTS", "SCOPES", "LOCK_DATABASE", "LEASE", "ENABLED", "MAX_PARAMS_BYTES", "AUTODISCOVER"]
)
@pytest.mark.parametrize("nonsense", NONSENSE)
def test_no_nonsense_in_the_settings_makes_a_check_raise(settings, key, nonsense):
    declare()
    settings.QUEUETOPIA = {key: nonsense, "SCOPES": {"shop.mail": nonsense}} if key != "SCOPES" else {key: nonsense}
    for problem in problems():
        assert problem.hint


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_no_nonsense_in_a_class_makes_a_check_raise(nonsense):
    declare("A", scope=nonsense, **dict.fromkeys(OPTIONS, nonsense))
    declare("B", performer=nonsense, nonsense=nonsense)
    declare("C", performer=type("P", (Performer,), {"actions": nonsense, "perform": nonsense}))
    assert problems()


def test_an_error_stops_commands_and_says_what_and_how():
    declare(max_atempts=5)
    with pytest.raises(SystemCheckError) as caught:
        call_command("check", tags=["queuetopia"])
    assert "(queuetopia.E004) shop.MailQueue has the unknown option 'max_atempts'." in str(caught.value)
    assert "HINT: Did you mean 'max_attempts'?" in str(caught.value)


def test_actions_that_only_answer_whether_a_name_is_one():
    class Numbers:
        def __contains__(self, name):
            return name.isdigit()

    declare(performer=type("Own", (Performer,), {"actions": Numbers(), "perform": lambda self, job: None}))
    assert problems() == []
    declare(performer=type("Bad", (MailPerformer,), {"actions": Numbers()}))
    assert "no sequence of names" in the_problem("E011").msg
