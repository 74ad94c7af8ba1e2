"""The arguments, the runs, and the tables. ``__init__.py`` describes what is measured."""

import argparse
import os
import sys
from dataclasses import replace

from . import __doc__ as description
from . import curves
from .figures import FULL, QUICK
from .processes import python, run
from .servers import PRIVATE, url_of
from .tables import print_beside, print_figures

WORKLOADS = (
    "create", "bulk", "drain", "rounds", "line", "chunks", "latency", "crowded", "waits", "cluster", "memory", "idle",
    "limits", "independent", "admin",
)  # fmt: skip
# What may stand beside a workload's jobs, in the same tables.
BESIDE = {"blocked": {"blocked": 100_000, "behind": 9}, "done": {"done": 1_000_000}}
BESIDE_QUICK = {"blocked": {"blocked": 100_000}, "done": {"done": 100_000}}
VARIANTS = ("drain-blocked", "drain-done", "latency-blocked")


def main():
    options = arguments()
    size, runs = (QUICK, 1) if options.quick else (FULL, 3)
    wanted = {*options.workloads, *(name.partition("-")[0] for name in options.workloads)}
    chosen = [name for name in (*WORKLOADS, *VARIANTS) if name in wanted]
    for database in options.database or ["postgres", "sqlite"]:
        environment = {**os.environ, "DATABASE_URL": url_of(database), "DJANGO_SETTINGS_MODULE": "benchmarks.settings"}
        is_fast = environment["DATABASE_URL"].startswith(("postgres", "pgsql"))
        print(python("benchmarks.machine", environment=environment))
        results = {name: [] for name in chosen}
        for number in range(runs):
            for name in chosen:
                print(f"{name}: run {number + 1} of {runs} …", file=sys.stderr, flush=True)
                workload, _, beside = name.partition("-")
                crowd = (BESIDE_QUICK if options.quick else BESIDE).get(beside, {})
                # What is large for the pages of the admin is the same everywhere: nothing runs there.
                scaled = size if is_fast or workload == "admin" else size.scaled(10)
                results[name].append(run(workload, replace(scaled, **crowd), environment))
        if results:
            print_figures(results)
            print_beside(results)
        if "curves" in wanted and is_fast:
            curves.measure(environment, options.picture)


def arguments():
    known = (*WORKLOADS, *VARIANTS, "curves")
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "workloads", nargs="*", metavar="workload", default=known, help=f"{', '.join(known)}; default: all"
    )
    parser.add_argument("--database", action="append", help=f"{', '.join(PRIVATE)}, or a URL; default: the first two")
    parser.add_argument("--picture", metavar="FILE", help="where to draw the curves (SVG); needs matplotlib")
    parser.add_argument("--quick", action="store_true", help="one run with fewer jobs")
    options = parser.parse_args()
    if unknown := set(options.workloads) - set(known):
        parser.error(f"no such workload: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


if __name__ == "__main__":
    main()
