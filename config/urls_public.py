"""The bare host: landing, sign-up, and the way in for programs that name their workspace in a header."""

from django.urls import include, path
from django.views.generic import TemplateView

from config.api import public_api

handler400 = "tenants.views.bad_request"
handler404 = "tenants.views.not_found"
handler500 = "tenants.views.server_error"

urlpatterns = [
    path("", TemplateView.as_view(template_name="landing.html"), name="landing"),
    path("", include("billing.urls_public")),
    path("", include("tenants.users.urls_public")),
    path("", include("tenants.users.urls_relay")),
    path("api/", public_api.urls),
]
