"""One worker as its scheduler sees it: its process, its channel, and what it was handed."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from ..attempts import FAILURES, Claim, Outcome, Verdict
from ..channel import MAX_FRAME, SETTLE, Board, Frames, GarbledChannel, Message, encode, receive, uptime
from ..processes import MB, kill_marked, kill_tree, memory_of, start_child

logger = logging.getLogger(__name__)

BOOT_DEADLINE = 30.0  # seconds a worker may take until it is ready, while none has taken long
DYING_TIME = 0.2  # seconds between the end of a dying process's channel and its own
SHORT = 0.02  # seconds; jobs are handed out ahead that wait less for a slot, on average, so that no slot is idle
LONGEST_UNBEGUN = 0.2  # seconds; what a worker has not begun by then is taken back from it
LONGEST_SILENCE = 5.0  # seconds; a worker is replaced that runs nothing, and begins nothing for so long
MOST_AHEAD = 512  # jobs handed to a worker beyond those it can run at once
SHORTEST = 0.00005  # seconds; a shorter average is mostly the clock's error
MOST_NOTIFYING = 1_000  # ends whose hooks a worker may still have to call; then it gets no more jobs
SUSPECT = 3  # queues of which attempts fail in a row, after successes, make a worker suspect
ON_PURPOSE = ("Retry", "Halt", "Skip")  # what a performer raises to decide, by name
YIELD_TIME = 1.0  # seconds an attempt has to end after it was asked to stop
HOOK_TIME = 60.0  # seconds that the hooks and receivers of one end may take together


@dataclass
class Assignment:
    """A claim in a worker's hands."""

    ticket: int
    claim: Claim
    store: Any
    timeout: float
    handed_at: float = 0.0  # uptime
    stopping: str | None = None  # name of the exception by which it is being stopped
    stop_until: float | None = None  # uptime until which it may end after it was asked to


