"""Declaring Queuetopias: options and their precedence, scopes, the registry, actions, autodiscovery."""

import os
import re
import subprocess
import sys
from datetime import datetime, timedelta
from functools import partial, partialmethod
from io import StringIO

import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.core.management import call_command

from queuetopia import InvalidJob, JobTimeout, NodeDied, Performer, Queuetopia, WorkerDied, action, declaration
from queuetopia.attempts import Claim, Verdict
from queuetopia.conf import OPTIONS
from queuetopia.jobs import failed
from queuetopia.monitoring import health
from queuetopia.performer import action_methods, has_own_perform, known_actions, param_problems
from queuetopia.registry import by_scope, registered
from tests.conftest import REPOSITORY

DAY = 86_400.0


class MailPerformer(Performer):
    @action
    def send_mail(self, job, email_address):
        return f"to {email_address}"

    @action("send-letter")
    def send_letter(self, job):
        pass

    def helper(self, job):
        pass


@pytest.fixture(autouse=True)
def own_registry(declare_only):
    """Only the classes that the test declares are registered, and afterwards they are gone."""
    declare_only()


def claim(**given):
    """The claim of a first attempt; what is not given is as on a job without options."""
    return Claim(**{**dict.fromkeys(Claim._fields), "job_id": 1, "fence": 1, "attempt": 1, **given})


def python(code, cwd, **environment):
    """The output of Python code in a process of its own, where all warnings are errors."""
    kept = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


# Options


@pytest.mark.capability("Q12", "Q14")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("poll_interval", 60.0),
        ("max_running", None),
        ("timeout", 60.0),
        ("backoff_base", 2.0),
        ("backoff_factor", 2.0),
        ("max_backoff", DAY),
        ("max_attempts", 20),
        ("on_exhausted", "halt"),
        ("on_error", {}),
        ("jitter", 0.0),
        ("using", None),
        ("commit_ordered", False),
        ("retention", 7 * DAY),
        ("sensitive_params", ()),
    ],
)
def test_what_nobody_sets_is_built_in(name, value):
    class MailQueue(Queuetopia):
        performer = MailPerformer

    assert MailQueue.option(name) == value


@pytest.mark.parametrize("name", OPTIONS)
def test_a_built_in_value_is_a_value_that_may_be_given(name):
    assert OPTIONS[name].clean(OPTIONS[name].default) == OPTIONS[name].default


def test_scopes_win_over_the_class_and_the_class_over_defaults(settings):
    class Base(Queuetopia):
        jitter = 0.1
        timeout = 10
        max_attempts = 10

    class MailQueue(Base):
        scope = "shop.mail"
        performer = MailPerformer
        timeout = 20
        max_attempts = 19

    settings.QUEUETOPIA = {
        "DEFAULTS": dict.fromkeys(("jitter", "timeout", "max_attempts", "max_backoff"), 1),
        "SCOPES": {"shop.mail": {"max_attempts": 30}, "shop": {"timeout": 99}},
    }
    assert MailQueue.option("max_attempts") == 30  # SCOPES
    assert MailQueue.option("timeout") == 20.0  # the class
    assert MailQueue.option("jitter") == 0.1  # its base
    assert MailQueue.option("max_backoff") == 1.0  # DEFAULTS
    assert MailQueue.option("retention") == 7 * DAY  # built in


def test_an_option_given_to_a_job_wins_over_all(settings):
    class MailQueue(Queuetopia):
        scope = "shop.mail"
        performer = MailPerformer
        max_attempts = 7

    settings.QUEUETOPIA = {"SCOPES": {"shop.mail": {"max_attempts": 1, "max_backoff": 1, "on_exhausted": "skip"}}}
    error = ConnectionError("no route")
    assert failed(MailQueue, claim(), error).verdict == Verdict.SKIP
    assert failed(MailQueue, claim(on_exhausted="halt"), error).verdict == Verdict.HALT
    assert failed(MailQueue, claim(max_attempts=2), error).verdict == Verdict.RETRY
    assert failed(MailQueue, claim(max_attempts=2), error).delay == 1.0
    assert failed(MailQueue, claim(max_attempts=2, max_backoff=0.0), error).delay == 0.0


