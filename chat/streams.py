"""One answer under way: the model's words on their way to a reader, under a call that pays for them.

Owns `Answering`. It belongs to the engine and not to a request: a reader who leaves stops the upstream, never the
settling. Must not know HTTP, nor who asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar
from uuid import UUID

from billing.engine.engine import Engine
from billing.engine.rules import Habit, Sample, is_full, next_output, percent_of, wants_more
from billing.engine.settling import Final, Keep, Settled
from billing.outcomes import Outcome
from billing.prices import Price, Usage, cost, estimate
from chat.answer import Answer, used
from chat.bell import Bell
from chat.breaker import Upstream
from chat.dialect import Dialect, Sent
from chat.errors import ModelFailed, ModelStopped
from chat.llm import BROKEN, ModelStream
from chat.outlet import Outlet
from chat.whole import Whole
from tenants.http import ApiError

logger = logging.getLogger(__name__)

# A reader, or a proxy between, gives up on a silent line; and only by writing is a reader who left noticed.
KEEP_ALIVE_SECONDS = 10.0
# The last event waits this long for the commit, and then goes without the balances.
COMMIT_SECONDS = 1.0
GROW_AGAIN_SECONDS = 0.2
# What a member of a group held is given back within this, or the next one is not asked.
GIVE_WAY_SECONDS = 5.0


@dataclass(slots=True)
class Terms:
    """What is bought: the model at its price, at most so many tokens, and what its input is and can be.

    `bound` is never less than the input's tokens and is what is held; `likely` is what is charged when nobody reports;
    `size` is the input in bytes, as the habit's ratio counts them.
    """

    model: str
    # What its habit is learned under.
    app: str
    price: Price
    dialect: Dialect
    habit: Habit
    upstream: Upstream
    max_tokens: int
    bound: int
    likely: int
    size: int
    # How many answers are asked for, each of at most `max_tokens`.
    n: int = 1

    @property
    def most_output(self) -> int:
        """Tokens of all answers together."""
        return self.max_tokens * self.n

    def amount(self, output: int) -> int:
        return estimate(tokens_input=self.bound, max_tokens=output, price=self.price)

    def meter(self) -> dict[str, int]:
        """What a reader reckons by what was used so far: microcents of the input, and of 1,000 bytes of words."""
        per_kilobyte = round(1_000 * self.habit.output_ratio)
        return {
            "input": estimate(tokens_input=self.likely, max_tokens=0, price=self.price),
            "per_kilobyte": estimate(tokens_input=0, max_tokens=per_kilobyte, price=self.price),
        }

    def likely_cost(self) -> int:
        """Of the longest answer that these terms allow, by what its input probably is."""
        return estimate(tokens_input=self.likely, max_tokens=self.most_output, price=self.price)


@dataclass(frozen=True, slots=True)
class Completion:
    """A bought answer. `text` are the model's words; `shown` says why where there are none."""

    text: str
    shown: str
    model: str
    finish_reason: str
    usage: Usage
    cost: int
    outcome: Outcome
    budget: dict[str, Any] | None
    # As they were passed on: the bytes of an answer in one piece, or of a stream where they are kept.
    passed: bytes | None = field(default=None, repr=False)


KeepFor = Callable[[Completion], Keep | None]


class Paying(Protocol):
    """What pays for an answer: a call of the engine, or a part of a hold that pays for more."""

    on_lapse: Callable[[], None] | None

    @property
    def id(self) -> UUID: ...
    @property
    def pays(self) -> bool: ...
    @property
    def held(self) -> int: ...
    @property
    def is_fitted(self) -> bool: ...
    def note(self, used: int, *, tokens_input: int | None, tokens_output: int | None) -> None: ...
    async def grow(self, amount: int) -> bool: ...
    def settle(self, final: Final, *, keep: Keep | None = None) -> asyncio.Task[Settled]: ...
    def give_way(self, final: Final) -> asyncio.Task[Settled]: ...


P = TypeVar("P", bound=Paying)


@dataclass(slots=True)
class Bought(Generic[P]):
    """An answer that is paid for and can be asked for now. `held_output`: the tokens of it that are held."""

    call: P
    sent: Sent
    terms: Terms
    held_output: int
    keep: KeepFor | None = None


