"""What the composer's options offer: models with their prices, saved prompts. For the chat page.

Owns what the page reads for them. What is chosen is asked, and refused, where it is bought.
"""

from __future__ import annotations

from typing import Any

from django.forms import BaseForm

from billing.prices import Price
from chat import prompts
from chat.errors import ModelNotPriced
from chat.models import Conversation
from chat.picking import choices, holds_for
from chat.pricing import price_for
from chat.wishes import NO_WISHES, Wishes
from tenants.http import TenantRequest
from tenants.roles import Action
from tenants.spelling import number_in


def options(request: TenantRequest, shown: Conversation | None, form: BaseForm) -> dict[str, Any]:
    """Nothing for who may not ask."""
    if not request.user.may(Action.CHAT):
        return {}
    here = holds(request, shown)
    chosen = form["model"].value() or here.model
    return {
        "models": choices(request.tenant.allowed_models, chosen),
        "wishes": here,
        "chosen_model": chosen,
        "price": _price_of(chosen),
        "prompts": prompts.picked(request.user),
        "prompts_place": "/" if shown is None else f"/c/{shown.pk}/",
    }


def holds(request: TenantRequest, shown: Conversation | None) -> Wishes:
    """What holds for the next message."""
    return holds_for(request.tenant, wishes_of(shown))


def _price_of(model: str) -> Price | None:
    """None where it has none, and cannot be asked."""
    try:
        return price_for(model)
    except ModelNotPriced:
        return None


def linked_prompt(request: TenantRequest) -> dict[str, str]:
    """What `?prompt_id=` puts into the box: a prompt that this person sees."""
    text = prompts.text_of(request.user, number_in(request.GET.get("prompt_id", "")))
    return {"prompt": text} if text else {}


def wishes_of(conversation: Conversation | None) -> Wishes:
    if conversation is None:
        return NO_WISHES
    return Wishes(conversation.model, conversation.system, conversation.temperature)
