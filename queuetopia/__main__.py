"""``python -m queuetopia scheduler|worker OPTIONS``: how the supervisor and the scheduler start their children."""

import json
import sys
from importlib import import_module

from .processes import die_with_parent, log_to_stderr


def main():
    role, options = sys.argv[1], json.loads(sys.argv[2])
    parent = options.pop("parent")
    if role != "supervisor":  # that one ends gracefully, when its lifeline does
        die_with_parent(parent)

    import django

    django.setup()
    log_to_stderr(options.get("verbosity", 1))
    if role not in ("supervisor", "scheduler", "worker"):
        sys.exit(f"queuetopia: no such role: {role}")
    sys.exit(import_module(f"queuetopia.{role}").main(options))


if __name__ == "__main__":
    main()
