"""Break everything that can be broken under a node, for as long as you like, and see that every promise holds.

    python -m tests.faults --database postgres --seconds 600 --seed 7
    python -m tests.faults --database sqlite --faults kill,freeze-node
    python -m tests.faults naive            the same checker on a runner that must not pass

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

MODES = ("run", "naive")


def main():
    options = _arguments()
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
        return {"run": _run, "naive": _naive}[options.mode](options, server, Path(folder))


def _arguments():
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", nargs="?", choices=MODES, default="run", help="default: %(default)s")
    parser.add_argument("--database", choices=SERVERS, default="postgres")
    parser.add_argument("--seconds", type=float, default=60, help="how long faults are made; default: %(default)g")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="default: any")
    parser.add_argument("--faults", default="", help="beginnings of the faults' names, with commas; default: all")
    parser.add_argument("--lease", type=float, default=3, help="seconds; default: %(default)g")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2, help="of each node; default: %(default)d")
    return parser.parse_args()


def _run(options, server, folder):
    from . import faults
    from .verdict import Verdict

    chosen = _chosen(faults.kinds(server), options.faults)
    campaign = _campaign(options, server, folder)
    campaign.run(chosen, options.seconds)
    verdict = Verdict(campaign)
    _print(verdict, campaign.counts())
    if verdict.wrong and (keep := os.environ.get("QUEUETOPIA_FAULT_LOGS")):
        Path(keep).write_text(campaign.nodes.logs() + campaign.ledger.path.read_text())
    return 1 if verdict.wrong else 0


def _campaign(options, server, folder):
    from .campaign import Campaign

    print(f"{options.database}, seed {options.seed}, {options.seconds:g} s, lease {options.lease:g} s, ", end="")
    print(f"{options.nodes} nodes with {options.workers} workers each", flush=True)
    return Campaign(
        server, folder, seed=options.seed, lease=options.lease, nodes=options.nodes, workers=options.workers
    )


def _chosen(kinds, names):
    beginnings = tuple(filter(None, names.split(",")))
    chosen = {name: fault for name, fault in kinds.items() if not beginnings or name.startswith(beginnings)}
    if not chosen:
        sys.exit(f"no such fault here; there are {', '.join(kinds)}")
    return chosen


def _print(verdict, counts):
    print(f"jobs {verdict.jobs}, attempts {verdict.attempts}, of them repeated after their end {verdict.repeated}")
    print(f"rows locked by somebody {verdict.locks} times; faults {counts.total()}:")
    for kind, count in sorted(counts.items()):
        longest = verdict.takeovers.get(kind)
        print(f"  {kind:18} {count:4}" + (f"  longest takeover {longest:5.2f} s" if longest else ""))
    print(f"longest takeover: {max(verdict.takeovers.values(), default=0):.2f} s")
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


if __name__ == "__main__":
    sys.exit(main())
