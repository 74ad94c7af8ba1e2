"""Bars for long work, on a terminal only."""

import io
import sys
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.utils import timezone

from queuetopia.management.commands import queuetopia as command
from queuetopia.progress import Bar, counted
from tests.states import mail_queue, put

pytestmark = [pytest.mark.django_db]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def queues(monkeypatch, declare_only):
    declare_only()
    monkeypatch.setattr(command, "LONG", 3)
    monkeypatch.setattr(command, "PRUNE_BATCH", 2)
    return mail_queue()


def shown(monkeypatch, *arguments, stderr, stdout=None):
    monkeypatch.setattr(sys, "stderr", stderr)
    call_command("queuetopia", *map(str, arguments), stdout=stdout or io.StringIO())
    return stderr.getvalue()


def test_a_bar_grows_to_its_end_and_beyond_what_was_known():
    stream = io.StringIO()
    bar = Bar(2, stream=stream)
    for _ in range(3):
        bar.advance()
    bar.end()
    drawn = stream.getvalue().strip("\n").split("\r")
    assert [line.split("] ")[1] for line in drawn[1:]] == ["1/2 jobs", "2/2 jobs", "3/3 jobs", "3/3 jobs"]
    assert drawn[1].startswith("[###############......")


def test_a_bar_ends_when_the_work_breaks_off():
    stream = io.StringIO()

    def work():
        yield 1
        raise RuntimeError

    with pytest.raises(RuntimeError):
        list(counted(work(), Bar(2, stream=stream)))
    assert stream.getvalue().endswith("1/2 jobs\n")


class TestCommand:
    def test_shows_a_bar_for_many_jobs_whose_results_go_elsewhere(self, queues, monkeypatch):
        jobs = [put(queues, "halted", f"queue-{number}").pk for number in range(3)]
        assert shown(monkeypatch, "retry", *jobs, stderr=Terminal()).endswith("3/3 jobs\n")

    def test_shows_none_for_few(self, queues, monkeypatch):
        assert shown(monkeypatch, "skip", put(queues, "halted").pk, stderr=Terminal()) == ""

    def test_shows_none_where_each_result_is_told_on_the_terminal(self, queues, monkeypatch):
        jobs = [put(queues, "halted", f"queue-{number}").pk for number in range(3)]
        assert shown(monkeypatch, "skip", *jobs, stderr=Terminal(), stdout=Terminal()) == ""

    @pytest.mark.parametrize("verb", ["skip", "prune"])
    def test_shows_none_off_a_terminal(self, queues, monkeypatch, verb):
        jobs = [put(queues, "halted", f"queue-{number}").pk for number in range(3)]
        put(queues, "done", done_at=timezone.now() - timedelta(days=30))
        assert shown(monkeypatch, verb, *(jobs if verb == "skip" else []), stderr=io.StringIO()) == ""

    def test_counts_what_is_pruned(self, queues, monkeypatch):
        for number in range(5):
            put(queues, "done", f"queue-{number}", done_at=timezone.now() - timedelta(days=30))
        drawn = shown(monkeypatch, "prune", stderr=Terminal())
        assert drawn == "\r2 jobs deleted\r4 jobs deleted\r5 jobs deleted\r5 jobs deleted\n"
        assert shown(monkeypatch, "prune", stderr=Terminal()) == ""
