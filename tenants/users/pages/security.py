"""The Security page: where a member is logged in, their second step, and whether everybody must have one."""

from __future__ import annotations

from django.contrib import messages
from django.contrib.auth import logout
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import Forbidden, NotFound, TenantRequest
from tenants.roles import Action
from tenants.services import require_second_step
from tenants.users import browsers
from tenants.users.access import needs
from tenants.users.devices import device
from tenants.users.models import User
from tenants.users.second_step import recovery_codes_left

SHOWN = 50


@require_safe
@needs(Action.ACCOUNT)
def security(request: TenantRequest) -> HttpResponse:
    here = request.session.session_key
    found = [
        {
            "session": session,
            "device": device(session.agent),
            "how": session.method.replace("+", " and "),
            "is_here": session.session_key == here,
        }
        for session in browsers.browsers_of(request.user)[:SHOWN]
    ]
    context = {
        # This one first.
        "browsers": sorted(found, key=lambda row: not row["is_here"]),
        "codes_left": recovery_codes_left(request.user) if request.user.second_step_at else None,
    }
    if request.user.may(Action.SECURE_WORKSPACE):
        context["without"] = User.objects.filter(is_active=True, second_step_at=None).count()
    return render(request, "users/security.html", context)


@require_POST
@needs(Action.ACCOUNT)
def end_session(request: TenantRequest, pk: int) -> HttpResponse:
    """Log one of the member's browsers out; the one that asks, too."""
    with transaction.atomic(durable=True):
        ended = browsers.end_session(request.user, pk)
        if ended is None:
            raise NotFound("This browser is logged out already.")
        record(Event.SESSION_ENDED, request=request, target=request.user.email, browser=device(ended.agent))
    if ended.session_key == request.session.session_key:
        logout(request)
        return redirect("login")
    messages.success(request, f"{device(ended.agent)} is logged out.")
    return redirect("security")


@require_POST
@needs(Action.ACCOUNT)
def end_sessions(request: TenantRequest) -> HttpResponse:
    """Everywhere else, or with `which=all` here as well."""
    is_all = request.POST.get("which") == "all"
    with transaction.atomic(durable=True):
        ended = browsers.end_sessions(request.user, but=None if is_all else request.session.session_key)
        record(Event.SESSIONS_ENDED, request=request, target=request.user.email, here_too=is_all, ended=ended)
    if is_all:
        logout(request)
        messages.success(request, "You are logged out everywhere.")
        return redirect("login")
    messages.success(request, "You are logged out everywhere else.")
    return redirect("security")


@require_POST
@needs(Action.SECURE_WORKSPACE)
def require(request: TenantRequest) -> HttpResponse:
    is_required = request.POST.get("required") == "yes"
    if is_required and request.user.second_step_at is None:
        raise Forbidden("Set up two-step log-in for yourself first: you would be the first whom this keeps out.")
    event = Event.SECOND_STEP_REQUIRED if is_required else Event.SECOND_STEP_NOT_REQUIRED
    with transaction.atomic(durable=True):
        if require_second_step(request.tenant, is_required=is_required):
            record(event, request=request)
    messages.success(
        request,
        "Everybody in this workspace now needs two-step log-in."
        if is_required
        else "Two-step log-in is each member’s own choice again.",
    )
    return redirect("security")
