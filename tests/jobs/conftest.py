import pytest

from tests.testapp.queues import LEDGER


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    """The file to which performers of the tests write what they do, here in this process."""
    path = tmp_path / "ledger"
    monkeypatch.setenv(LEDGER, str(path))
    return path
