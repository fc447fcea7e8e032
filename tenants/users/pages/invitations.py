"""Invitations: sending, sending again and revoking them, and the page on which whoever was invited comes in."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from tenants.http import ApiError, Forbidden, Invalid, NotFound, RateLimited, TenantRequest
from tenants.roles import Action, roles_to_give
from tenants.spelling import normal_email
from tenants.users import invitations
from tenants.users.access import needs
from tenants.users.entering import let_in, safe_target
from tenants.users.forms.members import AcceptForm, InviteForm
from tenants.users.models import Invitation
from tenants.users.pages.answers import answer
from tenants.users.pages.links import keep_address
from tenants.users.pages.members import members_page
from tenants.users.people import in_words


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.INVITE, keeps=("emails", "role"))
def invite(request: TenantRequest) -> HttpResponse:
    if request.method != "POST":
        return redirect("members")
    form = InviteForm(request.POST, roles=roles_to_give(request.user.role, Action.INVITE))
    if not form.is_valid():
        return members_page(request, invite_form=form)
    emails = form.cleaned_data["emails"]
    try:
        invitations.invite(request, emails, role=form.cleaned_data["role"])
    except Invalid as exc:
        form.add_error("emails", exc.extra["fields"]["emails"])
        return members_page(request, invite_form=form)
    except (RateLimited, Forbidden) as exc:
        # On the page, so that fifty addresses need not be typed again.
        form.add_error("emails", exc.message)
        return members_page(request, invite_form=form, refusal=exc)
    messages.success(request, f"Invited {emails[0]}." if len(emails) == 1 else f"Invited {len(emails)} people.")
    return redirect("members")


@require_POST
@needs(Action.INVITE)
def resend(request: TenantRequest, pk: int) -> HttpResponse:
    try:
        invitation = invitations.resend(request, pk)
    except (RateLimited, Invalid, NotFound) as exc:
        return members_page(request, refusal=exc)
    messages.success(request, f"Sent {invitation.email} a new invitation. The one before is no longer good.")
    return redirect("members")


@require_POST
@needs(Action.INVITE)
def revoke(request: TenantRequest, pk: int) -> HttpResponse:
    try:
        revoked = invitations.revoke(request, pk)
    except NotFound as exc:
        return members_page(request, refusal=exc)
    messages.success(request, f"Revoked the invitation of {revoked.email}.")
    return redirect("members")


@require_http_methods(["GET", "HEAD", "POST"])
@keep_address
def invitation(request: TenantRequest, secret: str) -> HttpResponse:
    """For whoever has the link. Following it only looks, for mail programs follow links too; the form accepts."""
    found = invitations.look_at(secret)
    return _accept(request, found, secret) if found else _no_longer(request, secret)


def _accept(request: TenantRequest, found: Invitation, secret: str) -> HttpResponse:
    form = AcceptForm(request.POST or None, email=found.email)
    refusal: ApiError | None = None
    if request.method == "POST" and form.is_valid():
        try:
            user = invitations.accept(request, found, password=form.cleaned_data["password"])
        except RateLimited as exc:
            refusal = exc
            form.add_error(None, exc.message)
        else:
            return let_in(request, user, method="invitation") if user else _no_longer(request, secret)
    context = {"invitation": found, "role": in_words(found.role), "form": form}
    return answer(request, "users/invitation.html", context, form, refusal)


def _no_longer(request: TenantRequest, secret: str) -> HttpResponse:
    """Unknown, expired, revoked, used, a neighbour's: one page. But who clicked twice is in, and goes on."""
    email = invitations.accepted_with(secret)
    if email and request.user.is_authenticated and normal_email(request.user.email) == email:
        return HttpResponseRedirect(safe_target(""))
    if email and request.method == "POST":
        messages.success(request, "This invitation is accepted already. Log in with the password you chose.")
        return redirect("login")
    return render(request, "users/invitation_ended.html", status=404)
