"""OpenID Connect, the code flow with PKCE: Google, and any other issuer.

Owns what is believed of an ID token: signed by a key of the issuer's own, by an asymmetric algorithm, for this client,
now, and for this very attempt. Must not know members; what a person may do here is tenants.users.identities.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

from tenants.users.providers.attempt import Attempt
from tenants.users.providers.errors import AttemptOver, Denied
from tenants.users.providers.http import Conversation, conversation, is_safe
from tenants.users.providers.known import Person, Provider

# No "none", and no HS*: with one of these the issuer's public key would be the secret that signs.
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
KEY_TYPES = ("RSA", "EC", "OKP")
LEEWAY = 60
KEPT_SECONDS = 3600.0
_SUBJECT_LENGTH = 255
_CODES = re.compile(r"[a-z_]{1,40}")


@dataclass(frozen=True)
class Issuer:
    """What an issuer says of itself."""

    authorize: str
    token: str
    jwks: str
    userinfo: str
    takes_basic: bool
    until: float


_issuers: dict[str, Issuer] = {}
_keys: dict[str, KeySet] = {}


def address_to(provider: Provider, attempt: Attempt) -> str:
    """Where the browser goes to log in there."""
    issuer = _known(provider)
    if issuer is None:
        with conversation(provider) as asked:
            issuer = _discovered(asked, provider)
    query = {
        "response_type": "code",
        "client_id": provider.client_id,
        "redirect_uri": provider.redirect_uri,
        "scope": " ".join(provider.scopes),
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": attempt.challenge,
        "code_challenge_method": "S256",
    }
    return f"{issuer.authorize}{'&' if '?' in issuer.authorize else '?'}{urlencode(query)}"


def person_behind(provider: Provider, attempt: Attempt, code: str) -> Person:
    """Who came back with `code`. Raises ProviderFailed for whatever cannot be believed."""
    with conversation(provider) as asked:
        issuer = _known(provider) or _discovered(asked, provider)
        tokens = _tokens(asked, provider, issuer, attempt, code)
        claims = _claims(asked, provider, issuer, attempt, tokens)
        if "email" not in claims and issuer.userinfo:
            claims = _with_userinfo(asked, issuer, claims, tokens)
    return _person(asked, claims)


# --- the issuer ------------------------------------------------------------------------------------------------------


def _known(provider: Provider) -> Issuer | None:
    issuer = _issuers.get(provider.issuer)
    return issuer if issuer and issuer.until > time.monotonic() else None


def _discovered(asked: Conversation, provider: Provider) -> Issuer:
    said = asked.get(f"{provider.issuer.removesuffix('/')}/.well-known/openid-configuration")
    if not isinstance(said, dict) or said.get("issuer") != provider.issuer:
        raise asked.failed("its discovery document names another issuer")
    authorize, token, jwks = (said.get(name) for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"))
    userinfo = said.get("userinfo_endpoint") or ""
    if not all(is_safe(url, provider) for url in [authorize, token, jwks, *([userinfo] if userinfo else [])]):
        raise asked.failed("its discovery document lacks an address, or names one that is not https")
    methods = said.get("token_endpoint_auth_methods_supported")
    issuer = Issuer(
        authorize=str(authorize),
        token=str(token),
        jwks=str(jwks),
        userinfo=str(userinfo),
        takes_basic=not isinstance(methods, list) or "client_secret_basic" in methods,
        until=time.monotonic() + KEPT_SECONDS,
    )
    _issuers[provider.issuer] = issuer
    _keys.pop(issuer.jwks, None)
    return issuer


def _fresh_keys(asked: Conversation, issuer: Issuer) -> KeySet:
    said = asked.get(issuer.jwks)
    listed = said.get("keys") if isinstance(said, dict) else None
    if not isinstance(listed, list):
        raise asked.failed("its key set cannot be read")
    usable: Any = [
        key
        for key in listed
        if isinstance(key, dict) and key.get("kty") in KEY_TYPES and key.get("use", "sig") == "sig"
    ]
    try:
        keys = KeySet.import_key_set({"keys": usable})
    except (JoseError, ValueError, TypeError):
        raise asked.failed("its key set cannot be read") from None
    _keys[issuer.jwks] = keys
    return keys


# --- the tokens ------------------------------------------------------------------------------------------------------


def _tokens(asked: Conversation, provider: Provider, issuer: Issuer, attempt: Attempt, code: str) -> dict[str, Any]:
    form = {
        "grant_type": "authorization_code",
        "code": code,
        "redirect_uri": provider.redirect_uri,
        "code_verifier": attempt.verifier,
    }
    auth = None
    if issuer.takes_basic:
        # RFC 6749, 2.3.1: each is form-encoded first.
        auth = (quote(provider.client_id, safe=""), quote(provider.client_secret, safe=""))
    else:
        form |= {"client_id": provider.client_id, "client_secret": provider.client_secret}
    status, said = asked.post(issuer.token, form, auth=auth)
    return read_tokens(asked, provider, status, said)


def read_tokens(asked: Conversation, provider: Provider, status: int, said: Any) -> dict[str, Any]:
    """What a token endpoint answered. GitHub's says 200 where it refuses."""
    if not isinstance(said, dict):
        raise asked.failed(f"its token endpoint answered {status}, and no JSON object")
    if (error := said.get("error")) is not None or status != 200:
        if error in ("invalid_grant", "bad_verification_code"):
            raise AttemptOver
        if error == "access_denied":
            raise Denied(provider.name)
        named = error if isinstance(error, str) and _CODES.fullmatch(error) else "unnamed"
        raise asked.failed(f"its token endpoint answered {status}, {named}")
    return said


