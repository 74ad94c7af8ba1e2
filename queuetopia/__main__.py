"""``python -m queuetopia scheduler|worker OPTIONS``: how the supervisor and the scheduler start their children."""

import json
import os
import sys
import traceback
from importlib import import_module
from importlib.util import find_spec

from .processes import adopt_orphans, die_with_parent, disregard_signals, log_to_stderr, restore_environment
from .streams import prepare_streams

ROLES = {"supervisor": "node.supervisor", "scheduler": "node.scheduler", "worker": "worker.process"}  # their modules


def main():
    restore_environment()
    prepare_streams()
    role, options = sys.argv[1], json.loads(sys.argv[2])
    parent = options.pop("parent")
    for descriptor in options.pop("inherited"):
        os.set_inheritable(descriptor, False)  # what a performer starts must not keep our locks
    if role != "supervisor":  # that one ends gracefully, when its lifeline does
        die_with_parent(parent)
        adopt_orphans()
        disregard_signals(role)

    _set_up_django()
    log_to_stderr(options.get("verbosity", 1))
    if role not in ROLES:
        sys.exit(f"queuetopia: no such role: {role}")
    sys.exit(import_module(f".{ROLES[role]}", __package__).main(options))


def _set_up_django():
    try:
        if "DJANGO_CONFIGURATION" in os.environ and find_spec("configurations"):
            import_module("configurations").setup()  # django-configurations: which class has the settings
        else:
            import_module("django").setup()
    except Exception:
        traceback.print_exc()
        sys.exit(
            "queuetopia: Django could not be set up in a process of the node. It is a new program that knows "
            "DJANGO_SETTINGS_MODULE and the environment only; move what your manage.py does besides into the settings."
        )


if __name__ == "__main__":
    main()
