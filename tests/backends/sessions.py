"""What tests of a session share."""

import contextlib

import pytest
from django.db import DatabaseError, OperationalError

from queuetopia import conf
from queuetopia.attempts import Verdict
from queuetopia.backends import backend_for, nodes
from queuetopia.backends.contract.base import Contract
from queuetopia.backends.contract.toolkit import ENDING, HOUR, NODE, SCOPE, Dice, before, claim, end, fail, put, record
from queuetopia.testing import wait_until


def ask(backend, sql, *arguments):
    """Return the first row of the answer to a question asked on the backend's session."""
    with backend.connection.cursor() as cursor:
        cursor.execute(sql, arguments)
        return cursor.fetchone()


def random_walk(backend, check):
    """Claim, record and fail at random; call ``check()`` after each step."""
    dice, running = Dice(5), {}
    for _ in range(40):
        put(dice.choice("abcdef"))
        if dice.random() < 0.2:
            before(backend, dice.choice(["start_heads", "recheck"]), fail)
        with contextlib.suppress(OperationalError):
            for one in claim(backend, dice.randint(1, 3)):
                running[one.queue_id] = one
        check()
        chosen = dice.sample(sorted(running), min(len(running), dice.randint(0, 3)))
        endings = [end(running.pop(queue_id), dice.choice([*ENDING, Verdict.RETRY])) for queue_id in chosen]
        for following in record(backend, *endings, keep=dice.random() < 0.5).claims:
            running[following.queue_id] = following
        check()
    for name in ("start_heads", "recheck"):
        vars(backend).pop(name, None)
    for one, _ in nodes.lost_claims(backend, NODE, [SCOPE], 100):  # those whose claim failed after its commit too
        record(backend, end(one, Verdict.RETURN))
    while claims := claim(backend, now=backend.now() + HOUR):
        record(backend, *map(end, claims))
        check()
    assert not backend.held


class EndsSilentSessions(Contract):
    """What a server promises; SQLite has none."""

    @pytest.mark.faults
    def test_a_silent_session_is_ended_by_the_server_and_its_queue_is_free(self, backend, elsewhere):
        put()
        silent = backend_for("default")
        thread = elsewhere()
        thread.run(silent.open_session, conf.Lease(1))
        (one,) = thread.run(claim, silent)
        assert backend.try_lock([one.queue_id]) == []
        assert wait_until(lambda: backend.try_lock([one.queue_id])) == [one.queue_id]
        assert thread.run(is_lost, silent)
        thread.run(silent.close_session)


def is_deaf(backend):
    """True when a look for news finds that the server has gone."""
    try:
        backend.has_news()
    except OperationalError:
        return True
    return False


def is_lost(backend):
    try:
        return not backend.is_alive()
    except DatabaseError:
        return True
