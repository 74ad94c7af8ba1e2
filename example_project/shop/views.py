from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from .forms import OrderForm
from .orders import place_order
from .queues import MailQueue


@require_http_methods(["GET", "HEAD", "POST"])
def orders(request):
    """Take an order. Its mails become jobs in the same transaction; nobody waits for a mail server here."""
    form = OrderForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        place_order(**form.cleaned_data)
        return redirect("orders")
    jobs = MailQueue.jobs().order_by("-id")[:30]
    return render(request, "shop/orders.html", {"form": form, "jobs": jobs}, status=400 if form.errors else 200)
