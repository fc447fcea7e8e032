"""The page of the web pages that may ask the workspace's API, on a tenant's host."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect
from django.views.decorators.http import require_http_methods

from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.forms.origins import OriginsForm
from tenants.users.pages.answers import answer
from tenants.users.workspace import change_origins


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.EDIT_WORKSPACE, keeps=("origins",))
def origins(request: TenantRequest) -> HttpResponse:
    sent = request.POST if request.method == "POST" else None
    form = OriginsForm(sent, tenant=request.tenant, draft=drafts.take(request))
    if not form.is_valid():
        return answer(request, "users/origins.html", {"form": form}, form)
    if change_origins(request, form.cleaned_data["origins"]):
        messages.success(request, "The origins are changed.")
    return redirect("workspace_origins")
