import pytest

pytest.register_assert_rewrite("tests.nodes")

from tests.nodes import ledger, nodes, pytest_runtest_makereport  # noqa: E402, F401 - fixtures and a hook
