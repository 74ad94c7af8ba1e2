"""The fixtures of the contract."""

import contextlib

import pytest

from . import vendors
from .toolkit import Elsewhere, Node, session

several_writers = pytest.mark.usefixtures("several_writers")


@pytest.mark.django_db(transaction=True)
class Contract:
    """Needs a ``default`` database whose backend is the one under test, with the migrations applied."""

    @pytest.fixture
    def backend(self, transactional_db):
        """The session under test."""
        with session() as backend:
            yield backend

    @pytest.fixture
    def node(self, backend):
        """A second node."""
        with contextlib.closing(Node()) as node:
            yield node

    @pytest.fixture
    def elsewhere(self, transactional_db):
        """A function that returns a new thread without a session, as a web process is."""
        with contextlib.ExitStack() as stack:
            yield lambda: stack.enter_context(contextlib.closing(Elsewhere()))

    @pytest.fixture
    def several_writers(self):
        if vendors.has_one_writer():
            pytest.skip("This database has one writer at a time: a second transaction waits.")

    @pytest.fixture
    def serializable(self, transactional_db, monkeypatch):
        """Every new connection isolates its transactions as far as the database can, because settings say so."""
        with vendors.serializable_by_default(monkeypatch):
            yield
