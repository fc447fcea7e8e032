"""What changes in the tree of a conversation beside asking: which messages are in it, and where. For plain views.

Owns deleting a turn, deleting the whole, and linking what was written without a place. Must not touch what was paid: a
deleted turn's line stays in the usage.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from billing.models import Hold
from chat.branches import Tree, in_line
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
            raise NotFound("This message is not in the conversation any more.")
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


def link(conversation_id: int) -> None:
    """Let messages that were written in one line follow each other (see `in_line`), and show those that are the newest.
    Without that a page would show the branch of before, and hide them behind the arrows of its first question.
    """
    with transaction.atomic():
        # What is being written to it meanwhile need not wait: it names a parent, or is linked the next time.
        conversation = Conversation.objects.select_for_update(no_key=True).get(pk=conversation_id)
        messages = list(conversation.messages.defer("text").order_by("pk"))
        parents = in_line(messages)
        linked = [message for message in messages if message.pk in parents]
        for message in linked:
            message.parent_id = parents[message.pk]
        Message.objects.bulk_update(linked, ["parent_id"], batch_size=500)
        if linked and linked[-1] == messages[-1]:
            conversation.head_id, conversation.active_at = messages[-1].pk, messages[-1].created_at
            conversation.save(update_fields=["head_id", "active_at"])


def link_all() -> None:
    """In each conversation of the workspace."""
    unlinked = Message.objects.filter(role=Message.Role.ASSISTANT, parent_id=None, hold=None)
    for pk in list(unlinked.values_list("conversation_id", flat=True).distinct()):
        link(pk)


def _turn(conversation: Conversation, message: Message) -> set[int]:
    """The message with the answers that follow it, and what goes on with those."""
    gone, new = {message.pk}, {message.pk}
    while new:
        following = conversation.messages.filter(Q(parent_id__in=new), role=Message.Role.ASSISTANT)
        new = set(following.values_list("pk", flat=True)) - gone
        gone |= new
    return gone
