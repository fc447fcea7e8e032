"""GitHub: OAuth 2 without OpenID Connect. Who it is says its API, asked with the token that the code was worth."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from tenants.users.providers.attempt import Attempt
from tenants.users.providers.http import conversation
from tenants.users.providers.known import Person, Provider
from tenants.users.providers.oidc import bearer_in, read_email, read_tokens


def address_to(provider: Provider, attempt: Attempt) -> str:
    query = {
        "client_id": provider.client_id,
        "redirect_uri": provider.redirect_uri,
        "scope": " ".join(provider.scopes),
        "state": attempt.state,
        "code_challenge": attempt.challenge,
        "code_challenge_method": "S256",
        "allow_signup": "false",
    }
    return f"{provider.issuer}/login/oauth/authorize?{urlencode(query)}"


def person_behind(provider: Provider, attempt: Attempt, code: str) -> Person:
    form = {
        "client_id": provider.client_id,
        "client_secret": provider.client_secret,
        "code": code,
        "redirect_uri": provider.redirect_uri,
        "code_verifier": attempt.verifier,
    }
    with conversation(provider) as asked:
        answer = asked.post(f"{provider.issuer}/login/oauth/access_token", form)
        bearer = bearer_in(asked, read_tokens(asked, provider, *answer))
        user = asked.get(f"{provider.api}/user", bearer=bearer)
        number = user.get("id") if isinstance(user, dict) else None
        # Its number, which stays; a GitHub name can be given up, and taken by somebody else.
        if type(number) is not int or number <= 0:
            raise asked.failed("its API does not say who it is")
        return Person(str(number), *_email(asked.get(f"{provider.api}/user/emails", bearer=bearer)))


def _email(listed: Any) -> tuple[str, bool]:
    """The primary address: the one that the person reads."""
    for entry in listed if isinstance(listed, list) else []:
        if isinstance(entry, dict) and entry.get("primary") is True:
            return read_email(entry.get("email"), entry.get("verified") is True)
    return "", False
