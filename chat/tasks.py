"""The jobs of chat, as procrastinate runs them. Each is a plain function that may run twice."""

from __future__ import annotations

from datetime import timedelta

from django.utils import timezone
from procrastinate.contrib.django import app

from chat import attachments
from chat.models import Conversation, Message
from tenants.jobs import without_tenant
from tenants.models import Tenant

KEPT = timedelta(days=30)
# In one transaction: a lock is held on each message.
DROPPED_AT_ONCE = 100


@app.periodic(cron="37 3 * * *")
@app.task(queueing_lock="drop_deleted_everywhere", lock="drop_deleted_everywhere")
@without_tenant
def drop_deleted_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace: also of one that asks nothing more."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        drop_deleted.batch_defer(*jobs)


@app.task
def drop_deleted() -> None:
    """Conversations that were deleted so long ago that their owners cannot take them back any more. What they cost
    stays in the usage.
    """
    gone = Conversation.objects.filter(deleted_at__lt=timezone.now() - KEPT)
    while pks := list(gone.values_list("pk", flat=True)[:DROPPED_AT_ONCE]):
        Message.objects.filter(conversation_id__in=pks).delete()
        gone.filter(pk__in=pks).delete()


@app.periodic(cron="51 3 * * *")
@app.task(queueing_lock="forget_files_everywhere", lock="forget_files_everywhere")
@without_tenant
def forget_files_everywhere(timestamp: int) -> None:
    """Once a day, a job for each workspace."""
    tenants = Tenant.objects.filter(status=Tenant.Status.ACTIVE).values_list("pk", flat=True)
    if jobs := [{"tenant_id": pk} for pk in tenants]:
        forget_files.batch_defer(*jobs)


@app.task
def forget_files() -> None:
    attachments.forget_unsent()
