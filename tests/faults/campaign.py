"""A campaign: nodes under load, faults at random moments, and at the end a verdict.

Several nodes serve one scope and are hurt; one more, the heir, serves it and is not: whatever happens to the others, it
can take over. Another, the healthy one, serves a scope of its own in the same tables: its small jobs show how long a
queue stands still by what happens elsewhere. Of those that are hurt, one reaches the database through a proxy, and one
has a clock that is minutes off. Web processes create jobs all the time. A second installation beside ours, in another
schema, database or file, has a node, jobs and a ledger of its own.
"""

import os
import random
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from queuetopia.testing import wait_until
from tests.nodes import Node, Nodes

from .ledger import SIGNS, Ledger, Thaw, check, now
from .proxy import Proxy

REPOSITORY = Path(__file__).parents[2]
TICK = 0.02  # seconds between two steps of the campaign
PATIENCE = 120  # seconds that the nodes have at the end for what is left
IMPATIENCE = {
    "postgresql": "SET lock_timeout = '300ms'",
    "mysql": "SET SESSION lock_wait_timeout = 1, innodb_lock_wait_timeout = 1",
    "sqlite": "PRAGMA busy_timeout = 300",
}
WRONG_CLOCK = Path(__file__).parent / "wrong_clock"


@dataclass(eq=False)
class Member:
    """A node of the campaign, started again whenever it ends, as an init system does."""

    name: str
    campaign: "Campaign"
    environment: dict = field(default_factory=dict)
    proxy: Proxy | None = None
    has_wrong_clock: bool = False
    is_busy: bool = False  # some fault is at it
    node: Node = field(init=False)
    started_at: float = 0.0

    def start(self) -> None:
        """Start it, at first or again."""
        from tests.testapp.queues import LedgerQueue, PulseQueue

        scope = PulseQueue if self.name == "healthy" else LedgerQueue
        # The healthy one relies on wake-ups; the others soon find the jobs of a web process killed before its own.
        options = {"poll_interval": 60 if self.name == "healthy" else 2}
        dice = self.campaign.dice
        environment = {**self.environment, "QUEUETOPIA_TEST_LOG_GATE": str(self.log_gate)}
        if self.has_wrong_clock:
            environment["QUEUETOPIA_TEST_CLOCK"] = str(dice.choice([-1, 1]) * dice.randint(120, 900))
            environment["PYTHONPATH"] = os.pathsep.join(map(str, [WRONG_CLOCK, REPOSITORY]))
        workers = self.campaign.workers
        self.started_at = now()
        self.node = self.campaign.nodes.start(
            scope, processes=workers, grace=dice.choice([0, 0.2, 2]), env=environment, **options
        )

    @property
    def log_gate(self) -> Path:
        """The file that blocks this node's log while it exists."""
        return self.campaign.folder / f"{self.name}.gate"

    def could_reach_its_database(self) -> bool:
        """True if nothing was done to the database since its start, when it checks its tables."""
        return not any(until > self.started_at for _, until in self.campaign.outages)

    def freeze(self, pids) -> Thaw:
        """Stop these processes; what they do after they are thawed is known to be late."""
        for pid in pids:
            _send(pid, signal.SIGSTOP)
        thaw = Thaw(frozenset(pids), now(), float("inf"))
        self.campaign.thaws.append(thaw)
        return thaw

    def thaw(self, thaw: Thaw) -> None:
        self.campaign.thaws[self.campaign.thaws.index(thaw)] = thaw._replace(thawed_at=now())
        for pid in thaw.pids:
            _send(pid, signal.SIGCONT)


def _send(pid, number):
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Injected(NamedTuple):
    """A fault, when it was made, and the processes that it could hit."""

    kind: str
    clock: float
    pids: frozenset[int]


