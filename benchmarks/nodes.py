"""A running node that has started all its workers and run their first jobs, and what its processes cost."""

import os
from contextlib import ExitStack, contextmanager
from pathlib import Path

from queuetopia.models import Job, Node
from queuetopia.node.supervisor import start_node
from queuetopia.testing import wait_until

from .queues import BenchmarkQueue

PROCESSES = os.cpu_count() or 1
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def running_node(processes=PROCESSES, **options):
    """Start a node with a worker per core; inside the ``with`` it is warm and idle."""
    with running_nodes(1, processes, **options) as (node,):
        yield node


@contextmanager
def running_nodes(count, processes, **options):
    """Start several nodes; inside the ``with`` all their workers have run jobs, and wait for more."""
    with ExitStack() as started:
        nodes = [started.enter_context(start_node(processes=processes, **options)) for _ in range(count)]
        _occupy_all_workers(count * processes, options.get("concurrency", 1))
        jobs = [BenchmarkQueue.job(f"queue-{number % 10}", "do_nothing") for number in range(50 * PROCESSES)]
        run_jobs(jobs)
        wait_until(lambda: all(node.workers for node in Node.objects.all()), timeout=30)
        yield nodes


def _occupy_all_workers(count, slots):
    """Run jobs that last until each worker has had one."""
    pids = set()
    while len(pids) < count:
        jobs = run_jobs(
            [BenchmarkQueue.job(f"warm-up-{number}", "rest", {"seconds": 0.2}) for number in range(count * slots)]
        )
        pids |= set(jobs.values_list("result", flat=True))


def run_jobs(jobs, timeout=600):
    """Create the jobs and wait until they are done; return their QuerySet."""
    ids = [job.pk for job in BenchmarkQueue.create_jobs(jobs)]
    created = Job.objects.filter(pk__in=ids)
    wait_until(lambda: not created.unfinished().exists(), timeout=timeout, interval=0.05)
    return created


def wait_until_drained(timeout=600, interval=0.1):
    """Wait until no job that may run is left."""
    waiting = BenchmarkQueue.jobs().unfinished().filter(queue__startswith="queue-")
    wait_until(lambda: not waiting.exists(), timeout=timeout, interval=interval)


def check(count, queuetopia=BenchmarkQueue):
    """Refuse a run in which a job was not done, or not by its first attempt."""
    ended = queuetopia.jobs().filter(queue__startswith="queue-", state=Job.State.DONE, attempts=1).count()
    assert ended >= count, f"{ended} jobs were done by one attempt, not {count}"


def scheduler_pid():
    return Node.objects.get().pid


def memory_of(pid, field="VmRSS"):
    """Return MiB: what the process occupies now (VmRSS), or did at most (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def cpu_seconds(pid):
    """Return the CPU time that the process has used, all its threads."""
    # The name in parentheses may hold anything; utime and stime are the fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK_TICKS
