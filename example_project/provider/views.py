import json
import logging
import threading
import time
from decimal import Decimal
from urllib import error
from urllib import request as http

from django.http import HttpResponse, JsonResponse
from django.shortcuts import redirect
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from .forms import BookingForm, ModeForm
from .models import Booking, Provider

logger = logging.getLogger(__name__)

LATER = 5  # seconds after which a provider that only accepts has charged a card
SLOW = 3  # seconds a slow provider takes for an answer
CARD_LIMIT = Decimal(500)


@require_POST
def switch(request):
    """Switch the provider on or off, make it slow or let it fail: what the buttons of the shop's page do."""
    form = ModeForm(request.POST, instance=Provider.load())
    if not form.is_valid():
        return refusal(400, f"mode is one of: {', '.join(Provider.Mode.values)}")
    form.save()
    return redirect("shop")


@csrf_exempt  # called by programs
@require_POST
def book(request, kind):
    """Register an invoice or charge a card. The same Idempotency-Key gets the same answer, and nothing more.

    A payment may be accepted only (202): then the provider calls the address ``callback`` when it is through.
    """
    mode = Provider.load().mode
    if mode == Provider.Mode.OFF:
        return refusal(503, "the provider is switched off")
    if mode == Provider.Mode.FAILING:
        return refusal(500, "the provider fails")
    if mode == Provider.Mode.SLOW:
        time.sleep(SLOW)
    answer = _book(request.headers.get("Idempotency-Key", ""), kind, request.body)
    if mode == Provider.Mode.LATER and kind == Booking.Kind.PAYMENT and answer.status_code < 300:
        return _accept(request, json.loads(answer.content))
    return answer


def _accept(request, booked):
    asked = json.loads(request.body)
    callback = str(asked.get("callback"))
    if not callback.startswith(request.build_absolute_uri("/")):  # it calls no other site
        return refusal(400, "callback is no address of the shop")
    body = {"order": asked["order"], **booked}
    threading.Thread(target=_call_back, args=(callback, body), daemon=True).start()
    return JsonResponse({"accepted": True}, status=202)


def _call_back(address, body):
    time.sleep(LATER)
    call = http.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    try:
        http.build_opener(http.ProxyHandler({})).open(call, timeout=10).close()
    except (error.URLError, OSError) as exc:  # the shop asks again when its deadline is over
        logger.warning("called back in vain: %s", exc)


def _book(key, kind, body):
    if not 0 < len(key) <= 100:
        return refusal(400, "the header Idempotency-Key is missing, or longer than 100 characters")
    try:
        form = BookingForm(json.loads(body))
        asked = {**form.cleaned_data, "kind": kind} if form.is_valid() else None
    except (ValueError, AttributeError):
        return refusal(400, "the body is no JSON object")
    if asked is None:
        return refusal(400, form.errors.as_text())
    if kind == Booking.Kind.PAYMENT and asked["amount"] > CARD_LIMIT:
        return refusal(402, f"{asked['item']}: {asked['amount']} € are over the card's limit of {CARD_LIMIT} €")
    booking, is_new = Booking.objects.get_or_create(key=key, defaults=asked)
    if not booking.is_for(**asked):
        return refusal(409, f"the key {key} was used for {booking}")
    return JsonResponse({"number": booking.number}, status=201 if is_new else 200)


def refusal(status, reason):
    return HttpResponse(reason, content_type="text/plain; charset=utf-8", status=status)