class Others(Protocol[P]):
    """Models that may answer in the place of one that failed and billed nothing."""

    async def next(self) -> Bought[P] | None:
        """The next one, paid for; None where none is left. Raises what refuses it."""

    def gave_up(self) -> None:
        """None of them is asked."""


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
        self._outlet = Outlet(keeps=keeps_bytes) if as_it_came and not bought.sent.in_one_piece else None
        self._news = Bell()
        self._begun = asyncio.Event()
        self._ended = False
        self._cut_for: str | None = None
        self._reader_left = False
        self._growing: asyncio.Task[bool] | None = None
        self._ask_again_at = 0.0
        self._completion: Completion | None = None
        engine.add_cut(self.stop)
        self._task = engine.spawn(self._run())

    def _take_on(self, bought: Bought[P]) -> None:
        self.call, self.terms = bought.call, bought.terms
        self._keep, self._held_output = bought.keep, bought.held_output
        # Its answer repeats the prompt, which nobody bills as output: its bytes say nothing of what a token is.
        self._is_echo = (bought.sent.most or 0) > bought.terms.most_output
        self._model = ModelStream(
            bought.sent, model=bought.terms.model, dialect=bought.terms.dialect, paid_by=bought.call
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
        """The reader is gone. The upstream is cut, unless it bills the rest all the same and may still report, or the
        answer is for others too.
        """
        if self._outlet is not None:
            self._outlet.leave()
        if not self._ended and not self._reader_left and not self._goes_on:
            self._reader_left = True
            if not self.terms.dialect.bills_after_cut:
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
        if not self.terms.dialect.bills_after_cut:
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
        finally:
            self._end()

    async def _read(self) -> None:
        if self.is_left:
            return  # before a word was asked for
        try:
            await self._model.open()
            while (words := await self._model.read()) is not None:
                self._take(words)
                if not await self._stays_within():
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
            logger.exception("Reading a model failed on our side")
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
            logger.exception("Asking another model failed on our side")
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

    async def _stays_within(self) -> bool:
        """Whether the answer may go on: what it used is below what is held, and more is asked for in time."""
        if self._model.answer.is_over:
            self._cut("length")
            return False
        most = self.terms.most_output
        while self._held_output < most:
            counted = self._model.answer.counted()
            self._harvest()
            full = is_full(counted, self._held_output, most)
            if full or (wants_more(counted, self._held_output, most) and self._loop.time() >= self._ask_again_at):
                self._ask_for_more()
            if not full:
                break
            # One read may bring a whole answer, so there may be several to wait for; but only for their answers. The
            # upstream works on meanwhile, and bills: waiting here for others' money cost more than it held.
            assert self._growing is not None
            await asyncio.wait([self._growing])
            if not self._harvest():
                self._cut("budget")
                return False
        return True

    def _ask_for_more(self) -> None:
        """Ask for the next slice, unless one is asked for already."""
        if self._growing is not None:
            return
        terms = self.terms
        more = next_output(self._held_output, terms.most_output)
        # By the learned ratio, as an answer is charged that nobody reports: what is held goes by the safer count.
        now = Usage(terms.likely, self._model.answer.counted(terms.habit.output_ratio))
        self.call.note(cost(now, terms.price), tokens_input=now.tokens_input, tokens_output=now.tokens_output)
        self._growing = self._engine.spawn(
            self.call.grow(terms.amount(self._held_output + more) - terms.amount(self._held_output))
        )

    def _harvest(self) -> bool:
        """Whether a slice that was asked for is there."""
        growing = self._growing
        if growing is None or not growing.done():
            return False
        granted = not growing.cancelled() and growing.exception() is None and growing.result()
        self._growing = None
        if granted:
            self._held_output += next_output(self._held_output, self.terms.most_output)
        else:
            self._ask_again_at = self._loop.time() + GROW_AGAIN_SECONDS
        return granted

    def _lapse(self) -> None:
        logger.error("The money of a call is no longer held, so it is cut: hold=%s", self.call.id)
        self._cut("cancelled")

    def _cut(self, why: str) -> None:
        if not self._ended and self._cut_for is None:
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
            self._finish(*self._used())
        except Exception:
            # Whatever is wrong with our own words for it, the call is settled by what is surely known.
            logger.exception("The end of a paid answer failed on our side: hold=%s", self.call.id)
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

    def _finish(self, usage: Usage, outcome: Outcome) -> None:
        was_never_asked = self._was_never_asked
        final = Final(cost(usage, self.terms.price), outcome, usage, self.terms.model).within(self.call.held)
        if outcome == Outcome.NONE:
            final = Final(0, Outcome.NONE, Usage(0, 0), self.terms.model)
        if self._as_it_came and self.failure is None and self._cut_for == "cancelled":
            # No word of the protocol says that it was stopped: without an error it would look like the whole.
            self.failure = ModelStopped()
        if isinstance(self.failure, ModelFailed):
            self.failure.charged_as(final.outcome, usage)
        self._learn(usage, outcome, is_believed=final.outcome != Outcome.OVERRUN)
        answer = self._model.answer
        text = "".join(self._parts)
        self._completion = Completion(
            text=text,
            shown=text if text.strip() or self.failure is not None else answer.stand_in(),
            model=self.terms.model,
            finish_reason=self._finish_reason(),
            usage=usage,
            cost=final.cost,
            outcome=final.outcome,
            budget=None,
            passed=self._passed(),
        )
        if not self._as_it_came and not text.strip() and self._completion.shown:
            self._fresh.append(self._completion.shown)
        # A question that was stopped before its model heard it is not lost for that.
        is_kept = outcome != Outcome.NONE or was_never_asked
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
            logger.exception("What was to be kept of a paid answer could not be: hold=%s", self.call.id)

    def _used(self) -> tuple[Usage, Outcome]:
        terms, answer = self.terms, self._model.answer
        if self.failure is not None and not self._failed_at_a_cost:
            return Usage(0, 0), Outcome.NONE
        if self._was_never_asked:
            return Usage(0, 0), Outcome.NONE
        usage, outcome = used(
            answer,
            tokens_input=terms.likely,
            max_output=min(terms.most_output, self._held_output),
            tokens_per_byte=terms.habit.output_ratio,
            cut=self._cut_for is not None,
        )
        was_left = self._cut_for is not None or self._reader_left
        if was_left and terms.dialect.bills_after_cut and outcome != Outcome.EXACT:
            # It goes on writing, and billing, up to the most that it was asked for.
            return replace(usage, tokens_output=min(terms.most_output, self._held_output)), Outcome.ESTIMATED
        if isinstance(self.failure, ModelFailed) and outcome != Outcome.EXACT:
            return usage, self.failure.outcome
        return usage, outcome

    @property
    def _was_never_asked(self) -> bool:
        """Whoever wanted it left, or it was stopped, before the request was on its way to the model."""
        return self.failure is None and self.is_left and not self._model.was_sent

    @property
    def _failed_at_a_cost(self) -> bool:
        return isinstance(self.failure, ModelFailed) and self.failure.reached

    def _learn(self, usage: Usage, outcome: Outcome, *, is_believed: bool) -> None:
        answer, terms = self._model.answer, self.terms
        if (
            self._is_echo
            or outcome != Outcome.EXACT
            or not usage.tokens_input
            or not (answer.has_begun or terms.max_tokens == 0)
        ):
            return
        percent = percent_of(usage.tokens_output, answer.counted())
        if not is_believed:
            # It says that the model is not to be trusted, and nothing of what a call needs: one report of a million
            # made the next reader, who left after a word, pay the whole hold.
            usage = Usage(terms.likely, answer.counted(terms.habit.output_ratio))
        sample = Sample(usage.tokens_input, terms.size, usage.tokens_output, answer.billed_bytes, percent)
        self._engine.habits.learn(terms.model, terms.app, sample)

    def _finish_reason(self) -> str:
        if self._cut_for is not None or self.failure is not None:
            return self._cut_for or "error"
        reason = (self._model.answer.finish_reason or "stop")[:40]
        if reason in ("budget", "cancelled"):
            reason = "stop"  # ours to say: no model knows of the money
        # What ended it was the money that its last tokens were fitted to.
        return "budget" if reason == "length" and self.call.is_fitted else reason


def as_settled(completion: Completion, settled: Settled) -> Completion:
    """The completion with what stands at the authority."""
    final = settled.final
    return replace(
        completion,
        usage=final.usage or completion.usage,
        cost=final.cost,
        outcome=final.outcome,
        budget=settled.budget,
    )
