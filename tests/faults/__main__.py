"""Break everything that can be broken under a node, for as long as you like, and see that every promise holds.

    python -m tests.faults --database postgres --seconds 600 --seed 7
    python -m tests.faults --database sqlite --faults kill,freeze-node
    python -m tests.faults naive                       the same checker on a runner that must not pass
    python -m tests.faults takeover --database sqlite  how long queues stand still when their node goes away
    python -m tests.faults soak --seconds 600          whether nodes under load and kills grow

Starts a private database server, nodes and web processes; nothing but them is touched. Exit code 1 if a promise was
broken. The same seed makes the same faults in the same order; when exactly each hits is the machine's doing.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path

import django

from .servers import SERVERS

LEASES = {"takeover": 15}  # the built-in one; else as short as it may be, so that there is time for more


def main():
    options = arguments()
    server = SERVERS[options.database]()
    os.environ |= {
        "DATABASE_URL": server.url("admin"),
        "DJANGO_SETTINGS_MODULE": "tests.settings",
        "QUEUETOPIA_TEST_LEASE": str(options.lease),
    }
    django.setup()
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)
    with tempfile.TemporaryDirectory(prefix="queuetopia-faults-") as folder:
        return MODES[options.mode](options, server, Path(folder))


def arguments(words: list[str] | None = None):
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", nargs="?", choices=MODES, default="run", help="default: %(default)s")
    parser.add_argument("--database", choices=SERVERS, default="postgres")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults are made; default: %(default)g")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: any")
    parser.add_argument("--faults", default="", help="beginnings of the faults' names, with commas; default: all")
    parser.add_argument("--lease", type=float, help="seconds; default: 3, the shortest; of takeovers 15, the built-in")
    parser.add_argument("--rounds", type=int, default=3, help="of each takeover; default: %(default)d")
    parser.add_argument(
        "--nodes", type=int, default=5, help="one serves a scope of its own, one is never hurt; default: %(default)d"
    )
    parser.add_argument("--pace", type=float, default=1, help="seconds from fault to fault; default: %(default)g")
    parser.add_argument("--workers", type=int, default=2, help="of each node; default: %(default)d")
    options = parser.parse_args(words)
    options.lease = options.lease or LEASES.get(options.mode, 3)
    return options


def _run(options, server, folder):
    from . import faults
    from .verdict import Verdict

    chosen = _chosen(faults.kinds(server), options.faults)
    campaign = _campaign(options, server, folder)
    try:
        campaign.run(chosen, options.seconds)
    except BaseException:
        campaign.nodes.kill()
        raise
    verdict = Verdict(campaign)
    _print(verdict, campaign.counts())
    if keep := os.environ.get("QUEUETOPIA_FAULT_LOGS"):
        Path(keep).write_text(campaign.nodes.logs() + campaign.ledger.path.read_text())
    return 1 if verdict.wrong else 0


def _campaign(options, server, folder):
    from .campaign import Campaign

    print(f"{options.database}, seed {options.seed}, {options.seconds:g} s, lease {options.lease:g} s, ", end="")
    print(f"{options.nodes} nodes with {options.workers} workers each", flush=True)
    return Campaign(
        server,
        folder,
        seed=options.seed,
        lease=options.lease,
        nodes=options.nodes,
        workers=options.workers,
        pace=options.pace,
    )


def _chosen(kinds, names):
    beginnings = tuple(filter(None, names.split(",")))
    chosen = {name: fault for name, fault in kinds.items() if not beginnings or name.startswith(beginnings)}
    if not chosen:
        sys.exit(f"no such fault here; there are {', '.join(kinds)}")
    return chosen


def _print(verdict, counts):
    print(f"jobs {verdict.jobs}, of them with writes of their own {verdict.booked}; ", end="")
    print(f"attempts {verdict.attempts}, of them repeated after their end {verdict.repeated}")
    print(f"rows locked by another transaction {verdict.locks} times; faults {counts.total()}:")
    for kind, count in sorted(counts.items()):
        print(f"  {kind:18} {count:4}")
    print("longest takeovers, by the fault that hit what ran the job:")
    for kind, longest in sorted(verdict.takeovers.items()):
        print(f"  {kind:22} {longest.seconds:6.2f} s  after {longest.last}")
    print(f"longest stall of a healthy queue: {verdict.stall:.2f} s; with the database out of order too: ", end="")
    print(f"{verdict.outage_stall:.2f} s")
    print(f"signs of life of frozen attempts after others had taken over (results refused): {len(verdict.late)}")
    print(f"violations: {len(verdict.wrong)}")
    for sentence in verdict.wrong[:20]:
        print(f"  {sentence}")


def _naive(options, server, folder):
    from .naive import overlaps

    found = overlaps(_campaign(options, server, folder), options.seconds)
    print(f"overlaps that the checker finds in what a naive runner does: {len(found)}")
    for sentence in found[:3]:
        print(f"  {sentence}")
    return 0 if found else 1


def _takeover(options, server, folder):
    from .takeover import line, measure

    campaign = _campaign(options, server, folder)
    print(f"{'':36} {'median':>9}  {'longest':>9}   promised")
    for found in measure(campaign, options.rounds, tuple(options.faults.split(","))):
        print(line(*found), flush=True)
    return 0


def _soak(options, server, folder):
    from . import faults
    from .soak import Samples
    from .verdict import Verdict

    campaign = _campaign(options, server, folder)
    samples = Samples(campaign)
    campaign.run(_chosen(faults.kinds(server), options.faults or "kill-worker"), options.seconds, samples.take)
    verdict = Verdict(campaign)
    _print(verdict, campaign.counts())
    print(f"{'medians of':34} first third  last third")
    has_grown = False
    for name, first, last, is_flat in samples.thirds():
        has_grown |= not is_flat
        print(f"{name:34} {first:11.1f} {last:11.1f}  {'flat' if is_flat else 'HAS GROWN'}")
    return 1 if verdict.wrong or has_grown else 0


MODES = {"run": _run, "naive": _naive, "takeover": _takeover, "soak": _soak}

if __name__ == "__main__":
    sys.exit(main())
