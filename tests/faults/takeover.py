"""How long a queue stands still when what runs its job goes away, each in its own way.

Two nodes; the first runs a job that does not end, then something happens to it. Measured is the time until the job's
next attempt begins, by the clock of the ledger.
"""

import os
import signal
import statistics
from pathlib import Path

from queuetopia.models import Node as Row
from queuetopia.testing import wait_until
from tests.nodes import Node, kill
from tests.testapp.queues import LedgerQueue

from .ledger import now
from .proxy import Proxy

PATIENCE = 120


class Round:
    """One takeover: two nodes, a job that the first of them runs, and what happens."""

    def __init__(self, campaign, name: str):
        self.campaign, self.queue = campaign, name
        self.server, self.ledger = campaign.server, campaign.ledger
        self.environment: dict[str, str] = {}
        self.proxy: Proxy | None = None
        self.first: Node
        self.second: Node

    def on_another_host(self):
        """Have the first node's file where no other node finds it, and a network between it and the database."""
        folder = Path(f"{self.ledger.path}.host")
        folder.mkdir(exist_ok=True)
        self.proxy = self.server.proxy()
        self.environment = {"TMPDIR": str(folder), "DATABASE_URL": self.server.url_by(self.proxy.port)}

    def measure(self, happen) -> float:
        """Return the seconds from what ``happen`` says, or from its call, to the next attempt."""
        LedgerQueue.create_job(self.queue, "write_when_told", {"seq": 0})
        self.first = self.campaign.nodes.start(LedgerQueue, processes=1, env=self.environment)
        self._wait_for_attempts(1)
        self.second = self.campaign.nodes.start(LedgerQueue, processes=1)
        self.second.wait_for_log("node started")
        wait_until(_workers_are_ready, PATIENCE)
        began = now()
        began = happen(self) or began
        return self._wait_for_attempts(2)[1].clock - began

    def _wait_for_attempts(self, count):
        starts = lambda: self.ledger.records("start", self.queue)  # noqa: E731
        return wait_until(lambda: len(found := starts()) >= count and found, PATIENCE, interval=0.005)

    def put_away(self):
        """End the job and the nodes."""
        if self.proxy:
            self.proxy.restore()
        self.first.send_all(signal.SIGCONT)
        self.ledger.go()
        wait_until(lambda: not LedgerQueue.jobs().unfinished().exists(), PATIENCE)
        self.campaign.nodes.put_away()
        Row.objects.all().delete()  # of nodes that were killed, and are nobody's in the next round
        os.unlink(f"{self.ledger.path}.go")


def _workers_are_ready():
    return Row.objects.filter(fenced_at=None).exclude(workers=[]).count() == 2


def kill_scheduler(round_):
    kill(round_.first.scheduler)


def kill_node(round_):
    round_.first.send_all(signal.SIGKILL)


def stop(round_):
    round_.first.send(signal.SIGTERM)


def end_sessions(round_):
    for session in round_.server.sessions("node"):
        round_.server.end(session)


def restart_database(round_):
    """Crash it; the time counts from when it answers again."""
    from django.db import connections

    round_.server.crash()
    round_.server.start()
    connections.close_all()
    return now()


def fail_over(round_):
    """To the standby; the time counts from when that is the primary."""
    from django.db import connections

    round_.server.fail_over()
    round_.server.promote()
    connections.close_all()
    return now()


def cut_network(round_):
    round_.proxy.cut()


def lose_host(round_):
    """No process is left, and none is notified."""
    round_.proxy.cut()
    round_.first.send_all(signal.SIGKILL)


def freeze_host(round_):
    round_.first.send_all(signal.SIGSTOP)


# What happens, to a node on another host or not, and what is promised.
CASES = {
    "clean end (SIGTERM, no grace)": (stop, False, "at once"),
    "scheduler killed": (kill_scheduler, False, "2 s"),
    "all processes of the node killed": (kill_node, False, "2 s"),
    "lock sessions ended by the server": (end_sessions, False, "at once"),
    "database crashed and restarted": (restart_database, False, "at once"),
    "database failed over to its standby": (fail_over, False, "at once"),
    "host frozen": (freeze_host, True, "lease"),
    "network cut without a FIN": (cut_network, True, "lease"),
    "host gone without a FIN": (lose_host, True, "lease"),
}
WITHOUT_SERVER = ("clean end", "scheduler killed", "all processes")


def measure(campaign, rounds: int, beginnings: tuple[str, ...] = ("",)):
    """Yield (what happened, what is promised, seconds of each round)."""
    for name, (happen, elsewhere, promise) in CASES.items():
        if not name.startswith(beginnings):
            continue
        if not campaign.server.has_sessions and not name.startswith(WITHOUT_SERVER):
            continue
        if happen is fail_over and not campaign.server.has_standby:
            continue
        taken = []
        for number in range(rounds):
            if happen is fail_over and not campaign.server.has_standby:
                campaign.server.add_standby()
            round_ = Round(campaign, f"{happen.__name__}-{number}")
            if elsewhere:
                round_.on_another_host()
            taken.append(round_.measure(happen))
            round_.put_away()
        yield name, promise, taken


def line(name, promise, taken):
    return f"{name:36} {statistics.median(taken):7.2f} s  {max(taken):7.2f} s   {promise}"
