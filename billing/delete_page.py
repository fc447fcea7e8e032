"""The page on which an owner deletes the workspace (tenant's host). Here because it ends an account, too."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods

from billing.deleting import OnHoldAlready, delete_workspace
from billing.forms import DeleteForm
from tenants.fields import focus_on_error
from tenants.hosts import url_for
from tenants.http import RateLimited, TenantRequest, say_when
from tenants.roles import Action
from tenants.users.access import needs

ON_HOLD = "This workspace’s account is on hold. Ask whoever runs this site to delete it."


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.DELETE_WORKSPACE)
def delete(request: TenantRequest) -> HttpResponse:
    """Answers with a page, for a redirect has nowhere to lead: this host is nobody's from then on, and browsers let a
    workspace's form lead to no other.
    """
    form = DeleteForm(request.POST or None, request=request)
    if request.method != "POST" or not request.user.has_usable_password():
        return _page(request, form)
    name = request.tenant.name
    try:
        if not form.is_valid():
            return _page(request, form)
        delete_workspace(request)
    except RateLimited as refusal:
        form.add_error("password", refusal.message)
        return _page(request, form, refusal)
    except OnHoldAlready:
        form.add_error(None, ON_HOLD)
        return _page(request, form)
    context = {"workspace_name": name, "days": settings.WORKSPACE_PURGE_DAYS}
    return render(request, "billing/workspace_deleted.html", context)


def _page(request: TenantRequest, form: DeleteForm, refusal: RateLimited | None = None) -> HttpResponse:
    focus_on_error(form)
    context = {
        "form": form,
        "url": url_for(request.tenant.slug),
        "days": settings.WORKSPACE_PURGE_DAYS,
        "has_password": request.user.has_usable_password(),
    }
    status = refusal.status if refusal else 400 if request.method == "POST" else 200
    response = render(request, "billing/delete_workspace.html", context, status=status)
    if refusal:
        say_when(response, refusal)
    return response
