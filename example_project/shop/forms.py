from django import forms

from .models import Customer, Order


class OrderForm(forms.ModelForm):
    field_order = ("email", "item", "amount")
    email = forms.EmailField(max_length=Customer._meta.get_field("email").max_length)

    class Meta:
        model = Order
        fields = ("item", "amount")
