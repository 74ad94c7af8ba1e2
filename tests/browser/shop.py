"""The admin of a shop in a browser."""

from datetime import timedelta

from django.utils import timezone

from queuetopia import Performer, action

MINUTE = timedelta(minutes=1)
TRACEBACK = """Traceback (most recent call last):
  File "shop/queues.py", line 14, in charge
    provider.charge(card, amount)
  File "shop/provider.py", line 31, in charge
    raise ConnectionError("the provider answers 503")
ConnectionError: the provider answers 503
"""


def error(attempt):
    return {
        "attempt": attempt,
        "at": (timezone.now() - (4 - attempt) * MINUTE).isoformat(timespec="seconds"),
        "by": "web1:4242",
        "duration": 0.213,
        "counted": True,
        "type": "ConnectionError",
        "message": "the provider answers 503",
        "traceback": TRACEBACK,
    }


class ShopPerformer(Performer):
    @action
    def charge(self, job, **params): ...

    @action
    def receipt(self, job, **params): ...

    @action
    def send(self, job, **params): ...


def tool(page, name):
    return page.locator(".object-tools").get_by_role("link", name=name, exact=True)
