"""``python -m queuetopia scheduler|worker OPTIONS``: how the supervisor and the scheduler start their children."""

import json
import logging
import sys
from importlib import import_module

from .processes import die_with_parent


def main():
    role, options = sys.argv[1], json.loads(sys.argv[2])
    parent = options.pop("parent")
    if role != "supervisor":  # that one ends gracefully, when its lifeline does
        die_with_parent(parent)

    import django

    django.setup()
    _log_somewhere(options.get("verbosity", 1))
    if role not in ("supervisor", "scheduler", "worker"):
        sys.exit(f"queuetopia: no such role: {role}")
    sys.exit(import_module(f"queuetopia.{role}").main(options))


def _log_somewhere(verbosity):
    """Show our log on standard error if the project's LOGGING takes it nowhere."""
    logger = logging.getLogger("queuetopia")
    if not logger.hasHandlers() and verbosity > 0:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbosity > 1 else logging.INFO)


if __name__ == "__main__":
    main()