@pytest.mark.parametrize("decides", [lambda job, exc: "skip", "decide"])
def test_nothing_is_asked_about_an_attempt_that_was_cut_short(decides):
    class MailQueue(Queuetopia):
        performer = MailPerformer
        max_attempts = 1
        on_exhausted = decides

    assert failed(MailQueue, claim(), JobTimeout("killed")).verdict == Verdict.HALT
    assert failed(MailQueue, claim(on_exhausted="skip"), JobTimeout("killed")).verdict == Verdict.SKIP


@pytest.mark.capability("H32")
@pytest.mark.parametrize("where", ["class", "settings"])
def test_an_attempt_that_was_cut_short_is_an_error_of_its_kind_too(settings, where):
    steps = {Exception: "retry", JobTimeout: "skip", WorkerDied: "halt"}

    class MailQueue(Queuetopia):
        scope = "shop.mail"
        performer = MailPerformer

    if where == "class":
        MailQueue.on_error = steps
    else:
        settings.QUEUETOPIA = {"SCOPES": {"shop.mail": {"on_error": steps}}}
    outcomes = [failed(MailQueue, claim(), kind("ended")) for kind in (JobTimeout, WorkerDied, NodeDied)]
    assert [outcome.verdict for outcome in outcomes] == [Verdict.SKIP, Verdict.HALT, Verdict.RETRY]
    assert [(outcome.delay, outcome.exhausted) for outcome in outcomes] == [(0.0, False), (0.0, False), (2.0, False)]


def test_a_changed_setting_holds_at_once_for_jobs_that_were_given_nothing(settings):
    class MailQueue(Queuetopia):
        scope = "shop.mail"
        performer = MailPerformer

    assert MailQueue.job("a", "send_mail", {"email_address": "x"}).timeout is None
    settings.QUEUETOPIA = {"SCOPES": {"shop.mail": {"timeout": 5}}}
    assert MailQueue.option("timeout") == 5.0
    settings.QUEUETOPIA = {"SCOPES": {"shop.mail": {"timeout": 6}}}
    assert MailQueue.option("timeout") == 6.0


def test_durations_are_seconds_or_timedeltas():
    class MailQueue(Queuetopia):
        performer = MailPerformer
        timeout = timedelta(minutes=2)
        max_backoff = 90
        poll_interval = 0.5

    assert [MailQueue.option(name) for name in ("timeout", "max_backoff", "poll_interval")] == [120.0, 90.0, 0.5]


def test_a_function_can_decide_what_exhaustion_means():
    class MailQueue(Queuetopia):
        performer = MailPerformer

        def on_exhausted(job, exc):
            return "skip"

    assert MailQueue.option("on_exhausted")(None, None) == "skip"


@pytest.mark.parametrize(
    ("configured", "text"),
    [
        ({"DEFAULTS": {"timeout": -1}}, "Option timeout in DEFAULTS: -1 is not more than 0 seconds."),
        ({"SCOPES": {"shop.mail": {"timeout": "5"}}}, "Option timeout in SCOPES: '5' is neither"),
        ({"SCOPES": {"shop.mail": 5}}, "QUEUETOPIA['SCOPES']['shop.mail'] is a int; it must be a dict."),
        ({"SCOPES": ["shop.mail"]}, "QUEUETOPIA['SCOPES'] is a list; it must be a dict."),
        ({"DEFAULTS": None}, "QUEUETOPIA['DEFAULTS'] is a NoneType; it must be a dict."),
        ([], "QUEUETOPIA is a list; it must be a dict."),
    ],
)
def test_a_wrong_setting_is_named_where_it_is_used(settings, configured, text):
    class MailQueue(Queuetopia):
        scope = "shop.mail"
        performer = MailPerformer

    settings.QUEUETOPIA = configured
    with pytest.raises(ImproperlyConfigured) as caught:
        MailQueue.option("timeout")
    assert str(caught.value).startswith(text)


