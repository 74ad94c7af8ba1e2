"""Calls the provider that keeps the shop's invoices and charges cards, over HTTP."""

import json
from urllib import error, request
from urllib.parse import urljoin

from django.conf import settings
from django.urls import reverse

from queuetopia import Halt

PATIENCE = 10  # seconds without an answer until an attempt has failed
REFUSED = 402
REASON_LIMIT = 1_000  # bytes of an error's text that are read

# Past any proxy that the environment names: the provider is on this machine.
opener = request.build_opener(request.ProxyHandler({}))


class ProviderError(Exception):
    """The provider did not do it; it may at the next attempt."""


def register_invoice(job, order):
    """Return the number of the order's invoice. Raises ProviderError, Halt, or what urllib raises."""
    return _book("invoices/", job, order)


def charge_payment(job, order):
    """Charge the customer's card; return the payment's number. Raises as ``register_invoice`` does.

    None: the provider has accepted it, and calls the view ``paid`` when it is through.
    """
    return _book("payments/", job, order, callback=urljoin(settings.PROVIDER_URL, reverse("paid", args=[job.token])))


def idempotency_key(job):
    """The same at each attempt: the provider does once what it is asked for twice."""
    return f"job-{job.pk}"


def _book(path, job, order, **more):
    body = {
        "customer": order.customer.email,
        "order": order.pk,
        "item": order.item,
        "amount": str(order.amount),
        **more,
    }
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key(job)}
    call = request.Request(settings.PROVIDER_URL + path, json.dumps(body).encode(), headers)  # noqa: S310
    try:
        with opener.open(call, timeout=PATIENCE) as answer:
            return json.load(answer).get("number")
    except error.HTTPError as exc:
        with exc:
            reason = exc.read(REASON_LIMIT).decode(errors="replace")
        if exc.code == REFUSED:
            # Another attempt would not help: an operator decides, and the queue waits.
            raise Halt(reason) from exc
        raise ProviderError(f"{exc.code}: {reason}") from exc
