"""The admin plane's paths. What is not here answers 404 in the error shape."""

from __future__ import annotations

from django.urls import path

from billing.authority.admin import api_keys, budgets, health, tenants
from billing.authority.admin.request import by_method

handler404 = "billing.authority.admin.middleware.not_found"

urlpatterns = [
    path("actuator/health", by_method(GET=health.health)),
    path("actuator/health/liveness", by_method(GET=health.liveness)),
    path("actuator/health/readiness", by_method(GET=health.readiness)),
    path("v1/admin/tenants", by_method(GET=tenants.listing, POST=tenants.create)),
    path("v1/admin/tenants/<str:tenant_id>", by_method(GET=tenants.show, PATCH=tenants.change)),
    path("v1/admin/api-keys", by_method(GET=api_keys.listing, POST=api_keys.create)),
    path("v1/admin/api-keys/<str:key_id>", by_method(DELETE=api_keys.revoke, PATCH=api_keys.change)),
    path("v1/admin/budgets", by_method(GET=budgets.listing, PATCH=budgets.change, POST=budgets.create)),
    path("v1/admin/budgets/lookup", by_method(GET=budgets.lookup)),
    path("v1/admin/budgets/fund", by_method(POST=budgets.fund)),
    path("v1/admin/budgets/freeze", by_method(POST=budgets.freeze)),
    path("v1/admin/budgets/unfreeze", by_method(POST=budgets.unfreeze)),
    path("v1/x-embedded/budgets/caps", by_method(GET=budgets.caps, PUT=budgets.caps)),
]