# Scopes and the registry


def test_a_scope_is_the_app_and_the_class_unless_it_is_named():
    class MailQueue(Queuetopia):
        __module__ = "tests.testapp.queues"
        performer = MailPerformer

    class LetterQueue(Queuetopia):
        __module__ = "tests.testapp.queues"
        performer = MailPerformer
        scope = "post"

    assert (MailQueue.scope, LetterQueue.scope) == ("testapp.MailQueue", "post")
    assert MailQueue.job("a", "send-letter").scope == "testapp.MailQueue"


def test_a_class_outside_all_apps_is_named_by_its_package():
    class MailQueue(Queuetopia):
        __module__ = "elsewhere.queues"
        performer = MailPerformer

    assert MailQueue.scope == "elsewhere.MailQueue"


def test_a_scope_is_never_inherited():
    class MailQueue(Queuetopia):
        __module__ = "tests.testapp.queues"
        performer = MailPerformer
        scope = "shop.mail"
        timeout = 5

    class UrgentMailQueue(MailQueue):
        __module__ = "tests.testapp.queues"

    assert UrgentMailQueue.scope == "testapp.UrgentMailQueue"
    assert UrgentMailQueue.option("timeout") == 5.0
    assert MailQueue.scope == "shop.mail"


def test_a_class_without_performer_is_abstract():
    class Base(Queuetopia):
        scope = "shop.base"

    class MailQueue(Base):
        performer = MailPerformer

    class Abstract(MailQueue):
        performer = None

    assert registered() == [MailQueue]


def test_classes_are_known_in_the_order_they_were_declared_in():
    class Second(Queuetopia):
        scope = "b"
        performer = MailPerformer

    class First(Queuetopia):
        scope = "a"
        performer = MailPerformer

    assert registered() == [Second, First]
    assert by_scope() == {"b": Second, "a": First}


def test_the_first_of_two_classes_of_one_scope_has_its_jobs():
    class First(Queuetopia):
        scope = "a"
        performer = MailPerformer

    class Second(Queuetopia):
        scope = "a"
        performer = MailPerformer

    assert by_scope() == {"a": First}


def test_a_class_declared_anew_replaces_what_it_was():
    def declare():
        class MailQueue(Queuetopia):
            scope = "shop.mail"
            performer = MailPerformer

        return MailQueue

    declare()
    newest = declare()
    assert registered() == [newest]


def test_the_list_of_classes_is_a_copy():
    registered().append(Queuetopia)
    assert registered() == []


# Actions


def test_actions_are_named_like_their_methods_or_as_they_say():
    assert action_methods(MailPerformer) == {"send_mail": "send_mail", "send-letter": "send_letter"}
    assert known_actions(MailPerformer) == {"send_mail", "send-letter"}


def test_actions_are_inherited_and_a_method_that_overrides_one_stays_it():
    class Polite(MailPerformer):
        def send_mail(self, job, email_address, greeting):
            return super().send_mail(job, email_address) + f" with {greeting}"

        @action
        def bow(self, job):
            pass

    assert known_actions(Polite) == {"send_mail", "send-letter", "bow"}
    assert param_problems(Polite, "send_mail", {"email_address": "x", "greeting": "hello"}) == []
    assert known_actions(MailPerformer) == {"send_mail", "send-letter"}


def test_performing_calls_the_method_with_the_params_as_keywords():
    class Job:
        action = "send_mail"
        params = {"email_address": "toto@mail.com"}

    assert MailPerformer().perform(Job()) == "to toto@mail.com"