def bearer_in(asked: Conversation, tokens: dict[str, Any]) -> str:
    """The access token, as it may stand in a header."""
    bearer = tokens.get("access_token")
    if not isinstance(bearer, str) or not bearer.isascii() or not bearer.isprintable():
        raise asked.failed("there is no access token")
    return bearer


def _claims(
    asked: Conversation, provider: Provider, issuer: Issuer, attempt: Attempt, tokens: dict[str, Any]
) -> dict[str, Any]:
    """The ID token's, proven."""
    raw = tokens.get("id_token")
    if not isinstance(raw, str):
        raise asked.failed("there is no ID token")
    token = None
    if keys := _keys.get(issuer.jwks):
        # It may have been signed by a key that is newer than what we know.
        token = _decoded(raw, keys)
    if token is None:
        token = _decoded(raw, _fresh_keys(asked, issuer))
    if token is None:
        raise asked.failed("its ID token is not signed by a key of its own")
    options: Any = {
        "iss": {"essential": True, "value": provider.issuer},
        "aud": {"essential": True, "value": provider.client_id},
        "sub": {"essential": True},
    }
    params = {
        "nonce": attempt.nonce,
        "client_id": provider.client_id,
        "access_token": tokens.get("access_token"),
    }
    try:
        CodeIDToken(token.claims, token.header, options=options, params=params).validate(leeway=LEEWAY)
    except JoseError as exc:
        # The claim's name, which is ours; its value is not in these words.
        raise asked.failed(f"its ID token is refused: {type(exc).__name__} {_claim_of(exc)}") from None
    except (ValueError, TypeError, KeyError):
        raise asked.failed("its ID token cannot be read") from None
    return token.claims


def _decoded(raw: str, keys: KeySet) -> jwt.Token | None:
    # Headers that we do not know are no reason to refuse; "crit" is, and is checked all the same.
    registry = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)
    try:
        return jwt.decode(raw, keys, algorithms=ALGORITHMS, registry=registry)
    except (JoseError, ValueError, TypeError, KeyError, RecursionError):
        return None


def _claim_of(exc: JoseError) -> str:
    claim = getattr(exc, "claim", "")
    return claim if isinstance(claim, str) and _CODES.fullmatch(claim) else ""


def _with_userinfo(
    asked: Conversation, issuer: Issuer, claims: dict[str, Any], tokens: dict[str, Any]
) -> dict[str, Any]:
    said = asked.get(issuer.userinfo, bearer=bearer_in(asked, tokens))
    if not isinstance(said, dict) or said.get("sub") != claims["sub"]:
        raise asked.failed("its userinfo is about somebody else")
    return {**claims, **{name: said[name] for name in ("email", "email_verified") if name in said}}


def _person(asked: Conversation, claims: dict[str, Any]) -> Person:
    subject, email = claims["sub"], claims.get("email")
    if not subject or len(subject) > _SUBJECT_LENGTH or not subject.isprintable():
        raise asked.failed("its name for the person cannot be kept")
    return Person(subject, *read_email(email, claims.get("email_verified") in (True, "true")))


def read_email(email: Any, is_verified: bool) -> tuple[str, bool]:
    """One that cannot be an address is none, and nobody is found by it."""
    is_one = isinstance(email, str) and 3 <= len(email) <= 254 and email.isprintable() and "@" in email[1:-1]
    return (email, is_verified) if is_one else ("", False)
