"""Webhook subscriptions of both kinds: an operator's, for any owner, and a tenant's own. A neighbour's is 404.

Only their rows are written here; deliveries are written by what they tell of, and made by billing.authority.webhooks.
"""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet
from django.http import HttpResponse, JsonResponse
from django.utils import timezone

from billing.authority import wire
from billing.authority.admin.auth import Caller, admin_only, admin_or, tenant_only
from billing.authority.admin.request import AdminRequest, iso, page, search
from billing.authority.admin.shapes import (
    CreateWebhook,
    PatchWebhook,
    RetryPolicy,
    Thresholds,
    WebhookSecurity,
    WebhookSettings,
)
from billing.authority.admin.trail import actor_of, audit, emit
from billing.authority.destinations import SETTING, Security
from billing.authority.errors import Refusal, invalid
from billing.authority.models import Delivery, Setting, Subscription, Tenant
from billing.authority.records import SYSTEM
from billing.authority.sealing import SealError, seal, unseal

SORTS = {name: F(name) for name in ("url", "tenant_id", "status", "consecutive_failures")}
OPTIONAL = ("name", "description", "event_categories", "scope_filter", "thresholds", "metadata")
NOT_AS_GIVEN = {"thresholds", "retry_policy", "status", "signing_secret", "headers"}
MOMENTS = ("updated_at", "last_triggered_at", "last_success_at", "last_failure_at")
FOR_TENANTS = {"budget", "reservation", "tenant"}
OPERATOR = Caller(None)
MASK = "********"


def shown(row: Subscription, *, masked: bool = False) -> dict[str, Any]:
    """As listed and as made, with the values of its headers; one by itself is masked, as in the reference servers."""
    body: dict[str, Any] = {
        "subscription_id": row.subscription_id,
        "tenant_id": row.tenant_id,
        "url": row.url,
        "event_types": row.event_types,
        "status": row.status,
        "retry_policy": row.retry_policy,
        "disable_after_failures": row.disable_after_failures,
        "consecutive_failures": row.consecutive_failures,
        "created_at": iso(row.created_at),
    }
    body |= {name: value for name in OPTIONAL if (value := getattr(row, name)) is not None}
    body |= {name: iso(moment) for name in MOMENTS if (moment := getattr(row, name)) is not None}
    if row.sealed_headers is not None:
        body["headers"] = dict.fromkeys(row.sealed_headers, MASK) if masked else _opened(row.sealed_headers)
    return body


@admin_only
def create(request: AdminRequest) -> HttpResponse:
    return _create(request, OPERATOR, request.GET.get("tenant_id") or SYSTEM)


@tenant_only("webhooks:write")
def create_own(request: AdminRequest, caller: Caller) -> HttpResponse:
    assert caller.tenant is not None
    return _create(request, caller, caller.tenant.tenant_id)


def _create(request: AdminRequest, caller: Caller, owner: str) -> HttpResponse:
    body = wire.read(CreateWebhook, request.body)
    _check_url(body.url)
    _check_kinds(owner, body)
    if body.signing_secret is None:
        body.signing_secret = f"whsec_{secrets.token_urlsafe(32)}"
    with transaction.atomic(durable=True):
        refuse_closed(owner)
        row = Subscription(
            subscription_id=f"whsub_{str(uuid.uuid4())[:16]}",
            tenant_id=owner,
            url=body.url,
            event_types=body.event_types,
            retry_policy=RetryPolicy().model_dump(),
            created_at=timezone.now(),
        )
        _apply(row, body)
        row.save()
        tell(request, caller, row, "created", "create")
        _note(request, caller, row, "createWebhookSubscription", 201)
    return JsonResponse({"subscription": shown(row), "signing_secret": body.signing_secret}, status=201)


def _opened(headers: dict[str, str]) -> dict[str, str]:
    """Masked where another key sealed them: a list must show the other webhooks all the same."""
    try:
        return {name: unseal(value) for name, value in headers.items()}
    except SealError:
        return dict.fromkeys(headers, MASK)


def _check_url(url: str) -> None:
    if reason := security().why_not(url):
        raise Refusal(400, "WEBHOOK_URL_INVALID", reason)


def _check_kinds(owner: str, body: CreateWebhook | PatchWebhook) -> None:
    """A tenant may hear of its budgets, reservations and itself; of keys, policies and the system only operators."""
    if owner == SYSTEM:
        return
    kinds = {kind.partition(".")[0] for kind in (*(body.event_types or ()), *(body.event_categories or ()))}
    if beyond := kinds - FOR_TENANTS:
        raise invalid(f"A tenant's webhook may have {', '.join(sorted(FOR_TENANTS))}, not {', '.join(sorted(beyond))}.")


def _apply(row: Subscription, body: WebhookSettings) -> None:
    for name, value in body.model_dump(exclude_none=True, exclude=NOT_AS_GIVEN).items():
        setattr(row, name, value)
    if body.signing_secret is not None:
        row.sealed_secret = seal(body.signing_secret)
    if body.headers is not None:
        row.sealed_headers = {name: seal(value) for name, value in body.headers.items()}
    if body.retry_policy is not None:
        row.retry_policy = body.retry_policy.model_dump()
    if body.thresholds is not None:
        row.thresholds = Thresholds.model_dump(body.thresholds)


def refuse_closed(owner: str) -> None:
    """Locked, so that a close beside us disables this subscription too. The owner need not exist yet."""
    tenant = Tenant.objects.select_for_update(no_key=True).filter(tenant_id=owner).first()
    if tenant is not None and tenant.status == Tenant.Status.CLOSED:
        raise Refusal(409, "TENANT_CLOSED")


