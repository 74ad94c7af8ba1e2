"""A verb is listed once, and is available in Python, the command and the admin."""

import pytest
from django.contrib import admin

from queuetopia import Queuetopia, jobs, verbs
from queuetopia.decisions import DECISIONS, decisions_on
from queuetopia.management.commands.queuetopia import Command
from queuetopia.models import Job, Queue, Schedule, Scope

MODELS = {"job": Job, "queue": Queue, "scope": Scope, "schedule": Schedule}


@pytest.mark.parametrize("verb", DECISIONS)
class TestDecision:
    def test_is_a_function_of_jobs_and_a_method_of_the_class(self, verb):
        assert callable(getattr(jobs, verb))
        assert callable(getattr(Queuetopia, verb))

    def test_is_a_subcommand(self, verb):
        assert callable(getattr(Command, f"answer_{verb}"))

    def test_has_a_permission_and_a_page_for_each_of_what_it_is_done_to(self, verb):
        assert DECISIONS[verb].permissions
        for what in DECISIONS[verb].permissions:
            assert f"{verb}_{what}" in dict(MODELS[what]._meta.permissions)
            assert verb in admin.site._registry[MODELS[what]].verbs


def test_each_decision_about_a_job_has_an_answer_in_words():
    assert sorted(verbs._DONE_TO_A_JOB) == sorted(decisions_on("job"))
