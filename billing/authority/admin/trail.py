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
EMIT = """SELECT emit(p_tenant => %(tenant)s, p_type => %(type)s, p_scope => %(scope)s, p_actor => %(actor)s::jsonb,
    p_source => %(source)s, p_data => %(data)s::jsonb, p_context => %(context)s::jsonb,
    p_correlation => %(correlation)s)"""
WRITE_AUDIT = """SELECT write_audit(p_tenant => %(tenant)s, p_key_id => %(key_id)s, p_operation => %(operation)s,
    p_status => %(status)s, p_resource_type => %(resource_type)s, p_resource_id => %(resource_id)s,
    p_error_code => %(error_code)s, p_metadata => %(metadata)s::jsonb, p_context => %(context)s::jsonb)"""


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
            EMIT,
            {
                "tenant": tenant_id,
                "type": event_type,
                "scope": scope,
                "actor": json.dumps(actor),
                "source": SOURCE,
                "data": json.dumps(data),
                "context": context(request),
                "correlation": correlation,
            },
        )


def audit(
    request: AdminRequest, tenant_id: str, operation: str, status: int, *, resource: tuple[str, str] | None = None,
    key_id: str | None = None, error_code: str | None = None, metadata: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    kind, identity = resource or (None, None)
    noted = None if metadata is None else json.dumps({k: v for k, v in metadata.items() if v is not None})
    with connection.cursor() as cursor:
        cursor.execute(
            WRITE_AUDIT,
            {
                "tenant": tenant_id,
                "key_id": key_id,
                "operation": operation,
                "status": status,
                "resource_type": kind,
                "resource_id": identity,
                "error_code": error_code,
                "metadata": noted,
                "context": context(request),
            },
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
