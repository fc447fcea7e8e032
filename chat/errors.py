"""What can go wrong when a model is asked.

Owns the sentences that people read. Must not hold anything of the upstream's: its words may quote prompts, its
address or a key.

    tenants.http.ApiError
     ├─ ModelNotPriced     422 model_not_priced
     └─ ModelFailed        502 model_failed, with `usage` and `reached`
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

from tenants.http import ApiError

if TYPE_CHECKING:
    from billing.prices import Usage


class ModelNotPriced(ApiError):
    """An unpriced model is an unlimited one, so it is never called. Nothing was reserved."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "model_not_priced"

    def __init__(self, model: str, *, priced: Sequence[str]) -> None:
        use = f"Use {' or '.join(priced)}, or have" if priced else "Have"
        super().__init__(f"The model {model[:80]} has no price here. {use} the operator price it in LLM_PRICES.")


class ModelFailed(ApiError):
    """The model did not give a whole answer. `usage` is what to charge for it all the same.

    `reached` is False when no model can have worked on the call: nobody was there, or the provider refused it. Then
    `usage` is zero and the hold may be released. Otherwise the provider may bill the call, whatever came back.
    """

    status = HTTPStatus.BAD_GATEWAY
    code = "model_failed"

    def __init__(self, message: str, *, usage: Usage, reached: bool) -> None:
        self.usage = usage
        self.reached = reached
        super().__init__(message)
