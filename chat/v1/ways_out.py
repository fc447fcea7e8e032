"""What can be done about a refusal for money: which other models fit, when the budget starts anew, where to top up.

Owns these facts of an error. Asks nobody, so that a refusal costs no statement more. Must not buy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.conf import settings

from billing.engine.authority import Payer
from billing.engine.engine import Engine
from billing.errors import BudgetDenied
from billing.plans import plan_of
from billing.prices import affordable_tokens
from chat.buying import Wanted, members_for, terms_for
from chat.passed import Kind
from chat.pricing import callable_models
from tenants.http import ApiError

MOST_MODELS = 5
_WRITES = (Kind.CHAT, Kind.COMPLETIONS)


def tell_ways_out(denied: BudgetDenied, engine: Engine, payer: Payer, wanted: Wanted) -> None:
    """Put them into the error, for chat.v1.refusals."""
    denied.extra["resets_at"] = payer.resets_at
    denied.extra["fits_with"] = fits_with(engine, payer, wanted, room=denied.room)
    # A limit that the workspace's own people set is not for sale.
    is_for_sale = denied.extra.get("raised_by") == ["operator"]
    denied.extra["top_up_url"] = (settings.TOP_UP_URL or None) if is_for_sale else None


def fits_with(engine: Engine, payer: Payer, wanted: Wanted, *, room: int | None) -> list[dict[str, Any]]:
    """Other models that may be asked for the same, and the longest answer that each can have: the longest first."""
    if not room or wanted.passed is None or wanted.passed.kind not in _WRITES:
        return []
    others = (model for model in callable_models() if model != wanted.model)
    found = [(_longest(engine, payer, replace(wanted, model=model), room), model) for model in others]
    fitting = sorted((-tokens, model) for tokens, model in found if tokens)
    return [{"model": model, "max_tokens": -tokens} for tokens, model in fitting[:MOST_MODELS]]


def _longest(engine: Engine, payer: Payer, wanted: Wanted, room: int) -> int:
    try:
        terms = terms_for(engine, payer, wanted, members_for(wanted)[0])
    except ApiError:
        return 0  # not priced, or not for this workspace or key
    if terms.price.input and not terms.price.output:
        return 0  # what has a price for its input alone writes no answers: it makes embeddings
    return min(affordable_tokens(room, terms.bound, terms.price) // terms.n, plan_of(payer.plan).max_tokens)
