"""The shop's queues: every customer is one, and gets the mails of an order one after the other."""

import errno

from django.core.mail import EmailMessage
from django.utils import timezone

from queuetopia import Performer, Queuetopia, action

from .models import Order


class MailPerformer(Performer):
    @action
    def send_confirmation(self, job, order_id):
        self.send(job, order_id, "Your order of {order.item}", "We have it, and pack it now.")

    @action
    def send_receipt(self, job, order_id):
        self.send(job, order_id, "Your receipt for {order.item}", "You paid {order.amount} €.")

    @action
    def send_shipping_note(self, job, order_id):
        self.send(job, order_id, "{order.item} is on its way", "It leaves us today.")

    def send(self, job, order_id, subject, body):
        order = Order.objects.select_related("customer").get(pk=order_id)
        connect_to_mail_server(order.customer)
        EmailMessage(
            subject.format(order=order),
            body.format(order=order),
            to=[order.customer.email],
            headers={
                # A job runs again if its worker dies before the success is stored. The same id each time
                # lets the receiver drop the second copy.
                "Message-ID": message_id(job),
                "X-Sent-At": timezone.now().isoformat(),  # Date knows no fractions of seconds
            },
        ).send()


def connect_to_mail_server(customer):
    """Stand in for a connection to the customer's own server."""
    if not customer.mail_server_up:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "mail server down")


def message_id(job):
    return f"<job-{job.pk}@shop.example>"


class MailQueue(Queuetopia):
    performer = MailPerformer
    scope = "shop.mail"
    timeout = 30
