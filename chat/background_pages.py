"""Pages beside the chat: whether answers go on without a reader, the button that stops one, and the summary that a form
buys.

Owns the change and the trail's line. The row is tenants.services'; what a plane makes of it is in chat.async_api.
"""

from __future__ import annotations

from uuid import UUID

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_http_methods, require_POST

from chat.background import Whose, stop_at_once
from chat.models import Conversation
from chat.summary import summarize_at_once
from chat.views import buyer_of
from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import ApiError, TenantRequest
from tenants.roles import Action
from tenants.users.access import needs

GOES_ON = "goes_on"


@require_http_methods(["GET", "HEAD", "POST"])
@needs(Action.EDIT_WORKSPACE)
def goes_on(request: TenantRequest) -> HttpResponse:
    """The workspace's switch."""
    if request.method != "POST":
        return render(request, "chat/goes_on.html", {"goes_on": request.tenant.chat_settings.get(GOES_ON) is True})
    if change_goes_on(request, GOES_ON in request.POST):
        messages.success(request, "Changed, from the next answer on.")
    return redirect("answers_go_on")


def change_goes_on(request: TenantRequest, value: bool) -> bool:
    """Whether there was anything to change."""
    with transaction.atomic(durable=True):
        before = services.change_chat_settings(request.tenant, {GOES_ON: value or None}).get(GOES_ON) is True
        if before != value:
            event = Event.ANSWERS_GO_ON if value else Event.ANSWERS_STOP
            record(event, request=request, target=request.tenant.name, before=before, after=value)
    return before != value


@require_POST
@needs(Action.CHAT)
def stop(request: TenantRequest, pk: int) -> HttpResponse:
    """Ends the answer that the form names, as the script's Stop does, and leads to it with what it cost."""
    try:
        call = UUID(request.POST.get("call", ""))
    except ValueError:
        raise Http404 from None
    if stop_at_once(Whose(request.tenant.schema_name, request.user.pk), call, pk) is None:
        messages.success(request, "It is stopped. No answer came, and nothing was charged.")
        if not Conversation.objects.filter(pk=pk, owner=request.user, deleted_at=None).exists():
            return redirect("home")
    return redirect("conversation", pk=pk)


@require_POST
@needs(Action.CHAT)
def summary(request: TenantRequest, pk: int) -> HttpResponse:
    """Buys it, and leads back. What refuses it is said there: nothing was typed that could be lost."""
    if not Conversation.objects.filter(pk=pk, owner=request.user, deleted_at=None).exists():
        raise Http404
    try:
        bought = summarize_at_once(buyer_of(request), conversation_id=pk)
    except ApiError as refusal:
        messages.error(request, refusal.message)
    else:
        usd = bought["cost"]["usd"]
        messages.success(
            request, f"{bought['messages']} messages are summarized, for ${usd}. The next answer knows it."
        )
    return redirect("conversation", pk=pk)
