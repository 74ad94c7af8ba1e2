"""dumpdata and loaddata: what is in params and results keeps its type."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from importlib.util import find_spec
from uuid import UUID

import pytest
from django.core.management import call_command

from queuetopia.models import Job, JobEvent
from queuetopia.testing import drain
from tests.testapp.queues import SlowRetryQueue

pytestmark = pytest.mark.django_db(transaction=True)

TYPED = {
    "amount": Decimal("1.10"),
    "wait": timedelta(days=1, microseconds=3),
    "at": datetime(2026, 1, 31, 10, 0, 0, 123456, tzinfo=UTC),
    "naive": datetime(2026, 1, 31, 10, 0),
    "day": date(2026, 1, 31),
    "noon": time(12, 0, 0, 5),
    "key": UUID(int=7),
    "wide": 6.1e16,
    "large": 1e300,
    "integer": 2**63 - 1,
    "text": "1.10 <&> \u20ac \U0001f4a5",
    "nothing": None,
    "true": True,
    "nested": [{"amounts": [Decimal("0.5"), None]}, [], {}],
}
FORMATS = ["json", "jsonl", "xml", *(["yaml"] if find_spec("yaml") else [])]


def loaded(tmp_path, kind, natural=()):
    """Return the jobs and events after they were dumped, deleted and loaded."""
    file = tmp_path / f"dump.{kind}"
    call_command("dumpdata", "queuetopia", *natural, format=kind, output=str(file), verbosity=0)
    Job.objects.all().delete()
    JobEvent.objects.all().delete()
    call_command("loaddata", str(file), verbosity=0)
    return Job.objects.order_by("pk")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("natural", [[], ["--natural-foreign", "--natural-primary"]], ids=["", "natural"])
def test_params_keep_their_types(tmp_path, kind, natural):
    job = SlowRetryQueue.create_job("a", "answer", {"value": TYPED})

    stored = loaded(tmp_path, kind, natural).get()

    assert stored.pk == job.pk
    assert shown(stored.params) == shown({"value": TYPED})


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("value", [*TYPED.values(), TYPED], ids=repr)
def test_a_result_keeps_its_type(tmp_path, kind, value):
    SlowRetryQueue.create_job("a", "answer", {"value": value})
    drain(SlowRetryQueue)
    assert shown(Job.objects.get().result) == shown(value)

    assert shown(loaded(tmp_path, kind).get().result) == shown(value)


@pytest.mark.parametrize("kind", FORMATS)
def test_errors_and_events_stay_as_they_were(tmp_path, kind):
    job = SlowRetryQueue.create_job("a", "fail", {"text": "1.10 <&> \u20ac"}, max_attempts=1)
    drain(SlowRetryQueue)
    SlowRetryQueue.edit(job.pk, {"times": 1}, by="ann")
    before = Job.objects.get(), JobEvent.objects.get()

    after = loaded(tmp_path, kind).get(), JobEvent.objects.get()

    assert (after[0].errors, after[0].error, after[0].params) == (before[0].errors, before[0].error, before[0].params)
    assert (after[1].before, after[1].after) == (before[1].before, before[1].after)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_loaded_job_runs(tmp_path, kind):
    SlowRetryQueue.create_job("a", "answer", {"value": TYPED})
    loaded(tmp_path, kind)

    drain(SlowRetryQueue)

    assert shown(Job.objects.get().result) == shown(TYPED)


def shown(value):
    """Return a text that is the same for the same values of the same types only."""
    if isinstance(value, dict):
        return repr({name: shown(item) for name, item in sorted(value.items())})
    return repr([shown(item) for item in value]) if isinstance(value, list) else repr(value)
