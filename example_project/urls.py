from django.contrib import admin
from django.templatetags.static import static
from django.urls import include, path
from django.views.generic import RedirectView

from example_project.shop import views

urlpatterns = [
    path("", views.shop, name="shop"),
    path("everybody/", views.everybody, name="everybody"),
    path("produce/", views.produce, name="produce"),
    path("queues/", views.queues, name="queues"),
    path("paid/<str:token>/", views.paid, name="paid"),
    path("mails/", views.mails, name="mails"),
    path("mails/<str:name>", views.mail, name="mail"),
    path("provider/", include("example_project.provider.urls")),
    path("admin/", admin.site.urls),
    # Browsers ask for it by themselves.
    path("favicon.ico", RedirectView.as_view(url=static("shop/icon.svg"))),
]
