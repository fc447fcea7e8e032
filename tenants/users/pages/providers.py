"""Logging in with a provider, and linking one: the pages of a tenant's host, and the bare host's relay.

A provider knows one address to come back to, on the bare host, which passes the browser on to the workspace that its
state names and proves nothing. All is proven where the attempt began.
"""

from __future__ import annotations

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from tenants.hosts import url_for
from tenants.http import ApiError, TenantRequest, say_when
from tenants.limits import Rate, address_of, take
from tenants.models import Tenant
from tenants.roles import Action
from tenants.users.access import needs
from tenants.users.entering import let_in
from tenants.users.forms.providers import LinkForm
from tenants.users.forms.signing_in import LoginForm
from tenants.users.guesses import Guess
from tenants.users.identities import ACCOUNT, link, member_behind, provider_name, unlink
from tenants.users.pages.answers import answer
from tenants.users.providers import address_to, person_behind
from tenants.users.providers.attempt import Attempt, forget, keep, kept, new_attempt, workspace_of
from tenants.users.providers.errors import AttemptOver, Denied, ProviderError, ProviderFailed
from tenants.users.providers.known import Person, Provider, provider_or_404
from tenants.users.signed_out import log_in_page

# Of one address. Each may cost a provider, and a thread of ours, some seconds.
STARTS = Rate("provider-start", burst=30, every=10.0, words="Too many tries to log in.")
RETURNS = Rate("provider-return", burst=30, every=10.0, words="Too many tries to log in.")
LONGEST_CODE = 4_000


@require_POST
def log_in_with(request: TenantRequest, provider: str) -> HttpResponse:
    known = provider_or_404(provider)
    target = request.POST.get("next", "")
    try:
        return _leave(request, known, new_attempt(request.tenant, known, target=target))
    except ApiError as refusal:
        return _log_in_page(request, refusal, target)


@require_GET
def come_back(request: TenantRequest, provider: str) -> HttpResponse:
    """The answer of the provider, by way of the relay: somebody is let in, or an account is linked.

    The code in its address goes to no other host: Referrer-Policy is same-origin everywhere. Under no-referrer browsers
    would send the forms of this page with Origin: null, and each would fail the check against forgery.
    """
    known = provider_or_404(provider)
    attempt: Attempt | None = None
    try:
        take(RETURNS, address_of(request))
        attempt = kept(request, request.tenant, known)
        if attempt.member is not None and attempt.member != request.user.pk:
            # Logged out meanwhile, or as somebody else.
            raise AttemptOver
        person = _person(request, known, attempt)
        finish = _let_in if attempt.member is None else _linked
        response = finish(request, known, person, attempt)
    except ApiError as refusal:
        if attempt and attempt.member is not None and attempt.member == request.user.pk:
            response = _link_page(request, known, refusal=refusal)
        else:
            response = _log_in_page(request, refusal, attempt.target if attempt else "")
    if attempt is not None:
        # Else a stranger's link would end the one that is under way.
        forget(response, known)
    return response


@cache_control(private=True, no_store=True)
@require_GET
def relay(request: HttpRequest, provider: str) -> HttpResponse:
    """On the bare host: on to the workspace that the state names, with all that the provider said."""
    provider_or_404(provider)
    public_id = workspace_of(request.GET.get("state", ""))
    tenant = Tenant.objects.filter(public_id=public_id, status=Tenant.Status.ACTIVE).first() if public_id else None
    if tenant is None:
        response = render(request, "users/relay_failed.html", status=400)
    else:
        there = url_for(tenant.slug, f"/login/back/{provider}/")
        response = HttpResponseRedirect(f"{there}?{request.META.get('QUERY_STRING', '')}")
    response["Referrer-Policy"] = "no-referrer"
    return response


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.ACCOUNT)
def link_identity(request: TenantRequest, provider: str) -> HttpResponse:
    known = provider_or_404(provider)
    form = LinkForm(request.POST if request.method == "POST" else None, request=request)
    try:
        if request.method == "POST" and form.is_valid():
            return _leave(request, known, new_attempt(request.tenant, known, member=request.user.pk))
    except ApiError as refusal:
        return _link_page(request, known, form, refusal)
    return _link_page(request, known, form)


@require_POST
@needs(Action.ACCOUNT)
def unlink_identity(request: TenantRequest, pk: int) -> HttpResponse:
    try:
        gone = unlink(request, pk)
        messages.success(request, f"{provider_name(gone.provider)} is unlinked. It opens nothing here any more.")
    except ProviderError as refusal:
        messages.error(request, refusal.message)
    return redirect(ACCOUNT)


# --- the steps -------------------------------------------------------------------------------------------------------


def _leave(request: TenantRequest, provider: Provider, attempt: Attempt) -> HttpResponse:
    """A page that goes on to the provider by itself.

    Not a redirect: browsers hold all redirects after a form to its page's policy, those among the provider's own hosts
    too, which nobody can name beforehand.
    """
    take(STARTS, address_of(request))
    response = render(request, "users/leave.html", {"provider": provider, "address": address_to(provider, attempt)})
    keep(response, request.tenant, attempt)
    return response


def _person(request: TenantRequest, provider: Provider, attempt: Attempt) -> Person:
    if (issuer := request.GET.get("iss")) is not None and issuer != provider.issuer:
        raise ProviderFailed(provider.name, "the answer names another issuer")
    error, code = request.GET.get("error"), request.GET.get("code", "")
    if error in ("server_error", "temporarily_unavailable"):
        raise ProviderFailed(provider.name, error)
    if error is not None:
        raise Denied(provider.name)
    if not code or len(code) > LONGEST_CODE or not code.isprintable():
        raise AttemptOver
    return person_behind(provider, attempt, code)


def _let_in(request: TenantRequest, provider: Provider, person: Person, attempt: Attempt) -> HttpResponse:
    user = member_behind(request, provider, person)
    # Else strangers could keep this member out of a log-in by password.
    Guess.of(request, user.email).remember()
    return let_in(request, user, method=provider.key, target=attempt.target)


def _linked(request: TenantRequest, provider: Provider, person: Person, attempt: Attempt) -> HttpResponse:
    link(request, provider, person, member=request.user.pk)
    messages.success(request, f"{provider.name} is linked. You can log in with it from now on.")
    return redirect(ACCOUNT)


def _log_in_page(request: TenantRequest, refusal: ApiError, target: str) -> HttpResponse:
    response = log_in_page(
        request, LoginForm(request=request), target=target, refusal=refusal.message, status=refusal.status
    )
    say_when(response, refusal)
    return response


def _link_page(
    request: TenantRequest, provider: Provider, form: LinkForm | None = None, refusal: ApiError | None = None
) -> HttpResponse:
    form = form or LinkForm(request=request)
    context = {"form": form, "provider": provider, "refusal": refusal}
    return answer(request, "users/link_identity.html", context, form, refusal)
