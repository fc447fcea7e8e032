"""Telling what an operator or a tenant's key did: events for listeners, audit rows for the record.

Both go into the transaction of what they tell of. Only a failed call's row has one of its own: nothing else was stored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from django.db import Error, connection

from billing.authority.admin.request import AdminRequest
from billing.authority.errors import Refusal
from billing.authority.tracing import storable

log = logging.getLogger(__name__)

SOURCE = "cycles-admin"
OPERATOR = {"type": "admin"}
ON_BEHALF = {"type": "admin_on_behalf_of"}


def context(request: AdminRequest) -> str:
    """What the SQL functions write down of the request."""
    return json.dumps(
        {
            "request_id": storable(request.request_id),
            "trace_id": request.trace_id,
            "source_ip": request.META.get("REMOTE_ADDR") or None,
            "user_agent": storable(request.headers.get("User-Agent")),
        }
    )


def emit(
    request: AdminRequest, tenant_id: str, event_type: str, data: Mapping[str, Any], *, scope: str | None = None,
    actor: Mapping[str, Any] = OPERATOR, correlation: str | None = None,
) -> None:  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT emit(%s, %s, %s, %s::jsonb, %s, %s::jsonb, %s::jsonb, %s)",
            [tenant_id, event_type, scope, json.dumps(actor), SOURCE, json.dumps(data), context(request), correlation],
        )


def audit(
    request: AdminRequest, tenant_id: str, operation: str, status: int, *, resource: tuple[str, str] | None = None,
    key_id: str | None = None, error_code: str | None = None, metadata: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    kind, identity = resource or (None, None)
    noted = None if metadata is None else json.dumps({k: v for k, v in metadata.items() if v is not None})
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT write_audit(%s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s::jsonb)",
            [tenant_id, key_id, operation, status, kind, identity, error_code, noted, context(request)],
        )


def record_failure(request: AdminRequest, refusal: Refusal) -> None:
    """A refused call of a known path. That it cannot be written down must not change its answer."""
    if not request.path.startswith("/v1/"):
        return
    try:
        audit(
            request, request.answers_to, f"{request.method}:{storable(request.path)}", refusal.status,
            error_code=refusal.code,
        )  # fmt: skip
    except Error as error:
        log.warning("a failed call is not in the audit log: %s", str(error).strip())


def actor_of(key_id: str | None, otherwise: Mapping[str, Any] = OPERATOR) -> Mapping[str, Any]:
    return otherwise if key_id is None else {"type": "api_key", "key_id": key_id}
