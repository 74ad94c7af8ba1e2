from django.urls import path

from example_project.shop import views

urlpatterns = [path("", views.orders, name="orders")]
