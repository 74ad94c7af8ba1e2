"""Django's Tasks on Queuetopia: what is enqueued, run, and read back."""

import sys
from datetime import timedelta
from types import SimpleNamespace

import django
import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils import timezone

from queuetopia import InvalidJob
from queuetopia.contrib.django_tasks import QueuetopiaBackend, find_task
from queuetopia.models import Job
from queuetopia.registry import by_scope
from queuetopia.testing import drain
from tests.contrib import tasks

if django.VERSION >= (6, 0):
    from django.tasks import TaskResultStatus, task_backends
    from django.tasks.exceptions import InvalidTask, TaskResultDoesNotExist, TaskResultMismatch
    from django.tasks.signals import task_enqueued, task_finished, task_started
else:
    from django_tasks import TaskResultStatus, task_backends
    from django_tasks.exceptions import InvalidTaskError as InvalidTask
    from django_tasks.exceptions import TaskResultDoesNotExist, TaskResultMismatch
    from django_tasks.signals import task_enqueued, task_finished, task_started

pytestmark = pytest.mark.django_db

PATH = "queuetopia.contrib.django_tasks.QueuetopiaBackend"


@pytest.fixture(autouse=True)
def backend(settings, declare_only):
    declare_only()
    settings.TASKS = {
        "default": {"BACKEND": PATH, "OPTIONS": {"max_attempts": 2}},
        "mail": {"BACKEND": PATH, "QUEUES": ["mail"]},
        "any": {"BACKEND": PATH, "OPTIONS": {"ordered": False}},
    }
    return task_backends["default"]


@pytest.fixture
def queues(backend):
    return backend.queuetopia


@pytest.fixture
def heard():
    """What the signals of tasks brought: their names, and results."""
    found = SimpleNamespace(names=[], results=[])

    def receiver(name):
        def receive(sender, task_result, **kwargs):
            found.names.append((name, task_result.status.value))
            found.results.append(task_result)

        return receive

    receivers = {signal: receiver(name) for name, signal in (
        ("enqueued", task_enqueued), ("started", task_started), ("finished", task_finished))}  # fmt: skip
    for signal, receive in receivers.items():
        signal.connect(receive)
    yield found
    for signal, receive in receivers.items():
        signal.disconnect(receive)


class TestEnqueue:
    def test_makes_a_job_of_the_queue_of_that_name(self, queues):
        result = tasks.add.using(queue_name="invoice-7").enqueue(1, two=5)
        job = queues.jobs().get()
        assert (job.scope, job.queue, job.action) == ("tasks.default", "invoice-7", "tests.contrib.tasks.add")
        assert job.params == {"*": [1], "two": 5}
        assert (result.id, result.status, result.args, result.kwargs) == (
            str(job.pk), TaskResultStatus.READY, [1], {"two": 5},
        )  # fmt: skip

    def test_belongs_to_the_callers_transaction(self):
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            result = tasks.add.enqueue(1)
            raise ZeroDivisionError
        with pytest.raises(TaskResultDoesNotExist):
            tasks.add.get_result(result.id)

    def test_for_later_is_scheduled(self, queues):
        later = timezone.now() + timedelta(hours=1)
        result = tasks.add.using(run_after=later).enqueue(1)
        assert queues.jobs().get().scheduled_at == later
        assert result.enqueued_at < later
        assert tasks.add.get_result(result.id).task.run_after == later

    def test_each_alias_is_a_scope_with_its_options(self, queues):
        tasks.add.using(backend="mail", queue_name="mail").enqueue(1)
        assert [job.scope for job in Job.objects.all()] == ["tasks.mail"]
        assert by_scope()["tasks.mail"].option("max_attempts") == 20
        assert queues.option("max_attempts") == 2
        assert task_backends["default"].queuetopia is queues

    def test_refuses_what_no_worker_could_find(self, monkeypatch):
        monkeypatch.delattr(tasks, "loop")
        with pytest.raises(InvalidJob, match=r"has no action 'tests\.contrib\.tasks\.loop'"):
            _loop.enqueue()

    def test_refuses_a_priority_and_a_queue_that_is_not_allowed(self):
        with pytest.raises(InvalidTask):
            tasks.add.using(priority=5)
        with pytest.raises(InvalidTask):
            tasks.add.using(backend="mail", queue_name="other")

    @pytest.mark.parametrize(("args", "kwargs"), [((object(),), {}), ((), {"two": object()}), ((1,), {"*": [2]})])
    def test_refuses_arguments_that_cannot_be_stored(self, args, kwargs):
        with pytest.raises(TypeError):
            tasks.add.enqueue(*args, **kwargs)
        assert not Job.objects.exists()

    def test_is_there_for_async_code(self, queues):
        result = async_to_sync(tasks.add.aenqueue)(1)
        drain(queues)
        assert async_to_sync(tasks.add.aget_result)(result.id).return_value == 3


