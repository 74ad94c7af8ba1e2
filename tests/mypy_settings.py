"""Settings for mypy's Django plugin: the tests' own, without starting a database server."""

import os

os.environ["DATABASE_URL"] = os.environ["OTHER_DATABASE_URL"] = "sqlite://:memory:"

from tests.settings import *  # noqa: F403
