"""Jobs that wait for something else than this machine, 200 at once in one process: the ideal is their own time."""

from queuetopia.models import Job

from .drain import since_resumed
from .figures import Figure
from .fresh import fresh_database
from .nodes import running_node
from .queues import BenchmarkQueue

SECONDS = 0.1  # that a job lasts
AT_ONCE = 200
QUEUES = 500
GOAL = 0.8


def measure(size):
    with fresh_database(), running_node(processes=1, concurrency=AT_ONCE):
        BenchmarkQueue.pause()
        BenchmarkQueue.create_jobs(
            BenchmarkQueue.job(f"queue-{number % QUEUES}", "wait", {"seconds": SECONDS}) for number in range(size.rests)
        )
        seconds = since_resumed()
        assert Job.objects.filter(action="wait", state=Job.State.DONE).count() == size.rests
    ideal = AT_ONCE / SECONDS
    return [Figure("jobs that wait", "jobs/s", size.rests / seconds, ideal, GOAL, "ratio", more_is_better=True)]
