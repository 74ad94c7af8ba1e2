"""The toolkit of the contract, for ``LedgerQueue``: its jobs are those of a class that nodes serve."""

from functools import partial

from queuetopia.backends.contract import toolkit
from tests.testapp.queues import LedgerQueue

SCOPE = LedgerQueue.scope

put = partial(toolkit.put, queuetopia=LedgerQueue)
claim = partial(toolkit.claim, scopes=[SCOPE])


class Node(toolkit.Node):
    def claim(self, limit=10, **options):
        return super().claim(limit, scopes=[SCOPE], **options)
