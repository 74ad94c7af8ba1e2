"""A project may name a backend of its own for a database."""

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connection

from queuetopia.backends import backend_class, backend_for
from queuetopia.models import Queue
from queuetopia.testing import drain
from tests.testapp.queues import LedgerQueue

Ours = backend_class("default")
ENGINE = connection.settings_dict["ENGINE"]


class OwnBackend(Ours):
    """Counts what it wakes."""

    woken = 0

    def wake(self, wakes):
        type(self).woken += len(wakes)
        return super().wake(wakes)


class NoBackend:
    pass


def problems(settings, backends):
    settings.QUEUETOPIA = {"BACKENDS": backends}
    return [
        problem for problem in run_checks(tags=["queuetopia"]) if problem.id in ("queuetopia.E003", "queuetopia.E012")
    ]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", [ENGINE, connection.vendor])
def test_the_own_backend_serves_the_database(settings, monkeypatch, name):
    monkeypatch.setattr(OwnBackend, "woken", 0)
    assert problems(settings, {name: f"{__name__}.OwnBackend"}) == []

    LedgerQueue.create_job("a", "noop")
    (job,) = drain(LedgerQueue)

    assert type(backend_for("default")) is OwnBackend
    assert OwnBackend.woken == 1
    assert job.state == "done"
    assert Queue.objects.get().due_at is None


def test_the_engine_counts_before_the_vendor(settings):
    settings.QUEUETOPIA = {"BACKENDS": {connection.vendor: "no.such.Backend", ENGINE: f"{__name__}.OwnBackend"}}
    assert backend_class("default") is OwnBackend


def test_a_backend_of_another_database_changes_nothing(settings):
    settings.QUEUETOPIA = {"BACKENDS": {"oracle": "no.such.Backend"}}
    assert backend_class("default") is Ours


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("no.such.Backend", "cannot be imported"),
        (f"{__name__}.Missing", "cannot be imported"),
        (f"{__name__}.NoBackend", "is no subclass of queuetopia.backends.base.Backend"),
        (f"{__name__}.ENGINE", "is no subclass of queuetopia.backends.base.Backend"),
    ],
)
def test_what_is_no_backend_is_refused_by_the_check_and_by_use(settings, path, text):
    found = problems(settings, {connection.vendor: path})
    assert {problem.id for problem in found} == {"queuetopia.E012"}
    assert text in found[0].msg
    with pytest.raises(ImproperlyConfigured, match=text):
        backend_for("default")


@pytest.mark.parametrize(
    "backends", [None, ["a.B"], {1: "a.B"}, {"sqlite": 1}, {"sqlite": "Backend"}, {"sqlite": OwnBackend}]
)
def test_a_setting_of_another_shape_is_named(settings, backends):
    found = problems(settings, backends)
    assert "queuetopia.E003" in {problem.id for problem in found}
    with pytest.raises(ImproperlyConfigured, match="BACKENDS"):
        backend_for("default")
