"""Log-in, log-out, the hand-off's landing place, and the page of API keys. All on a tenant's host."""

from __future__ import annotations

from django.conf import settings
from django.contrib.auth import logout
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods, require_POST

from tenants.fields import focus_on_error
from tenants.http import RateLimited, TenantRequest, say_when
from tenants.users.auth import sign_in
from tenants.users.forms import KeyForm, LoginForm
from tenants.users.guesses import Guess
from tenants.users.handoff import redeem_token
from tenants.users.keys import create_key, forget_untaken, take_secret
from tenants.users.models import ApiKey


@require_http_methods(["GET", "HEAD", "POST"])
def log_in(request: TenantRequest) -> HttpResponse:
    form = LoginForm(request.POST or None, request=request)
    target = request.POST.get("next") or request.GET.get("next") or ""
    refusal: RateLimited | None = None
    try:
        is_right = request.method == "POST" and form.is_valid()
    except RateLimited as exc:
        # On the form, for who was on the way somewhere must not lose the way, nor type the address anew.
        is_right, refusal = False, exc
        form.add_error(None, exc.message)
    if is_right:
        sign_in(request, form.user)
        safe = target.startswith("/") and url_has_allowed_host_and_scheme(target, allowed_hosts=None)
        return HttpResponseRedirect(target if safe else settings.LOGIN_REDIRECT_URL)
    focus_on_error(form)
    status = refusal.status if refusal else 400 if request.method == "POST" else 200
    response = render(request, "users/login.html", {"form": form, "next": target}, status=status)
    if refusal:
        say_when(response, refusal)
    return response


@require_POST
def log_out(request: TenantRequest) -> HttpResponse:
    logout(request)
    return redirect("login")


@csrf_exempt  # the token is the proof, and the form comes from another host; its Origin is checked instead
@require_POST
def welcome(request: TenantRequest) -> HttpResponse:
    """Signs in the person who has just signed up on the bare host."""
    user = None
    if request.headers.get("Origin") == settings.SITE_URL:
        user = redeem_token(request.POST.get("token", ""))
    if user is None:
        response = render(request, "users/welcome_failed.html", status=400)
    else:
        sign_in(request, user)
        # Else strangers could keep a new owner out from the first log-in.
        Guess.of(request, user.email).remember()
        response = redirect("/")
    response["Referrer-Policy"] = "no-referrer"
    return response


@login_required
@require_http_methods(["GET", "HEAD", "POST"])
def api_keys(request: TenantRequest) -> HttpResponse:
    """Answers a form with a redirect: a reload of what follows makes no second key and shows no secret again."""
    form = KeyForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        key, _ = create_key(request.user, name=form.cleaned_data["name"], shown_later=True)
        return redirect(f"{reverse('api_keys')}?new={key.pk}")
    focus_on_error(form)
    forget_untaken(request.user)
    context = {
        "new_secret": _new_secret(request),
        "form": form,
        "keys": ApiKey.objects.filter(user=request.user).order_by("-created_at", "-pk"),
    }
    return render(request, "users/keys.html", context, status=400 if form.errors else 200)


def _new_secret(request: TenantRequest) -> str | None:
    """Each form leads to its own key's page, so that two tabs each show their own."""
    new = request.GET.get("new", "")
    is_asked_for = request.method == "GET" and new.isascii() and new.isdigit() and len(new) < 19
    return take_secret(request.user, int(new)) if is_asked_for else None


@login_required
@require_POST
def revoke_key(request: TenantRequest, pk: int) -> HttpResponse:
    get_object_or_404(ApiKey, pk=pk, user=request.user).revoke()
    return redirect("api_keys")
