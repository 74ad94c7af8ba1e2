"""``python -m benchmarks.run WORKLOAD SIZE``: one run of one workload; its figures as JSON on the last line."""

import json
import sys
from dataclasses import asdict
from importlib import import_module

import django

from .figures import Size


def main(workload, size):
    django.setup()
    figures = import_module(f".{workload}", __package__).measure(Size(**json.loads(size)))
    print(json.dumps([asdict(figure) for figure in figures]))


if __name__ == "__main__":
    main(*sys.argv[1:])
