"""A forgotten password: asking for a link, and the page that it leads to."""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from tenants.http import RateLimited, TenantRequest
from tenants.limits import Rate, address_of, masked, take
from tenants.sealing import seal_facts
from tenants.users.forms.account import AskResetForm, NewPasswordForm
from tenants.users.links import look_at
from tenants.users.models import Link
from tenants.users.pages.answers import answer
from tenants.users.pages.links import keep_address, worthless
from tenants.users.setting_passwords import reset_by_link
from tenants.users.tasks import mail_reset

WORDS = "Too many links were asked for."
# One address, whomever it asks for; and one account, whoever asks: each link ends the one before.
ADDRESS = Rate("reset-address", burst=20, every=60.0, words=WORDS)
ACCOUNT = Rate("reset-account", burst=5, every=600.0, words=WORDS)
# Of all together: each is a job, and whoever has many networks would keep budgets from being rolled over.
SITE = Rate("reset-site", burst=300, every=1.0, words=WORDS)


@require_http_methods(["GET", "HEAD", "POST"])
def ask_reset(request: TenantRequest) -> HttpResponse:
    """Looks nobody up: the job does, so that members and strangers get the same answer in the same time."""
    form = AskResetForm(request.POST or None)
    refusal = None
    if request.method == "POST" and form.is_valid():
        email = form.cleaned_data["email"]
        try:
            take(ADDRESS, address_of(request))
            take(SITE)
            take(ACCOUNT, request.tenant.pk, email)
            mail_reset.defer(sealed=seal_facts(email, masked(address_of(request))))
            return redirect("reset_asked")
        except RateLimited as exc:
            form.add_error(None, exc.message)
            refusal = exc
    return answer(request, "users/ask_reset.html", {"form": form}, form, refusal)


@require_http_methods(["GET", "HEAD"])
def reset_asked(request: TenantRequest) -> HttpResponse:
    return render(request, "users/reset_asked.html")


@require_http_methods(["GET", "HEAD", "POST"])
@keep_address
def reset(request: TenantRequest, secret: str) -> HttpResponse:
    link = look_at(secret, Link.Purpose.RESET)
    if link is None:
        return worthless(request)
    form = NewPasswordForm(request.POST or None, user=link.user)
    refusal = None
    if request.method == "POST" and form.is_valid():
        try:
            if reset_by_link(secret, form.cleaned_data["new_password"], request) is None:
                return worthless(request)
            messages.success(request, "Your new password is set. Log in with it.")
            return redirect("login")
        except RateLimited as exc:  # no password could be hashed just now; the link is as good as before
            form.add_error(None, exc.message)
            refusal = exc
    return answer(request, "users/reset.html", {"form": form, "email": link.email}, form, refusal)