def test_an_own_perform_knows_the_actions_it_lists_or_does_not_say():
    class Silent(Performer):
        def perform(self, job):
            pass

    class Listing(Silent):
        actions = ("resize",)

    assert known_actions(Silent) is None
    assert known_actions(Listing) == {"resize"}
    assert [has_own_perform(performer) for performer in (Silent, Listing, MailPerformer)] == [True, True, False]


@pytest.mark.parametrize("name", ["", "x" * 256])
def test_a_name_that_no_action_can_have_is_refused_where_it_is_written(name):
    with pytest.raises(ValueError, match="1 to 255 characters"):
        action(name)(lambda self, job: None)


def test_an_action_may_be_marked_with_empty_parentheses():
    class Marked(Performer):
        @action()
        def send_mail(self, job):
            pass

    assert action_methods(Marked) == {"send_mail": "send_mail"}


@pytest.mark.parametrize("nothing", [5, None, ["send"], type("Sender", (), {})])
def test_only_a_method_can_be_marked(nothing):
    with pytest.raises(TypeError, match=r"stands above a method, as in def send_mail\(self, job, email\)"):
        action("send")(nothing)


@pytest.mark.parametrize("nameless", [lambda self, job: None, partial(print), partialmethod(print)])
def test_what_has_no_name_is_an_action_only_by_one_that_is_given(nameless):
    with pytest.raises(ValueError, match=r'Name this action, .* as in @action\("send"\)'):
        action()(nameless)
    assert action("send")(nameless) is nameless


def test_an_attribute_set_by_setup_does_not_shadow_an_action(caplog):
    class Shadowed(Performer):
        def setup(self):
            self.state = "ready"

        @action
        def state(self, job, text):
            return f"{text}, {self.state}"

    class Job:
        action = "state"
        params = {"text": "ran"}

    performer = Shadowed()
    performer.setup()
    for _ in range(2):
        assert performer.perform(Job()) == "ran, ready"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert record.getMessage().startswith("self.state was set, and is the name of an action's method")
    assert record.getMessage().endswith("Shadowed")


def declared(**attributes):
    return type("MailQueue", (Queuetopia,), {"__module__": "shop", "scope": "shop.mail", **attributes})


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({}, "shop.MailQueue: it has no performer. "),
        ({"performer": MailPerformer()}, "shop.MailQueue: its performer <"),
        ({"performer": "shop.MailPerformer"}, "shop.MailQueue: its performer 'shop.MailPerformer' is no subclass of"),
        ({"performer": object}, "shop.MailQueue: its performer <class 'object'> is no subclass of Performer. "),
    ],
)
def test_no_job_can_be_created_without_a_performer_class(attributes, text):
    queuetopia = declared(**attributes)
    for create in (queuetopia.create_job, queuetopia.job):
        with pytest.raises(ImproperlyConfigured) as caught:
            create("a", "send_mail", {"email_address": "x"})
        assert str(caught.value).startswith(text)
        assert "set performer to the class itself: performer = MailPerformer" in str(caught.value)


class FaultyPerformer(Performer):
    @action
    def no_job(self): ...

    @action
    def to_email(self, email): ...

    @action
    @staticmethod
    def static(job): ...

    @action
    def changed(self, job): ...

    def unmarked(self, job): ...


class Changed(FaultyPerformer):
    changed = 5


@pytest.mark.parametrize(
    ("name", "params", "key", "text"),
    [
        ("no_job", {}, "action", "Changed.no_job cannot run action 'no_job': it must take self and job first."),
        ("static", {}, "action", "Changed.static cannot run action 'static': it is a staticmethod."),
        ("changed", {}, "action", "5 is not a callable object."),
        ("unmarked", {}, "action", "Changed has no action 'unmarked'; mark its method unmarked with @action."),
        ("backoff", {}, "action", "Changed has no action 'backoff'; it knows: changed, no_job, static, to_email."),
        (
            "to_email", {"email": "x"}, "params",
            "a param cannot be named 'email': there Changed.to_email receives the job; "
            "write def to_email(self, job, email).",
        ),
    ],
)  # fmt: skip
def test_a_job_for_a_faulty_action_is_refused_with_the_remedy(name, params, key, text):
    with pytest.raises(InvalidJob) as caught:
        declared(performer=Changed).create_job("a", name, params)
    (message,) = caught.value.message_dict[key]
    assert message.endswith(text)


