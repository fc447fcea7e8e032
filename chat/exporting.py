"""A conversation as a file. Owns how it is written down, as Markdown and as JSON. Reads rows, and changes none."""

from __future__ import annotations

import json
from typing import Any

from chat import attachments
from chat.branches import Tree
from chat.models import Conversation, Message

# A file is made in memory: of a longer conversation the newest are in it, and it says so.
MOST_MESSAGES = 2_000
_NAMES = {Message.Role.USER: "Question", Message.Role.ASSISTANT: "Answer"}


def as_markdown(conversation: Conversation, *, all_of_it: bool) -> str:
    """Answers as the model wrote them. With all versions, each after the first says which one it is."""
    found, is_cut = _messages(conversation, all_of_it=all_of_it)
    parts = [f"# {conversation.title or 'Untitled'}"]
    if is_cut:
        parts.append(f"*Only the newest {MOST_MESSAGES} messages are in this file.*")
    tree: Tree[Message] = Tree(found)
    for message in found:
        place = tree.shown(message.pk)
        which = f" (version {place.place} of {place.count})" if all_of_it and place.count > 1 else ""
        parts.append("\n\n".join([f"## {_NAMES[Message.Role(message.role)]}{which}", message.text, *_files(message)]))
    return "\n\n".join(parts) + "\n"


def as_json(conversation: Conversation, *, all_of_it: bool) -> str:
    """`follows` is the message that one follows, null for a first one; `shown` the last of the branch that is shown.
    `cost` is in microcents, and null where it is not known.
    """
    found, is_cut = _messages(conversation, all_of_it=all_of_it)
    body = {
        "title": conversation.title,
        "created_at": conversation.created_at.isoformat(),
        "shown": conversation.head_id,
        "complete": not is_cut,
        "messages": [_facts(message) for message in found],
    }
    return json.dumps(body, ensure_ascii=False, indent=2) + "\n"


def _messages(conversation: Conversation, *, all_of_it: bool) -> tuple[list[Message], bool]:
    """In their order, and whether there are more."""
    newest = list(conversation.messages.order_by("-pk")[: MOST_MESSAGES + 1])
    found = newest[MOST_MESSAGES - 1 :: -1]
    if not all_of_it:
        tree: Tree[Message] = Tree(found)
        found = [shown.message for shown in tree.branch(conversation.head_id or tree.newest_under(None))]
    attachments.put_beside(found)
    return found, len(newest) > MOST_MESSAGES


def _files(message: Message) -> list[str]:
    """What went along with it, by name: a list, whose names are no Markdown."""
    if not message.files:
        return []
    named = [(file.get_kind_display(), file.name.replace("`", "'")) for file in message.files]
    return ["\n".join(["Files:", "", *(f"- {kind}: `{name}`" for kind, name in named)])]


def _facts(message: Message) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "id": message.pk,
        "follows": message.parent_id,
        "role": message.role,
        "text": message.text,
        "created_at": message.created_at.isoformat(),
    }
    if message.files:
        facts["files"] = [{"name": file.name, "kind": file.kind} for file in message.files]
    if message.role == Message.Role.ASSISTANT:
        names = ("model", "finish_reason", "outcome", "tokens_input", "tokens_output", "cost")
        facts |= {name: getattr(message, name) for name in names}
    return facts
