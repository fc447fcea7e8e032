"""A group of models: the next one is asked where one failed, billed nothing, and its reader has heard nothing of it.

Owns the order. Each member is bought by itself, at its own price, once what the one before held has been given back.
What is known to be down is passed over, and no money is held for it. Must not know how an answer is bought, nor what
it says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic

from billing.engine.repeats import Claim
from chat.errors import ModelBusy
from chat.terms import Bought, P


class Hops(Generic[P]):
    """The members of a group that have not been asked yet; of a single model that one alone."""

    def __init__(
        self, members: Sequence[str], buy: Callable[[str], Awaitable[Bought[P]]], *, claim: Claim | None = None
    ) -> None:
        self._left = deque(members)
        self._buy = buy
        self._claim = claim
        self._down: ModelBusy | None = None

    async def first(self) -> Bought[P]:
        """Raises what refuses it; ModelBusy where all are down, with the time when the first may be back."""
        bought = await self.next()
        if bought is None:
            assert self._down is not None  # there is a member
            raise self._down
        return bought

    async def next(self) -> Bought[P] | None:
        while self._left:
            try:
                return await self._buy(self._left.popleft())
            except ModelBusy as exc:
                self._down = exc if self._down is None else min(self._down, exc, key=_wait)
        return None

    def gave_up(self) -> None:
        if self._claim is not None:
            self._claim.give_back()

    @property
    def has_more(self) -> bool:
        return bool(self._left)


def _wait(busy: ModelBusy) -> int:
    return busy.retry_after_ms or 0
