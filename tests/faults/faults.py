"""The faults. Each is a generator: it yields the seconds until it goes on, and does nothing if it cannot happen now.

``stop`` and its kin are no faults, but what deployments do all day.
"""

import os
import resource
import shutil
import signal
from contextlib import contextmanager, suppress

from tests.refusing import allow_rows, refuse_rows

from .campaign import Campaign, pids_of
from .ledger import now

ROLES = ("worker", "scheduler", "supervisor", "node")


def kinds(server) -> dict:
    """Return the faults that can be made on this database, by name."""
    found = {f"kill-{role}": _kill(role) for role in ROLES}
    found |= {f"freeze-{role}": _freeze(role) for role in ROLES}
    found |= {"stop": stop, "stop-twice": stop_twice, "twins": twins, "rolling-restart": rolling_restart}
    found |= {"refuse-writes": refuse_writes, "refuse-row": refuse_row, "lock-tables": lock_tables}
    found |= {"block-logs": block_logs, "suspend": suspend}
    found |= {"no-descriptors": no_descriptors, "no-temporary-folder": no_temporary_folder}
    if server.has_sessions:
        found |= {"cancel-statements": cancel_statements}
        found |= {"end-session": end_session, "end-web-session": end_web_session, "crash-database": crash_database}
        found |= {"cut-network": cut_network, "slow-network": slow_network}
    if server.has_standby:
        found |= {"fail-over": fail_over}
    return found


@contextmanager
def _at(member):
    member.is_busy = True
    try:
        yield member
    finally:
        member.is_busy = False


def _kill(role):
    def kill(campaign: Campaign):
        member = campaign.pick()
        pids = pids_of(member.node, None if role == "node" else role) if member else []
        if not pids:
            return
        with _at(member):
            for pid in pids if role == "node" else [campaign.dice.choice(pids)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            yield 0
            if role in ("supervisor", "node"):
                yield from _start_again(campaign, member)

    return kill


def _freeze(role):
    """SIGSTOP for longer than the lease, then SIGCONT."""

    def freeze(campaign: Campaign):
        member = campaign.pick()
        pids = pids_of(member.node, None if role == "node" else role) if member else []
        if not pids:
            return
        with _at(member):
            thaw = member.freeze(pids if role == "node" else [campaign.dice.choice(pids)])
            yield campaign.lease * campaign.dice.uniform(1.05, 1.4)
            member.thaw(thaw)

    return freeze


def _start_again(campaign, member):
    """Wait until nothing is left of the killed node, and start it again."""
    for _ in range(200):
        if member.node.is_gone():
            break
        yield 0.05
    else:
        left = pids_of(member.node)
        campaign.wrong.append(f"{member.name}: processes {left} outlived their supervisor for 10 s")
    member.start()


def stop(campaign):
    """SIGTERM at any moment: also to a node that is starting."""
    yield from _stop(campaign, signals=1)


def stop_twice(campaign):
    yield from _stop(campaign, signals=2)


def _stop(campaign, signals):
    member = campaign.pick()
    if member is None:
        return
    with _at(member):
        for _ in range(signals):
            with suppress(ProcessLookupError):
                member.node.send(signal.SIGTERM)
            yield campaign.dice.uniform(0, 0.3)
        yield from _start_again(campaign, member)
        yield campaign.dice.uniform(0, 2)  # still ours: the next fault may be another stop, during its start
        if campaign.dice.random() < 0.5:
            member.node.send(signal.SIGTERM)
            yield from _start_again(campaign, member)


def twins(campaign):
    """Two nodes more, started at the same moment."""
    from tests.testapp.queues import LedgerQueue

    pair = [campaign.nodes.start(LedgerQueue, processes=1) for _ in range(2)]
    yield campaign.lease
    for node in pair:
        node.send(signal.SIGTERM)
    while not all(node.is_gone() for node in pair):
        yield 0.05


def rolling_restart(campaign):
    """Each node that is not busy with something else, one after the other, under load."""
    for member in campaign.victims:
        if member.is_busy:
            continue
        with _at(member):
            member.node.send(signal.SIGTERM)
            yield 0.05
            yield from _start_again(campaign, member)
            yield 0.5


def end_session(campaign):
    """Of any node: also of the one that is healthy otherwise."""
    with _outage(campaign):
        ended = campaign.server.is_up and campaign.server.end_session("node", campaign.dice)
    if ended:
        yield 0


def end_web_session(campaign):
    if campaign.server.is_up and campaign.server.end_session("web", campaign.dice):
        yield 0


def crash_database(campaign):
    if not campaign.server.is_up:
        return
    with _outage(campaign):
        campaign.server.crash()
        yield campaign.dice.uniform(0, 1.5)
        campaign.server.start()


def fail_over(campaign):
    """The primary is gone, and its address leads to the standby, which becomes the primary after a while."""
    server = campaign.server
    if not (server.is_up and server.has_standby):
        return
    with _outage(campaign):
        server.fail_over()
        yield campaign.dice.uniform(0, 1.5)
        server.promote()
    yield campaign.lease
    while not server.is_up:
        yield 0.05
    server.add_standby()


def refuse_writes(campaign):
    """A full disk, or a database that has become read only, while results are to be recorded."""
    server = campaign.server
    if not server.is_up:
        return
    nodes = [member.node for member in campaign.members]
    with _outage(campaign):
        server.refuse_writes(nodes)
        yield campaign.dice.uniform(0.3, 1.5)
        while not server.is_up:
            yield 0.05
        server.allow_writes([member.node for member in campaign.members])


def refuse_row(campaign):
    """A DBA's trigger refuses the results of one queue; its head halts, and an operator retries it."""
    if not campaign.server.is_up:
        return
    queue = f"web-{campaign.dice.choice('ab')}-{campaign.dice.randrange(6)}"
    table, condition = "queuetopia_job", f"NEW.queue = '{queue}' AND NEW.state = 'done'"
    with _outage(campaign):  # the trigger waits for the transactions at hand, and all others for it
        if not campaign.ask(lambda: refuse_rows(table, condition)):
            return
        yield campaign.dice.uniform(0.5, 2)
        while not campaign.ask(lambda: allow_rows(table)):
            yield 0.1
    campaign.ask(campaign.retry_refused)


def lock_tables(campaign):
    """For longer than the fence time, as a backup does whose output is read slowly."""
    server = campaign.server
    if not server.is_up:
        return
    with _outage(campaign), suppress(*campaign.database_errors), server.lock_tables():
        yield campaign.lease * campaign.dice.uniform(0.3, 1.3)


def cancel_statements(campaign):
    """A burst: whatever the nodes' sessions do is interrupted, again and again; the sessions stand."""
    until = now() + campaign.dice.uniform(0.5, 2)
    with _outage(campaign):
        while now() < until and campaign.server.is_up:
            with suppress(*campaign.database_errors):
                campaign.server.cancel_statements("node")
            yield 0.02


def block_logs(campaign):
    """Whoever of a node writes a log record waits, for longer than the lease; and there is something to log."""
    member = campaign.pick()
    workers = pids_of(member.node, "worker") if member else []
    if not workers:
        return
    with _at(member):
        gate = member.log_gate
        gate.touch()
        with suppress(ProcessLookupError):
            os.kill(campaign.dice.choice(workers), signal.SIGKILL)
        yield campaign.lease * campaign.dice.uniform(1.05, 1.4)
        gate.unlink()


def suspend(campaign):
    """Ctrl-Z: SIGTSTP for those in the terminal's foreground group; then ``fg``."""
    member = campaign.pick()
    pids = [*pids_of(member.node, "supervisor"), *pids_of(member.node, "scheduler")] if member else []
    if not pids:
        return
    with _at(member):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTSTP)
        yield campaign.lease * campaign.dice.uniform(1.05, 1.4)
        if not member.node.has_ended():
            member.node.send(signal.SIGCONT)