def test_a_performer_without_actions_says_so_when_a_job_is_created():
    with pytest.raises(InvalidJob) as caught:
        declared(performer=Performer).create_job("a", "send")
    assert caught.value.message_dict == {
        "action": ["Performer has no action 'send'; it has none: mark its methods with @action."]
    }


def calls():
    return [
        (lambda queue: queue.create_job("a", "send-letter"), "create_job", "MailQueue.acreate_job(…)"),
        (lambda queue: queue.create_jobs([queue.job("a", "send-letter")]), "create_jobs", None),
        (lambda queue: queue.paginate_jobs(), "paginate_jobs", None),
        (lambda queue: queue.status(), "status", None),
        (lambda queue: queue.explain("a"), "explain", None),
        (lambda queue: queue.statistics(), "statistics", None),
        (lambda queue: queue.pause("a"), "pause", None),
        (lambda queue: queue.resume("a"), "resume", None),
        (lambda queue: queue.edit(1, {}), "edit", None),
        *(
            (lambda queue, verb=verb: getattr(queue, verb)(1), verb, None)
            for verb in ("retry", "skip", "cancel", "mark_done", "move_to_end", "run_now")
        ),
    ]


@pytest.mark.parametrize("name", ["delay", "apply_async", "send", "enqueue", "defer"])
def test_a_name_that_creates_jobs_elsewhere_names_what_does_so_here(name):
    class NamedQueue(Queuetopia):
        performer = MailPerformer

    with pytest.raises(AttributeError, match=rf"^NamedQueue has no '{name}'; write: NamedQueue\.create_job\(queue, "):
        getattr(NamedQueue, name)
    assert not hasattr(NamedQueue(), name)


def test_a_class_may_have_such_a_name_of_its_own():
    class SendingQueue(Queuetopia):
        performer = MailPerformer
        send = "by post"

    assert SendingQueue.send == "by post"


@pytest.mark.django_db
@pytest.mark.parametrize(("call", "name", "instead"), calls())
def test_in_async_code_a_call_names_what_to_write_instead(call, name, instead):
    queuetopia = declared(performer=MailPerformer)

    async def view():
        call(queuetopia)

    with pytest.raises(SynchronousOnlyOperation) as caught:
        async_to_sync(view)()
    assert str(caught.value) == (
        f"MailQueue.{name} uses the database. In async code write: await "
        f"{instead or f'sync_to_async(MailQueue.{name})(…)'}"
    )


@pytest.mark.django_db
def test_a_disabled_scope_says_so_where_its_jobs_wait(settings):
    queuetopia = declared(performer=MailPerformer)
    other = type("Other", (Queuetopia,), {"performer": MailPerformer, "scope": "shop.other"})
    settings.QUEUETOPIA = {"ENABLED": {"shop.mail": False}}
    for each in (queuetopia, other):
        each.create_job("a", "send-letter")
    off = "no live node serves shop.mail: QUEUETOPIA['ENABLED'] is False for it here"
    assert off in queuetopia.explain("a")["sentence"]
    assert "start one with manage.py run_queuetopia" in other.explain("a")["sentence"]
    assert [each.status()["enabled"] for each in (queuetopia, other)] == [False, True]
    found = {problem["scope"]: problem["message"] for problem in health.problems([queuetopia, other], is_all=False)}
    assert found["shop.mail"].endswith("no live node serves them; QUEUETOPIA['ENABLED'] is False for the scope here")
    assert found["shop.other"].endswith("no live node serves them")
    shown = StringIO()
    call_command("queuetopia", "status", stdout=shown, no_color=True)
    assert shown.getvalue().count("QUEUETOPIA['ENABLED'] is False for it: nodes with these settings run none") == 1


