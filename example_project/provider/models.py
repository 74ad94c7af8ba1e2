from django.core.validators import MinValueValidator
from django.db import models


class Provider(models.Model):
    """The provider's state: one row, because the process that switches it need not be the one that answers."""

    class Mode(models.TextChoices):
        ON = "on", "on"
        SLOW = "slow", "slow"
        LATER = "later", "later"
        FAILING = "failing", "failing"
        OFF = "off", "off"

    mode = models.CharField(max_length=8, choices=Mode, default=Mode.ON)

    class Meta:
        verbose_name_plural = "provider"

    def __str__(self):
        return f"the provider, {self.mode}"

    @classmethod
    def load(cls):
        return cls.objects.filter(pk=1).first() or cls(pk=1)


class Booking(models.Model):
    """What the provider was asked to do, and did: once for each key, however often it was asked."""

    class Kind(models.TextChoices):
        INVOICE = "invoice", "invoice"
        PAYMENT = "payment", "payment"

    key = models.CharField("idempotency key", max_length=100, unique=True)
    kind = models.CharField(max_length=8, choices=Kind)
    customer = models.CharField(max_length=254)
    order = models.PositiveBigIntegerField()
    item = models.CharField(max_length=100)
    amount = models.DecimalField(max_digits=8, decimal_places=2, validators=[MinValueValidator(0)])
    booked_at = models.DateTimeField(auto_now_add=True)

    def __str__(self):
        return f"{self.kind} {self.number}"

    @property
    def number(self):
        return f"{self.kind[0].upper()}-{self.pk}"

    def is_for(self, **asked):
        """True if a call with ``asked`` is the one that this booking answered."""
        return all(getattr(self, name) == value for name, value in asked.items())
