from django.contrib import admin

from .models import Customer, Order

admin.site.register(Customer)


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ("id", "customer", "item", "amount", "payment", "invoice_number", "payment_number", "placed_at")
    list_filter = ("payment",)
    list_select_related = ("customer",)
    search_fields = ("item", "customer__email")
