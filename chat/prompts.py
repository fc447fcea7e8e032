"""The prompts that people keep: their own, and those that others share with the workspace.

Owns who sees and changes one, and how many there may be. What is done with a prompt's text is its reader's.
"""

from __future__ import annotations

from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet

from chat.models import SavedPrompt
from tenants.http import ApiError
from tenants.roles import Action
from tenants.users.models import User

MOST = 200
TEXT_MAX = 8_000
TITLE_MAX = 80
PICKED = 50
# What others share has no other bound than their number.
SHARED_SHOWN = 500


class TooManyPrompts(ApiError):
    status, code = 400, "invalid"
    message = f"You keep {MOST} prompts, which is the most. Delete one to keep another."


def seen_by(user: User) -> QuerySet[SavedPrompt]:
    return SavedPrompt.objects.filter(Q(owner=user) | Q(is_shared=True))


def own_of(user: User) -> QuerySet[SavedPrompt]:
    return SavedPrompt.objects.filter(owner=user).order_by("title", "pk")


def shared_with(user: User) -> QuerySet[SavedPrompt]:
    """Those of others."""
    return (
        SavedPrompt.objects.filter(is_shared=True).exclude(owner=user).select_related("owner").order_by("title", "pk")
    )


def deletable_by(user: User) -> QuerySet[SavedPrompt]:
    """One's own; who may change the workspace deletes shared ones, too: their owner may have left."""
    if user.may(Action.EDIT_WORKSPACE):
        return seen_by(user)
    return SavedPrompt.objects.filter(owner=user)


def keep(user: User, **fields: Any) -> SavedPrompt:
    """The same words once more, as a form sent twice has them, are the prompt that is kept. Raises TooManyPrompts."""
    with transaction.atomic(durable=True):
        # Of two at once the second counts the first.
        User.objects.select_for_update(no_key=True).get(pk=user.pk)
        kept = own_of(user)
        if (same := kept.filter(**fields).first()) is not None:
            return same
        if kept.count() >= MOST:
            raise TooManyPrompts
        prompt: SavedPrompt = SavedPrompt.objects.create(owner=user, **fields)
        return prompt


def picked(user: User) -> list[dict[str, Any]]:
    """What a picker names, without the texts; one's own first."""
    fields = ("pk", "title", "is_shared")
    own = list(own_of(user).values(*fields)[:PICKED])
    return own + list(shared_with(user).values(*fields)[: PICKED - len(own)]) if len(own) < PICKED else own


def text_of(user: User, number: int | None) -> str:
    """Blank where there is none that this person sees."""
    found = None if number is None else seen_by(user).filter(pk=number).values_list("text", flat=True).first()
    return found or ""
