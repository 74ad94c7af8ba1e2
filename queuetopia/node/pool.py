"""All workers of a node: hand out, collect, time out, bury the dead, replace them.

The claims it hands out, and their endings, stand in the node's ledger: ``Hands``.
"""

import contextlib
import logging
import selectors
from collections.abc import Callable
from uuid import UUID

from .. import exceptions, jobs
from ..attempts import Outcome, Verdict, checked, describe
from ..backends.values import Ending
from ..channel import Message, uptime
from ..processes import kill_adopted
from ..registry import by_scope
from ..repeats import Repeats, pause
from ..text import visible
from .cpus import usable_cpus
from .hands import Hands
from .worker_process import BOOT_DEADLINE, HOOK_TIME, SHORT, Assignment, WorkerProcess

logger = logging.getLogger(__name__)

MOST_ALERTS = 100  # ends and alerts a worker may have to send; then it gets no more alerts
MOST_REFUSALS = 3  # claims in a row that a worker may refuse to begin while the lease stands
LONGEST_BOOT = 600.0  # seconds that a worker may take to get ready at most
SUSPECTS_APART = 10.0  # seconds between two replacements of suspect workers, doubled by each …
LONGEST_SUSPECTS_APART = 600.0  # … up to this; as long without any, and it begins anew
CONDEMNED_TIME = 5.0  # seconds a worker's other attempts have to end when one of them does not


