from django.db import transaction

from .models import Customer, Order
from .queues import MailQueue

MAILS = ("send_confirmation", "send_receipt", "send_shipping_note")


@transaction.atomic
def place_order(email, item, amount):
    """Store an order and the jobs that send its mails, all or nothing; return the order.

    A customer's mails of all orders stand in one line, so a receipt never overtakes its confirmation.
    """
    customer, _ = Customer.objects.get_or_create(email=email)
    order = Order.objects.create(customer=customer, item=item, amount=amount)
    MailQueue.create_jobs([MailQueue.job(customer.queue, action, {"order_id": order.pk}) for action in MAILS])
    return order
