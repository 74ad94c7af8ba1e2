"""All workers of a node: hand out, collect, time out, bury the dead, replace them.

What comes of it is left in two places for the scheduler: ``ended`` (attempts with their outcomes) and
``unstarted`` (claims that never ran and may be handed out again).
"""

import contextlib
import logging
import selectors
from collections.abc import Callable
from typing import Any
from uuid import UUID

from . import exceptions, jobs
from .attempts import Claim, Outcome, Verdict, describe
from .backends.base import Ending
from .channel import uptime
from .declaration import by_scope
from .repeats import pause
from .worker import timeout_text
from .worker_process import Assignment, WorkerProcess

logger = logging.getLogger(__name__)

YIELD_TIME = 1.0  # seconds an attempt has to end after it was asked to stop
MOST_ALERTS = 100  # ends and alerts a worker may have to tell; then it gets no more alerts
CONDEMNED_TIME = 5.0  # seconds a worker's other attempts have to end when one of them does not


class Pool:
    def __init__(
        self,
        *,
        size: int,
        slots: int,
        verbosity: int,
        node: str,
        descriptors: Callable[[], list[int]],
        node_ids: Callable[[], list[UUID]],
    ):
        self.size, self.slots = size, slots
        self.workers: list[WorkerProcess] = []
        self.ended: list[tuple[Any, Ending]] = []  # (store, how it ended)
        self.unstarted: list[tuple[Any, Claim]] = []  # (store, claim)
        self.in_flight: dict[int, WorkerProcess] = {}  # by ticket
        self.deadline = 0.0
        self.selector = selectors.DefaultSelector()
        self._verbosity, self._node = verbosity, node
        self._descriptors, self._node_ids = descriptors, node_ids
        self._last_ticket = 0
        self._boot_failures = 0
        self._start_at = 0.0
        self._untold: list[Ending] = []  # ends that any worker may tell, because their own is dead

    # Hand out

    def room(self) -> int:
        """Return how many more claims the workers have room for."""
        return sum(max(0, worker.room()) for worker in self.workers)

    def is_busy(self) -> bool:
        """True while no worker has a slot with nothing to run."""
        return all(len(worker.assigned) >= worker.board.slots for worker in self.workers)

    def claims(self) -> list[tuple[Any, Claim]]:
        return [(a.store, a.claim) for worker in self.workers for a in worker.assigned.values()]

    def hand_out(self, waiting) -> None:
        """Give claims from the left of ``waiting`` to the least busy workers with room, one message each."""
        rooms = {worker.pid: worker.room() for worker in self.workers} if waiting else {}
        batches: dict[int, tuple[WorkerProcess, list]] = {}
        while waiting:
            free = [worker for worker in self.workers if rooms[worker.pid] > 0]
            if not free:
                break
            worker = min(free, key=lambda worker: len(worker.assigned))
            rooms[worker.pid] -= 1
            assignment = self._assign(worker, *waiting.popleft())
            batches.setdefault(worker.pid, (worker, []))[1].append((assignment.ticket, assignment.claim))
        for worker, batch in batches.values():
            worker.send("run", batch)

    def _assign(self, worker, store, claim):
        self._last_ticket += 1
        timeout = claim.timeout or by_scope()[claim.scope].option("timeout")
        assignment = Assignment(self._last_ticket, claim, store, timeout)
        worker.assigned[assignment.ticket] = assignment
        self.in_flight[assignment.ticket] = worker
        worker.check_at = min(worker.check_at, uptime() + timeout)
        return assignment

    def wind_down(self) -> None:
        """Start no more workers, and ask for all jobs that have not been started."""
        self.size = 0
        for worker in self.workers:
            worker.asked_back = True
            worker.send("give_back")

    # Collect

    def collect(self) -> None:
        """Read what the workers say and bury those that have died."""
        for worker in list(self.workers):
            # Asked before reading: what a process wrote before it died is read before it is buried.
            has_ended = worker.has_ended()
            for message in worker.receive():
                self._understand(worker, message)
            if has_ended or worker.closed:
                self.bury(worker)
            elif not worker.ready and uptime() > worker.boots_until:
                logger.error("worker did not get ready pid=%d; does an import or a database hang?", worker.pid)
                self.kill(worker)

    def hear(self) -> None:
        """Read what the workers say, and nothing else."""
        for worker in self.workers:
            for message in worker.receive():
                self._understand(worker, message)

    def _understand(self, worker, message):
        match message:
            case ["ready", _]:
                worker.ready = True
                self._boot_failures = 0
                untold, self._untold = self._untold, []
                for ending in untold:
                    self.tell(ending)
            case ["end", int(ticket), [*outcome]] if len(outcome) == len(Outcome._fields):
                self._ended(worker, ticket, Outcome._make(outcome))
            case ["told"]:
                worker.note_told()
            case ["returned", [*tickets]]:
                for assignment in filter(None, [self._take(worker, ticket) for ticket in tickets]):
                    self.unstarted.append((assignment.store, assignment.claim))
            case _:
                logger.error("worker sent an unknown message pid=%d", worker.pid)
                worker.closed = worker.garbled = True

    def _ended(self, worker, ticket, outcome):
        assignment = self._take(worker, ticket)
        if assignment is None or outcome.fence != assignment.claim.fence:
            return
        worker.asked_back = False
        if outcome.verdict != Verdict.RETURN:
            worker.note_duration(outcome.duration)
        teller = (worker, ticket) if outcome.wants_news else None
        self.ended.append((assignment.store, Ending(assignment.claim, outcome, teller)))

    def _take(self, worker, ticket):
        self.in_flight.pop(ticket, None)
        return worker.assigned.pop(ticket, None)

    def bury(self, worker) -> None:
        """Turn what a dead or useless worker had in its hands into outcomes; what it had not started is given back."""
        running = worker.running()
        self.workers.remove(worker)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.channel)
        if not worker.is_dying():
            worker.kill()
        worker.bury()
        for ticket, assignment in list(worker.assigned.items()):
            self._take(worker, ticket)
            if ticket in running:
                outcome = self._cut_short(worker, assignment, uptime() - running[ticket])
                # Whoever is told needs the hooks asked for: the scheduler does not know who listens.
                self.ended.append((assignment.store, Ending(assignment.claim, outcome, (None, 0))))
            else:
                self.unstarted.append((assignment.store, assignment.claim))
        self._note_death(worker)

    def _note_death(self, worker):
        if worker.ready:
            has_left = worker.dismissed and worker.process.returncode == 0
            if (worker.closed or not worker.killed) and not has_left:
                logger.warning("worker died node=%s cause=%s", self._node, worker.end_text())
            return
        if worker.killed and not worker.closed and uptime() <= worker.boots_until:
            return  # it had time left: it was killed with all others
        self._boot_failures += 1
        delay = pause(self._boot_failures, 0.25, 30.0)
        self._start_at = uptime() + delay
        logger.error("worker did not start node=%s cause=%s; next try in %g s", self._node, worker.end_text(), delay)

    def _cut_short(self, worker, assignment, duration):
        claim = assignment.claim
        queuetopia = by_scope()[claim.scope]
        if assignment.stopping == "JobTimeout":
            return jobs.failed(queuetopia, claim, exceptions.JobTimeout(timeout_text(claim)), duration=duration)
        if assignment.stopping == "JobCancelled":
            return Outcome(claim.job_id, claim.fence, Verdict.CANCEL, duration=duration)
        if worker.killed and not worker.closed and not worker.garbled:
            error = describe(exceptions.JobInterrupted(f"{self._node} cut it short; the attempt is not counted"))
            return Outcome(claim.job_id, claim.fence, Verdict.INTERRUPT, error=error, duration=duration)
        return jobs.failed(queuetopia, claim, exceptions.WorkerDied(worker.end_text()), duration=duration)

    def replace(self) -> None:
        """Start workers until as many serve as are wanted; slower and slower while they die at their start."""
        while self._missing() > 0 and uptime() >= self._start_at:
            worker = WorkerProcess.start(self.slots, self._descriptors(), self._verbosity, self._node_ids())
            worker.board.deadline = self.deadline
            self.workers.append(worker)

    def _missing(self):
        """Return how many workers may be started. While they die at their start, one tries whether they still do."""
        serving = [worker for worker in self.workers if worker.condemned_at is None and not worker.killed]
        missing = self.size - len(serving)
        if not self._boot_failures:
            return missing
        return min(missing, 1 if all(worker.ready for worker in serving) else 0)

    # Time out

    def time_out(self) -> None:
        """Stop attempts that outlived their timeout, then workers that do not yield; take back what waits behind."""
        now = uptime()
        for worker in list(self.workers):
            if now >= worker.check_at:
                self._check_times(worker, now)
            if worker not in self.workers:
                continue
            if worker.condemned_at is not None and (now >= worker.condemned_at or not worker.has_healthy_attempts()):
                self.kill(worker)
            elif worker.condemned_at is None and worker.telling and now >= worker.hook_ends_at():
                logger.error(
                    "a hook or receiver hangs, replacing its worker pid=%d untold=%d", worker.pid, worker.telling
                )
                worker.condemn(now + max([a.timeout for a in worker.assigned.values()], default=0.0))
            elif worker.is_stuck(now):
                worker.asked_back = True
                worker.send("give_back")

    def _check_times(self, worker, now):
        """Stop what is overdue, and set when to check again. The clock of an attempt starts when the attempt does."""
        running = worker.board.running()
        worker.check_at = float("inf")
        for assignment in list(worker.assigned.values()):
            if assignment.stop_until is None:
                due_at = running.get(assignment.ticket, now) + assignment.timeout
                if now >= due_at:
                    self.stop_attempt(worker, assignment, "JobTimeout")
                else:
                    worker.check_at = min(worker.check_at, due_at)
            elif now >= assignment.stop_until:
                worker.condemn(now + CONDEMNED_TIME)
            else:
                worker.check_at = min(worker.check_at, assignment.stop_until)

    def stop_attempt(self, worker, assignment, reason: str) -> None:
        """Stop a running attempt: alone in its process it is killed, else it is asked first."""
        assignment.stopping = reason
        if worker.board.slots == 1:
            self.kill(worker)
        else:
            worker.send("stop", assignment.ticket, reason)
            assignment.stop_until = uptime() + YIELD_TIME
            worker.check_at = min(worker.check_at, assignment.stop_until)

    def stop_jobs(self, store, job_ids: set[int]) -> None:
        """Stop the running attempts of these jobs because a person asked for it."""
        for worker in list(self.workers):
            for assignment in list(worker.assigned.values()):
                if worker not in self.workers:
                    break  # killed for the one before
                asked = assignment.store is store and assignment.claim.job_id in job_ids
                if asked and not assignment.stopping and assignment.ticket in worker.board.running():
                    self.stop_attempt(worker, assignment, "JobCancelled")

    def kill(self, worker) -> None:
        """Kill a worker now, and settle what it had in its hands; what it said before is heard."""
        worker.kill()
        worker.process.wait()
        for message in worker.receive():
            self._understand(worker, message)
        worker.closed = False
        self.bury(worker)

    def kill_all(self) -> None:
        if untold := sum(worker.telling for worker in self.workers):
            logger.warning("killed before their hooks had ended node=%s untold=%d", self._node, untold)
        for worker in self.workers:
            worker.kill()
        for worker in list(self.workers):
            self.kill(worker)
        self._boot_failures, self._start_at = 0, 0.0  # those that were still starting did not fail

    # What follows the commit

    def tell(self, ending: Ending) -> None:
        """Have the worker that ran the attempt, else any other, call the hooks and send the signals of its end."""
        worker, ticket = ending.teller
        if worker not in self.workers:
            worker, ticket = next((worker for worker in self.workers if worker.ready), None), 0
        if worker is None:
            self._untold.append(ending)
        else:
            worker.tell("news", ticket, ending.claim, ending.outcome)

    def may_tell(self) -> bool:
        """True when a worker has time for what any of them may tell."""
        return any(worker.ready and worker.telling < MOST_ALERTS for worker in self.workers)

    def tell_any(self, *message) -> None:
        """Have a worker that is ready tell what no attempt of its own has led to."""
        worker = min((worker for worker in self.workers if worker.ready), key=lambda worker: worker.telling)
        worker.tell(*message)

    def is_telling(self) -> bool:
        """True while hooks and signals of recorded ends are still to follow."""
        return bool(self._untold) or any(worker.telling for worker in self.workers)

    def forget(self, ending: Ending) -> None:
        """Tell the worker that no commit will follow: its result was refused."""
        worker, ticket = ending.teller
        if worker in self.workers:
            worker.send("forget", ticket)

    # For the loop

    def extend_lease(self, deadline: float) -> None:
        """Nothing starts in a worker after this uptime, unless it is moved on again."""
        self.deadline = deadline
        for worker in self.workers:
            worker.board.deadline = deadline

    def watch(self, selector) -> None:
        """Register the workers' channels, for writing too where something is left to send."""
        self.selector = selector
        for worker in self.workers:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.has_unsent() else 0)
            try:
                key = selector.get_key(worker.channel)
            except KeyError:
                selector.register(worker.channel, events, worker)
            else:
                if key.events != events:
                    selector.modify(worker.channel, events, worker)

    def timers(self):
        """Yield the uptimes at which something is to be done here."""
        if self._missing() > 0:
            yield self._start_at
        for worker in self.workers:
            yield worker.check_at
            if not worker.ready:
                yield worker.boots_until
            if worker.condemned_at is not None:
                yield worker.condemned_at
            elif worker.telling:
                yield worker.hook_ends_at()
            if worker.has_jobs_ahead():
                yield uptime() + 0.02

    def report(self) -> list[dict]:
        """Return each worker's pid and the jobs it runs, for the node's row."""
        return [{"pid": worker.pid, "jobs": worker.running_jobs()} for worker in self.workers]

    def say_goodbye(self) -> None:
        for worker in self.workers:
            worker.dismissed = True
            worker.send("bye")

    def all_ended(self) -> bool:
        for worker in self.workers:
            worker.flush()
        return all(worker.has_ended() for worker in self.workers)
