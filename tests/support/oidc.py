"""A small identity provider on loopback: OpenID Connect with RS256 and PKCE, and GitHub's flow beside it.

It asks its visitor by a form, keeps what it was asked, and can lie: `provider.lies = "nonce"`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import threading
import time
from contextlib import suppress
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, quote, urlencode, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

CLIENT_ID, CLIENT_SECRET = "tenantry-at-sso", "the-secret/of:tests"
HANGS_SECONDS = 30  # when it is slow, unless `given_up` is set


class IdentityProvider:
    """`person` is who its visitor is. `lies` is one word; see `_lying`."""

    def __init__(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.other_key = RSAKey.generate_key(2048, {"kid": "one", "use": "sig", "alg": "RS256"})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), _handler_of(self))
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.reset()

    def reset(self) -> None:
        self.given_up = threading.Event()
        self.person: dict[str, Any] = {"sub": "alice-at-sso", "email": "alice@acme.example", "email_verified": True}
        self.lies = ""
        # Whoever has agreed before is led back at once.
        self.asks = True
        self.asked: list[str] = []
        self.codes: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.given_up.set()
        self.server.shutdown()
        self.server.server_close()

    def settings(self, **more: Any) -> dict[str, Any]:
        """An entry of LOGIN_PROVIDERS."""
        return {
            "kind": "oidc",
            "name": "Acme SSO",
            "issuer": self.issuer,
            "client_id": CLIENT_ID,
            "client_secret": CLIENT_SECRET,
            "scopes": ["openid", "email"],
            **more,
        }

    def github_settings(self) -> dict[str, Any]:
        scopes = ["read:user", "user:email"]
        return self.settings(kind="github", name="GitHub", api=f"{self.issuer}/api", scopes=scopes)

    # --- what it answers ---

    def discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer if self.lies != "discovery" else "http://evil.example",
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token" if self.lies != "plain http" else "http://192.0.2.1/token",
            "userinfo_endpoint": f"{self.issuer}/userinfo",
            "jwks_uri": f"{self.issuer}/jwks",
        }

    def agreed(self, query: dict[str, str]) -> str:
        """Where the visitor is sent who has agreed to `query`."""
        assert query["client_id"] == CLIENT_ID
        assert query["code_challenge_method"] == "S256"
        code = secrets.token_urlsafe(16)
        self.codes[code] = {**query, "person": dict(self.person)}
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def redeemed(self, form: dict[str, str], basic: str) -> tuple[int, Any]:
        given = self.codes.pop(form.get("code", ""), None)
        expected = f"{quote(CLIENT_ID, safe='')}:{quote(CLIENT_SECRET, safe='')}"
        by_basic = hmac.compare_digest(basic, base64.b64encode(expected.encode()).decode())
        by_form = (form.get("client_id"), form.get("client_secret")) == (CLIENT_ID, CLIENT_SECRET)
        if not (by_basic or by_form):
            return 401, {"error": "invalid_client"}
        digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if given is None or given["code_challenge"] != challenge or given["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant", "error_description": "a secret of the provider"}
        access = secrets.token_urlsafe(16)
        self.tokens[access] = given["person"]
        tokens = {"access_token": access, "token_type": "Bearer"}
        if "nonce" in given:
            tokens["id_token"] = self._id_token(given)
        return 200, tokens

    def _id_token(self, given: dict[str, Any]) -> str:
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 60, "nonce": given["nonce"]}
        person = {"sub": given["person"]["sub"]} if self.lies in ("userinfo", "subject") else given["person"]
        claims |= {**person, **_lying(self.lies, now)}
        claims = {name: value for name, value in claims.items() if value is not None}
        if self.lies in ("none", "hmac"):
            return _signed_wrongly(self.lies, claims, self.key.as_pem(private=False))
        key = self.other_key if self.lies == "key" else self.key
        return jwt.encode({"alg": "RS256", "kid": "one"}, claims, key)

    def userinfo(self, bearer: str) -> tuple[int, Any]:
        person = self.tokens.get(bearer)
        if person is None:
            return 401, {}
        return 200, {**person, **({"sub": "somebody-else"} if self.lies == "subject" else {})}

    def api(self, path: str, bearer: str) -> tuple[int, Any]:
        person = self.tokens.get(bearer)
        if person is None:
            return 401, {}
        if path == "/api/user":
            return 200, {"id": person["sub"], "login": "alice"}
        other = {"email": "other@elsewhere.example", "primary": False, "verified": True}
        return 200, [other, {"email": person["email"], "primary": True, "verified": person["email_verified"]}]


# Each with what the operator's log says about it.
LIES = {
    "nonce": "InvalidClaimError nonce",
    "no nonce": "MissingClaimError nonce",
    "aud": "InvalidClaimError aud",
    "azp": "InvalidClaimError azp",
    "iss": "InvalidClaimError iss",
    "expired": "ExpiredTokenError exp",
    "future": "InvalidClaimError iat",
    "none": "not signed by a key of its own",
    "hmac": "not signed by a key of its own",
    "key": "not signed by a key of its own",
    "sub": "cannot be kept",
    "sub is a number": "InvalidClaimError sub",
    "sub is a list": "InvalidClaimError sub",
    "at_hash": "refused",
    "subject": "about somebody else",
    "500": "answered 500, server_error",
    "long": "too long",
    "redirect": "answered 302",
    "discovery": "another issuer",
    "plain http": "not https",
}


def _signed_wrongly(lie: str, claims: dict[str, Any], public: bytes) -> str:
    """Not at all, or with the public key as if it were a secret."""
    header = {"alg": "none"} if lie == "none" else {"alg": "HS256", "kid": "one"}
    signed = ".".join(_base64(json.dumps(part).encode()) for part in (header, claims))
    mac = b"" if lie == "none" else hmac.new(public, signed.encode(), "sha256").digest()
    return f"{signed}.{_base64(mac)}"


def _lying(lie: str, now: int) -> dict[str, Any]:
    lies: dict[str, dict[str, Any]] = {
        "nonce": {"nonce": "another"},
        "no nonce": {"nonce": None},
        "aud": {"aud": "another-client"},
        "azp": {"aud": [CLIENT_ID, "another-client"], "azp": "another-client"},
        "iss": {"iss": "https://evil.example"},
        "expired": {"iat": now - 900, "exp": now - 600},
        "future": {"iat": now + 900, "exp": now + 1800},
        "sub": {"sub": "\x00"},
        "sub is a number": {"sub": 4711},
        "sub is a list": {"sub": ["alice-at-sso"]},
        "at_hash": {"at_hash": 7},
    }
    return lies.get(lie, {})


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _handler_of(provider: IdentityProvider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            provider.asked.append(parts.path)
            bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if parts.path in ("/authorize", "/login/oauth/authorize") and not provider.asks:
                self._go(provider.agreed(_fields(parts.query)))
            elif parts.path in ("/authorize", "/login/oauth/authorize"):
                self._page(parts.query)
            elif parts.path == "/.well-known/openid-configuration":
                self._json(200, provider.discovery())
            elif parts.path == "/jwks":
                self._json(200, {"keys": [provider.key.as_dict(private=False), {"kty": "new-kind"}]})
            elif parts.path == "/userinfo":
                self._json(*provider.userinfo(bearer))
            elif parts.path.startswith("/api/user"):
                self._json(*provider.api(parts.path, bearer))
            else:
                self._json(404, {})

        def do_POST(self) -> None:
            form = _fields(self.rfile.read(int(self.headers["Content-Length"])).decode())
            provider.asked.append(self.path)
            if self.path == "/agree":
                self._go(provider.agreed(form) if "agree" in form else self._denied(form))
                return
            if provider.lies == "slow":
                provider.given_up.wait(HANGS_SECONDS)
            if provider.lies == "500":
                self._json(500, {"error": "server_error", "error_description": "a secret of the provider"})
            elif provider.lies.startswith("drips"):
                self._drip()
            elif provider.lies == "long":
                self._json(200, {"id_token": "x" * 300_000})
            elif provider.lies == "redirect":
                self._go(f"{provider.issuer}/token-elsewhere")
            else:
                self._json(*provider.redeemed(form, self.headers.get("Authorization", "").removeprefix("Basic ")))

        def _drip(self) -> None:
            """A little now and then, so that no single read takes long."""
            head = "HTTP/1.1 200 OK\r\n"
            self.wfile.write(head.encode() if provider.lies == "drips its head" else f"{head}\r\n".encode())
            with suppress(OSError):
                for _ in range(10 * HANGS_SECONDS):
                    self.wfile.write(b"x: y\r\n" if provider.lies == "drips its head" else b" ")
                    if provider.given_up.wait(0.1):
                        return

        def _denied(self, form: dict[str, str]) -> str:
            return f"{form['redirect_uri']}?{urlencode({'error': 'access_denied', 'state': form['state']})}"

        def _page(self, query: str) -> None:
            hidden = "".join(
                f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
                for name, value in _fields(query).items()
            )
            buttons = '<button name="agree">Agree</button><button name="deny">Deny</button>'
            form = f'<form action="/agree" method="post">{hidden}{buttons}</form>'
            body = f"<!doctype html><title>Acme SSO</title><h1>Acme SSO</h1>{form}"
            self._send(200, "text/html", body.encode())

        def _go(self, where: str) -> None:
            self.send_response(302)
            self.send_header("Location", where)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _json(self, status: int, body: Any) -> None:
            self._send(status, "application/json", json.dumps(body).encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


def _fields(text: str) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(text, keep_blank_values=True).items()}
