"""What the scheduler occupies while many jobs pass through it."""

from .figures import Figure
from .fresh import create_jobs, fresh_database
from .nodes import check, memory_of, running_node, scheduler_pid, wait_until_drained

PARTS = 10
QUEUES = 1_000
MOST_GROWN = 1.1  # times what it occupied after the first part


def measure(size):
    with fresh_database(), running_node():
        pid = scheduler_pid()
        points = []
        for _ in range(PARTS):
            create_jobs(size.many_jobs // PARTS, QUEUES)
            wait_until_drained()
            points.append(memory_of(pid))
        peak = memory_of(pid, "VmHWM")
        check(size.many_jobs)
    names = {"after half of the jobs": points[PARTS // 2 - 1], "after all of them": points[-1], "peak": peak}
    return [
        Figure(f"scheduler, {name}", "MiB", value, points[0], goal=MOST_GROWN, goal_of="ratio")
        for name, value in names.items()
    ]
