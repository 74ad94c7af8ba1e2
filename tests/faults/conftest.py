from tests.nodes import ledger, nodes, pytest_runtest_makereport  # noqa: F401 - fixtures and a hook
