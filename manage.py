#!/usr/bin/env python
"""Django's command line, for the example project unless DJANGO_SETTINGS_MODULE names another."""

import os
import sys


def main():
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


# Worker processes are spawned, and import this file again: without the guard each would run the command.
if __name__ == "__main__":
    main()
