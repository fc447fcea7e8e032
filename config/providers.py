"""Whom people may log in with, beside a password: read from variables, and loud on nonsense.

Owns what a provider's entry in LOGIN_PROVIDERS is made of. Must not speak to one; how it is spoken to is
tenants.users.providers. No refusal quotes a secret.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from django.core.exceptions import ImproperlyConfigured

from config.env import envkey, envtable
from config.production import is_loopback

GOOGLE = {"kind": "oidc", "name": "Google", "issuer": "https://accounts.google.com", "scopes": ["openid", "email"]}
GITHUB = {
    "kind": "github",
    "name": "GitHub",
    "issuer": "https://github.com",
    "api": "https://api.github.com",
    "scopes": ["read:user", "user:email"],
}
# What the trail and a member's sessions call other ways in, and the two above.
TAKEN = {"google", "github", "password", "link", "invitation", "hand-off", "code"}
_NAMES = re.compile(r"[a-z][a-z0-9-]{0,38}[a-z0-9]")
_KEYS = {"name", "issuer", "client_id", "client_secret", "scopes"}
_EXAMPLE = (
    '{"acme-sso": {"name": "Acme SSO", "issuer": "https://sso.example.com", "client_id": "…", "client_secret": "…"}}'
)


def envproviders() -> dict[str, dict[str, Any]]:
    """By the name that stands in addresses and in linked accounts. None is offered unless a variable says so."""
    google = _pair("LOGIN_GOOGLE", envkey("LOGIN_GOOGLE_CLIENT_ID"), envkey("LOGIN_GOOGLE_CLIENT_SECRET"))
    github = _pair("LOGIN_GITHUB", envkey("LOGIN_GITHUB_CLIENT_ID"), envkey("LOGIN_GITHUB_CLIENT_SECRET"))
    found = {}
    if google:
        found["google"] = {**GOOGLE, **google}
    if github:
        found["github"] = {**GITHUB, **github}
    return {**found, **envtable("LOGIN_OIDC", _oidc, example=_EXAMPLE)}


def _pair(name: str, client_id: str, client_secret: str) -> dict[str, str]:
    if bool(client_id) != bool(client_secret):
        missing = f"{name}_CLIENT_SECRET" if client_id else f"{name}_CLIENT_ID"
        raise ImproperlyConfigured(f"{missing} is not set: a provider needs its client id and its client secret.")
    return {"client_id": client_id, "client_secret": client_secret} if client_id else {}


def _oidc(key: str, given: Any) -> dict[str, Any]:
    if not _NAMES.fullmatch(key) or key in TAKEN:
        raise ValueError(
            f"{key[:40]!r} is no name for a provider: 2 to 40 of a-z, 0-9 and -, and none of {', '.join(sorted(TAKEN))}"
        )
    if not isinstance(given, dict) or not _KEYS - {"scopes"} <= set(given) <= _KEYS:
        raise ValueError(f"{key} needs name, issuer, client_id and client_secret, may have scopes, and nothing else")
    name, scopes = given["name"], given.get("scopes", ["openid", "email"])
    if not _is_text(name, 40) or name != name.strip():
        raise ValueError(f"{key}: its name must be 1 to 40 signs that can be seen")
    for part in ("client_id", "client_secret"):
        if not _is_text(given[part], 1_000) or not given[part].isascii() or " " in given[part]:
            raise ValueError(f"{key}: its {part} must be one line of ASCII without spaces")
    if not isinstance(scopes, list) or "openid" not in scopes or not all(_is_scope(scope) for scope in scopes):
        raise ValueError(f"{key}: its scopes must be a list of names with openid among them")
    return {"kind": "oidc", **given, "issuer": _issuer(key, given["issuer"]), "scopes": scopes}


def _is_text(value: Any, longest: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= longest and value.isprintable()


def _is_scope(value: Any) -> bool:
    return _is_text(value, 200) and value.isascii() and not set(value) & set(' "\\')


def _issuer(key: str, given: Any) -> str:
    """As the provider itself writes it, a slash at its end included: tokens are compared with it."""
    try:
        parts = urlsplit(given if isinstance(given, str) else "")
        host, is_plain = parts.hostname or "", not (parts.query or parts.fragment or "@" in parts.netloc)
        is_good = bool(host) and is_plain and given.isascii() and given.isprintable() and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good or parts.scheme not in ("http", "https"):
        raise ValueError(f"{key}: its issuer must be an address such as https://sso.example.com")
    if parts.scheme == "http" and not is_loopback(host):
        raise ValueError(f"{key}: its issuer must be https outside of localhost, or anybody on the way could log in")
    return str(given)
