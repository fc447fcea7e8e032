"""What a message would cost, before it is sent: by the same terms as the call itself, with nothing held for it.

Owns the figures that the page and `POST /api/chat/price/` show. Must not hold, nor call a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from billing.engine.loop import here
from billing.engine.rules import likely_tokens
from billing.prices import estimate
from chat.buying import Wanted, count_words, members_for, refuse_unless_allowed, terms_for
from chat.history import as_taken, images_of, prompt_bytes
from chat.image_models import tokens_of_image
from chat.pricing import price_for
from chat.services import Buyer, files_for, payer_of, place_of, workspace_of
from chat.turns import Ask, Place


async def quote(
    buyer: Buyer,
    *,
    prompt: str,
    conversation_id: int | None = None,
    parent_id: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
    files: Sequence[int] = (),
) -> dict[str, Any]:
    """{model, likely, most, input_tokens, history_tokens, max_tokens}: money in microcents, tokens as they are likely.

    `most` is what would be held for the longest answer. Raises what `start_reply` does before it holds.
    """
    engine = here()
    payer = await payer_of(engine, buyer)
    attached = await files_for(engine, buyer, conversation_id, files)
    place = Place(prompt, wishes=workspace_of(buyer), files=attached)
    if conversation_id is not None:
        place = await place_of(
            engine,
            payer,
            buyer,
            conversation_id=conversation_id,
            ask=Ask(prompt, parent_id, files=attached),
            model=model,
            max_tokens=max_tokens,
            waits=False,
        )
    model = model or place.wishes.model
    refuse_unless_allowed(payer, buyer.key, model)
    price_for(model)
    wanted = Wanted(
        messages=[*place.wishes.opening, *place.history, place.question],
        model=model,
        max_tokens=max_tokens,
        app="chat",
        user_id=buyer.user_id,
        key=buyer.key,
        known=place.known,
    )
    await count_words(wanted)
    terms, *others = [terms_for(engine, payer, wanted, member) for member in members_for(wanted)]
    history = likely_tokens(prompt_bytes(as_taken(wanted.messages)), terms.habit.input_ratio) - likely_tokens(
        prompt_bytes([wanted.messages[-1]]), terms.habit.input_ratio
    )
    history += len(images_of(wanted.messages[:-1])) * (tokens_of_image(model) or 0)
    answer = min(terms.habit.output, terms.max_tokens)
    return {
        "model": terms.model,
        "likely": estimate(tokens_input=terms.likely, max_tokens=answer, price=terms.price),
        # Any of a group may be the one that answers.
        "most": max(each.amount(each.max_tokens) for each in (terms, *others)),
        "input_tokens": terms.likely,
        "history_tokens": min(max(0, history), terms.likely),
        "max_tokens": terms.max_tokens,
    }