class Campaign:
    def __init__(
        self, server, folder: Path, *, seed: int, lease: float, nodes: int = 5, workers: int = 2, pace: float = 1
    ):
        self.server = server
        self.dice = random.Random(seed)
        self.lease, self.workers, self.pace, self.folder = lease, workers, pace, folder
        self.ledger = Ledger(folder / "ledger")
        self.temporary = folder / "tmp"  # the nodes' files
        self.temporary.mkdir()
        environment = {"TMPDIR": str(self.temporary)}
        self.nodes = Nodes(environment_of(server, folder, lease) | self.ledger.environment | environment, folder)
        self.neighbour = Neighbour(self)
        self.thaws: list[Thaw] = []
        self.injected: list[Injected] = []
        self.outages: list[list[float]] = []  # of the database: since when, until when
        self.wrong: list[str] = []
        victims = [f"victim-{number}" for number in range(1, nodes - 1)]
        self.members = [Member(name, self) for name in ["healthy", "heir", *victims]]
        self.victims = self.members[2:]
        self._arm()
        self._running: list = []  # faults under way
        self._writers: list[Node] = []

    def _arm(self):
        """Give two victims what hurts them all the time: a proxy, a wrong clock."""
        if self.server.has_sessions:
            self.victims[-1].proxy = self.server.proxy()
            self.victims[-1].environment["DATABASE_URL"] = self.server.url_by(self.victims[-1].proxy.port)
            # On SQLite all processes, the database among them, have one host's clock.
            self.victims[0].has_wrong_clock = True

    # Load and faults

    def run(self, kinds: dict, seconds: float, watch: Callable[[], None] = lambda: None) -> None:
        """Hurt the nodes for so long; each kind once at least, if there is time for it. ``watch`` is called often."""
        self._start()
        until = now() + seconds
        ahead: list[str] = []
        next_at = now() + 2 * self.pace  # the first faults hit nodes that start
        while now() < until:
            self._step()
            watch()
            if now() >= next_at:
                ahead = ahead or self.dice.sample(sorted(kinds), len(kinds))
                self._inject(kinds, ahead)
                next_at = now() + self.pace * self.dice.uniform(0.4, 1.6)
            time.sleep(TICK)
        self._come_to_rest()

    def _start(self):
        self._writers.append(self.neighbour.start())
        for member in self.members:
            member.start()
        self.members[0].node.wait_for_log("node started")
        writer = [sys.executable, "-m", "tests.faults.web"]
        for name, queues, pace in [("web-a", 6, 0.03), ("web-b", 6, 0.03), ("pulse", 5, 0.1), ("lock", 3, 0.7)]:
            # Only the web processes' sessions are ended by faults.
            url = self.server.url("web" if name.startswith("web") else "admin")
            self._writers.append(self.nodes.run([*writer, name, str(queues), str(pace)], env={"DATABASE_URL": url}))

    def _inject(self, kinds, ahead):
        """Begin the first fault of those ahead that can happen now."""
        members = {member: pids_of(member.node) for member in self.members if not member.is_busy}
        for kind in list(ahead):
            fault = kinds[kind](self)
            try:
                pause = next(fault)
            except StopIteration:
                continue  # its victim is busy, or gone: later
            ahead.remove(kind)
            hurt = [members[member] for member in members if member.is_busy] or list(members.values())
            self.injected.append(Injected(kind, now(), frozenset[int]().union(*hurt)))
            self._running.append((now() + (pause or 0), fault))
            return

    def _step(self):
        """Go on with the faults under way, and start again what has ended."""
        for entry in [entry for entry in self._running if entry[0] <= now()]:
            self._running.remove(entry)
            with suppress(StopIteration):
                pause = next(entry[1])
                self._running.append((now() + (pause or 0), entry[1]))
        for member in self.members:
            if not member.is_busy and member.node.has_ended():
                if member.could_reach_its_database():
                    self.wrong.append(f"{member.name} ended by itself: {member.node.log()[-2000:]}")
                member.start()

    def pick(self, *, by_proxy=False) -> Member | None:
        """Return a member that may be hurt now."""
        free = [member for member in self.victims if not member.is_busy and (member.proxy or not by_proxy)]
        return self.dice.choice(free) if free else None

    def _come_to_rest(self):
        """Let what is under way end, create nothing more, and have all jobs done."""
        from django.db import connections

        deadline = now() + PATIENCE
        while self._running and now() < deadline:
            self._step()
            time.sleep(TICK)
        for ledger in (self.ledger, self.neighbour.ledger):
            Path(f"{ledger.path}.enough").touch()
        for writer in self._writers:
            if writer.wait() != 0:
                self.wrong.append(f"a web process failed: {writer.log()[-2000:]}")
        connections.close_all()
        self.wrong += self.neighbour.come_to_rest()
        try:
            wait_until(self._is_empty, PATIENCE, interval=0.1)
        except AssertionError:
            self.wrong += _stuck()
        for member in self.members:
            if (code := member.node.stop()) != 0:
                self.wrong.append(f"{member.name} ended with code {code}: {member.node.log()[-2000:]}")
        try:
            self.nodes.put_away()
        except AssertionError as exc:
            self.wrong.append(str(exc))

    def _is_empty(self):
        from queuetopia.models import Job

        self.ask(self.retry_refused)
        return not Job.objects.unfinished().exists()

    # What an operator does

    @property
    def database_errors(self) -> tuple[type[Exception], ...]:
        """What the database may answer while it is hurt: Django's errors, and those of its driver."""
        from django.db import DatabaseError, InterfaceError

        return DatabaseError, InterfaceError, self.server.error

    def ask(self, act: Callable[[], None]) -> bool:
        """Do something to the database as an administrator; False if it could not be done now."""
        from django.db import connection

        try:
            with connection.cursor() as cursor:
                cursor.execute(IMPATIENCE[connection.vendor])  # it may be this very process that holds the lock
            act()
        except self.database_errors:
            connection.close()
            return False
        return True

    def retry_refused(self) -> None:
        """Retry the jobs that halted because the database refused their result."""
        from queuetopia.attempts import REFUSED
        from tests.testapp.queues import LedgerQueue

        for job in LedgerQueue.jobs().filter(state="halted", error__contains=REFUSED):
            LedgerQueue.retry(job)

    # What came of it

    def counts(self) -> Counter:
        return Counter(fault.kind for fault in self.injected)


