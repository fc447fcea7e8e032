"""The jobs of chat, as procrastinate runs them. Each is a plain function that may run twice."""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.utils import timezone
from procrastinate.contrib.django import app

from chat import attachments, editing
from chat.models import Conversation, Message
from tenants.jobs import without_tenant
from tenants.models import Tenant

KEPT = timedelta(days=30)
# In one transaction: a lock is held on each message.
DROPPED_AT_ONCE = 100


@app.periodic(cron="37 3 * * *")
@app.task(queueing_lock="tidy_chats_everywhere", lock="tidy_chats_everywhere")
@without_tenant
def tidy_chats_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace: also of one that asks nothing more."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        tidy_chats.batch_defer(*jobs)


@app.task
def tidy_chats() -> None:
    """Drop what was deleted so long ago that it cannot be taken back any more, and files that nobody sent; and link
    what the release before has written during an upgrade, where nobody has opened it since.
    """
    editing.link_all()
    drop_deleted()
    attachments.forget_unsent()


def drop_deleted() -> None:
    """Conversations with all that is in them. What they cost stays in the usage."""
    gone = Conversation.objects.filter(deleted_at__lt=timezone.now() - KEPT)
    while True:
        with transaction.atomic(durable=True):
            # Locked, so that no owner takes one back whose messages are going.
            pks = list(gone.select_for_update(no_key=True).values_list("pk", flat=True)[:DROPPED_AT_ONCE])
            if not pks:
                return
            Message.objects.filter(conversation_id__in=pks).delete()
            Conversation.objects.filter(pk__in=pks).delete()
