"""What former members wrote, to be read by those whose role may: the workspace keeps it when its people go.

Shows conversations and changes none. A member's own, while they are in, are nobody else's: there is no page for them
here. Each look is written down in the audit trail.
"""

from __future__ import annotations

from django.db import transaction
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from chat import attachments
from chat.models import Conversation
from chat.plainly import note_plain
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.spelling import number_in
from tenants.users.access import count_act, needs
from tenants.users.people import former_members

SHOWN = 50


@require_safe
@needs(Action.READ_FORMER)
def conversations(request: TenantRequest, pk: int) -> HttpResponse:
    """The newest, or the newest before a given one."""
    count_act(request)
    member = get_object_or_404(former_members(), pk=pk)
    found = Conversation.objects.filter(owner=member, deleted_at=None).order_by("-pk")
    if (before := number_in(request.GET.get("before", ""))) is not None:
        found = found.filter(pk__lt=before)
    shown = list(found[: SHOWN + 1])
    with transaction.atomic(durable=True):
        record(Event.FORMER_CHAT_READ, request=request, target=member.email)
    context = {"member": member, "conversations": shown[:SHOWN], "has_more": len(shown) > SHOWN}
    return render(request, "chat/former.html", context)


@require_safe
@needs(Action.READ_FORMER)
def conversation(request: TenantRequest, pk: int, conversation_pk: int) -> HttpResponse:
    count_act(request)
    member = get_object_or_404(former_members(), pk=pk)
    found = get_object_or_404(Conversation, pk=conversation_pk, owner=member, deleted_at=None)
    with transaction.atomic(durable=True):
        record(Event.FORMER_CHAT_READ, request=request, target=member.email, conversation=found.pk)
    said = list(found.messages.order_by("pk"))
    attachments.put_beside(said)
    note_plain(reversed(said))
    context = {"member": member, "conversation": found, "chat_messages": said}
    return render(request, "chat/former_conversation.html", context)
