"""Which web pages may read an answer of /v1: those whose origin an owner has named. Pure, but for one question.

Owns the headers of CORS. A browser is told, nobody else is kept out: a key opens, wherever it is sent from. Never any
origin, never with cookies: this API takes none.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenants.kept import Fetch
from tenants.models import Tenant

# What a page may read of an answer beside its body.
_EXPOSED = (
    "retry-after, retry-after-ms, x-should-retry, x-request-id, idempotent-replayed, x-budget-cost, "
    "x-budget-remaining, x-budget-limit, x-budget-held, x-budget-resets-at, x-budget-scope, x-budget-outcome, "
    "x-budget-ended, x-budget-fitted, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    "x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens"
)
# A stock client tells of itself in headers of its own, more of them with each release.
_LONGEST_LIST = 2_000
_DAY = "86400"
_NAMED_BY_SOMEBODY = """
    SELECT 1 FROM public.tenants_tenant t
    WHERE t.status <> 'closed' AND t.allowed_origins @> to_jsonb(%s::text) LIMIT 1"""


def allowed(headers: Mapping[bytes, bytes], tenant: Tenant | None) -> dict[str, str]:
    """Of an answer to a program that asked for this tenant."""
    origin = headers.get(b"origin")
    if origin is None:
        return {}
    name = origin.decode("latin1")
    if tenant is None or name not in (tenant.allowed_origins or ()):
        return {"vary": "Origin"}
    return {"vary": "Origin", "access-control-allow-origin": name, "access-control-expose-headers": _EXPOSED}


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


async def preflight(headers: Mapping[bytes, bytes], tenant: Tenant | None, fetch: Fetch) -> dict[str, str]:
    """What a page may send. No key comes with the question: on the bare host it is allowed where some workspace has
    named the page's origin, and the answer itself is then readable only for that workspace's keys.
    """
    found = allowed(headers, tenant)
    origin = headers[b"origin"].decode("latin1")
    is_origin = origin.isascii() and origin.isprintable() and len(origin) <= 300
    if tenant is None and is_origin and await fetch(_NAMED_BY_SOMEBODY, (origin,)):
        found["access-control-allow-origin"] = origin
    if "access-control-allow-origin" not in found:
        return found
    asked = headers.get(b"access-control-request-headers", b"authorization, content-type").decode("latin1")
    found |= {"access-control-allow-methods": "GET, POST", "access-control-max-age": _DAY}
    if len(asked) <= _LONGEST_LIST and asked.isascii() and asked.isprintable():
        found["access-control-allow-headers"] = asked
    return found
