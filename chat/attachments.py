"""The files of a person that are not sent yet, and those of a conversation's questions. For web.

Owns their limits, and who gets one. Must not send them: chat.services does, with the question.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import Q, QuerySet, Sum
from django.utils import timezone

from billing.prices import estimate
from chat.attached import IMAGE_KINDS, MOST_FILES, tokens_of
from chat.errors import ModelNotPriced
from chat.file_text import cleaned, read
from chat.image_models import images_not_taken, tokens_beside_name
from chat.images import is_image, made_anew
from chat.models import Attachment, Conversation, Message
from chat.pricing import price_for
from chat.unread import Unread
from tenants.context import tenant_or_public
from tenants.http import TooLarge
from tenants.users.models import User

# Of all files of a workspace, in bytes of their text and of their images.
WORKSPACE_BYTES = 500 * 1024 * 1024
UNSENT_FOR = timedelta(days=2)


def unsent(owner: User) -> QuerySet[Attachment]:
    """What waits above the box, in whichever conversation."""
    return Attachment.objects.filter(owner=owner, message_id=None).defer("text", "image").order_by("pk")


def in_box(owner: User, shown: Conversation | None, named: Iterable[int]) -> QuerySet[Attachment]:
    """What waits above the box, and of what was sent in the conversation the files that are named: those of a question
    that is edited.
    """
    found = Attachment.objects.filter(owner=owner).defer("text", "image").order_by("pk")
    if shown is None or not (named := list(named)):
        return found.filter(message_id=None)
    return found.filter(Q(message_id=None) | Q(pk__in=named, conversation=shown))


def own(owner: User, pk: int) -> Attachment | None:
    """A file that its owner may have: an unsent one, or of a conversation that is not deleted."""
    is_there = Q(conversation=None) | Q(conversation__deleted_at=None, conversation__owner=owner)
    return Attachment.objects.filter(is_there, pk=pk, owner=owner).first()


def image_for(reader: User, pk: int) -> Attachment | None:
    """An image that is the reader's own, or of a conversation that its owner shares with the workspace."""
    is_own = Q(conversation=None, owner=reader) | Q(conversation__deleted_at=None, conversation__owner=reader)
    is_shared = Q(conversation__deleted_at=None, conversation__shared_at__isnull=False)
    return Attachment.objects.filter(is_own | is_shared, pk=pk, kind__in=IMAGE_KINDS).first()


def add(owner: User, upload: UploadedFile[Any], *, model: str, allowed: Collection[str] | None) -> Attachment:
    """`model`: which is to be asked, of those that the workspace allows. Raises Unread, TooLarge, or ImagesNotTaken."""
    if (size := upload.size or 0) > settings.CHAT_FILE_BYTES:
        most = settings.CHAT_FILE_BYTES // 1024 // 1024
        raise TooLarge(f"This file is larger than {most} MiB. Add a part of it, or a smaller picture.")
    _refuse_more(owner)  # before it is read, which may take seconds
    name, raw, text, image = cleaned(upload.name or ""), upload.read(), "", None
    if is_image(raw):
        if tokens_beside_name(model) is None:
            raise images_not_taken(model, allowed)
        kind, image = made_anew(raw)
        size = len(image)
    else:
        kind, text = read(name, raw, (tenant_or_public(), owner.pk))
    with transaction.atomic(durable=True):
        # Two at once would both find room.
        User.objects.select_for_update(no_key=True).get(pk=owner.pk)
        _refuse_more(owner)
        return Attachment.objects.create(
            owner=owner,
            name=name,
            kind=kind,
            bytes=size,
            text=text,
            image=image,
            tokens=tokens_of(name, text, kind),
        )


def _refuse_more(owner: User) -> None:
    if unsent(owner).count() >= MOST_FILES:
        raise Unread(f"{MOST_FILES} files go into one message. Send or remove some first.")
    of_images = Sum("bytes", filter=Q(kind__in=IMAGE_KINDS))
    stored = Attachment.objects.aggregate(texts=Sum("tokens"), images=of_images)
    if sum(bytes or 0 for bytes in stored.values()) >= WORKSPACE_BYTES:
        raise Unread("This workspace's room for files is full. Delete conversations with files that are not needed.")


def remove(owner: User, pk: int) -> bool:
    """Whether there was one that is not sent."""
    return bool(unsent(owner).filter(pk=pk).delete()[0])


def tokens_for(attachment: Attachment, model: str) -> int | None:
    """What it adds to a message to that model at most; None for an image where the model takes none."""
    if not attachment.is_image:
        return attachment.tokens
    tokens = tokens_beside_name(model)
    return None if tokens is None else attachment.tokens + tokens


def price_of(tokens: int | None, model: str) -> int | None:
    """Microcents that files of so many tokens add to a message to that model at most; None where that has no price, or
    the tokens are unknown.
    """
    try:
        price = price_for(model)
    except ModelNotPriced:
        return None
    return None if tokens is None else estimate(tokens_input=tokens, max_tokens=0, price=price)


def put_beside(messages: Iterable[Message]) -> None:
    """Each question gets its files, as `files`; one statement, and none where there are no files."""
    having = {message.pk: message for message in messages if message.files_tokens}
    files: dict[int, list[Attachment]] = {pk: [] for pk in having}
    if having:
        for file in Attachment.objects.filter(message_id__in=having).defer("text", "image").order_by("pk"):
            files[file.message_id or 0].append(file)
    for pk, message in having.items():
        message.files = files[pk]


def forget_unsent() -> None:
    """Those that nobody sent for two days."""
    Attachment.objects.filter(message_id=None, created_at__lt=timezone.now() - UNSENT_FOR).delete()
