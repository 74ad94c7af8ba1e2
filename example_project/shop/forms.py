from django import forms

from .models import Customer, Order


class OrderForm(forms.ModelForm):
    field_order = ("email", "item", "amount", "payment")
    email = forms.EmailField(
        label="Customer",
        max_length=Customer._meta.get_field("email").max_length,
        widget=forms.EmailInput(attrs={"list": "customers", "autocomplete": "off"}),
    )

    class Meta:
        model = Order
        fields = ("item", "amount", "payment")
        widgets = {"payment": forms.RadioSelect, "item": forms.TextInput(attrs={"autocomplete": "off"})}


class PaidForm(forms.Form):
    """What the provider says of a payment that is through."""

    order = forms.IntegerField(min_value=1)
    number = forms.CharField(max_length=20)
