"""Logging in with somebody else's identity provider: Google, GitHub, any OpenID Connect issuer.

    provider = provider_or_404("google")
    attempt = new_attempt(request.tenant, provider, target="/budget/")
    address_to(provider, attempt)            # where the browser goes
    person_behind(provider, attempt, code)   # who came back: subject, e-mail; raises ProviderError

Owns configuration and protocols; known, attempt, http, oidc, github in that order know each other. Must not know who
is a member: tenants.users.identities decides what a person who is proven may open.
"""

from __future__ import annotations

from types import ModuleType

from tenants.users.providers import github, oidc
from tenants.users.providers.attempt import Attempt
from tenants.users.providers.known import Person, Provider


def address_to(provider: Provider, attempt: Attempt) -> str:
    address: str = _protocol(provider).address_to(provider, attempt)
    return address


def person_behind(provider: Provider, attempt: Attempt, code: str) -> Person:
    person: Person = _protocol(provider).person_behind(provider, attempt, code)
    return person


def _protocol(provider: Provider) -> ModuleType:
    return github if provider.kind == "github" else oidc


__all__ = ["Person", "Provider", "address_to", "person_behind"]
