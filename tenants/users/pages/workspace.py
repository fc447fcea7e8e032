"""The page of the workspace itself, on a tenant's host: its name, its time zone, its address, its models."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from tenants.headers import POLICY, policy
from tenants.hosts import origin_of, url_for
from tenants.http import RateLimited, TenantRequest
from tenants.models import Domain
from tenants.roles import Action
from tenants.services import SlugIsTaken
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.allowing import allow_workspace
from tenants.users.forms.models import ModelsForm, callable_models
from tenants.users.forms.workspace import AddressForm, DetailsForm
from tenants.users.pages.answers import answer
from tenants.users.workspace import change_address, change_details, take_along

TAKEN = "This address is taken. Choose another."


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.EDIT_WORKSPACE, keeps=("name", "time_zone"))
def workspace(request: TenantRequest) -> HttpResponse:
    draft = drafts.take(request, having="time_zone")
    form = DetailsForm(request.POST or None, tenant=request.tenant, draft=draft)
    if request.method == "POST" and form.is_valid():
        if change_details(request, **form.cleaned_data):
            messages.success(request, "The workspace is changed.")
        return redirect("workspace")
    return _page(request, details=form)


@require_POST
@needs(Action.EDIT_WORKSPACE, keeps=("slug",))
def address(request: TenantRequest) -> HttpResponse:
    """Leads to the new host, where this browser has no session yet, by the hand-off."""
    form = AddressForm(request.POST, tenant=request.tenant, draft={})
    if not form.is_valid():
        return _page(request, address=form)
    try:
        change_address(request, slug=form.cleaned_data["slug"])
    except SlugIsTaken:
        form.add_error("slug", TAKEN)
        return _page(request, address=form)
    except RateLimited as refusal:
        form.add_error("slug", refusal.message)
        return _page(request, address=form, refusal=refusal)
    return _moved(request, take_along(request))


@require_POST
@needs(Action.EDIT_WORKSPACE)
def models(request: TenantRequest) -> HttpResponse:
    form = _models_form(request, request.POST)
    if not form.is_valid():
        return _page(request, models=form)
    if allow_workspace(request, form.chosen()):
        messages.success(request, "The models are changed, from the next call on.")
    return redirect("workspace")


def _models_form(request: TenantRequest, data: Any = None) -> ModelsForm:
    return ModelsForm(data, offered=callable_models(), allowed=request.tenant.allowed_models)


def _page(
    request: TenantRequest,
    *,
    details: DetailsForm | None = None,
    address: AddressForm | None = None,
    models: ModelsForm | None = None,
    refusal: RateLimited | None = None,
) -> HttpResponse:
    context = {
        "form": details or DetailsForm(tenant=request.tenant, draft={}),
        "address": address or AddressForm(tenant=request.tenant, draft=drafts.take(request, having="slug")),
        "models": models or _models_form(request),
        "url": url_for(request.tenant.slug),
        "earlier": [
            origin_of(host)
            for host in Domain.objects.filter(tenant_id=request.tenant.pk, is_primary=False)
            .order_by("pk")
            .values_list("domain", flat=True)
        ],
    }
    return answer(request, "users/workspace.html", context, details or address or models, refusal)


def _moved(request: TenantRequest, token: str) -> HttpResponse:
    slug = request.tenant.slug
    context = {"url": url_for(slug), "welcome_url": url_for(slug, "/welcome/"), "token": token}
    response = render(request, "users/workspace_moved.html", context)
    # As on the bare host's page of the hand-off: the form's Origin header is the proof at the other end.
    response["Referrer-Policy"] = "strict-origin-when-cross-origin"
    response[POLICY] = policy({"form-action": [url_for(slug, "")]})
    return response
