import os
import re
import signal
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

import hypothesis
import pytest
from django.db import connections

from tests.database import url_of_database

# Here, before any test imports them: a failed assertion of theirs then shows both sides.
pytest.register_assert_rewrite("tests.nodes", "tests.commands", "tests.admin.client")

# An example that writes to a database takes as long as it takes.
hypothesis.settings.register_profile("queuetopia", deadline=None, print_blob=True)
hypothesis.settings.load_profile("queuetopia")

REPOSITORY = Path(__file__).parents[1]
CAPABILITY = re.compile(r"[EHJQWX][1-9]\d?")


def pytest_addoption(parser):
    parser.addoption("--capabilities", action="store_true", help="list each capability with its tests")


def pytest_collection_modifyitems(items):
    for item in items:
        for capability in capabilities_of(item):
            if not CAPABILITY.fullmatch(capability):
                raise pytest.UsageError(f"{item.nodeid}: {capability!r} is no capability, as 'W5' is")


def pytest_collection_finish(session):
    if session.config.getoption("capabilities"):
        write_line = session.config.pluginmanager.get_plugin("terminalreporter").write_line
        pairs = {(capability, item.nodeid) for item in session.items for capability in capabilities_of(item)}
        for capability, test in sorted(pairs, key=in_order):
            write_line(f"{capability}: {test}")


def capabilities_of(item):
    return [capability for marker in item.iter_markers("capability") for capability in marker.args]


def in_order(pair):
    capability, test = pair
    return capability[0], int(capability[1:]), test


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup):
    """pytest-django's; then every process that a test starts, however, finds the test databases."""
    with pytest.MonkeyPatch.context() as environment:
        for alias, variable in {"default": "DATABASE_URL", "other": "OTHER_DATABASE_URL"}.items():
            name = connections[alias].settings_dict["NAME"]
            environment.setenv(variable, url_of_database(os.environ[variable], name))
        environment.setenv("DJANGO_SETTINGS_MODULE", "tests.settings")
        environment.setenv("PYTHONPATH", str(REPOSITORY), prepend=os.pathsep)
        yield


@pytest.fixture(scope="session")
def node_environment(django_db_setup):
    """The environment for a child process on the test databases: ``env={**node_environment, "X": "1"}``."""
    return MappingProxyType(dict(os.environ))


@pytest.fixture
def declare_only():
    """declare_only(A, B): the project has just these classes, and those that the test declares, until the test ends."""
    from queuetopia import registry

    with ExitStack() as stack:
        yield lambda *queuetopias: stack.enter_context(registry.only(*queuetopias))


@pytest.fixture
def backend(transactional_db):
    """The session under test."""
    from queuetopia.backends.contract.toolkit import session

    with session() as backend:
        yield backend


def pytest_sessionstart():
    # A shell that starts the suite in the background has SIGINT ignored, and every process of it would.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