def no_descriptors(campaign):
    """A scheduler that may open nothing more is to replace a worker."""
    member = campaign.pick()
    schedulers = pids_of(member.node, "scheduler") if member else []
    workers = pids_of(member.node, "worker") if member else []
    if not (schedulers and workers):
        return
    with _at(member), suppress(ProcessLookupError, FileNotFoundError):
        pid = schedulers[0]
        most = len(os.listdir(f"/proc/{pid}/fd"))
        usual = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (most, usual[1]))
        os.kill(campaign.dice.choice(workers), signal.SIGKILL)
        yield campaign.lease
        resource.prlimit(pid, resource.RLIMIT_NOFILE, usual)


def no_temporary_folder(campaign):
    """A cleaner removes the nodes' folder, and with it their files; a worker is being replaced meanwhile."""
    folder, member = campaign.temporary, campaign.pick()
    workers = pids_of(member.node, "worker") if member else []
    if not (workers and folder.exists()):
        return
    with _at(member):
        shutil.rmtree(folder)
        with suppress(ProcessLookupError):
            os.kill(campaign.dice.choice(workers), signal.SIGKILL)
        yield campaign.lease
        folder.mkdir(exist_ok=True)


@contextmanager
def _outage(campaign):
    outage = [now(), float("inf")]
    campaign.outages.append(outage)
    try:
        yield
    finally:
        outage[1] = now()


def cut_network(campaign):
    """Nothing passes, nothing is closed, for longer than the lease."""
    member = campaign.pick(by_proxy=True)
    if member is None:
        return
    with _at(member):
        member.proxy.cut()
        yield campaign.lease * campaign.dice.uniform(1.05, 1.4)
        member.proxy.restore()


def slow_network(campaign):
    member = campaign.pick(by_proxy=True)
    if member is None:
        return
    with _at(member):
        member.proxy.slow_down(0.05)
        yield campaign.lease
        member.proxy.slow_down(0)
