"""Who asks at /v1: a key's owner, by tenants.resolve as everywhere.

Owns that a key alone counts here: a session is a browser's, whose cookies any page could send along. Must not write a
rule of who may ask a second time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Hashable
from dataclasses import dataclass

from django.conf import settings
from django.utils.module_loading import import_string

from tenants.http import BareRequest, TenantRequired, Unauthenticated
from tenants.kept import Fetch, Used, keep_made, made
from tenants.resolve import Asker, Found, aanswered, find_member, find_tenant
from tenants.roles import Action
from tenants.users.actions import allow
from tenants.users.keys import bearer_secret

_OLD_KEY = re.compile(r"[a-z0-9]{1,12}_[A-Za-z0-9_-]{43}")


@dataclass(frozen=True, slots=True)
class _Allowed(Found):
    """The same for a program that was let in: its key opens, and may do what this door is for."""

    asker: Asker


def fetch_of_plane() -> Fetch:
    fetch: Fetch = import_string(settings.PLANE_SQL)
    return fetch


async def found_by(request: BareRequest, used: Used) -> Found:
    """The workspace that the host, the header or the key names. `used`: for `asker_of`.

    A program asks again and again with the same key: who that is is made anew, and allowed, only once a row has changed
    of which it was made. A key that opens nothing is looked at each time.
    """
    known: _Allowed | None = made(_facts_of(request))
    return known if known is not None else await aanswered(find_tenant(request), fetch_of_plane(), used)


async def asker_of(request: BareRequest, found: Found, used: Used) -> Asker:
    """Raises Unauthenticated, TenantRequired, or Forbidden where its scopes or its owner's role do not allow it."""
    if isinstance(found, _Allowed):
        return found.asker
    secret = bearer_secret(request)
    if not secret:
        raise Unauthenticated
    if found.tenant is None:
        # A key of before says nothing of its workspace; anything else is no key.
        raise TenantRequired if _OLD_KEY.fullmatch(secret) else Unauthenticated
    asker = found.asker
    if asker is None:
        asker = await aanswered(find_member(request, found.tenant), fetch_of_plane(), used)
    allow(asker, Action.CHAT)
    keep_made(_facts_of(request), _Allowed(found.tenant, asker, found.has_moved), used)
    return asker


def _facts_of(request: BareRequest) -> Hashable:
    """All that tenants.resolve reads of a request. Of its key the hash: nothing that is kept holds a secret."""
    meta = request.META
    key = hashlib.sha256(meta.get("HTTP_AUTHORIZATION", "").encode()).digest()
    return meta.get("HTTP_HOST"), meta.get("HTTP_X_TENANT_ID"), key