class Neighbour:
    """A second installation beside ours: nothing that happens to one concerns the other."""

    def __init__(self, campaign):
        self.ledger = Ledger(campaign.folder / "neighbours-ledger")
        self._nodes = campaign.nodes
        self._environment = {**self.ledger.environment, "DATABASE_URL": campaign.server.neighbour()}

    def start(self) -> Node:
        """Start its node, and return the process that creates its jobs; its queues are named as those of ours."""
        migrate = [sys.executable, "-m", "django", "migrate", "--run-syncdb", "--verbosity=0"]
        if self._nodes.run(migrate, env=self._environment).wait(2 * PATIENCE) != 0:
            raise RuntimeError("the neighbour's tables could not be made")
        self._node = self._serve()
        return self._nodes.run([sys.executable, "-m", "tests.faults.web", "pulse", "5", "0.1"], env=self._environment)

    def come_to_rest(self) -> list[str]:
        """Have its jobs done, and return what was wrong with them."""
        codes = self._node.stop(), self._serve(until_empty=True).wait(PATIENCE)
        records = [record for record in self.ledger.records() if record.event in SIGNS]
        lines = defaultdict(list)
        for record in records:
            if record.number not in lines[record.queue]:
                lines[record.queue].append(record.number)
        wrong = check(records, dict(lines)).wrong
        wrong += [f"a node ended with code {code}: {self._node.log()[-2000:]}" for code in codes if code != 0]
        return [f"neighbour: {sentence}" for sentence in wrong]

    def _serve(self, **options):
        from tests.testapp.queues import PulseQueue

        return self._nodes.start(PulseQueue, processes=1, env=self._environment, **options)


def _stuck():
    from queuetopia.models import Job, Queue

    for job in Job.objects.unfinished().order_by("id")[:5]:
        queue = Queue.objects.filter(scope=job.scope, name=job.queue).values().first()
        yield f"stuck: job {job.pk} {job.state} next {job.next_attempt_at} in {queue}"


def environment_of(server, folder, lease):
    return {
        **os.environ,
        "DATABASE_URL": server.url("node"),
        "OTHER_DATABASE_URL": f"sqlite:///{folder}/other.sqlite3",
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "PYTHONPATH": str(REPOSITORY),
        "QUEUETOPIA_TEST_LEASE": str(lease),
        "TMPDIR": str(folder),  # the nodes' files; other tests' nodes are none of ours
    }


def pids_of(node: Node, role: str | None = None) -> list[int]:
    """Return the pids of a node's processes, all or those of one role; none if it is gone."""
    if role == "supervisor":
        return [node.supervisor] if psutil.pid_exists(node.supervisor) else []
    return node._with_role(role) if role else [process.pid for process in node.processes()]