@admin_only
def listing(request: AdminRequest) -> HttpResponse:
    rows = Subscription.objects.all()
    if tenant_id := request.GET.get("tenant_id"):
        rows = rows.filter(tenant_id=tenant_id)
    return _page(request, rows)


@admin_or("webhooks:read")
def listing_own(request: AdminRequest, caller: Caller) -> HttpResponse:
    named = request.GET.get("tenant")
    if caller.tenant is None and not named:
        raise invalid("tenant: required with the admin key.")
    if caller.tenant is not None and named is not None:
        raise invalid("tenant: leave it out, the API key says whose webhooks these are.")
    return _page(request, Subscription.objects.filter(tenant_id=caller.tenant.tenant_id if caller.tenant else named))


def _page(request: AdminRequest, rows: QuerySet[Subscription]) -> HttpResponse:
    rows = rows.filter(matching(request.GET.get("status"), request.GET.get("event_type"), search(request)))
    return page(request, rows, "subscriptions", shown, sorts=SORTS, default="created_at", identity="subscription_id")


def matching(status: str | None, event_type: str | None, text: str | None) -> Q:
    wanted = Q()
    if status:
        wanted &= Q(status=status)
    if event_type:
        wanted &= Q(event_types__contains=[event_type])
    if text:
        wanted &= Q(subscription_id__icontains=text) | Q(url__icontains=text)
    return wanted


def find(caller: Caller, subscription_id: str, *, lock: bool = False) -> Subscription:
    rows = Subscription.objects.select_for_update(no_key=True) if lock else Subscription.objects.all()
    row = rows.filter(subscription_id=subscription_id).first()
    if row is None or not caller.may_own(row.tenant_id):
        raise Refusal(404, "WEBHOOK_NOT_FOUND", "There is no webhook subscription of this id.")
    return row


def show(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    return JsonResponse(shown(find(caller, subscription_id), masked=True))


def change(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    body = wire.read(PatchWebhook, request.body)
    owner = find(caller, subscription_id).tenant_id
    if body.url is not None:
        _check_url(body.url)
    _check_kinds(owner, body)
    with transaction.atomic(durable=True):
        refuse_closed(owner)
        row = find(caller, subscription_id, lock=True)
        _apply(row, body)
        what = set_status(row, body.status) or "updated"
        row.updated_at = timezone.now()
        row.save()
        tell(request, caller, row, what, "update")
        _note(request, caller, row, "updateWebhookSubscription", 200)
    return JsonResponse(shown(row, masked=True))


def set_status(row: Subscription, status: str | None) -> str | None:
    """Change it in the row; the word for what happened. A subscription that failed too often starts anew."""
    if status is None or status == row.status:
        return None
    row.status = status
    if status == Subscription.Status.PAUSED:
        return "paused"
    row.consecutive_failures = 0
    return "resumed"


def remove(request: AdminRequest, caller: Caller, subscription_id: str) -> HttpResponse:
    owner = find(caller, subscription_id).tenant_id
    with transaction.atomic(durable=True):
        refuse_closed(owner)
        drop(request, caller, find(caller, subscription_id, lock=True))
    return _nothing()


def drop(request: AdminRequest, caller: Caller, row: Subscription) -> None:
    tell(request, caller, row, "deleted", "delete")
    _note(request, caller, row, "deleteWebhookSubscription", 204)
    Delivery.objects.filter(subscription=row).delete()
    row.delete()


def _nothing() -> HttpResponse:
    response = HttpResponse(status=204)
    del response["Content-Type"]
    return response


def tell(request: AdminRequest, caller: Caller, row: Subscription, what: str, cause: str) -> None:
    told = {
        "subscription_id": row.subscription_id,
        "tenant_id": row.tenant_id,
        "new_status": row.status,
        "changed_fields": [],
    }
    emit(
        request, row.tenant_id, f"webhook.{what}", told, actor=actor_of(caller.key_id),
        correlation=f"webhook_{cause}:{row.subscription_id}",
    )  # fmt: skip


def _note(request: AdminRequest, caller: Caller, row: Subscription, operation: str, status: int) -> None:
    audit(
        request, row.tenant_id, operation, status, key_id=caller.key_id, resource=("webhook", row.subscription_id),
        metadata={"url": row.url},
    )  # fmt: skip


def security() -> Security:
    return Security.of(_security_value())


def _security_value() -> dict[str, Any] | None:
    row = Setting.objects.filter(name=SETTING).first()
    return row.value if row else None


@admin_only
def security_setting(request: AdminRequest) -> HttpResponse:
    """GET shows it, PUT replaces it whole: what is left out is as strict as at the start."""
    if request.method == "PUT":
        given = wire.read(WebhookSecurity, request.body).model_dump(exclude_none=True)
        with transaction.atomic(durable=True):
            Setting.objects.update_or_create(name=SETTING, defaults={"value": given})
            audit(request, SYSTEM, "updateWebhookSecurityConfig", 200, resource=("config", SETTING), metadata=given)
    rules = security()
    body: dict[str, Any] = {"blocked_cidr_ranges": rules.blocked_cidr_ranges, "allow_http": rules.allow_http}
    if rules.allowed_url_patterns is not None:
        body["allowed_url_patterns"] = rules.allowed_url_patterns
    return JsonResponse(body)
