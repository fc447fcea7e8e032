"""The audit trail of one workspace. Lives in each tenant's schema."""

from django.apps import AppConfig


class AuditConfig(AppConfig):
    name = "tenants.audit"
    label = "audit"
    verbose_name = "Audit trail"
