"""What somebody had typed when it turned out that they are signed out, until it is in front of them again.

On the log-in page it is a hidden field, signed for this workspace; after log-in it lies in the new session until the
next page takes it. Never in an address, where it would be logged. Whoever logs in on that very page gets it: it was
typed in that browser, and the page has had it all along. Must not know what a draft is of.
"""

from __future__ import annotations

from typing import Any

from django.core import signing

from tenants.http import TenantRequest

KEY = "draft"
SECONDS = 24 * 3_600


def typed(request: TenantRequest, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the form's fields that were filled. `scopes[]` is a field of several values, kept as a list."""
    draft: dict[str, Any] = {}
    for name in names:
        field = name.removesuffix("[]")
        if value := request.POST.get(field) if field == name else request.POST.getlist(field):
            draft[field] = value
    return draft


def pack(request: TenantRequest, draft: dict[str, Any]) -> str:
    return signing.dumps(draft, salt=_salt(request), compress=True) if draft else ""


def keep(request: TenantRequest, packed: str) -> None:
    """Into the session of who has just given a right password. What was not packed here, or long ago, is nothing.

    A second step may still be asked for: the session is nobody's until then, and what is in it stays.
    """
    try:
        draft = signing.loads(packed, salt=_salt(request), max_age=SECONDS)
    except signing.BadSignature:
        return
    keep_typed(request, draft)


def keep_typed(request: TenantRequest, draft: dict[str, Any], **more: list[int]) -> None:
    """`more`: what the form names beside what was typed."""
    request.session[KEY] = {**draft, **more}


def take(request: TenantRequest, *, having: str = "") -> dict[str, Any]:
    """The draft, once; without one the session is not written. `having`: a field by which a form knows its own draft,
    where another form has fields of the same name: a key's name must not stand in the field of the workspace's.
    """
    if request.method != "GET" or having not in ("", *request.session.get(KEY, {})):
        return {}
    draft: dict[str, Any] = request.session.pop(KEY, {})
    return draft


def _salt(request: TenantRequest) -> str:
    return f"tenants.users.drafts:{request.tenant.pk if request.tenant else 0}"
