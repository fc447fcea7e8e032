"""The settled calls, in each tenant's own schema."""

from django.apps import AppConfig


class UsageConfig(AppConfig):
    name = "billing.usage"
    label = "usage"
