"""A tenant's host."""

from django.urls import include, path

from config.api import tenant_api

handler400 = "tenants.views.bad_request"
handler404 = "tenants.views.not_found"
handler500 = "tenants.views.server_error"

urlpatterns = [
    path("", include("chat.urls")),
    path("", include("billing.urls")),
    path("", include("tenants.users.urls")),
    path("", include("tenants.users.urls_providers")),
    path("settings/audit/", include("tenants.audit.urls")),
    path("api/", tenant_api.urls),
]
