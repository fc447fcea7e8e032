"""More money for an answer that grows: the next slice is asked for before the held one is used up.

Owns `Growth`: how many tokens are held, and when more is asked for (billing.engine.rules says how much). Must not read
the model, nor end an answer: who reads it asks whether it may go on.
"""

from __future__ import annotations

import asyncio
from typing import Generic

from billing.engine.engine import Engine
from billing.engine.rules import SPARE_TOKENS, is_full, next_output, wants_more
from billing.prices import Usage, cost
from chat.answer import Answer
from chat.terms import Bought, P

GROW_AGAIN_SECONDS = 0.2
# Where a slice is refused, half of it may still be paid for. Below so many tokens it is not worth a hold of its own.
LEAST_MORE = 8
# So long none is asked for that is as long as the one that was refused.
SHORTER_SECONDS = 1.0
# So long shorter ones are asked for while the answer waits: its model writes on meanwhile, and bills.
SHORTEN_SECONDS = 0.5
# Its reader waits for the last event meanwhile. An authority that is restarted is back within this.
REACH_SECONDS = 2.0


class Growth(Generic[P]):
    """What is held for one model's answer. `held_output` is in tokens."""

    def __init__(self, engine: Engine, bought: Bought[P]) -> None:
        self.held_output = bought.held_output
        self._engine = engine
        self._call, self._terms = bought.call, bought.terms
        self._loop = asyncio.get_running_loop()
        self._asked: asyncio.Task[bool] | None = None
        self._more = 0  # tokens of it
        self._ask_again_at = 0.0
        # The last slice that was asked for was refused, and there is somebody who said so.
        self.is_refused = False
        self._shorter, self._shorter_until = 0, 0.0  # tokens that a slice has at most since then, and how long

    async def covers(self, answer: Answer) -> bool:
        """Whether the answer may go on: what it used is below what is held, and more is asked for in time."""
        most = self._terms.most_output
        shorten_until: float | None = None
        while self.held_output < most:
            counted = answer.counted()
            self._harvest()
            full = is_full(counted, self.held_output, most)
            if full or (wants_more(counted, self.held_output, most) and self._loop.time() >= self._ask_again_at):
                self._ask_for_more(answer)
            if not full:
                break
            # One read may bring a whole answer, so there may be several to wait for; but only for their answers. The
            # upstream works on meanwhile, and bills: waiting here for others' money cost more than it held.
            assert self._asked is not None
            await asyncio.wait([self._asked])
            if not self._harvest():
                shorten_until = shorten_until or self._loop.time() + SHORTEN_SECONDS
                if not self.is_refused or self._shorter < LEAST_MORE or self._loop.time() >= shorten_until:
                    return False
        return True

    async def reach(self, reported: Usage) -> None:
        """Hold what the report of an answer that has ended counts, if it is to be had: thoughts that its stream did not
        show are billed all the same, and nobody had paid for them. A report of more than was asked for is false.
        """
        terms, tokens = self._terms, reported.tokens_output
        if self.held_output >= tokens or tokens > terms.most_output + SPARE_TOKENS * terms.n:
            return
        tokens = min(tokens, terms.most_output)
        until = self._loop.time() + REACH_SECONDS
        self._note(reported)
        if self._asked is not None:
            # It doubles what is held. Where that is refused, there may be enough for the little that is missing.
            await asyncio.wait([self._asked])
            self._harvest()
        while self.held_output < tokens:
            asked = self._ask(tokens - self.held_output)
            await asyncio.wait([asked])
            if self._harvest():
                continue
            if self.is_refused or self._loop.time() >= until:
                return
            await asyncio.sleep(GROW_AGAIN_SECONDS)

    def _ask_for_more(self, answer: Answer) -> None:
        """Ask for the next slice, unless one is asked for already."""
        if self._asked is not None:
            return
        terms = self._terms
        # By the learned ratio, as an answer is charged that nobody reports: what is held goes by the safer count.
        self._note(Usage(terms.likely, min(answer.counted(terms.habit.output_ratio), self.held_output)))
        more = next_output(self.held_output, terms.most_output)
        # Cut where twice as much was not to be had, an answer left up to half of its budget unspent.
        is_shorter = self._loop.time() < self._shorter_until
        self._ask(min(more, max(self._shorter, LEAST_MORE)) if is_shorter else more)

    def _note(self, now: Usage) -> None:
        used = cost(now, self._terms.price)
        self._call.note(used, tokens_input=now.tokens_input, tokens_output=now.tokens_output)

    def _ask(self, more: int) -> asyncio.Task[bool]:
        held, self._more = self.held_output, more
        self._asked = self._engine.spawn(self._call.grow(self._terms.amount(held + more) - self._terms.amount(held)))
        return self._asked

    def _harvest(self) -> bool:
        """Whether a slice that was asked for is there."""
        asked = self._asked
        if asked is None or not asked.done():
            return False
        is_answered = not asked.cancelled() and asked.exception() is None
        granted = is_answered and asked.result()
        self.is_refused = is_answered and not granted
        self._asked = None
        if granted:
            self.held_output += self._more
        else:
            now = self._loop.time()
            self._ask_again_at = now + GROW_AGAIN_SECONDS
            if self.is_refused:
                self._shorter, self._shorter_until = self._more // 2, now + SHORTER_SECONDS
        return granted
