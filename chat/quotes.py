"""What a message would cost, before it is sent: by the same terms as the call itself, with nothing held for it.

Owns the figures that the page and `POST /api/chat/price/` show. Must not hold, nor call a model.
"""

from __future__ import annotations

import functools
from typing import Any

from billing.engine.loop import here
from billing.engine.payers import payer_for
from billing.engine.rules import likely_tokens
from billing.prices import estimate
from chat.buying import Wanted, members_for, refuse_unless_allowed, terms_for
from chat.history import as_taken, prompt_bytes
from chat.pricing import price_for
from chat.services import Buyer, room_of, workspace_of
from chat.turns import Ask, Place, found


async def quote(
    buyer: Buyer,
    *,
    prompt: str,
    conversation_id: int | None = None,
    parent_id: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """{model, likely, most, input_tokens, history_tokens, max_tokens}: money in microcents, tokens as they are likely.

    `most` is what would be held for the longest answer. Raises what `start_reply` does before it holds.
    """
    engine = here()
    payer = await payer_for(
        engine, tenant_id=buyer.tenant_id, slug=buyer.slug, schema=buyer.schema, account=buyer.account
    )
    workspace = workspace_of(buyer)
    place = Place(prompt, wishes=workspace)
    if conversation_id is not None:
        place = await found(
            engine,
            schema=buyer.schema,
            owner=buyer.user_id,
            conversation_id=conversation_id,
            ask=Ask(prompt, parent_id),
            workspace=workspace,
            model=model,
            room=functools.partial(room_of, engine, payer, max_tokens=max_tokens),
            waits=False,
        )
    model = model or place.wishes.model
    refuse_unless_allowed(payer, buyer.key, model)
    price_for(model)
    wanted = Wanted(
        messages=[*place.wishes.opening, *place.history, {"role": "user", "content": prompt}],
        model=model,
        max_tokens=max_tokens,
        app="chat",
        user_id=buyer.user_id,
        key=buyer.key,
        known=place.known,
    )
    terms = terms_for(engine, payer, wanted, members_for(wanted)[0])
    history = likely_tokens(prompt_bytes(as_taken(wanted.messages)), terms.habit.input_ratio) - likely_tokens(
        prompt_bytes([wanted.messages[-1]]), terms.habit.input_ratio
    )
    answer = min(terms.habit.output, terms.max_tokens)
    return {
        "model": terms.model,
        "likely": estimate(tokens_input=terms.likely, max_tokens=answer, price=terms.price),
        "most": terms.amount(terms.max_tokens),
        "input_tokens": terms.likely,
        "history_tokens": min(max(0, history), terms.likely),
        "max_tokens": terms.max_tokens,
    }
