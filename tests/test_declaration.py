"""Declaring Queuetopias: options and their precedence, scopes, the registry, actions, autodiscovery."""

import os
import subprocess
import sys
from datetime import timedelta

import pytest
from django.core.exceptions import ImproperlyConfigured

from queuetopia import Performer, Queuetopia, action, declaration
from queuetopia.attempts import Claim, Verdict
from queuetopia.conf import OPTIONS
from queuetopia.declaration import by_scope, registered
from queuetopia.jobs import failed
from queuetopia.performer import action_methods, has_own_perform, known_actions, param_problems

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
def own_registry(monkeypatch):
    """Only the classes that the test declares are registered, and afterwards they are gone."""
    monkeypatch.setattr(declaration, "_registry", [])


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
        ("timeout", 60.0),
        ("max_backoff", DAY),
        ("max_attempts", 20),
        ("on_exhausted", "halt"),
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
from queuetopia.declaration import registered
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
