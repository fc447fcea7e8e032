"""What is said of the call that paid for an answer, whoever says it. Pure: words and figures in, JSON's shapes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from billing.money import usd

if TYPE_CHECKING:
    from chat.terms import Completion


def bought(
    model: str, finish_reason: str, outcome: str, tokens_input: int | None, tokens_output: int | None, cost: int
) -> dict[str, Any]:
    """`cost` is in microcents."""
    return {
        "model": model,
        "finish_reason": finish_reason,
        "usage": {"input_tokens": tokens_input, "output_tokens": tokens_output},
        "cost": {"microcents": cost, "usd": usd(cost)},
        "outcome": str(outcome),
    }


def bought_by(completion: Completion) -> dict[str, Any]:
    """The same of an answer that has just ended."""
    usage = completion.usage
    return bought(
        completion.model,
        completion.finish_reason,
        completion.outcome,
        usage.tokens_input,
        usage.tokens_output,
        completion.cost,
    )
