"""The stream of events: what happens, for ``for`` and ``async for``, and from where it may go on."""

import asyncio
import time
from datetime import datetime, timedelta

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection
from django.utils import timezone

from queuetopia import Performer, Queuetopia, action
from queuetopia.monitoring.events import Event, Events
from queuetopia.monitoring.follow import Follower
from queuetopia.testing import drain
from tests.threads import elsewhere

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.capability("J25")]

PATIENCE = 30  # seconds


class NotePerformer(Performer):
    @action
    def note(self, job, text=""):
        return text

    @action
    def fail(self, job):
        raise ZeroDivisionError("boom")


@pytest.fixture
def queues(declare_only):
    declare_only()
    return type("NoteQueue", (Queuetopia,), {"performer": NotePerformer, "scope": "tests.notes", "max_attempts": 1})


def ran(queues, number, action="note"):
    jobs = [queues.create_job(f"queue-{each}", action).pk for each in range(number)]
    drain(queues)
    return jobs


def test_a_loop_tells_what_happens_after_it_began_and_ends_when_it_is_left(queues):
    ran(queues, 1)
    events = iter(queues.events(timeout=PATIENCE))
    thread = elsewhere(ran, queues, 2)
    told = [next(events), next(events)]
    thread.join()
    assert [(event.event, event.action, event.scope) for event in told] == [("done", "note", "tests.notes")] * 2
    assert isinstance(told[0], Event) and told[0].at.tzinfo is not None
    events.close()


def test_a_loop_without_news_ends_after_its_timeout(queues):
    began = time.monotonic()
    assert list(queues.events(timeout=0.3)) == []
    assert time.monotonic() - began >= 0.3


def test_each_event_renews_the_timeout(queues):
    told = []
    jobs = ran(queues, 1)
    began = timezone.now() - timedelta(seconds=PATIENCE)
    for event in queues.events(since=began, timeout=1):
        told.append(event.job)
        if len(told) < 3:
            jobs += ran(queues, 1)
    assert told == jobs


def test_a_loop_begins_where_it_is_told_to(queues):
    ran(queues, 2)
    queues.pause("queue-0", by="ann")
    ran(queues, 1, "fail")
    told = list(queues.events(since=timezone.now() - timedelta(hours=1), timeout=0))
    assert [event.event for event in told] == ["done", "done", "pause"]
    queues.resume("queue-0")
    drain(queues)
    again = list(queues.events(since=told[-1].at, timeout=0))
    assert [event.event for event in again] == ["pause", "resume", "halted"]
    assert again[2].error == "ZeroDivisionError: boom"
    assert list(queues.events(since=timezone.now() + timedelta(hours=1), timeout=0)) == []


@pytest.mark.parametrize("since", [datetime(2026, 1, 1), "yesterday", 5, 0])
def test_a_loop_begins_at_an_aware_datetime(queues, since):
    with pytest.raises(ValueError, match="since must be an aware datetime"):
        queues.events(since=since)


def test_an_async_loop_tells_the_same_and_holds_up_nothing(queues):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.01)

    async def told():
        counting = asyncio.create_task(count_turns())
        found = []
        async for event in queues.events(since=began, timeout=0.5):
            found.append(event)
        counting.cancel()
        return found

    began = timezone.now() - timedelta(hours=1)
    ran(queues, 3)
    assert async_to_sync(told)() == list(queues.events(since=began, timeout=0))
    assert turns > 10


def test_an_async_loop_tells_what_happens_while_it_waits(queues):
    async def first():
        follower_began = asyncio.Event()

        async def create():
            await follower_began.wait()
            await sync_to_async(ran)(queues, 1)

        creating = asyncio.create_task(create())
        stream = aiter(queues.events(timeout=PATIENCE))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.5)
        follower_began.set()
        event = await waiting
        await creating
        await stream.aclose()
        return event

    assert async_to_sync(first)().event == "done"


def test_a_loop_that_is_left_closes_what_it_listened_on(queues, monkeypatch):
    closed = []
    monkeypatch.setattr(Follower, "close", lambda follower: closed.append(follower))
    ran(queues, 1)
    for _event in queues.events(since=timezone.now() - timedelta(hours=1)):
        break
    assert len(closed) == 1


def test_a_stream_may_be_of_several_scopes(queues):
    other = type("OtherQueue", (Queuetopia,), {"performer": NotePerformer, "scope": "tests.other"})
    began = timezone.now() - timedelta(hours=1)
    ran(queues, 1)
    ran(other, 1)
    events = Events(connection.alias, ["tests.notes", "tests.other"], since=began, timeout=0)
    assert [event.scope for event in events] == ["tests.notes", "tests.other"]