class Pool:
    def __init__(
        self,
        hands: Hands,
        *,
        size: int,
        slots: int,
        verbosity: int,
        max_jobs: int | None = None,
        max_memory: int | None = None,
        node: str,
        descriptors: Callable[[], list[int]],
        node_ids: Callable[[], list[UUID]],
    ):
        self.size = size
        self.workers: list[WorkerProcess] = []
        self.deadline = 0.0
        self.selector = selectors.DefaultSelector()
        self._hands, self._node = hands, node
        self._options = {"slots": slots, "verbosity": verbosity, "max_jobs": max_jobs, "max_memory": max_memory}
        self._descriptors, self._node_ids = descriptors, node_ids
        self._boot_failures = 0
        self._start_at = 0.0
        self._boot_time = BOOT_DEADLINE
        self._cpus = usable_cpus()
        self._repeats = Repeats()
        self._suspects = 0  # workers replaced because they were suspect, in a row
        self._next_suspect_at = 0.0  # uptime
        self._unnotified: list[Ending] = []  # ends whose worker is dead: any other calls their hooks

    # Hand out

    def room(self) -> int:
        """Return how many more claims the workers have room for."""
        return sum(max(0, worker.room()) for worker in self.workers)

    def is_busy(self) -> bool:
        """True while no worker has a slot with nothing to run."""
        return all(len(worker.assigned) >= worker.board.slots for worker in self.workers)

    def has_more_than_it_runs(self) -> bool:
        """True while jobs wait here for a slot: another node may have a free one."""
        return len(self._hands.in_flight) > sum(worker.board.slots for worker in self.workers)

    def hand_out(self) -> None:
        """Give what waits longest to the least busy workers with room, one message each."""
        waiting = self._hands.waiting
        rooms = {worker.pid: worker.room() for worker in self.workers} if waiting else {}
        batches: dict[int, tuple[WorkerProcess, list]] = {}
        while waiting:
            free = [worker for worker in self.workers if rooms[worker.pid] > 0]
            if not free:
                break
            worker = min(free, key=lambda worker: len(worker.assigned))
            rooms[worker.pid] -= 1
            assignment = self._assign(worker)
            batches.setdefault(worker.pid, (worker, []))[1].append((assignment.ticket, assignment.claim))
        for worker, batch in batches.values():
            worker.send(Message.RUN, batch)

    def _assign(self, worker):
        ticket, store, claim = self._hands.hand_over()
        timeout = claim.timeout or by_scope()[claim.scope].option("timeout")
        assignment = Assignment(ticket, claim, store, timeout, uptime())
        worker.assign(assignment)
        return assignment

    def wind_down(self) -> None:
        """Start no more workers, and take back all jobs that have not been started."""
        self.size = 0
        for worker in self.workers:
            self.recall(worker)

    def recall(self, worker) -> None:
        """Take back what the worker has not begun, a moment later: see ``Board``."""
        worker.recall(self._hands.last_ticket)

    def _settle(self, worker, now) -> None:
        """Take what was recalled and has not begun: what stands in no slot, and of which nothing was said."""
        running = worker.board.running()
        for message in worker.receive():
            self._understand(worker, message)
        self._put_back(worker, worker.settled(running, now))

    def _put_back(self, worker, tickets):
        """Take claims that the worker has not begun out of its hands."""
        self._hands.put_back([ticket for ticket in tickets if worker.release(ticket)])

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
                self._boot_time = min(2 * self._boot_time, LONGEST_BOOT)
                self.kill(worker)

    def hear(self) -> None:
        """Read what the workers say, and nothing else."""
        for worker in self.workers:
            for message in worker.receive():
                self._understand(worker, message)

    def _understand(self, worker, message):
        worker.note_message()
        match message:
            case [Message.READY, _]:
                self._note_start(worker)
                unnotified, self._unnotified = self._unnotified, []
                for ending in unnotified:
                    self.notify(ending)
            case [Message.END, int(ticket), [*outcome]] if len(outcome) == len(Outcome._fields):
                try:
                    self._ended(worker, ticket, checked(Outcome._make(outcome)))
                except ValueError as exc:
                    self._garbled(worker, exc)
            case [Message.NOTIFIED]:
                worker.note_notified()
            case [Message.RETIRING, str(why)]:
                self._retire(worker, logging.ERROR, visible(why[:500]))
            case [Message.USED_UP, str(why)]:
                self._retire_used_up(worker, visible(why[:500]))
            case [Message.RETURNED, [*tickets]]:
                self._put_back(worker, tickets)
            case _:
                self._garbled(worker, message[0])

    def _garbled(self, worker, what):
        logger.error("worker sent an unknown message pid=%d what=%.200r", worker.pid, str(what))
        worker.distrust()

    def _note_start(self, worker):
        took = worker.note_ready()
        self._boot_time = max(self._boot_time, min(4 * took, LONGEST_BOOT))
        # One that starts does not mean that all would: go on carefully until all serve.
        self._boot_failures //= 2
        serving = self._serving()
        if len(serving) >= self.size and all(other.ready for other in serving):
            self._boot_failures = 0

    def _ended(self, worker, ticket, outcome):
        assignment = worker.assigned.get(ticket)
        if assignment is None:
            return
        worker.release(ticket)
        if outcome.fence != assignment.claim.fence:
            self._hands.drop(ticket)
            return
        worker.note_end(assignment.claim.queue_id, outcome, lease_stands=uptime() < self.deadline)
        self._replace_if_suspect(worker)
        if worker.refusals >= MOST_REFUSALS and worker.condemned_at is None:
            # It begins nothing because the lease is over, which it is not: its clock is wrong.
            logger.error("worker takes the lease for over again and again, replacing it pid=%d", worker.pid)
            self._condemn(worker, uptime() + CONDEMNED_TIME)
        self._hands.end(ticket, outcome, (worker, ticket) if outcome.wants_news else None)

    def _replace_if_suspect(self, worker):
        now = uptime()
        if worker.condemned_at is not None or now < self._next_suspect_at or not worker.is_suspect():
            return
        if now >= self._next_suspect_at + LONGEST_SUSPECTS_APART:
            self._suspects = 0
        self._next_suspect_at = now + pause(self._suspects, SUSPECTS_APART, LONGEST_SUSPECTS_APART)
        self._suspects += 1
        why = f"attempts of {len(worker.failed_queues)} queues failed in it one after the other, after others succeeded"
        self._retire(worker, logging.WARNING, why)

    def _retire(self, worker, level, why):
        """Replace a worker in which jobs fail, or would fail, by no fault of theirs. What it runs may end."""
        if worker.condemned_at is not None:
            return
        self._repeats.log(
            logger, level, "worker replaced node=%s pid=%d because %s", self._node, worker.pid, why, cause=why
        )
        worker.retire()
        self._condemn(worker, uptime() + worker.longest_timeout() + CONDEMNED_TIME)

    def _retire_used_up(self, worker, why):
        """Replace a worker with which nothing is wrong. What it runs, and its hooks and receivers, may end."""
        if worker.condemned_at is not None:
            return
        self._repeats.log(
            logger, logging.INFO, "worker used up, replaced node=%s pid=%d because %s", self._node, worker.pid, why
        )
        worker.retire(used_up=True)
        self._condemn(worker, uptime() + worker.longest_timeout() + HOOK_TIME)

    def bury(self, worker) -> None:
        """Turn what a dead or useless worker had in its hands into outcomes; what it had not started is given back."""
        running = worker.running()
        self.workers.remove(worker)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(worker.channel)
        if not worker.is_dying():
            worker.kill()
        worker.bury()
        if strays := kill_adopted({worker.pid for worker in self.workers}):
            logger.warning("worker left programs behind, killed pid=%d strays=%d", worker.pid, strays)
        self._put_back(worker, [ticket for ticket in worker.assigned if ticket not in running])
        for ticket, assignment in list(worker.assigned.items()):
            worker.release(ticket)
            outcome = self._cut_short(worker, assignment, uptime() - running[ticket])
            # Every worker calls the hooks: the scheduler does not know which receivers there are.
            self._hands.end(ticket, outcome, (None, 0))
        self._note_death(worker)

    def _note_death(self, worker):
        if worker.ready:
            if worker.is_spoilt() and not worker.has_succeeded:
                self._start_later("it was replaced before a job was done in it", "replaced")
            else:
                self._start_at = 0.0  # what it had is free for its successor
            has_left = worker.dismissed and worker.process.returncode == 0
            if (worker.closed or not worker.killed) and not has_left:
                logger.warning("worker died node=%s cause=%s", self._node, worker.end_text())
            return
        if worker.killed and not worker.closed and uptime() <= worker.boots_until:
            return  # it had time left: it was killed with all others
        cause, kind = worker.end_text(), str(worker.process.returncode)
        if worker.killed and not worker.closed:
            limit = worker.boots_until - worker.started_at
            cause, kind = f"not ready within {limit:g} s, because the machine is busy or an import hangs", "not ready"
        self._start_later(cause, kind)

    def _start_later(self, cause, kind):
        """A worker could not be started. Those that run go on, and the next one is started later and later."""
        self._boot_failures += 1
        delay = pause(self._boot_failures, 0.25, 30.0)
        self._start_at = uptime() + delay
        self._repeats.log(
            logger, logging.ERROR, "worker did not start node=%s workers=%d wanted=%d cause=%s; next try in %g s",
            self._node, len(self._serving()), self.size, cause, delay, cause=kind,
        )  # fmt: skip

    def _cut_short(self, worker, assignment, duration):
        claim = assignment.claim
        queuetopia = by_scope()[claim.scope]
        if assignment.stopping == "JobTimeout":
            return jobs.failed(queuetopia, claim, exceptions.JobTimeout(jobs.timeout_text(claim)), duration=duration)
        if assignment.stopping == "JobCancelled":
            return Outcome(claim.job_id, claim.fence, Verdict.CANCEL, duration=duration)
        if worker.killed and not worker.closed and not worker.garbled:
            error = describe(exceptions.JobInterrupted(f"{self._node} cut it short; the attempt is not counted"))
            return Outcome(claim.job_id, claim.fence, Verdict.INTERRUPT, error=error, duration=duration)
        return jobs.failed(queuetopia, claim, exceptions.WorkerDied(worker.end_text()), duration=duration)

    def replace(self) -> None:
        """Start workers until as many serve as are wanted; slower and slower while they die at their start."""
        while self._missing() > 0 and uptime() >= self._start_at:
            descriptors, node_ids = self._descriptors(), self._node_ids()
            try:
                worker = WorkerProcess.start(self._options, descriptors, node_ids, self._boot_time)
            except (OSError, MemoryError) as exc:  # no descriptor, process, memory or temporary folder is left
                self._start_later(repr(exc), repr(exc))
                return
            worker.extend_lease(self.deadline)
            self.workers.append(worker)

    def _serving(self):
        return [worker for worker in self.workers if worker.condemned_at is None and not worker.killed]

    def _missing(self):
        """Return how many workers may be started now: no more at once than there are CPUs for.

        While they die at their start, one at a time tries whether they still do.
        """
        serving = self._serving()
        at_once = 1 if self._boot_failures else self._cpus
        return min(self.size - len(serving), at_once - sum(not worker.ready for worker in serving))

    # Time out

    def time_out(self) -> None:
        """Stop attempts that outlived their timeout, then workers that do not yield; take back what waits behind."""
        now = uptime()
        for worker in list(self.workers):
            if now >= worker.check_at:
                self._check_times(worker, now)
            if worker not in self.workers:
                continue
            if worker.settles_at is not None and now >= worker.settles_at:
                self._settle(worker, now)
            if worker.retires and not worker.dismissed and not self._has_work(worker):
                worker.dismiss(until=now + CONDEMNED_TIME)
            if worker.condemned_at is not None and (now >= worker.condemned_at or worker.is_done_with()):
                self.kill(worker)
            elif worker.condemned_at is None and worker.notifying and now >= worker.hook_ends_at():
                logger.error(
                    "a hook or receiver hangs, replacing its worker pid=%d unnotified=%d", worker.pid, worker.notifying
                )
                self._condemn(worker, now + worker.longest_timeout())
            elif now >= worker.useless_from():
                logger.error("worker runs nothing and begins nothing, replacing it pid=%d", worker.pid)
                self.kill(worker)
            elif worker.is_stuck(now):
                self.recall(worker)

    def _has_work(self, worker):
        return bool(worker.assigned or worker.notifying) or (worker.used_up and self._hands.awaits(worker))

    def _check_times(self, worker, now):
        """Stop what is overdue; what was asked to end and does not takes its worker with it."""
        for assignment in worker.overdue(now):
            if worker not in self.workers:
                return  # killed for the one before
            if assignment.stop_until is None:
                self.stop_attempt(worker, assignment, "JobTimeout")
            else:
                self._condemn(worker, now + CONDEMNED_TIME)

    def _condemn(self, worker, until):
        worker.condemn(until)
        self.recall(worker)

    def stop_attempt(self, worker, assignment, reason: str) -> None:
        """Stop a running attempt: alone in its process it is killed, else it is asked first."""
        worker.stop(assignment, reason)
        if worker.board.slots == 1:
            self.kill(worker)

    def stop_jobs(self, store, job_ids: set[int]) -> None:
        """Stop the running attempts of these jobs, as an operator asked."""
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
        worker.note_killed()
        self.bury(worker)

    def kill_all(self) -> None:
        if unnotified := sum(worker.notifying for worker in self.workers):
            logger.warning("killed before their hooks had ended node=%s unnotified=%d", self._node, unnotified)
        for worker in self.workers:
            worker.kill()
        for worker in list(self.workers):
            self.kill(worker)
        self._boot_failures, self._start_at = 0, 0.0  # those that were still starting did not fail

    # What follows the commit

    def notify(self, ending: Ending) -> None:
        """Have the worker that ran the attempt, else any other, call the hooks and send the signals of its end."""
        worker, ticket = ending.notifier
        if worker not in self.workers or worker.is_spoilt():
            worker, ticket = next(iter(self._notifiers()), None), 0
        if worker is None:
            self._unnotified.append(ending)
        else:
            worker.notify(Message.NEWS, ticket, ending.claim, ending.outcome)

    def may_notify(self) -> bool:
        """True when a worker has time for alerts."""
        return any(worker.notifying < MOST_ALERTS for worker in self._notifiers())

    def notify_any(self, *message) -> None:
        """Give an alert to a worker that is ready."""
        worker = min(self._notifiers(), key=lambda worker: worker.notifying)
        worker.notify(*message)

    def _notifiers(self):
        return [worker for worker in self.workers if worker.ready and not worker.retires]

    def is_notifying(self) -> bool:
        """True while hooks and signals of recorded ends are still to follow."""
        return bool(self._unnotified) or any(worker.notifying for worker in self.workers)

    def forget(self, ending: Ending) -> None:
        """Send the worker word that no commit will follow: its result was refused."""
        worker, ticket = ending.notifier
        if worker in self.workers:
            worker.send(Message.FORGET, ticket)

    # For the loop

    def extend_lease(self, deadline: float) -> None:
        """Nothing starts in a worker after this uptime, unless it is moved on again."""
        self.deadline = deadline
        for worker in self.workers:
            worker.extend_lease(deadline)

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
            elif worker.notifying:
                yield worker.hook_ends_at()
            if worker.settles_at is not None:
                yield worker.settles_at
            elif worker.has_unbegun():
                yield uptime() + SHORT
            yield worker.useless_from()

    def report(self) -> list[dict]:
        """Return how each worker does, for the node's row."""
        given = {"max_attempts": self._options["max_jobs"], "max_memory": self._options["max_memory"]}
        most = {name: value for name, value in given.items() if value}
        return [worker.report() | most for worker in self.workers]

    def say_goodbye(self) -> None:
        for worker in self.workers:
            worker.dismiss()

    def all_ended(self) -> bool:
        for worker in self.workers:
            worker.flush()
        return all(worker.has_ended() for worker in self.workers)
