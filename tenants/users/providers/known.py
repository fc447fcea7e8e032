"""The identity providers that the operator trusts, and what one says of a person. Reads settings; speaks to nobody."""

from __future__ import annotations

from dataclasses import dataclass, field

from django.conf import settings
from django.http import Http404

from tenants.hosts import site_url


@dataclass(frozen=True)
class Provider:
    """`key` stands in addresses and in linked accounts. Another issuer under the same key would open the accounts that
    were linked to the first, so an operator who changes the issuer gives it a new key.
    """

    key: str
    kind: str
    name: str
    issuer: str
    client_id: str
    client_secret: str = field(repr=False)
    scopes: list[str] = field(default_factory=list)
    # GitHub's alone: where its API is.
    api: str = ""

    @property
    def redirect_uri(self) -> str:
        """Registered once at the provider, for all workspaces: on the bare host, which passes it on."""
        return site_url(f"/login/back/{self.key}/")


@dataclass(frozen=True)
class Person:
    """Somebody, as a provider proves them. `subject` is the provider's own name for them and never changes."""

    subject: str
    email: str = ""
    email_is_verified: bool = False


def configured() -> list[Provider]:
    return [Provider(key=key, **given) for key, given in settings.LOGIN_PROVIDERS.items()]


def find_provider(key: str) -> Provider | None:
    """None also for one that was configured once: what is linked to it opens nothing."""
    given = settings.LOGIN_PROVIDERS.get(key)
    return Provider(key=key, **given) if given else None


def provider_or_404(key: str) -> Provider:
    if (found := find_provider(key)) is None:
        raise Http404
    return found
