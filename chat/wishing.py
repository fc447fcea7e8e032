"""Who changes what a workspace's chat asks of its models, and that it is in the trail; and the same of a conversation.

Owns these writes. What they mean is chat.wishes'. A system prompt is nobody's to read in the trail: that says only that
it was changed.
"""

from __future__ import annotations

from django.db import transaction

from chat.models import Conversation
from chat.wishes import Wishes, of_workspace
from tenants import services
from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import TenantRequest


def change_workspace(request: TenantRequest, wishes: Wishes) -> bool:
    """Whether there was anything to change."""
    tenant = request.tenant
    with transaction.atomic(durable=True):
        before = of_workspace(services.change_chat_settings(tenant, wishes.as_settings()))
        if before == wishes:
            return False
        changed = {
            "model": before.model != wishes.model,
            "system prompt": before.system != wishes.system,
            "temperature": before.temperature != wishes.temperature,
        }
        record(
            Event.CHAT_CHANGED,
            request=request,
            target=tenant.name,
            changed=[name for name, is_changed in changed.items() if is_changed],
            model=wishes.model or "the default",
            temperature="the model’s own" if wishes.temperature is None else str(wishes.temperature),
        )
    return True


def change_conversation(conversation: Conversation, wishes: Wishes) -> None:
    """A row that an answer may be written to just now: these columns and no others."""
    Conversation.objects.filter(pk=conversation.pk).update(
        model=wishes.model, system=wishes.system, temperature=wishes.temperature
    )
