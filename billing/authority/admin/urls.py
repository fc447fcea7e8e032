"""The admin plane's paths. What is not here answers 404 in the error shape."""

from __future__ import annotations

from django.urls import path

from billing.authority.admin import (
    api_keys,
    audit_logs,
    budgets,
    bulk,
    deliveries,
    documents,
    events,
    health,
    introspection,
    overview,
    policies,
    tenants,
    webhooks,
)
from billing.authority.admin.auth import admin_or, for_operators
from billing.authority.admin.request import by_method

handler404 = "billing.authority.admin.middleware.not_found"

read_hooks, write_hooks = admin_or("webhooks:read"), admin_or("webhooks:write")

urlpatterns = [
    path("api-docs", by_method(GET=documents.show)),
    path("actuator/health", by_method(GET=health.health)),
    path("actuator/health/liveness", by_method(GET=health.liveness)),
    path("actuator/health/readiness", by_method(GET=health.readiness)),
    path("v1/admin/tenants", by_method(GET=tenants.listing, POST=tenants.create)),
    path("v1/admin/tenants/bulk-action", by_method(POST=bulk.act_on_tenants)),
    path("v1/admin/tenants/<str:tenant_id>", by_method(GET=tenants.show, PATCH=tenants.change)),
    path("v1/admin/api-keys", by_method(GET=api_keys.listing, POST=api_keys.create)),
    path("v1/admin/api-keys/<str:key_id>", by_method(DELETE=api_keys.revoke, PATCH=api_keys.change)),
    path("v1/admin/budgets", by_method(GET=budgets.listing, PATCH=budgets.change, POST=budgets.create)),
    path("v1/admin/budgets/lookup", by_method(GET=budgets.lookup)),
    path("v1/admin/budgets/fund", by_method(POST=budgets.fund)),
    path("v1/admin/budgets/freeze", by_method(POST=budgets.freeze)),
    path("v1/admin/budgets/unfreeze", by_method(POST=budgets.unfreeze)),
    path("v1/admin/budgets/bulk-action", by_method(POST=bulk.act_on_budgets)),
    path("v1/balances", by_method(GET=budgets.balances)),
    path("v1/admin/policies", by_method(GET=policies.listing, POST=policies.create)),
    path("v1/admin/policies/<str:policy_id>", by_method(PATCH=policies.change)),
    path("v1/admin/events", by_method(GET=events.listing)),
    path("v1/admin/events/<str:event_id>", by_method(GET=events.show)),
    path("v1/events", by_method(GET=events.own)),
    path("v1/admin/audit/logs", by_method(GET=audit_logs.listing)),
    path("v1/admin/overview", by_method(GET=overview.overview)),
    path("v1/auth/validate", by_method(POST=introspection.validate)),
    path("v1/auth/introspect", by_method(GET=introspection.introspect)),
    path("v1/admin/config/webhook-security", by_method(GET=webhooks.security_setting, PUT=webhooks.security_setting)),
    path("v1/admin/webhooks", by_method(GET=webhooks.listing, POST=webhooks.create)),
    path("v1/admin/webhooks/bulk-action", by_method(POST=bulk.act_on_webhooks)),
    path(
        "v1/admin/webhooks/<str:subscription_id>",
        by_method(
            DELETE=for_operators(webhooks.remove),
            GET=for_operators(webhooks.show),
            PATCH=for_operators(webhooks.change),
        ),
    ),
    path("v1/admin/webhooks/<str:subscription_id>/test", by_method(POST=for_operators(deliveries.test))),
    path("v1/admin/webhooks/<str:subscription_id>/deliveries", by_method(GET=for_operators(deliveries.listing))),
    path("v1/admin/webhooks/<str:subscription_id>/replay", by_method(POST=for_operators(deliveries.replay))),
    path("v1/webhooks", by_method(GET=webhooks.listing_own, POST=webhooks.create_own)),
    path(
        "v1/webhooks/<str:subscription_id>",
        by_method(
            DELETE=write_hooks(webhooks.remove), GET=read_hooks(webhooks.show), PATCH=write_hooks(webhooks.change)
        ),
    ),
    path("v1/webhooks/<str:subscription_id>/test", by_method(POST=write_hooks(deliveries.test))),
    path("v1/webhooks/<str:subscription_id>/deliveries", by_method(GET=read_hooks(deliveries.listing))),
    path("v1/x-embedded/budgets/caps", by_method(GET=budgets.caps, PUT=budgets.caps)),
]
