from django.core.validators import MinValueValidator
from django.db import models


class Customer(models.Model):
    """Somebody who orders. All that is done for one customer goes through one queue, so it happens in order."""

    QUEUE = "customer-"

    email = models.EmailField(unique=True)

    def __str__(self):
        return self.email

    @property
    def queue(self):
        return f"{self.QUEUE}{self.pk}"


class Order(models.Model):
    """An order. Its numbers are the provider's, known once the provider has answered."""

    class Payment(models.TextChoices):
        CARD = "card", "by card"
        CASH = "cash", "in cash, on delivery"

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT)
    item = models.CharField(max_length=100)
    amount = models.DecimalField("amount in €", max_digits=8, decimal_places=2, validators=[MinValueValidator(0)])
    payment = models.CharField(max_length=4, choices=Payment, default=Payment.CARD)
    placed_at = models.DateTimeField(auto_now_add=True)
    invoice_number = models.CharField(max_length=20, blank=True)
    payment_number = models.CharField(max_length=20, blank=True)

    def __str__(self):
        return f"order {self.pk}: {self.item}"