# What errors say

WRONG = [
    (("a", "send_mail"), {}, "missing param 'email_address' of action 'send_mail' (it takes: email_address)."),
    (("a", "send-letter", {"x": 1}), {}, "unknown param 'x' of action 'send-letter' (it takes: none)."),
    (
        ("a", "send-letter", {"job": 1}),
        {},
        "a param cannot be named 'job'; params are passed to the action as keywords.",
    ),
    (("a", "send-letter", [1]), {}, "params must be a dict of the action's keyword arguments, not list."),
    (("a", "send_mail", {"email_address": (1,)}), {}, "params.email_address: a tuple would come back as a list"),
    (("a", "send_mail", {"email_address": "x" * 262_144}), {}, "params take 262165 bytes as JSON, over QUEUETOPIA["),
    (("a", "send-leter"), {}, "MailPerformer has no action 'send-leter'; did you mean 'send-letter'?"),
    (("a", 5), {}, "action must be a str, not int."),
    ((5, "send-letter"), {}, 'queue must be a str, not int; name it by one, as in f"customer-{pk}".'),
    (("", "send-letter"), {}, "queue has 0 characters; a queue's name has 1 to 255."),
    (("\0", "send-letter"), {}, "queue contains a NUL character, which PostgreSQL cannot store."),
    (("a", "send-letter"), {"timeout": 0}, "timeout 0 is not more than 0 seconds. Leave it out to use the option of"),
    (("a", "send-letter"), {"max_backoff": "x"}, "max_backoff 'x' is neither a number of seconds nor a timedelta."),
    (("a", "send-letter"), {"max_attempts": 0}, "max_attempts 0 is not between 1 and 2147483646."),
    (("a", "send-letter"), {"on_exhausted": "x"}, "on_exhausted 'x' is none of 'halt', 'skip', 'retry', Move(queue)."),
    (("a", "send-letter"), {"scheduled_at": datetime(2026, 1, 1)}, "scheduled_at is a naive datetime; use "),
    (("a", "send-letter"), {"scheduled_at": 5}, "scheduled_at must be an aware datetime, not int; as in "),
]


@pytest.mark.parametrize(("arguments", "options", "sentence"), WRONG)
def test_what_is_wrong_with_a_job_reads_as_a_sentence_that_names_the_argument_once(arguments, options, sentence):
    with pytest.raises(InvalidJob) as caught:
        declared(performer=MailPerformer).job(*arguments, **options)
    (found,) = caught.value.sentences()
    assert found.startswith(sentence)
    assert not re.search(r"\b(\w\w+?)s? \1s?\b", found, re.IGNORECASE)


def test_what_is_wrong_with_many_jobs_names_each():
    queuetopia = declared(performer=MailPerformer)
    changed = queuetopia.job("a", "send-letter")
    changed.params = {"x": 1}
    with pytest.raises(InvalidJob) as caught:
        queuetopia.create_jobs([5, changed])
    assert caught.value.sentences() == [
        "jobs[0] is a int; make it with MailQueue.job().",
        "jobs[1]: unknown param 'x' of action 'send-letter' (it takes: none).",
    ]


# Importing

PROJECT = """
import django
from django.conf import settings

settings.configure(
    INSTALLED_APPS=["queuetopia", "shop", "blog"],
    DATABASES={{"default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "x.sqlite3"}}}},
    QUEUETOPIA={configured!r},
)
django.setup()
from queuetopia.registry import registered
print(*sorted(queuetopia.scope for queuetopia in registered()))
"""
QUEUES = """
from queuetopia import Performer, Queuetopia

class Mail(Queuetopia):
    performer = Performer
"""


