"""What is special to SQLite."""

import fcntl
import os
import struct
import subprocess
import sys
from unittest import mock

import pytest
from django.db import connection

from queuetopia import conf
from queuetopia.backends import backend_for, nodes
from queuetopia.backends.contract.base import Contract
from queuetopia.backends.contract.toolkit import NODE, SCOPE, claim_one, put
from queuetopia.exceptions import SessionRefused
from queuetopia.models import Queue
from tests.backends.sessions import random_walk


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite only")
class TestSQLite(Contract):
    @pytest.fixture
    def is_locked(self, backend):
        """A function that says whether somebody has the lock of a queue, asked through another descriptor."""
        with open(f"{connection.settings_dict['NAME']}.queuetopia", "r+b") as file:

            def is_locked(queue_id):
                lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, queue_id, 1, 0)
                return struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_OFD_GETLK, lock))[0] != fcntl.F_UNLCK

            yield is_locked

    def test_the_file_is_locked_for_the_queues_that_the_backend_holds(self, backend, is_locked):
        def check():
            assert {queue.pk for queue in Queue.objects.all() if is_locked(queue.pk)} == backend.held

        random_walk(backend, check)

    @pytest.mark.processes
    def test_a_child_that_has_the_descriptor_keeps_the_lock_until_it_is_dead(self, backend, is_locked):
        put()
        one = claim_one(backend)
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=backend.descriptors(),
        )
        try:
            backend.close_session()
            assert is_locked(one.queue_id)
            backend.open_session(conf.lease())
            assert backend.try_lock([one.queue_id]) == []
        finally:
            child.kill()
            child.communicate()
        assert not is_locked(one.queue_id)
        assert backend.try_lock([one.queue_id]) == [one.queue_id]

    def test_a_database_in_memory_is_refused(self, backend):
        in_memory = mock.patch.dict(connection.settings_dict, NAME="file:memorydb_default?mode=memory&cache=shared")
        with in_memory, pytest.raises(SessionRefused, match="use a file"):
            backend_for("default").open_session(conf.lease())

    def test_only_what_others_commit_is_news(self, backend, elsewhere):
        assert backend.has_news()
        assert not backend.has_news()
        nodes.register(backend, NODE, "web1", 7, [SCOPE])
        assert not backend.has_news()
        elsewhere().run(put)
        assert backend.has_news()
        assert not backend.has_news()
