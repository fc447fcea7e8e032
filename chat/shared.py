"""Conversations that their owners share with the workspace: to be read by every member of it, and by nobody else.

Shows them and changes none. What is not shared, or deleted, is not there.
"""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from chat import attachments
from chat.branches import Tree
from chat.manage import may_unshare
from chat.models import Conversation, Message
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.spelling import number_in
from tenants.users.access import needs


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
    context = {
        "conversation": found,
        "turns": turns,
        "shows_pictures": True,
        "is_own": found.owner_id == request.user.pk,
        "may_unshare": may_unshare(request, found),
    }
    return render(request, "chat/shared.html", context)
