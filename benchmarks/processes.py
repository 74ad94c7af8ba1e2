"""Runs of workloads, each in a process and a database of its own."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from .figures import Figure


def run(workload, size, environment):
    """Run a workload once, in a process and a database of its own."""
    output = python("benchmarks.run", workload, json.dumps(asdict(size)), environment=environment)
    return [Figure(**values) for values in json.loads(output.splitlines()[-1])]


def python(module, *arguments, environment):
    folder = Path(__file__).parents[1]
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(
        command, env=environment, cwd=folder, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.rstrip()
