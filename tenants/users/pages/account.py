"""The page of one's own account: address and password; and the pages that mailed links about an address lead to."""

from __future__ import annotations

from django.conf import settings
from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.module_loading import import_string
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from tenants.http import RateLimited, TenantRequest
from tenants.limits import Rate, take
from tenants.roles import Action
from tenants.sealing import seal_facts
from tenants.users import addresses
from tenants.users.access import needs
from tenants.users.forms.account import ChangeEmailForm, ChangePasswordForm
from tenants.users.links import look_at
from tenants.users.models import Link
from tenants.users.pages.answers import answer
from tenants.users.pages.links import keep_address, worthless
from tenants.users.setting_passwords import change_password
from tenants.users.tasks import mail_change

# Mails that a member can have sent: to themselves, and to addresses that may be anybody's.
CONFIRM_AGAIN = Rate("confirm-again", burst=3, every=300.0, words="The link was sent often enough just now.")
CHANGE = Rate("email-change", burst=5, every=600.0, words="Too many links were asked for.")


@require_safe
@needs(Action.ACCOUNT)
def account(request: TenantRequest) -> HttpResponse:
    return _page(request)


def _page(
    request: TenantRequest,
    *,
    email_form: ChangeEmailForm | None = None,
    password_form: ChangePasswordForm | None = None,
    refusal: RateLimited | None = None,
) -> HttpResponse:
    """The page with a form that is to be mended, or with none."""
    user = request.user
    context = {
        "email_form": email_form or ChangeEmailForm(request=request, auto_id="id_email_%s"),
        "password_form": password_form or ChangePasswordForm(request=request, auto_id="id_password_%s"),
        "has_password": user.has_usable_password(),
        "unconfirmed": import_string(settings.UNCONFIRMED_BESIDE)(request),
    }
    return answer(request, "users/account.html", context, email_form or password_form, refusal)


@require_POST
@needs(Action.ACCOUNT)
def change_email(request: TenantRequest) -> HttpResponse:
    """The same answer whether the address is free or a member's: the mails differ, and a job sends them."""
    form = ChangeEmailForm(request.POST, request=request, auto_id="id_email_%s")
    try:
        if not form.is_valid():
            return _page(request, email_form=form)
        take(CHANGE, request.tenant.pk, request.user.pk)
    except RateLimited as refusal:
        form.add_error(None, refusal.message)
        return _page(request, email_form=form, refusal=refusal)
    email = form.cleaned_data["email"]
    mail_change.defer(sealed=seal_facts(request.user.pk, email, request.user.get_session_auth_hash()))
    messages.success(request, f"We have sent a link to {email}. Your address changes once you follow it.")
    return redirect("account")


@require_POST
@needs(Action.ACCOUNT)
def change_own_password(request: TenantRequest) -> HttpResponse:
    form = ChangePasswordForm(request.POST, request=request, auto_id="id_password_%s")
    try:
        if not form.is_valid():
            return _page(request, password_form=form)
        change_password(request.user, form.cleaned_data["new_password"], request)
    except RateLimited as refusal:  # too many tries, or no password could be hashed just now
        form.add_error(None, refusal.message)
        return _page(request, password_form=form, refusal=refusal)
    messages.success(request, "Your password is changed. Your other browsers are logged out.")
    return redirect("account")


@require_POST
@needs(Action.ACCOUNT)
def send_confirmation(request: TenantRequest) -> HttpResponse:
    """The link once more. For who has confirmed already, whatever waited for that is tried again."""
    take(CONFIRM_AGAIN, request.tenant.pk, request.user.pk)
    with transaction.atomic(durable=True):
        if request.user.email_confirmed_at is not None:
            addresses.confirm(request.user, request.user.email, request)
            said = "Your e-mail address is confirmed."
        else:
            addresses.ask_to_confirm(request.user)
            said = f"We have sent the link to {request.user.email}. The ones before it end."
    messages.success(request, said)
    return redirect("account")


# --- where mailed links lead ------------------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@keep_address
def confirm_email(request: TenantRequest, secret: str) -> HttpResponse:
    if request.method != "POST":
        link = look_at(secret, Link.Purpose.CONFIRM)
        context = {"email": link.email if link else ""}
        return render(request, "users/confirm_email.html", context) if link else worthless(request)
    user = addresses.confirm_by_link(secret, request)
    if user is None:
        return worthless(request)
    messages.success(request, "Your e-mail address is confirmed.")
    return redirect(settings.LOGIN_REDIRECT_URL if request.user.pk == user.pk else "login")


@require_http_methods(["GET", "HEAD", "POST"])
@keep_address
def change_email_by_link(request: TenantRequest, secret: str) -> HttpResponse:
    if request.method != "POST":
        link = look_at(secret, Link.Purpose.CHANGE)
        return render(request, "users/change_email.html", {"link": link}) if link else worthless(request)
    user = addresses.change_by_link(secret, request)
    if user is None:
        return worthless(request)
    messages.success(request, f"Your e-mail address is {user.email} from now on.")
    return redirect("account" if request.user.pk == user.pk else "login")
