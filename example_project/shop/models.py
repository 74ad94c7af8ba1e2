from django.core.validators import MinValueValidator
from django.db import models


class Customer(models.Model):
    """Somebody who orders. All mails to one customer go through one queue, so they arrive in order.

    mail_server_up: False plays a mail server that refuses connections. It is a row, because the workers that
    send the mails are other processes.
    """

    email = models.EmailField(unique=True)
    mail_server_up = models.BooleanField(default=True)

    def __str__(self):
        return self.email

    @property
    def queue(self):
        return f"customer-{self.pk}"


class Order(models.Model):
    customer = models.ForeignKey(Customer, on_delete=models.PROTECT)
    item = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=8, decimal_places=2, validators=[MinValueValidator(0)])
    placed_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return f"order {self.pk}: {self.item}"
