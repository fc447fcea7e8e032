"""Pages about money: sign-up and its waiting room (bare host), the budget (tenant's host)."""

from __future__ import annotations

import re
from datetime import timedelta

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_http_methods, require_safe

from billing import confirming, provisioning, signing_up
from billing.allowance import waits
from billing.errors import OnHold, SlugTaken
from billing.forms import SignUpForm
from billing.ledgers import Ledger, is_on_hold, limits_of
from billing.models import Account
from billing.periods import closed
from billing.proof import bar_of, books_of
from billing.usage.models import UsageLine
from tenants.fields import focus_on_error
from tenants.hosts import url_for
from tenants.http import ApiError, TenantRequest, say_when
from tenants.limits import address_of
from tenants.roles import Action
from tenants.users.access import needs

# The waiting room belongs to the browser that signed up, so its address needs no secret. The account alone does not say
# who that was: one whose sign-up was broken off becomes whoever's asks for its slug next.
SESSION_ACCOUNT, SESSION_ASKED_BY = "signup_account", "signup_asked_by"
WAIT_SECONDS = 2
# A room in which somebody has waited so long says so, and looks less often.
LONG = timedelta(minutes=1)
LONG_WAIT_SECONDS = 10
SHOWN_LINES = 50
SHOWN_PERIODS = 12


# The mark is its form's own, and the waiting room its browser's.
@cache_control(private=True, no_store=True)
@require_http_methods(["GET", "HEAD", "POST"])
def sign_up(request: HttpRequest) -> HttpResponse:
    """Leads to the waiting room, also where a workspace is ready at once: the answer to the first of two clicks on one
    form is thrown away by the browser, and what it is handed must not go with it.
    """
    form = SignUpForm(request.POST or None)
    mark = _mark_of(request)
    if request.method != "POST":
        return _sign_up_page(request, form, mark)
    is_valid, address = form.is_valid(), address_of(request)
    try:
        signing_up.knock(address)
        if not is_valid:
            return _sign_up_page(request, form, mark)
        account = signing_up.ask(**form.cleaned_data, mark=mark, address=address)
    except ApiError as refusal:
        # On the form, for what was typed must not be lost.
        form.add_error("slug" if isinstance(refusal, SlugTaken) else None, refusal.message)
        return _sign_up_page(request, form, mark, refusal)
    request.session.cycle_key()
    request.session[SESSION_ACCOUNT], request.session[SESSION_ASKED_BY] = account.pk, account.asked_by
    return redirect("sign_up_wait")


def _sign_up_page(request: HttpRequest, form: SignUpForm, mark: str, refusal: ApiError | None = None) -> HttpResponse:
    focus_on_error(form)
    context = {"form": form, "mark": mark, "login_url": getattr(refusal, "login_url", None)}
    status = refusal.status if refusal else 400 if form.errors else 200
    response = render(request, "billing/signup.html", context, status=status)
    if refusal:
        say_when(response, refusal)
    return response


_MARK = re.compile(r"[A-Za-z0-9_-]{43}")


def _mark_of(request: HttpRequest) -> str:
    """The mark that the posted form was given; a new one for a new form."""
    given = request.POST.get("mark", "")
    return given if _MARK.fullmatch(given) else signing_up.new_mark()


@cache_control(private=True, no_store=True)
@require_safe
def sign_up_wait(request: HttpRequest) -> HttpResponse:
    """Looks, and builds nothing. When all is done it hands the person over to the workspace's host, once.

    Whoever comes too late for that, such as a waiting room that was left open, logs in there instead.
    """
    pk, asked_by = request.session.get(SESSION_ACCOUNT, 0), request.session.get(SESSION_ASKED_BY, "")
    account = Account.objects.select_related("tenant").filter(pk=pk, asked_by=asked_by).first()
    if account is None:
        return redirect("sign_up")
    if not signing_up.wait_until_ready(account):
        return _waiting_room(request, account)
    # The room's script asks by HEAD whether it is time, and such a look must not use up what is given once.
    return HttpResponse() if request.method == "HEAD" else _hand_over(request, account)


def _waiting_room(request: HttpRequest, account: Account) -> HttpResponse:
    is_long = timezone.now() - account.created_at > LONG
    context = {
        "account_name": account.tenant.name,
        "confirm_email": waits(account),
        "wait_seconds": LONG_WAIT_SECONDS if is_long else WAIT_SECONDS,
        "is_long": is_long,
        "login_url": url_for(account.tenant.slug, "/login/"),
    }
    response = render(request, "billing/signup_wait.html", context, status=202)
    response["Retry-After"] = str(context["wait_seconds"])
    return response


def _hand_over(request: HttpRequest, account: Account) -> HttpResponse:
    # The session goes on naming the account: who reloads, or has a second tab, is led to log-in, and not to a new form.
    token = provisioning.hand_over(account)
    if token is None:
        return redirect(url_for(account.tenant.slug, "/login/"))
    context = {
        "tenant_name": account.tenant.name,
        "workspace_url": url_for(account.tenant.slug),
        "welcome_url": url_for(account.tenant.slug, "/welcome/"),
        "token": token,
    }
    response = render(request, "billing/handoff.html", context)
    # The form's Origin header is the proof at the other end; "no-referrer" here would send "null" instead.
    response["Referrer-Policy"] = "strict-origin-when-cross-origin"
    return response


@require_safe
@needs(Action.READ_BUDGET)
def budget(request: TenantRequest) -> HttpResponse:
    account = Account.objects.select_related("tenant").get(tenant_id=request.tenant.pk)
    books = books_of(account, now=timezone.now())
    context = {
        "books": books,
        "figures": books.figures,
        "bar": bar_of(books.figures),
        # An authority that did not answer just now is not waited for again.
        "limits": limits_of(account.subject_tenant, user_id=request.user.pk) if books.figures else None,
        "plan_name": account.plan,
        "confirm_first": confirming.notice(request, account),
        "on_hold": OnHold(account.scope).message if _is_on_hold(account, books.figures) else None,
        "lines": UsageLine.objects.order_by("-settled_at", "-pk")[:SHOWN_LINES],
        "past": closed(account)[:SHOWN_PERIODS],
        "top_up_url": settings.TOP_UP_URL,
    }
    return render(request, "billing/budget.html", context)


def _is_on_hold(account: Account, figures: Ledger | None) -> bool:
    """Here, at its ledger, or as a whole: the ledgers of a suspended tenant look as ever."""
    if account.status != Account.Status.ACTIVE:
        return True
    return figures is not None and (figures.status != "ACTIVE" or is_on_hold(account.subject_tenant))