@dataclass
class WorkerProcess:
    """One worker: its process, its channel, its board, and what it was handed."""

    process: subprocess.Popen
    channel: socket.socket
    board: Board
    mark: str
    boots_until: float
    started_at: float = 0.0  # uptime
    ready: bool = False
    condemned_at: float | None = None  # uptime at which it is killed; it gets no new work before
    retires: bool = False  # it is to be replaced when it has nothing left to do
    used_up: bool = False  # it retires because it has run as many jobs, or takes as much memory, as it may
    dismissed: bool = False  # asked to end
    killed: bool = False  # by us: what it ran is not its own crash
    closed: bool = False  # its channel is no use any more
    garbled: bool = False  # because something else than our messages came
    deaf: bool = False  # nothing can be sent to it any more; what it said before is still to be heard
    assigned: dict[int, Assignment] = field(default_factory=dict)
    check_at: float = float("inf")  # uptime at which an attempt may be overdue
    asked_back: bool = False  # no jobs are handed ahead until one has ended
    settles_at: float | None = None  # uptime at which what was recalled last is taken
    silent_since: float | None = None  # uptime since which it begins nothing though a slot is free, and says nothing
    average: float | None = None  # seconds a job lasts, the recent ones weighing more
    attempts: int = 0  # that have ended in it
    refusals: int = 0  # claims in a row that it would not begin, though the lease stands
    has_succeeded: bool = False  # a job was done in it
    failed_queues: set[int] = field(default_factory=set)  # of its failures since then, by id
    notifying: int = 0  # ends whose hooks and signals it has not done with
    notifying_since: float = 0.0  # uptime since which it is at the first of them
    _frames: Frames = field(default_factory=lambda: Frames(MAX_FRAME))
    _unsent: deque = field(default_factory=deque)

    @classmethod
    def start(cls, options: dict, descriptors: list[int], nodes: list[uuid.UUID], boot_time: float) -> "WorkerProcess":
        """Start a worker process. Raise OSError if the system has no descriptor, process or memory left.

        options: its slots, and what else ``worker.process.main`` is to know.
        nodes: the ids of the node it belongs to, one in each database; by them a successor finds what it leaves.
        boot_time: seconds until it must be ready.
        """
        mark = " ".join(map(str, [uuid.uuid4(), *nodes]))
        with contextlib.ExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            with theirs, Board.create_file(options["slots"]) as file:
                options = {**options, "channel": theirs.fileno(), "board": file.fileno()}
                inherited = [theirs.fileno(), file.fileno(), *descriptors]
                process = start_child("worker", options, descriptors=inherited, session=True, mark=mark)
                undo.callback(process.wait)
                undo.callback(process.kill)
                board = Board(file.fileno(), options["slots"])  # last, because it takes one more descriptor
            undo.pop_all()
        ours.setblocking(False)
        now = uptime()
        return cls(process, ours, board, mark, boots_until=now + boot_time, started_at=now)

    @property
    def pid(self):
        return self.process.pid

    def fileno(self):
        return self.channel.fileno()

    # Room

    def room(self) -> int:
        """Return how many more jobs it may be handed."""
        if not self.ready or self.condemned_at is not None or self.killed or self.closed:
            return 0
        if self.notifying >= MOST_NOTIFYING or self.silent_since is not None:
            return 0
        return self.board.slots + self._ahead() - len(self.assigned)

    def _ahead(self):
        """Jobs worth handing out beyond the slots: as many as get one soon; none while nothing is known of them."""
        if self.average is None or self.asked_back:
            return 0
        return min(MOST_AHEAD, int(self.board.slots * SHORT / max(self.average, SHORTEST)))

    # What it has in its hands

    def assign(self, assignment: Assignment) -> None:
        self.assigned[assignment.ticket] = assignment
        self.check_at = min(self.check_at, assignment.handed_at + assignment.timeout)

    def release(self, ticket: int) -> bool:
        """Return whether it had this, which it has no more."""
        return self.assigned.pop(ticket, None) is not None

    def longest_timeout(self) -> float:
        return max([assignment.timeout for assignment in self.assigned.values()], default=0.0)

    def overdue(self, now: float) -> list[Assignment]:
        """Return the attempts past their timeout, or past the time to end after a stop; set the time of the next check.

        The clock of an attempt starts when the attempt does.
        """
        running, overdue = self.board.running(), []
        self.check_at = float("inf")
        for assignment in self.assigned.values():
            due_at = assignment.stop_until or running.get(assignment.ticket, now) + assignment.timeout
            if now >= due_at:
                overdue.append(assignment)
            else:
                self.check_at = min(self.check_at, due_at)
        return overdue

    def stop(self, assignment: Assignment, reason: str) -> None:
        """Ask it to stop a running attempt; one that is alone in its process is to be killed with it."""
        assignment.stopping = reason
        if self.board.slots > 1:
            self.send(Message.STOP, assignment.ticket, reason)
            assignment.stop_until = uptime() + YIELD_TIME
            self.check_at = min(self.check_at, assignment.stop_until)

    def running_jobs(self) -> list[int]:
        running = self.board.running()
        return sorted(assignment.claim.job_id for ticket, assignment in self.assigned.items() if ticket in running)

    def report(self) -> dict:
        """Return how it does, for the node's row."""
        age = round(uptime() - self.started_at)
        memory = memory_of(self.pid)
        return {
            "pid": self.pid,
            "jobs": self.running_jobs(),
            "attempts": self.attempts,
            "age": age,
            "memory": None if memory is None else memory // MB,
        }

    def has_unbegun(self) -> bool:
        """True while it may have jobs that it has not begun."""
        return self.settles_at is None and len(self.assigned) > len(self.board.running())

    def has_healthy_attempts(self) -> bool:
        """True while it runs attempts that are not being stopped."""
        return any(not assignment.stopping for assignment in self.assigned.values())

    def condemn(self, until: float) -> None:
        """Give it no new work; at this uptime it is killed."""
        if self.condemned_at is None:
            self.condemned_at = until

    def is_done_with(self) -> bool:
        """True when a condemned worker has nothing left that is worth waiting for."""
        return not self.retires and not self.has_healthy_attempts()

    def retire(self, *, used_up: bool = False) -> None:
        """It is to be replaced; what it runs may end."""
        self.retires, self.used_up = True, used_up

    def is_spoilt(self) -> bool:
        """True if it is replaced because jobs fail, or would fail, in it."""
        return self.retires and not self.used_up

    def dismiss(self, until: float | None = None) -> None:
        """Allow the worker to end; if it has not by the uptime ``until``, it is killed."""
        self.dismissed = True
        self.condemned_at = self.condemned_at if until is None else until
        self.send(Message.BYE)

    def note_ready(self) -> float:
        """Note that it has started; return how many seconds that took."""
        self.ready = True
        return uptime() - self.started_at

    def note_end(self, queue_id: int, outcome: Outcome, *, lease_stands: bool) -> None:
        """Note what an attempt's end says of it. What a job raised of ours on purpose says nothing."""
        self.asked_back = False
        if outcome.verdict == Verdict.RETURN:
            self.refusals += outcome.error is None and lease_stands
            return
        self.refusals = 0
        self.attempts += 1
        seconds = outcome.duration
        self.average = seconds if self.average is None else 0.8 * self.average + 0.2 * seconds
        if outcome.verdict == Verdict.DONE:
            self.has_succeeded = True
            self.failed_queues.clear()
        elif outcome.verdict in FAILURES and (outcome.error or {}).get("type", "") not in ON_PURPOSE:
            self.failed_queues.add(queue_id)

    def is_suspect(self) -> bool:
        """True when jobs succeeded in it, and now those of several queues fail in a row: one may have spoilt it.

        In a new worker nothing has succeeded yet. So where the fault is not the worker's, it is not replaced again.
        """
        return self.has_succeeded and len(self.failed_queues) >= SUSPECT

    def is_stuck(self, now: float) -> bool:
        """True when jobs wait behind some that turned out to be long, or wait for too long in other ways."""
        if not self.has_unbegun():
            return False
        running = self.board.running()
        first = next((a.handed_at for ticket, a in self.assigned.items() if ticket not in running), now)
        waits_behind = len(self.assigned) > self.board.slots
        has_begun_none = waits_behind and now - max([first, *running.values()]) > 2 * SHORT
        return has_begun_none or now - first > LONGEST_UNBEGUN

    def recall(self, ticket: int) -> None:
        """Take back all up to this ticket that it has not begun; ``recalled`` returns them after ``settles_at``."""
        self.board.recalled = ticket
        self.settles_at, self.asked_back = uptime() + SETTLE, True

    def settled(self, running: dict[int, float], now: float) -> list[int]:
        """Return the tickets of what was recalled and has not begun, given what runs."""
        self.settles_at = None
        recalled = [ticket for ticket in self.assigned if ticket <= self.board.recalled and ticket not in running]
        if recalled and len(running) < self.board.slots:
            self.silent_since = now
        return recalled

    def useless_from(self) -> float:
        """Return the uptime from which on it is of no use: it runs nothing, and begins nothing that it is handed."""
        if self.silent_since is None or self.assigned:
            return float("inf")
        return self.silent_since + LONGEST_SILENCE

    # What follows the commit

    def notify(self, *message) -> None:
        """Have it call the hooks and send the signals of an end, or of a queue that is still blocked."""
        if not self.notifying:
            self.notifying_since = uptime()
        self.notifying += 1
        self.send(*message)

    def note_notified(self) -> None:
        self.notifying, self.notifying_since = self.notifying - 1, uptime()

    def hook_ends_at(self) -> float:
        """Return the uptime until which its present hook must have ended."""
        return self.notifying_since + HOOK_TIME

    # Messages

    def extend_lease(self, deadline: float) -> None:
        """It starts nothing after this uptime, unless it is moved on again."""
        self.board.deadline = deadline

    def note_message(self) -> None:
        self.silent_since = None

    def distrust(self) -> None:
        """Something else than our messages came: nothing that it says counts any more."""
        self.closed = self.garbled = True

    def send(self, *message) -> None:
        self._unsent.append(memoryview(encode(message)))
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now; the rest follows when it is writable."""
        while self.has_unsent():
            try:
                sent = self.channel.send(self._unsent[0])
            except BlockingIOError:
                return
            except OSError:
                self.deaf = True
                return
            if sent == len(self._unsent[0]):
                self._unsent.popleft()
            else:
                self._unsent[0] = self._unsent[0][sent:]

    def has_unsent(self) -> bool:
        return bool(self._unsent) and not self.closed and not self.deaf

    def receive(self) -> list[list]:
        """Return the messages that have come. At its end, or when it is garbled, the channel is closed for good."""
        messages = []
        while not self.closed:
            try:
                received = receive(self.channel)
            except BlockingIOError:
                self.closed = self.deaf
                break
            except OSError:
                received = b""
            if not received:
                self.closed = True
                break
            try:
                messages += self._frames.feed(received)
            except GarbledChannel as exc:
                logger.error("worker's channel garbled pid=%d cause=%s", self.pid, exc)
                self.distrust()
        return messages

    # End

    def has_ended(self) -> bool:
        """Return whether the process is dead. It is not reaped yet: until then its group's number is its own."""
        if self.process.returncode is None and hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):
                return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return self.process.poll() is not None

    def is_dying(self) -> bool:
        """True when the channel ended because the process does: it is given the moment it needs for that."""
        if self.closed and not self.garbled:
            until = uptime() + DYING_TIME
            while not self.has_ended() and uptime() < until:
                time.sleep(0.002)
        return self.has_ended()

    def running(self) -> dict[int, float]:
        """Return {ticket: uptime of its start} of the attempts that it runs, or ran when it ended."""
        # Jobs are started in the order in which they were handed out.
        first = list(self.assigned)[: self.board.slots]
        if self.garbled:  # and the board, perhaps
            return dict.fromkeys(first, uptime())
        if not self.board.running() and self.ready and not self.killed:
            # It died before it began: perhaps of what it was to begin with, which would kill the next one too.
            return dict.fromkeys(first[:1], uptime())
        return self.board.running()

    def kill(self) -> None:
        """SIGKILL the worker, all below it, and its process group; nothing it does from here on counts."""
        if self.process.returncode is not None:
            return
        self.killed = self.killed or not self.has_ended()
        kill_tree(self.pid)
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def note_killed(self) -> None:
        """Its channel ended because it was killed, not by itself."""
        self.closed = False

    def bury(self) -> None:
        """Wait for the dead process, kill whatever it left running, and close what we shared."""
        self.kill()  # programs of its group outlive it
        self.process.wait()
        self.channel.close()  # first: the search for strays takes a descriptor, and there may be no other
        self.board.close()
        strays = kill_marked(self.mark.split()[0])
        if strays:
            logger.warning("worker left processes behind, killed pid=%d strays=%d", self.pid, strays)

    def end_text(self) -> str:
        """Say how the process ended, for the error of the attempt it took down."""
        code = self.process.returncode
        if self.garbled or (self.killed and self.closed):
            return f"worker {self.pid} closed or garbled its channel and was killed"
        if code < 0:
            name = signal.Signals(-code).name
            hint = " (out of memory?)" if name == "SIGKILL" else ""
            return f"worker {self.pid} was killed by {name}{hint}"
        return f"worker {self.pid} exited with code {code} before it reported a result"
