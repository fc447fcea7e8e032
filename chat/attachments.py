"""The files of a person that are not sent yet, and those of a conversation's questions. For web.

Owns their limits, and who gets one. Must not send them: chat.services does, with the question.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from billing.prices import estimate
from chat.attached import MOST_FILES, tokens_of
from chat.errors import ModelNotPriced
from chat.file_text import Unread, cleaned, read
from chat.models import Attachment, Message
from chat.pricing import price_for
from tenants.http import TooLarge
from tenants.users.models import User

# Of all files of a workspace, in bytes of their text.
WORKSPACE_BYTES = 500 * 1024 * 1024
UNSENT_FOR = timedelta(days=2)


def unsent(owner: User) -> QuerySet[Attachment]:
    """What waits above the box, in whichever conversation."""
    return Attachment.objects.filter(owner=owner, message_id=None).defer("text").order_by("pk")


def own(owner: User, pk: int) -> Attachment | None:
    """A file that its owner may have: an unsent one, or of a conversation that is not deleted."""
    is_there = Q(conversation=None) | Q(conversation__deleted_at=None, conversation__owner=owner)
    return Attachment.objects.filter(is_there, pk=pk, owner=owner).first()


def add(owner: User, upload: UploadedFile[Any]) -> Attachment:
    """Raises Unread, or TooLarge."""
    if (size := upload.size or 0) > settings.CHAT_FILE_BYTES:
        most = settings.CHAT_FILE_BYTES // 1024 // 1024
        raise TooLarge(f"This file is larger than {most} MiB. Add a part of it.")
    _refuse_more(owner)  # before it is read, which may take seconds
    name = cleaned(upload.name or "")
    kind, text = read(name, upload.read())
    with transaction.atomic(durable=True):
        # Two at once would both find room.
        User.objects.select_for_update(no_key=True).get(pk=owner.pk)
        _refuse_more(owner)
        return Attachment.objects.create(
            owner=owner, name=name, kind=kind, bytes=size, text=text, tokens=tokens_of(name, text)
        )


def _refuse_more(owner: User) -> None:
    if unsent(owner).count() >= MOST_FILES:
        raise Unread(f"{MOST_FILES} files go into one message. Send or remove some first.")
    stored = Attachment.objects.aggregate(tokens=Sum("tokens"))["tokens"] or 0
    if stored >= WORKSPACE_BYTES:
        raise Unread("This workspace's room for files is full. Delete conversations with files that are not needed.")


def remove(owner: User, pk: int) -> bool:
    """Whether there was one that is not sent."""
    return bool(unsent(owner).filter(pk=pk).delete()[0])


def price_of(attachment: Attachment, model: str) -> int | None:
    """Microcents that it adds to a message to that model at most; None where that has no price."""
    try:
        price = price_for(model)
    except ModelNotPriced:
        return None
    return estimate(tokens_input=attachment.tokens, max_tokens=0, price=price)


def put_beside(messages: Iterable[Message]) -> None:
    """Each question gets its files, as `files`; one statement, and none where there are no files."""
    having = {message.pk: message for message in messages if message.files_tokens}
    for message in having.values():
        message.files = []
    if having:
        for file in Attachment.objects.filter(message_id__in=having).defer("text").order_by("pk"):
            having[file.message_id or 0].files.append(file)


def forget_unsent() -> None:
    """Those that nobody sent for two days."""
    Attachment.objects.filter(message_id=None, created_at__lt=timezone.now() - UNSENT_FOR).delete()
