"""What an owner changes in the tree of a conversation: which messages are in it. For plain views.

Owns deleting a turn, and deleting the whole. Must not touch what was paid: a deleted turn's line stays in the usage.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from billing.models import Hold
from chat.branches import Tree
from chat.errors import ConversationBusy
from chat.models import Conversation, Message
from chat.turns import busy_key
from tenants.http import NotFound


def delete_turn(schema: str, owner_id: int, conversation_id: int, message_id: int) -> None:
    """Take a question and its answers out of the conversation, or an answer alone. What follows them stays, and
    follows what stood before.

    Raises NotFound, or ConversationBusy while an answer is under way: it would follow what is gone.
    """
    with transaction.atomic():
        conversation = (
            Conversation.objects.select_for_update()
            .filter(pk=conversation_id, owner_id=owner_id, deleted_at=None)
            .first()
        )
        if conversation is None:
            raise NotFound("There is no such conversation.")
        if Hold.objects.filter(busy_key=busy_key(schema, conversation_id)).exists():
            raise ConversationBusy
        message = conversation.messages.filter(pk=message_id).first()
        if message is None:
            raise NotFound("There is no such message in this conversation.")
        gone = _turn(conversation, message)
        conversation.messages.filter(parent_id__in=gone).exclude(pk__in=gone).update(parent_id=message.parent_id)
        conversation.messages.filter(pk__in=gone).delete()
        if conversation.summary_upto is not None and min(gone) <= conversation.summary_upto:
            # It may say what was deleted.
            conversation.summary, conversation.summary_upto = "", None
            conversation.save(update_fields=["summary", "summary_upto"])
        conversation.attachments.filter(message_id__in=gone).delete()
        if conversation.head_id in gone:
            left: Tree[Message] = Tree(conversation.messages.only("pk", "parent_id"))
            conversation.head_id = left.newest_under(message.parent_id)
            conversation.save(update_fields=["head_id"])


def delete(schema: str, conversation: Conversation) -> None:
    """Take it out of its owner's sight. Raises ConversationBusy while an answer is under way: it would come after."""
    if Hold.objects.filter(busy_key=busy_key(schema, conversation.pk)).exists():
        raise ConversationBusy("This conversation is still answering. It can be deleted once the answer has ended.")
    Conversation.objects.filter(pk=conversation.pk, deleted_at=None).update(deleted_at=timezone.now())


def _turn(conversation: Conversation, message: Message) -> set[int]:
    """The message with the answers that follow it, and what goes on with those."""
    gone, new = {message.pk}, {message.pk}
    while new:
        following = conversation.messages.filter(Q(parent_id__in=new), role=Message.Role.ASSISTANT)
        new = set(following.values_list("pk", flat=True)) - gone
        gone |= new
    return gone
