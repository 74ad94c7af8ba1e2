import json

from django.contrib import messages
from django.db import transaction
from django.http import FileResponse, Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from example_project.provider.models import Provider
from queuetopia import Refused

from .forms import OrderForm, PaidForm
from .lines import CUSTOMERS, current_lines
from .mailbox import mail_files, mails_in
from .models import Customer, Order
from .orders import order_again, place_order
from .producer import RATE, producer
from .queues import OrderQueue

NEW_ORDER = {"email": "red@customer.example", "item": "a kettle", "amount": 39}
MAIL_FILES = 50  # listed at most


@require_http_methods(["GET", "HEAD", "POST"])
def shop(request):
    """Take an order. Its steps become jobs in the same transaction; no request waits for a provider."""
    form = OrderForm(request.POST or None, initial=_latest_order() or NEW_ORDER, label_suffix="")
    if request.method == "POST" and form.is_valid():
        order = place_order(**form.cleaned_data)
        messages.success(request, f"Order {order.pk} is placed: its steps stand in queue {order.customer.queue}.")
        return redirect("shop")
    context = {
        "form": form,
        "customers": Customer.objects.order_by("-pk")[:CUSTOMERS],
        "modes": Provider.Mode,
        "is_producing": producer.is_on(),
        **_queues(),
    }
    return render(request, "shop/shop.html", context, status=400 if form.errors else 200)


def _latest_order():
    order = Order.objects.select_related("customer").order_by("pk").last()
    return order and {
        "email": order.customer.email,
        "item": order.item,
        "amount": order.amount,
        "payment": order.payment,
    }


@require_POST
def everybody(request):
    """Let everybody who is shown order once more what they ordered last."""
    _, lines = current_lines()
    orders = [order_again(line.customer) for line in lines if line.customer.order_set.exists()]
    messages.success(request, f"{len(orders)} customers ordered once more.")
    return redirect("shop")


@require_POST
def produce(request):
    """Start the producer, or stop it; stopping it stops nothing else."""
    if request.POST.get("orders") == "on":
        producer.start()
        messages.success(request, f"{RATE:g} orders a second come in.")
    else:
        producer.stop()
        messages.success(request, "No more orders come in by themselves. Those that did are done.")
    return redirect("shop")


@csrf_exempt  # called by the provider, which has the token
@require_POST
def paid(request, token):
    """Store that a payment is through which the provider had only accepted: its step is done, and its line goes on."""
    try:
        form = PaidForm(json.loads(request.body))
    except ValueError:
        return HttpResponse("the body is no JSON", status=400)
    if not form.is_valid():
        return HttpResponse(form.errors.as_text(), status=400, content_type="text/plain")
    order, number = form.cleaned_data["order"], form.cleaned_data["number"]
    try:
        with transaction.atomic():
            OrderQueue.complete(token, {"payment_number": number})
            Order.objects.filter(pk=order).update(payment_number=number)
    except Refused as exc:
        return HttpResponse(str(exc), status=409, content_type="text/plain")
    return HttpResponse(status=204)


@require_safe
@never_cache
def queues(request):
    """The part of the page that is shown anew every second."""
    return render(request, "shop/queues.html", _queues())


def _queues():
    status, lines = current_lines()
    return {"status": status, "lines": lines, "provider": Provider.load()}


@require_safe
def mails(request):
    """The mails that left the shop, the newest first, each with the file it is in."""
    files = mail_files()
    listed = [(path.name, mail) for path in files[:MAIL_FILES] for mail in mails_in(path)]
    return render(request, "shop/mails.html", {"mails": listed, "count": len(files)})


@require_safe
def mail(request, name):
    """A mail file as it is."""
    for path in mail_files():
        if path.name == name:
            return FileResponse(path.open("rb"), content_type="text/plain; charset=utf-8")
    raise Http404(f"No mail file is called {name!r}.")