@pytest.fixture
def project(tmp_path):
    """A folder with two apps, of which one has modules that declare Queuetopias."""
    for app in ("shop", "blog"):
        (tmp_path / app).mkdir()
        (tmp_path / app / "__init__.py").touch()
    (tmp_path / "shop" / "queues.py").write_text(QUEUES)
    (tmp_path / "shop" / "lines.py").write_text(QUEUES.replace("Mail", "Letters"))
    return tmp_path


@pytest.mark.processes
@pytest.mark.parametrize(
    ("configured", "scopes"),
    [
        ({}, ["shop.Mail"]),
        ({"AUTODISCOVER": "lines"}, ["shop.Letters"]),
        ({"AUTODISCOVER": None}, []),
        ({"AUTODISCOVER": 5}, ["shop.Mail"]),
        ([], ["shop.Mail"]),
        (None, ["shop.Mail"]),
    ],
)
def test_the_queues_of_all_apps_are_known_after_setup(project, configured, scopes):
    root = os.path.dirname(os.path.dirname(declaration.__file__))
    assert python(PROJECT.format(configured=configured), project, PYTHONPATH=root) == scopes


@pytest.mark.processes
def test_an_error_in_a_queues_module_is_not_swallowed(project):
    (project / "shop" / "queues.py").write_text("import no_such_module")
    root = os.path.dirname(os.path.dirname(declaration.__file__))
    with pytest.raises(AssertionError, match="No module named 'no_such_module'"):
        python(PROJECT.format(configured={}), project, PYTHONPATH=root)


BEFORE_SETUP = """
import queuetopia
assert "django" not in __import__("sys").modules
from queuetopia import Halt, InvalidJob, Performer, Queuetopia, QueuetopiaError, Retry, Skip, Snooze, action

class MailPerformer(Performer):
    @action
    def send_mail(self, job): ...

class Mail(Queuetopia):
    performer = MailPerformer
    timeout = 5

import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["queuetopia"])
django.setup()
print(Mail.scope, Mail.option("timeout"), Mail.job("a", "send_mail").queue)
"""


@pytest.mark.processes
def test_queuetopia_can_be_imported_and_used_in_classes_before_django_is_set_up(tmp_path):
    root = os.path.dirname(os.path.dirname(declaration.__file__))
    assert python(BEFORE_SETUP, tmp_path, PYTHONPATH=root) == ["__main__.Mail", "5.0", "a"]


def test_the_package_offers_its_public_names_and_no_other():
    import queuetopia

    for name in queuetopia.__all__:
        assert getattr(queuetopia, name)
    assert {*queuetopia.__all__} <= {*dir(queuetopia)}
    with pytest.raises(AttributeError, match="'queuetopia' has no attribute 'Quetopia'"):
        queuetopia.Quetopia  # noqa: B018


def test_without_the_app_in_the_settings_a_class_says_what_to_add():
    code = """
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
django.setup()
from queuetopia import Performer, Queuetopia, action
class P(Performer):
    @action
    def a(self, job): ...
class Q(Queuetopia):
    performer = P
Q.create_job("a", "a")
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=REPOSITORY)
    assert result.returncode == 1
    assert 'add "queuetopia" to INSTALLED_APPS, then migrate.' in result.stderr.splitlines()[-1]


def test_an_own_perform_may_know_actions_that_cannot_be_listed(declare_only):
    class Numbers:
        def __contains__(self, name):
            return name.isdigit()

    class Counting(Performer):
        actions = Numbers()

        def perform(self, job):
            return int(job.action)

    declare_only()
    queues = type("Counts", (Queuetopia,), {"performer": Counting, "scope": "tests.counts"})
    assert queues.job("a", "42").action == "42"
    with pytest.raises(InvalidJob, match=r"Counting has no action 'x'; Counting\.actions does not have it\."):
        queues.job("a", "x")
