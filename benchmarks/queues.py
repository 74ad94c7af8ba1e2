import asyncio
import os
import struct
import time

from queuetopia import Performer, Queuetopia, action

# The file (a FIFO) to which starts are written: its name is in the environment of the node that is to write.
START_FILE = "BENCHMARK_START_FILE"
OPTIONS = "BENCHMARK_OPTIONS"  # JSON: options of the class, for nodes
START = struct.Struct("qq")  # job id, nanoseconds of CLOCK_MONOTONIC


class BenchmarkPerformer(Performer):
    def setup(self):
        if START_FILE in os.environ:
            self.starts = os.open(os.environ[START_FILE], os.O_WRONLY)

    @action
    def do_nothing(self, job):
        pass

    @action(chunk=500)
    def do_nothing_together(self, jobs, params):
        pass

    @action
    def note_start(self, job):
        os.write(self.starts, START.pack(job.pk, time.monotonic_ns()))

    @action
    def take(self, job, customer, text):
        pass

    @action
    async def wait(self, job, seconds):
        await asyncio.sleep(seconds)

    @action
    def last(self, job, seconds):
        began = time.monotonic()
        time.sleep(seconds)
        return [began, time.monotonic()]

    @action
    def rest(self, job, seconds):
        time.sleep(seconds)
        return os.getpid()


class BenchmarkQueue(Queuetopia):
    performer = BenchmarkPerformer


class IndependentQueue(BenchmarkQueue):
    ordered = False
