from django.contrib import admin

from .models import Booking


@admin.register(Booking)
class BookingAdmin(admin.ModelAdmin):
    """The provider's bookings, to read."""

    list_display = ("number", "kind", "customer", "order", "amount", "key", "booked_at")
    list_filter = ("kind",)
    search_fields = ("customer", "key")

    def has_add_permission(self, request):
        return False

    def has_change_permission(self, request, obj=None):
        return False
