"""Code that changes while jobs wait: older names of actions, and a check whether new code can run what waits."""

import asyncio

import pytest
from django.core.checks import run_checks

from queuetopia import InvalidJob, Performer, Queuetopia, action
from queuetopia.jobs import pending, pending_problems
from queuetopia.models import Job
from queuetopia.monitoring.explain import Cause
from queuetopia.registry import only
from queuetopia.testing import drain, perform_job
from tests.commands import HOSTILE, run, run_json

pytestmark = [pytest.mark.django_db, pytest.mark.capability("X11")]


class OldPerformer(Performer):
    @action
    def send_mail(self, job, email):
        return ["old", job.action, email]

    @action
    def bill(self, job, number=0):
        pass


class NewPerformer(Performer):
    aliases = {"send_mail": "send"}

    @action
    def send(self, job, email):
        return ["new", job.action, email]

    @action
    def bill(self, job, number=0):
        pass


@pytest.fixture
def deploy():
    """Return a function that declares the class with a performer, as the next version of the code would."""
    with only():

        def declare(performer, scope="tests.mail"):
            return type(Queuetopia)("MailQueue", (Queuetopia,), {"performer": performer, "scope": scope})

        yield declare


def performer(**attributes):
    return type("ChangedPerformer", (Performer,), attributes)


class TestAliases:
    def test_a_waiting_job_runs_under_the_name_of_today(self, deploy):
        deploy(OldPerformer).create_job("a", "send_mail", {"email": "ann"})
        queue = deploy(NewPerformer)
        queue.create_job("a", "send", {"email": "bob"})
        assert [job.result for job in drain(queue)] == [["new", "send", "ann"], ["new", "send", "bob"]]
        assert [job.action for job in queue.jobs().in_order()] == ["send_mail", "send"]  # as they were created

    def test_an_async_action_and_one_by_hand_too(self, deploy):
        async def send(self, job, email):
            await asyncio.sleep(0)
            return job.action

        queue = deploy(performer(aliases={"send_mail": "send"}, send=action(send)))
        job = queue.create_job("a", "send_mail", {"email": "ann"})
        assert drain(queue)[0].result == "send"
        job = deploy(NewPerformer).create_job("a", "send_mail", {"email": "ann"})
        assert perform_job(job) == ["new", "send", "ann"]

    def test_a_perform_of_ones_own_gets_the_name_of_today(self, deploy):
        queue = deploy(
            performer(actions=("send",), aliases={"send_mail": "send"}, perform=lambda self, job: job.action)
        )
        queue.create_job("a", "send_mail")
        assert drain(queue)[0].result == "send"

    def test_params_are_checked_against_the_action_of_today(self, deploy):
        with pytest.raises(InvalidJob, match="missing param 'email'"):
            deploy(NewPerformer).create_job("a", "send_mail", {})

    def test_explain_knows_them(self, deploy):
        deploy(OldPerformer).create_job("a", "send_mail", {"email": "ann"})
        assert Cause.UNKNOWN_ACTION not in deploy(NewPerformer).explain("a")["causes"]

    @pytest.mark.parametrize(
        ("attributes", "cause"),
        [
            ({"aliases": ["send_mail"]}, "no dict of names"),
            ({"aliases": {"send_mail": 3}}, "no dict of names"),
            ({"aliases": {"send_mail": "sent"}}, "'sent', and there is no such action"),
            ({"aliases": {"bill": "send"}}, "'bill', which is an action by itself"),
            ({"aliases": {"a": "b", "b": "send"}}, "'b', and there is no such action"),
        ],
    )
    def test_wrong_ones_are_told_by_a_check_and_not_used(self, deploy, attributes, cause):
        queue = deploy(type("ChangedPerformer", (NewPerformer,), attributes))
        (problem,) = [found for found in run_checks(tags=["queuetopia"]) if found.id == "queuetopia.E021"]
        assert cause in problem.msg
        assert queue.create_job("a", "send", {"email": "ann"}).pk


class TestCheckPending:
    def test_code_that_can_run_all_is_told_so(self, deploy):
        deploy(OldPerformer).create_job("a", "send_mail", {"email": "ann"})
        deploy(NewPerformer)
        assert run("check", "--pending")[0] == "ok: this code can run the unfinished jobs, 1\n"

    def test_an_action_that_is_gone_is_named_with_how_many_and_which(self, deploy):
        queue = deploy(OldPerformer)
        jobs = [queue.create_job(f"q{n}", "send_mail", {"email": "ann"}) for n in range(4)]
        deploy(performer(bill=OldPerformer.bill))
        number, (problem,) = pending_problems("default")
        assert (number, problem["problem"], problem["jobs"]) == (4, "action", 4)
        assert problem["examples"] == [{"job": job.pk, "queue": job.queue} for job in jobs[:3]]
        with pytest.raises(SystemExit) as ended:
            run("check", "--pending")
        assert ended.value.code == 1

    def test_params_that_do_not_fit_are_counted_by_cause(self, deploy):
        queue = deploy(OldPerformer)
        for n in range(3):
            queue.create_job("a", "send_mail", {"email": "ann"})
            queue.create_job("b", "bill", {"number": n} if n else {})

        def send_mail(self, job, address):
            pass

        def bill(self, job):
            pass

        deploy(performer(send_mail=action(send_mail), bill=action(bill)))
        _, found = pending_problems("default")
        assert sorted((each["action"], each["jobs"], each["cause"].partition(" of ")[0]) for each in found) == [
            ("bill", 2, "unknown param 'number'"),
            ("send_mail", 3, "missing param 'address'"),
            ("send_mail", 3, "unknown param 'email'"),
        ]

    def test_jobs_of_a_scope_that_is_gone_are_found_unless_others_are_asked_for(self, deploy):
        deploy(OldPerformer).create_job("a", "bill")
        with only():
            queue = deploy(OldPerformer, scope="tests.other")
            queue.create_job("a", "bill")
            number, (problem,) = pending_problems("default")
            assert (number, problem["problem"], problem["scope"]) == (2, "scope", "tests.mail")
            assert pending_problems("default", ["tests.other"]) == (1, [])

    def test_ended_jobs_do_not_matter(self, deploy):
        queue = deploy(OldPerformer)
        queue.create_job("a", "bill")
        drain(queue)
        deploy(performer())
        assert pending_problems("default") == (0, [])

    def test_params_that_cannot_be_read_are_found(self, deploy):
        job = deploy(OldPerformer).create_job("a", "bill")
        Job.objects.filter(pk=job.pk).update(params=[1, 2])
        assert pending_problems("default")[1][0]["cause"] == "its params cannot be read"

    def test_it_reads_in_steps_and_as_much_for_each_job(self, deploy, monkeypatch, django_assert_num_queries):
        monkeypatch.setattr(pending, "STEP", 10)
        queue = deploy(OldPerformer)
        queue.create_jobs([queue.job(f"q{n}", "bill") for n in range(35)])
        with django_assert_num_queries(1 + 5):  # the groups; four steps, and one that finds nothing
            assert pending_problems("default") == (35, [])

    def test_hostile_names_cannot_steer_the_terminal(self, deploy, capsys):
        job = deploy(OldPerformer).create_job("a", "bill")
        Job.objects.filter(pk=job.pk).update(queue=HOSTILE, action=HOSTILE)
        with pytest.raises(SystemExit):
            run("check", "--pending")
        assert "\x1b" not in capsys.readouterr().out

    def test_for_machines(self, deploy):
        deploy(OldPerformer).create_job("a", "bill")
        answer, _ = run_json("check", "--pending")
        assert answer == {"jobs": 1, "problems": []}
