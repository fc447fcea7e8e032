"""One answer under way: the model's words on their way to a reader, under a call that pays for them.

Owns `Answering`. It belongs to the engine and not to a request: a reader who leaves stops the upstream, never the
settling. Must not know HTTP, nor who asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Generic

from billing.engine.engine import Engine
from billing.engine.settling import Final, Settled
from billing.outcomes import Outcome
from billing.prices import Usage, cost
from chat.answer import Answer
from chat.bell import Bell
from chat.ending import Ending
from chat.errors import ModelFailed, ModelStopped
from chat.growing import Growth
from chat.llm import BROKEN, ModelStream
from chat.outlet import Outlet
from chat.terms import Bought, Completion, Others, P, as_settled
from chat.whole import Whole
from tenants.http import ApiError

logger = logging.getLogger(__name__)

# A reader, or a proxy between, gives up on a silent line; and only by writing is a reader who left noticed.
KEEP_ALIVE_SECONDS = 10.0
# The last event waits this long for the commit, and then goes without the balances.
COMMIT_SECONDS = 1.0
# What a member of a group held is given back within this, or the next one is not asked.
GIVE_WAY_SECONDS = 5.0


class Answering(Generic[P]):
    """One answer under way. `events` gives its words as they come, `finished` the whole with its cost."""

    def __init__(
        self,
        engine: Engine,
        bought: Bought[P],
        *,
        after: Callable[[Completion], Awaitable[None]] | None = None,
        goes_on: bool = False,
        as_it_came: bool = False,
        keeps_bytes: bool = False,
        for_stock_client: bool = False,
        others: Others[P] | None = None,
    ) -> None:
        self.failure: ApiError | None = None
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._after = after
        self._goes_on = goes_on
        self._others = others
        self._is_hopping = False
        # Its reader has been told something of this model's answer: another's would be another answer.
        self._is_told = False
        self._take_on(bought)
        self._parts: list[str] = []
        self._fresh: list[str] = []
        # For a reader who wants the answer's bytes, and not its words.
        self._as_it_came = as_it_came
        has_outlet = as_it_came and not bought.sent.in_one_piece
        self._outlet = Outlet(keeps=keeps_bytes, for_stock_client=for_stock_client) if has_outlet else None
        self._news = Bell()
        self._begun = asyncio.Event()
        self._ended = False
        # Nothing more of it is read: whoever stops it now must not be told that it is not whole.
        self._is_read = False
        self._cut_for: str | None = None
        self._reader_left = False
        self._completion: Completion | None = None
        engine.add_cut(self.stop)
        self._task = engine.spawn(self._run())

    def _take_on(self, bought: Bought[P]) -> None:
        self.call, self.terms = bought.call, bought.terms
        self._keep = bought.keep
        self._growth = Growth(self._engine, bought)
        # Its answer repeats the prompt, which nobody bills as output: its bytes say nothing of what a token is.
        self._is_echo = (bought.sent.most or 0) > bought.terms.most_output
        self._model = ModelStream(
            bought.sent,
            model=bought.terms.model,
            dialect=bought.terms.dialect,
            paid_by=bought.call,
            whose=bought.terms.upstream.tenant,
        )
        self.call.on_lapse = self._lapse

    # --- for the reader ---

    async def begun(self) -> None:
        """Until the first frame, or ten seconds, or ten of each further model that is asked. Raises ModelFailed, once
        settled, where it ended before a word; or what refused the next model.
        """
        while not self._begun.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    await self._begun.wait()
            if not self._is_hopping:
                break
        self._is_told = True
        has_words = bool(self._parts) or (self._as_it_came and self._model.answer.has_begun)
        if self._ended and self.failure is not None and not has_words:
            await self.finished()
            raise self.failure

    async def events(self) -> AsyncIterator[list[str] | None]:
        """Words as they come, what is there already together; None for each stretch of silence. How it ended is said
        by `failure` and `finished`. To close it is to leave.
        """
        try:
            while True:
                if self._fresh:
                    words, self._fresh = self._fresh, []
                    self._is_told = True
                    yield words
                    continue
                if self._ended:
                    break
                if not await self._has_news() and not self._is_hopping:
                    self._is_told = True
                    yield None
        except GeneratorExit:
            # Closed, or dropped by a reader who did not say that he leaves.
            self.leave()
            raise

    async def followed(self) -> AsyncIterator[str | None]:
        """All words from the first on, as they come; None for each stretch of silence. For any number who come back to
        it. To close it changes nothing.
        """
        at = 0
        while True:
            if at < len(self._parts):
                words, at = "".join(self._parts[at:]), len(self._parts)
                yield words
                continue
            if self._ended:
                break
            if not await self._has_news():
                yield None

    async def frames(self) -> AsyncIterator[bytes | None]:
        """The answer's bytes as they came, whole frames, up to its end; None for each stretch of silence. Else as
        `events`.
        """
        outlet = self._outlet
        assert outlet is not None  # it was asked for as a stream, by whoever wants its bytes
        try:
            while True:
                if not outlet.is_empty:
                    yield outlet.take()
                    continue
                if self._ended:
                    break
                if not await self._has_news() and not self._is_hopping:
                    self._is_told = True
                    yield None
        except GeneratorExit:
            self.leave()
            raise

    async def _has_news(self) -> bool:
        """Whether something came, or the answer ended, before a silence had to be broken."""
        return await self._news.rings(KEEP_ALIVE_SECONDS)

    def leave(self) -> None:
        """The reader is gone. The upstream is cut, unless what it bills is known at its end alone, or the answer is for
        others too.
        """
        if self._outlet is not None:
            self._outlet.leave()
        if not self._ended and not self._reader_left and not self._goes_on:
            self._reader_left = True
            if not self.terms.is_read_to_its_end:
                self._cut("cancelled")

    @property
    def is_over(self) -> bool:
        return self._ended

    @property
    def gave_up_reader(self) -> bool:
        """He took nothing for so long that what came meanwhile was dropped."""
        return self._outlet is not None and self._outlet.is_left

    @property
    def said(self) -> Answer:
        """What is known of the answer so far."""
        return self._model.answer

    @property
    def is_left(self) -> bool:
        return self._reader_left or self._cut_for is not None

    def leave_soon(self) -> None:
        """`leave` from any thread."""
        self._loop.call_soon_threadsafe(self.leave)

    def when_settled(self, then: Callable[[], None]) -> None:
        """Call `then` once the answer is settled and written, or left to the sweep."""
        self._task.add_done_callback(lambda _: self._settling().add_done_callback(lambda _: then()))

    def stop(self) -> None:
        """End it now, whatever it costs: the process ends, or the money is no longer held."""
        self._cut("cancelled")

    def stop_for_reader(self) -> None:
        """A person wants no more of it. What the upstream bills to its end all the same is read to its end: cut, it
        would cost all that is held for it.
        """
        if self._ended:
            return
        self._reader_left = True
        if not self.terms.is_read_to_its_end:
            self._cut("cancelled")

    async def finished(self, seconds: float | None = COMMIT_SECONDS) -> Completion:
        """The whole, with the balances of its own commit where that lands within `seconds` of the answer's end."""
        # A future of his own, for a reader who stops waiting must not take the answer or its settling along; and a
        # single one, for each time that he is woken on the way costs as much as what he waits for.
        over: asyncio.Future[None] = self._loop.create_future()
        clock: asyncio.TimerHandle | None = None

        def tell(_: object = None) -> None:
            if not over.done():
                over.set_result(None)

        def ended(task: asyncio.Task[None]) -> None:
            nonlocal clock
            if task.cancelled() or task.exception() is not None:
                tell()
                return
            if seconds is not None:
                clock = self._loop.call_later(seconds, tell)
            self._settling().add_done_callback(tell)

        self._task.add_done_callback(ended)
        try:
            await over
        finally:
            self._task.remove_done_callback(ended)
            if clock is not None:
                clock.cancel()
        self._task.result()  # raises where the process ends
        settling = self._settling()
        assert self._completion is not None
        if settling.done() and not settling.cancelled() and settling.exception() is None:
            return self.as_settled(settling.result())
        return self._completion

    def _settling(self) -> asyncio.Task[Settled]:
        """Of an answer that has ended: it has begun already, and this is its task."""
        return self.call.settle(Final(0, Outcome.NONE))

    def as_settled(self, settled: Settled) -> Completion:
        """The whole of an answer that has ended, as it was settled."""
        assert self._completion is not None
        return as_settled(self._completion, settled)

    # --- reading the model ---

    async def _run(self) -> None:
        try:
            await self._read()
            while self._may_hop and await self._hopped():
                await self._read()
            self._is_read = True
            if self._growth.held_output < self.terms.most_output:
                usage, outcome = self._ending().used()
                if outcome == Outcome.EXACT:
                    await self._growth.reach(usage)
        finally:
            self._end()

    async def _read(self) -> None:
        if self.is_left:
            return  # before a word was asked for
        try:
            await self._model.open()
            while (words := await self._model.read()) is not None:
                self._take(words)
                if (reason := await self._must_end()) is not None:
                    self._cut(reason)
                    break
                if self._outlet is not None and self._outlet.is_full:
                    await self._wait_for(self._outlet)
            if self._cut_for is None:
                self.terms.upstream.answered()
        except ModelFailed as exc:
            # Cut by ourselves, a connection can look broken.
            if self._cut_for is None:
                self.failure = exc
                self.terms.upstream.failed(exc.fault)
        except Exception:
            logger.exception("Reading a model failed on our side", extra=self.call.payer.in_logs)
            self.failure = ModelFailed(BROKEN, outcome=Outcome.ESTIMATED if self._parts else Outcome.UNKNOWN)

    # --- another model in its place ---

    @property
    def _may_hop(self) -> bool:
        """Whether nothing was billed, nothing was told, and somebody still waits for the answer."""
        if self._others is None or self._is_told or self.is_left or self._parts:
            return False
        return isinstance(self.failure, ModelFailed) and self.failure.outcome == Outcome.NONE

    async def _hopped(self) -> bool:
        """Whether another model is paid for now, in the place of the one that failed; else `failure` says why not."""
        assert self._others is not None
        self._is_hopping = True
        try:
            if await self._hop_on(self._others):
                return True
        except ApiError as exc:
            self.failure = exc
        except Exception:
            logger.exception("Asking another model failed on our side", extra=self.call.payer.in_logs)
        finally:
            self._is_hopping = False
        self._others.gave_up()
        return False

    async def _hop_on(self, others: Others[P]) -> bool:
        self._model.close()
        released = self.call.give_way(Final(0, Outcome.NONE, Usage(0, 0), self.terms.model))
        await asyncio.wait([released], timeout=GIVE_WAY_SECONDS)
        if not released.done() or not released.result().is_landed:
            return False
        bought = await others.next()
        if bought is None:
            return False
        self._take_on(bought)
        if self.is_left:
            # Who wanted it has gone meanwhile, or this process ends: no model was called for it.
            return False
        if self._outlet is not None:
            self._outlet.begin_anew()
        self.failure = None
        return True

    async def _wait_for(self, outlet: Outlet) -> None:
        """Let the model wait for its reader, too; one who takes nothing at all has left."""
        self._begun.set()  # he may take it without a word in it
        if await outlet.room():
            self._model.go_on()
        else:
            self.leave()

    def _take(self, words: str) -> None:
        if self._outlet is not None:
            if self._outlet.feed(self._model.taken(), self._model.answer):
                self._news.ring()
        elif words and not self._as_it_came:
            self._fresh.append(words)
            # Not at each hidden thought: the reader would wait on without a sign of life.
            self._news.ring()
        if words:
            self._parts.append(words)
        if not self._begun.is_set() and (words or self._model.answer.has_begun):
            self._begun.set()
            self.terms.upstream.answered()

    async def _must_end(self) -> str | None:
        """Why the model is read no further, if it is not."""
        if self._model.answer.is_over:
            return "length"
        if await self._growth.covers(self._model.answer) or self._model.answer.is_done:
            return None  # of what came whole nothing can be cut
        # Where nobody could be asked for more, the budget may have plenty, and a top-up mends nothing.
        return "budget" if self._growth.is_refused else "cancelled"

    def _lapse(self) -> None:
        logger.error(
            "The money of a call is no longer held, so it is cut: hold=%s", self.call.id, extra=self.call.payer.in_logs
        )
        self._cut("cancelled")

    def _cut(self, why: str) -> None:
        if not self._is_read and not self._ended and self._cut_for is None:
            self._cut_for = why
            self._model.cut()
            if self._outlet is not None:
                self._outlet.wake()

    # --- the end ---

    def _end(self) -> None:
        """Decide what was used and begin to settle; from here on nothing waits for the reader."""
        self._engine.remove_cut(self.stop)
        self._model.close()
        try:
            self._pass_the_rest_on()
            self._finish(self._ending())
        except Exception:
            # Whatever is wrong with our own words for it, the call is settled by what is surely known.
            logger.exception(
                "The end of a paid answer failed on our side: hold=%s", self.call.id, extra=self.call.payer.in_logs
            )
            usage = Usage(self.terms.likely, 0)
            self.failure = ModelFailed(BROKEN, outcome=Outcome.ESTIMATED)
            final = Final(cost(usage, self.terms.price), Outcome.ESTIMATED, usage, self.terms.model)
            self._completion = Completion("", "", self.terms.model, "error", usage, final.cost, final.outcome, None)
            self.call.settle(final)
        self._ended = True
        self._begun.set()
        self._news.ring()

    def _pass_the_rest_on(self) -> None:
        """What came with a failure and before it, and a last frame that lacked its end."""
        if (outlet := self._outlet) is None:
            return
        if data := self._model.taken():
            outlet.feed(data, self._model.answer)
        if self._model.is_closed:
            outlet.close(self._model.answer)

    def _passed(self) -> bytes | None:
        if self._outlet is not None:
            return self._outlet.kept
        answer = self._model.answer
        return answer.body if isinstance(answer, Whole) and self.failure is None else None

    def _ending(self) -> Ending:
        return Ending(
            self.terms,
            self._model.answer,
            self._growth.held_output,
            self.failure,
            self._cut_for,
            self._reader_left,
            self._model.was_sent,
        )

    def _finish(self, ending: Ending) -> None:
        usage, outcome = ending.used()
        final = Final(cost(usage, self.terms.price), outcome, usage, self.terms.model).within(self.call.held)
        if outcome == Outcome.NONE:
            final = Final(0, Outcome.NONE, Usage(0, 0), self.terms.model)
        if self._as_it_came and self.failure is None and self._cut_for == "cancelled":
            # No word of the protocol says that it was stopped: without an error it would look like the whole.
            self.failure = ModelStopped()
        if isinstance(self.failure, ModelFailed):
            self.failure.charged_as(final.outcome, usage)
        if not self._is_echo:
            sample = ending.sample(usage, outcome, is_believed=final.outcome != Outcome.OVERRUN)
            if sample is not None:
                self._engine.habits.learn(self.terms.model, self.terms.app, sample)
        answer = self._model.answer
        text = "".join(self._parts)
        self._completion = Completion(
            text=text,
            shown=text if text.strip() or self.failure is not None else answer.stand_in(),
            model=self.terms.model,
            finish_reason=ending.finish_reason(is_fitted=self.call.is_fitted),
            usage=usage,
            cost=final.cost,
            outcome=final.outcome,
            budget=None,
            passed=self._passed(),
        )
        if not self._as_it_came and not text.strip() and self._completion.shown:
            self._fresh.append(self._completion.shown)
        # A question that was stopped before its model heard it is not lost for that.
        is_kept = outcome != Outcome.NONE or ending.was_never_asked
        keep = self._keep(self._completion) if self._keep is not None and is_kept else None
        settling = self.call.settle(final, keep=keep)
        # Nothing is kept of an answer that never was.
        if self._after is not None and outcome != Outcome.NONE:
            self._engine.spawn(self._tell(self._after, self._completion, settling))

    async def _tell(
        self, after: Callable[[Completion], Awaitable[None]], completion: Completion, settling: asyncio.Task[Settled]
    ) -> None:
        settled = await asyncio.shield(settling)
        try:
            await after(as_settled(completion, settled))
        except Exception:  # the builder's own; money and last event are done with already
            logger.exception(
                "What was to be kept of a paid answer could not be: hold=%s",
                self.call.id,
                extra=self.call.payer.in_logs,
            )
