from django.urls import path

from . import views

urlpatterns = [
    path("", views.switch, name="switch-provider"),
    path("invoices/", views.book, {"kind": "invoice"}),
    path("payments/", views.book, {"kind": "payment"}),
]
