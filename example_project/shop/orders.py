from django.db import transaction

from .models import Customer, Order
from .queues import OrderQueue

STEPS = {
    Order.Payment.CARD: ("confirm_order", "register_invoice", "charge_payment", "send_receipt"),
    Order.Payment.CASH: ("confirm_order", "announce_delivery"),  # needs no provider
}


@transaction.atomic
def place_order(email, item, amount, payment):
    """Store an order and the jobs that are its steps, all or nothing; return the order.

    The steps of all orders of a customer stand in one line: no card is charged before its invoice is registered.
    """
    customer, _ = Customer.objects.get_or_create(email=email)
    order = Order.objects.create(customer=customer, item=item, amount=amount, payment=payment)
    steps = [OrderQueue.job(customer.queue, step, {"order_id": order.pk}) for step in STEPS[payment]]
    OrderQueue.create_jobs(steps)
    return order


def order_again(customer):
    """Place the customer's last order once more."""
    last = customer.order_set.latest("id")
    return place_order(customer.email, last.item, last.amount, last.payment)
