"""Conversations that their owners share with the workspace: to be read by every member of it, and by nobody else.

Shows them and changes none. What is not shared, or deleted, is not there.
"""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from chat import attachments
from chat.branches import Tree
from chat.listing import SHOWN, cursor, from_there, parsed
from chat.manage import may_unshare
from chat.models import Conversation, Message
from chat.plainly import note_plain
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.spelling import number_in
from tenants.users.access import needs


@require_safe
@needs(Action.READ_CHATS)
def conversations(request: TenantRequest) -> HttpResponse:
    """What others share, or with `?by=me` what one shares oneself; what was shared last comes first."""
    is_mine = request.GET.get("by") == "me"
    found = Conversation.objects.filter(shared_at__isnull=False, deleted_at=None).order_by("-shared_at", "-pk")
    found = found.filter(owner=request.user) if is_mine else found.exclude(owner=request.user).select_related("owner")
    start = parsed(request.GET.get("before", ""))
    page = list(from_there(found, "shared_at", start)[: SHOWN + 1])
    shown = page[:SHOWN]
    older = cursor(shown[-1].shared_at, shown[-1].pk) if len(page) > SHOWN and shown[-1].shared_at else ""
    context = {"conversations": shown, "is_mine": is_mine, "older": older, "is_later": start is not None}
    return render(request, "chat/all_shared.html", context)


@require_safe
@needs(Action.READ_CHATS)
def conversation(request: TenantRequest, pk: int) -> HttpResponse:
    """`?at=` shows the branch of that message."""
    shared = Conversation.objects.filter(shared_at__isnull=False, deleted_at=None).select_related("owner")
    found = get_object_or_404(shared, pk=pk)
    tree: Tree[Message] = Tree(found.messages.all())
    named = number_in(request.GET.get("at", ""))
    last = tree.newest_under(named) if named is not None and named in tree else found.head_id or tree.newest_under(None)
    turns = tree.branch(last)
    attachments.put_beside(turn.message for turn in turns)
    note_plain(turn.message for turn in reversed(turns))
    context = {
        "conversation": found,
        "turns": turns,
        "shows_pictures": True,
        "is_own": found.owner_id == request.user.pk,
        "may_unshare": may_unshare(request, found),
    }
    return render(request, "chat/shared.html", context)
