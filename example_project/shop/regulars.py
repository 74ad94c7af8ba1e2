"""Those who order at the shop when it is shown, and what they order."""

from .models import Order

CUSTOMERS = {
    "red": Order.Payment.CARD,
    "green": Order.Payment.CASH,
    "blue": Order.Payment.CARD,
    "yellow": Order.Payment.CASH,
}
ITEMS = {"a kettle": 39, "two cups": 18, "green tea": 7}


def address_of(name):
    return f"{name}@customer.example"