_loop = tasks.loop


def exhaust(queues):
    for wait in range(3):
        drain(queues, now=timezone.now() + timedelta(minutes=wait))


class TestRunning:
    def test_returns_and_is_read_back(self, queues):
        result = tasks.add.enqueue(1)
        drain(queues)
        result.refresh()
        assert (result.status, result.return_value, result.attempts) == (TaskResultStatus.SUCCESSFUL, 3, 1)
        assert result.finished_at >= result.started_at >= result.enqueued_at

    def test_takes_async_tasks_and_the_context(self, queues):
        later, context = tasks.add_later.enqueue(1, 2), tasks.attempt.enqueue()
        drain(queues)
        assert tasks.add_later.get_result(later.id).return_value == [1, 2]
        assert tasks.attempt.get_result(context.id).return_value == [1, context.id]

    def test_a_failure_holds_its_queue_and_is_ready_until_the_last_attempt(self, queues):
        failing = tasks.fail.using(queue_name="a").enqueue("boom")
        behind = tasks.add.using(queue_name="a").enqueue(1)
        exhaust(queues)
        failing.refresh()
        assert failing.status == TaskResultStatus.FAILED
        assert failing.attempts == 2
        assert [error.exception_class for error in failing.errors] == [ValueError, ValueError]
        assert "boom" in failing.errors[0].traceback
        behind.refresh()
        assert behind.status == TaskResultStatus.READY
        queues.skip(failing.id)
        drain(queues)
        behind.refresh()
        assert behind.status == TaskResultStatus.SUCCESSFUL

    def test_an_alias_whose_tasks_need_no_order_holds_none_of_them_up(self):
        queues = task_backends["any"].queuetopia
        failing, behind = tasks.fail.using(backend="any").enqueue("boom"), tasks.add.using(backend="any").enqueue(1)
        drain(queues)
        failing.refresh()
        behind.refresh()
        assert (failing.status, behind.status) == (TaskResultStatus.READY, TaskResultStatus.SUCCESSFUL)
        assert (behind.task.queue_name, failing.attempts) == ("default", 1)

    def test_what_is_no_json_is_a_failed_attempt(self, queues):
        result = tasks.loop.enqueue()
        exhaust(queues)
        result.refresh()
        assert (result.status, result.errors[0].exception_class) == (TaskResultStatus.FAILED, TypeError)

    def test_signals_tell_of_it(self, queues, heard):
        tasks.add.enqueue(1)
        drain(queues)
        assert heard.names == [("enqueued", "READY"), ("started", "RUNNING"), ("finished", "SUCCESSFUL")]
        assert heard.results[-1].return_value == 3

    def test_the_end_of_a_failure_is_told_once(self, queues, heard):
        tasks.fail.enqueue("boom")
        exhaust(queues)
        assert heard.names == [("enqueued", "READY"), *[("started", "RUNNING")] * 2, ("finished", "FAILED")]
        assert heard.results[-1].errors[0].exception_class is ValueError


class TestReading:
    def test_of_an_unknown_number_is_refused(self):
        for number in ("0", "x", None, "9" * 30):
            with pytest.raises(TaskResultDoesNotExist):
                task_backends["default"].get_result(number)

    def test_of_another_alias_is_refused(self):
        result = tasks.add.using(backend="mail", queue_name="mail").enqueue(1)
        with pytest.raises(TaskResultDoesNotExist):
            task_backends["default"].get_result(result.id)

    def test_of_another_task_is_refused(self):
        result = tasks.add.enqueue(1)
        with pytest.raises(TaskResultMismatch):
            tasks.fail.get_result(result.id)

    def test_does_not_validate_what_was_allowed_when_it_was_enqueued(self, settings):
        result = tasks.add.using(backend="mail", queue_name="mail").enqueue(1)
        settings.TASKS = {**settings.TASKS, "mail": {"BACKEND": PATH, "QUEUES": ["other"]}}
        assert task_backends["mail"].get_result(result.id).task.queue_name == "mail"


def test_only_tasks_of_installed_apps_or_of_imported_modules_are_found():
    assert find_task("tests.contrib.tasks.add") is tasks.add
    for path in ("tests.contrib.tasks.no_task", "tests.contrib.tasks.gone", "antigravity.fly_id", "os.system", "x", ""):
        assert find_task(path) is None


def test_a_module_that_is_not_imported_and_of_no_app_is_not_imported():
    assert "this" not in sys.modules
    assert find_task("this.s") is None
    assert "this" not in sys.modules


def test_an_unknown_option_is_named():
    with pytest.raises(ImproperlyConfigured, match=r"TASKS\['x'\]\['OPTIONS'\] has retries; the options are: timeout"):
        QueuetopiaBackend("x", {"OPTIONS": {"retries": 3}})
