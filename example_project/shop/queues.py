"""The shop's queues: every customer is one, in which the steps of their orders are done one after the other."""

from datetime import timedelta

from django.core.mail import EmailMessage
from django.db.models import Count, Sum
from django.utils import timezone

from queuetopia import Deferred, Every, Performer, Queuetopia, action

from . import billing
from .models import Order


class OrderPerformer(Performer):
    """The steps of an order. Each may be repeated without harm: mails and calls carry the job's number."""

    @action
    def confirm_order(self, job, order_id):
        order = order_of(order_id)
        send_mail(job, order, f"Your order of {order.item}", "We have it, and pack it now.")

    @action
    def register_invoice(self, job, order_id):
        order = order_of(order_id)
        order.invoice_number = billing.register_invoice(job, order)
        order.save(update_fields=["invoice_number"])

    @action
    def charge_payment(self, job, order_id):
        order = order_of(order_id)
        number = billing.charge_payment(job, order)
        if number is None:  # accepted: the provider calls back, and until then the line waits
            job.report_progress(0.5, "accepted by the provider")
            return Deferred(timeout=60)
        order.payment_number = number
        order.save(update_fields=["payment_number"])

    @action
    def send_receipt(self, job, order_id):
        order = order_of(order_id)
        paid = (
            f"You paid {order.amount} € by card: {order.payment_number}." if order.payment_number else "Not paid yet."
        )
        send_mail(job, order, f"Your receipt for {order.item}", f"Invoice {order.invoice_number or 'missing'}. {paid}")

    @action
    def announce_delivery(self, job, order_id):
        order = order_of(order_id)
        send_mail(job, order, f"{order.item} is on its way", f"Please have {order.amount} € at hand.")


class OrderQueue(Queuetopia):
    performer = OrderPerformer
    scope = "shop.orders"
    timeout = 30
    # A provider that is down comes back some day; its jobs then go on by themselves.
    on_exhausted = "retry"


class ReportPerformer(Performer):
    @action
    def send_digest(self, job):
        """Mail what was ordered in the day before the job's due time, which is the same at each attempt."""
        ordered = Order.objects.filter(
            placed_at__gte=job.scheduled_at - timedelta(days=1), placed_at__lt=job.scheduled_at
        )
        found = ordered.aggregate(number=Count("id"), amount=Sum("amount", default=0))
        EmailMessage(
            f"Orders until {job.scheduled_at:%d %B}",
            f"{found['number']} orders, {found['amount']} € in all.",
            to=["office@shop.example"],
            headers={"Message-ID": message_id(job)},
        ).send()
        return found["number"]


class ReportQueue(Queuetopia):
    """What the shop's own people get by the clock: a digest each day, at midnight in UTC."""

    performer = ReportPerformer
    scope = "shop.reports"
    schedules = [Every("digest", days=1, queue="digest", action="send_digest")]


def order_of(order_id):
    return Order.objects.select_related("customer").get(pk=order_id)


def send_mail(job, order, subject, body):
    EmailMessage(
        # An item's name may be anything that fits its field; a header holds one line.
        " ".join(subject.split()),
        body,
        to=[order.customer.email],
        headers={
            # A job runs again if its worker dies before the success is stored. The same id each time lets the
            # receiver drop the second copy.
            "Message-ID": message_id(job),
            "X-Sent-At": timezone.now().isoformat(),  # Date knows no fractions of seconds
        },
    ).send()


def message_id(job):
    return f"<job-{job.pk}@shop.example>"
