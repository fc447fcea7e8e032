"""What the pages of log-in and account show of providers, whichever view renders them."""

from __future__ import annotations

from django import template

from tenants.users.identities import Row, rows_of
from tenants.users.models import User
from tenants.users.providers.known import Provider, configured

register = template.Library()


@register.simple_tag
def login_providers() -> list[Provider]:
    return configured()


@register.simple_tag
def identity_rows(user: User) -> list[Row]:
    return rows_of(user)
