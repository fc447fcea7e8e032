"""Log-in by a link in a mail, on a tenant's host: asking for one, and following it.

To follow a link shows a page; its button logs in, for mail programs follow links, too. Where it comes from: finding.
"""

from __future__ import annotations

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_http_methods, require_safe

from tenants.http import TenantRequest
from tenants.users import links
from tenants.users.addresses import confirm
from tenants.users.entering import let_in
from tenants.users.finding import ask_for_link
from tenants.users.guesses import Guess
from tenants.users.models import Link
from tenants.users.pages.finding import ask_for_mail
from tenants.users.pages.links import keep_address
from tenants.users.signed_out import way_in


@require_http_methods(["GET", "HEAD", "POST"])
def ask(request: TenantRequest) -> HttpResponse:
    target = request.POST.get("next") or request.GET.get("next") or ""
    return ask_for_mail(
        request,
        lambda email: ask_for_link(request, email, target=target),
        page="users/ask_for_link.html",
        then="link_sent",
        next=target,
    )


@require_safe
def sent(request: TenantRequest) -> HttpResponse:
    return render(request, "users/link_sent.html")


@require_http_methods(["GET", "HEAD", "POST"])
@way_in
@keep_address
def follow(request: TenantRequest, secret: str) -> HttpResponse:
    """One page for a link that was used, is over, was never made or is another workspace's."""
    target = request.POST.get("next") or request.GET.get("next") or ""
    link = _use(request, secret) if request.method == "POST" else _good(links.look_at(secret, Link.Purpose.LOG_IN))
    if link is None:
        return render(request, "users/link_over.html", status=400)
    if request.method == "POST":
        # Else strangers could keep them out from their next log-in by password.
        Guess.of(request, link.user.email).remember()
        return let_in(request, link.user, method="link", target=target)
    return render(request, "users/link.html", {"member": link.user, "next": target})


def _use(request: TenantRequest, secret: str) -> Link | None:
    """The link, once. Whoever has it can read the mail of its address, which confirms that."""
    with transaction.atomic(durable=True):
        link = _good(links.use(secret, Link.Purpose.LOG_IN))
        if link is not None:
            confirm(link.user, link.email, request)
    return link


def _good(link: Link | None) -> Link | None:
    """None also for a link to an address that the member has left since."""
    return link if link is not None and link.email == link.user.email else None
