from django import forms

from .models import Booking, Provider


class BookingForm(forms.ModelForm):
    class Meta:
        model = Booking
        fields = ("customer", "order", "item", "amount")


class ModeForm(forms.ModelForm):
    class Meta:
        model = Provider
        fields = ("mode",)
