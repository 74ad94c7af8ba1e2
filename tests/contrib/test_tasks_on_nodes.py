"""Django's Tasks on real nodes: order, a process that dies, and code that is gone."""

import pytest

from queuetopia.models import Job
from queuetopia.testing import wait_until
from tests.contrib import tasks
from tests.contrib.settings import TASKS
from tests.nodes import PATIENCE, ledger, nodes, pytest_runtest_makereport  # noqa: F401 - fixtures and a hook

pytestmark = [pytest.mark.processes, pytest.mark.django_db(transaction=True)]


@pytest.fixture(autouse=True)
def start(settings, declare_only, nodes):  # noqa: F811 - the fixture
    declare_only()
    settings.TASKS = TASKS
    scope = tasks.add.get_backend().queuetopia
    return lambda: nodes.start(scope, env={"DJANGO_SETTINGS_MODULE": "tests.contrib.settings"})


def wait_until_finished(*results):
    def are_finished():
        for result in results:
            result.refresh()
        return all(result.is_finished for result in results)

    wait_until(are_finished, PATIENCE, message="tasks have not finished")


def test_queues_keep_their_order_through_failures(start, ledger):  # noqa: F811
    results = [
        tasks.note_it.using(queue_name=queue).enqueue(seq, failures=2 if seq == 1 else 0)
        for seq in range(5)
        for queue in ("a", "b", "c")
    ]
    start()
    wait_until_finished(*results)
    assert {result.status.value for result in results} == {"SUCCESSFUL"}
    assert [result.attempts for result in results] == [3 if result.args == [1] else 1 for result in results]
    noted = [line.split()[1:3] for line in ledger.path.read_text().splitlines()]
    for queue in "abc":
        assert [int(seq) for name, seq in noted if name == queue] == [0, 1, 1, 1, 2, 3, 4]


def test_a_task_that_ends_its_process_shows_so(start):
    result = tasks.vanish.enqueue()
    start()
    wait_until_finished(result)
    assert (result.status.value, result.attempts) == ("FAILED", 5)
    assert {error.exception_class_path for error in result.errors} == {"queuetopia.exceptions.WorkerDied"}


def test_a_task_that_the_nodes_code_lacks_waits_and_holds_no_other_queue(start):
    gone, other = tasks.add.using(queue_name="gone").enqueue(1), tasks.add.using(queue_name="b").enqueue(1)
    Job.objects.filter(pk=gone.id).update(action="tests.contrib.gone.add")
    node = start()
    wait_until_finished(other)
    node.wait_for_log("unknown action, job left untouched")
    job = Job.objects.get(pk=gone.id)
    assert (job.state, job.attempts, job.attempted_at) == ("pending", 0, None)
