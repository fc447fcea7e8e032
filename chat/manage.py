"""What an owner does with a whole conversation: its name, its place, who may read it, its copy, its end.

Owns these changes. Each is one row's, and holds also while an answer is under way, but for deleting. Must not touch
what was paid.
"""

from __future__ import annotations

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.urls import reverse
from django.utils import timezone
from django.views.decorators.http import require_POST, require_safe

from chat import editing, exporting
from chat.errors import ConversationBusy
from chat.forms import TitleForm
from chat.listing import MOST_PINNED, own
from chat.models import Conversation
from chat.titles import SWITCH, is_on
from chat.views import page_of
from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.users.access import needs


@require_POST
@needs(Action.CHAT)
def rename(request: TenantRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(own(request), pk=pk)
    form = TitleForm(request.POST)
    if not form.is_valid():
        return page_of(request, found, renaming=form, status=400)
    own(request).filter(pk=pk).update(title=form.cleaned_data["title"], titled_by=Conversation.TitledBy.PERSON)
    messages.success(request, "Renamed.")
    return redirect("conversation", pk=pk)


@require_POST
@needs(Action.CHAT)
def pin(request: TenantRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(own(request), pk=pk)
    wanted = request.POST.get("pinned") == "yes"
    if wanted and own(request).filter(pinned_at__isnull=False).exclude(pk=pk).count() >= MOST_PINNED:
        messages.error(request, f"{MOST_PINNED} conversations are pinned, which is the most. Unpin another first.")
    elif wanted != (found.pinned_at is not None):
        own(request).filter(pk=pk).update(pinned_at=timezone.now() if wanted else None)
        messages.success(request, "Pinned." if wanted else "Unpinned.")
    return redirect("conversation", pk=pk)


@require_POST
@needs(Action.CHAT)
def delete(request: TenantRequest, pk: int) -> HttpResponse:
    """Its owner can take it back, until chat.tasks drops it. A second time changes nothing, and leads to the same."""
    found = get_object_or_404(Conversation, pk=pk, owner=request.user)
    try:
        editing.delete(request.tenant.schema_name, found)
    except ConversationBusy as exc:
        return page_of(request, found, refusal=exc, status=exc.status)
    return redirect(f"{reverse('home')}?deleted={pk}")


@require_POST
@needs(Action.CHAT)
def restore(request: TenantRequest, pk: int) -> HttpResponse:
    if not Conversation.objects.filter(pk=pk, owner=request.user).update(deleted_at=None):
        raise Http404
    messages.success(request, "The conversation is back.")
    return redirect("conversation", pk=pk)


@require_safe
@needs(Action.READ_CHATS)
def export(request: TenantRequest, pk: int) -> HttpResponse:
    """`?as=json` or Markdown; `?all=yes`: with every version, and not only the branch that is shown."""
    found = get_object_or_404(own(request), pk=pk)
    is_json = request.GET.get("as") == "json"
    write = exporting.as_json if is_json else exporting.as_markdown
    name, kind = ("json", "application/json") if is_json else ("md", "text/markdown; charset=utf-8")
    response = HttpResponse(write(found, all_of_it=request.GET.get("all") == "yes"), content_type=kind)
    response["Content-Disposition"] = f'attachment; filename="conversation-{pk}.{name}"'
    return response


@require_POST
@needs(Action.CHAT)
def share(request: TenantRequest, pk: int) -> HttpResponse:
    found = get_object_or_404(own(request), pk=pk)
    with transaction.atomic(durable=True):
        if own(request).filter(pk=pk, shared_at=None).update(shared_at=timezone.now()):
            record(Event.CONVERSATION_SHARED, request=request, target=found.title, conversation=pk)
    messages.success(request, "Everybody in this workspace can read it now. They find it under Shared.")
    return redirect("conversation", pk=pk)


@require_POST
@needs(Action.READ_CHATS)
def unshare(request: TenantRequest, pk: int) -> HttpResponse:
    """By its owner; and of a former member's, by those who may read what former members wrote."""
    found = get_object_or_404(Conversation.objects.select_related("owner"), pk=pk, deleted_at=None)
    if not may_unshare(request, found):
        raise Http404
    with transaction.atomic(durable=True):
        if Conversation.objects.filter(pk=pk, shared_at__isnull=False).update(shared_at=None):
            record(Event.CONVERSATION_UNSHARED, request=request, target=found.title, conversation=pk)
    messages.success(request, "It is not shared any more.")
    return redirect("conversation", pk=pk) if found.owner_id == request.user.pk else redirect("home")


def may_unshare(request: TenantRequest, conversation: Conversation) -> bool:
    if conversation.owner_id == request.user.pk:
        return True
    is_former = conversation.owner.removed_at is not None
    return is_former and conversation.shared_at is not None and request.user.may(Action.READ_FORMER)


@require_POST
@needs(Action.EDIT_WORKSPACE)
def titles(request: TenantRequest) -> HttpResponse:
    """Whether the model writes the titles of new conversations."""
    wanted = request.POST.get("on") == "yes"
    with transaction.atomic(durable=True):
        before = services.change_chat_settings(request.tenant, {SWITCH: wanted or None})
        if is_on(before) != wanted:
            record(Event.TITLES_SWITCHED, request=request, target="on" if wanted else "off")
            messages.success(
                request,
                "The model writes the titles of new conversations now."
                if wanted
                else "Titles are a conversation’s first words now.",
            )
    return redirect(f"{reverse('workspace')}#titles")
