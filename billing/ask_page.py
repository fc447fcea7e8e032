"""The page on which a member asks the owners for more budget: it writes them a mail with the facts (tenant's host).

Owns what the mail says, and how often one may be asked for. Must not change a budget, nor believe the browser more than
that a message was refused for so much: the other figures are read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.contrib import messages
from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods

from billing.forms import AskForm
from billing.ledgers import Ledger, figures_for
from tenants.fields import focus_on_error
from tenants.hosts import url_for
from tenants.http import RateLimited, TenantRequest, say_when
from tenants.limits import Rate, is_known, remember, take
from tenants.mail.outbox import send
from tenants.roles import Action, Role
from tenants.spelling import number_in
from tenants.users import drafts
from tenants.users.access import needs
from tenants.users.models import User

# Of one member, and of all of a workspace together: an owner's mailbox is theirs.
ASKED = Rate("ask-owner", burst=2, every=3_600.0, words="You have asked the owners just now.")
ASKED_BY_ALL = Rate("ask-owner-all", burst=20, every=600.0, words="The owners were asked a great many times just now.")
# What was asked is remembered for so long, and asked for again it is one mail.
SENT, SENT_SECONDS = "ask-owner-sent", 60
KEPT = ("note", "needed")
# What no message costs: a figure above it was typed by hand.
MOST = 10**15


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.CHAT, keeps=KEPT)
def ask(request: TenantRequest) -> HttpResponse:
    """`?needed=` are the microcents that the message needed which was refused."""
    if request.user.may(Action.HAND_OVER):
        return redirect("budget")
    needed = _needed(request.POST if request.method == "POST" else request.GET)
    owners, figures = _owners(), figures_for(request.tenant)
    if request.method != "POST":
        return _page(request, AskForm(initial=drafts.take(request)), owners, figures, needed)
    form = AskForm(request.POST)
    if not form.is_valid():
        return _page(request, form, owners, figures, needed, status=400)
    facts = {"needed": needed, "note": form.cleaned_data["note"]}
    try:
        if not _is_sent(request, facts):
            take(ASKED, request.tenant.pk, request.user.pk)
            take(ASKED_BY_ALL, request.tenant.pk)
            _write(request, owners, facts, figures=figures)
    except RateLimited as refusal:
        form.add_error(None, refusal.message)
        response = _page(request, form, owners, figures, needed, status=refusal.status)
        say_when(response, refusal)
        return response
    messages.success(request, "The owners get a mail that you ask for more budget.")
    return redirect("home")


def _is_sent(request: TenantRequest, facts: Mapping[str, Any]) -> bool:
    """Whether the same was asked just now: without script a double click sends the form twice."""
    return is_known(SENT, *_same(request, facts))


def _same(request: TenantRequest, facts: Mapping[str, Any]) -> tuple[str | int, ...]:
    return request.tenant.pk, request.user.pk, facts["needed"] or 0, facts["note"]


def _write(request: TenantRequest, owners: Sequence[User], facts: Mapping[str, Any], *, figures: Ledger | None) -> None:
    slug, asker = request.tenant.slug, request.user.email
    with transaction.atomic(durable=True):
        User.objects.select_for_update(no_key=True).get(pk=request.user.pk)  # of two at once the second waits
        if _is_sent(request, facts):
            return
        remember(SENT, *_same(request, facts), seconds=SENT_SECONDS)
        for owner in owners:
            send(
                owner.email,
                "budget_asked",
                subject=f"{asker} asks for more budget in {request.tenant.name}",
                asker=asker,
                url=url_for(slug, "/budget/"),
                members_url=url_for(slug, "/settings/members/"),
                figures=figures,
                **facts,
            )


def _owners() -> Sequence[User]:
    return list(User.objects.filter(is_active=True, role=Role.OWNER).order_by("email"))


def _needed(sent: Any) -> int | None:
    needed = number_in(sent.get("needed", ""))
    return needed if needed and needed < MOST else None


def _page(
    request: TenantRequest,
    form: AskForm,
    owners: Sequence[User],
    figures: Ledger | None,
    needed: int | None,
    *,
    status: int = 200,
) -> HttpResponse:
    focus_on_error(form)
    context = {"form": form, "owners": owners, "figures": figures, "needed": needed}
    return render(request, "billing/ask.html", context, status=status)
