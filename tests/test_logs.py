"""Fields of log records: of our own, and of what a performer logs in an attempt."""

import logging

import pytest

from queuetopia import JobFilter, Performer, Queuetopia, action, current_job
from queuetopia.testing import drain
from tests.commands import HOSTILE

logger = logging.getLogger("shop.mails")


class TalkingPerformer(Performer):
    @action
    def talk(self, job):
        logger.warning("hello %s", current_job().pk == job.pk)
        logger.warning("of another", extra={"job": "cleaner"})


@pytest.fixture
def queues(declare_only):
    declare_only()
    return type("Talks", (Queuetopia,), {"performer": TalkingPerformer, "scope": "tests.talks"})


@pytest.mark.django_db
def test_what_a_performer_logs_gets_the_fields_of_its_job(queues, caplog):
    job = queues.create_job(HOSTILE, "talk")
    caplog.handler.addFilter(filter_ := JobFilter())
    try:
        drain(queues)
        logger.warning("after it")
    finally:
        caplog.handler.removeFilter(filter_)
    hello, other, after = [record for record in caplog.records if record.name == "shop.mails"]
    assert hello.getMessage() == "hello True"
    assert (hello.job, hello.scope, hello.action, hello.attempt, hello.fence) == (job.pk, "tests.talks", "talk", 1, 1)
    assert hello.queue.isprintable()
    assert not hasattr(hello, "kind")
    assert other.job == "cleaner"
    assert not hasattr(after, "job")


def test_outside_of_attempts_there_is_no_job():
    assert current_job() is None
