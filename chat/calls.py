"""Buying answers: any message list, in any app, paid before it is made and settled once after.

    completion = complete(messages, app="haiku")            # plain functions: views, commands, tests
    completion = await acomplete(messages, app="haiku")     # async views of the plane
    for words in stream(messages, app="haiku", keep=save): …
    answering = await astream(messages, app="haiku")

Owns who pays: the tenant that is bound, or inside `guarded` the outer hold, the house's too; chat.buying owns how much
is held. Must not know conversations. Raises ModelNotPriced, a BudgetError, or ModelFailed; before the model is called
nothing is spent.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from decimal import Decimal
from typing import Any
from uuid import UUID

from django.db import connection

from billing.engine.authority import Payer
from billing.engine.call import Call
from billing.engine.engine import Engine
from billing.engine.loop import has_engine, here, on_engine, refuse_in_transaction, refuse_on_loop, run
from billing.engine.payers import payer_and_key
from billing.engine.repeats import Claim
from billing.engine.settling import Final, Keep, Settled
from billing.errors import NoTenantBound
from billing.guard import NotDispatched, Reservation, current_reservation
from billing.outcomes import Outcome
from billing.prices import Usage, affordable_tokens
from chat.buying import Wanted, at_least_one, begin, members_for, sent_for, terms_for
from chat.history import Message, as_taken
from chat.hops import Hops
from chat.streams import Answering
from chat.terms import Bought, Completion, Terms
from tenants.context import current_tenant, public_scope, tenant_scope
from tenants.http import Forbidden

logger = logging.getLogger(__name__)

KeepCallback = Callable[[Completion], Any]

_FOR_BUILDERS = "model, max_tokens, temperature, app, user_id, key_id, workflow, dimensions, claim, keep"
_OPTIONS = frozenset(field.name for field in fields(Wanted))


# --- for builders ---------------------------------------------------------------------------------------------------


def complete(messages: Sequence[Message], **options: Any) -> Completion:
    """Buy a whole answer. Options: model, max_tokens, app, user_id, key_id, workflow, keep; see `Wanted`. When this
    returns, what `keep` writes may not be there yet.

    Inside a `guarded` function its hold pays, and what this answer used is added to what it has recorded.
    """
    _be_ready()
    return run(_complete(_starter(messages, options)))


def stream(messages: Sequence[Message], **options: Any) -> Iterator[str]:
    """Buy an answer and give its words as they come. Close the iterator to leave; it is then paid up to there.

    Back with the first word, so that a model that fails before it is an error and no broken page. Call it in the view:
    in a generator it would run when the request's tenant is left.
    """
    _be_ready()
    return SyncWords(run(_begun(_starter(messages, options))))


async def acomplete(messages: Sequence[Message], **options: Any) -> Completion:
    """`complete` for async views of the plane, and any other event loop."""
    return await on_engine(_complete(_starter(messages, options)))


async def astream(messages: Sequence[Message], **options: Any) -> Answering[Any]:
    """`stream` for async views of the plane: iterate `events()`, call `leave()` when the reader goes, then look at
    `failure`: what breaks after the first word is not raised.
    """
    if not has_engine():
        raise RuntimeError("astream is for async views of the plane. Here, take acomplete, or stream on a thread.")
    return await _begun(_starter(messages, options))


def _be_ready() -> None:
    refuse_on_loop()
    refuse_in_transaction()
    # Held through a model's answer, a pool's connections run out. Without a pool a thread's connection is its own.
    if connection.settings_dict["OPTIONS"].get("pool"):
        connection.close()


class SyncWords(Iterator[str]):
    """The words of an answer for a plain function. Dropped or closed early, the upstream is cut."""

    def __init__(self, answering: Answering[Any]) -> None:
        self.answering = answering
        self._events = answering.events()

    def __next__(self) -> str:
        words = run(self._next())
        if words is None:
            raise StopIteration
        return words

    async def _next(self) -> str | None:
        async for words in self._events:
            if words:
                return "".join(words)
        if self.answering.failure is not None:
            raise self.answering.failure
        return None

    def close(self) -> None:
        run(self._leave())

    async def _leave(self) -> None:
        self.answering.leave()

    def __del__(self) -> None:
        if not self.answering.is_over:
            self.answering.leave_soon()


def _wanted(messages: Sequence[Message], *, keep: KeepCallback | None = None, **options: Any) -> Wanted:
    if unknown := sorted(options.keys() - _OPTIONS):
        raise TypeError(
            f"{', '.join(unknown)}: chat.calls buys texts for texts, and takes {_FOR_BUILDERS}. For tools and whatever "
            "else a model takes, let an OpenAI client ask /v1."
        )
    wanted = Wanted(_checked(messages), **options)
    most = wanted.max_tokens
    if most is not None and (type(most) is not int or most < 1):
        raise ValueError(f"max_tokens {most!r}: write a whole number of at least 1, or None.")
    if not isinstance(wanted.model, str | None):
        raise TypeError(f"model {wanted.model!r}: write a name of LLM_MODEL, LLM_PRICES or MODELS, or leave it out.")
    if not isinstance(wanted.claim, Claim | None):
        raise TypeError(f"claim {wanted.claim!r}: write a claim that billing.repeats.once has given.")
    warmth = wanted.temperature
    if warmth is not None and not (isinstance(warmth, int | float | Decimal) and math.isfinite(warmth) and warmth >= 0):
        raise ValueError(f"temperature {warmth!r}: write a number, 0 or more, or leave it out.")
    if keep is not None:
        if not callable(keep) or inspect.iscoroutinefunction(keep):
            raise TypeError(f"keep {keep!r}: write a plain function of the Completion; it is called on a thread.")
        wanted.after = _inside(keep)
    return wanted


def _checked(messages: Any) -> list[Message]:
    checked = list(messages) if isinstance(messages, Iterable) and not isinstance(messages, str) else [messages]
    for message in checked:
        if not isinstance(message, dict) or not all(isinstance(message.get(part), str) for part in ("role", "content")):
            raise TypeError('messages: write a list of {"role": "user", "content": "a text"}.')
    return checked


def _inside(keep: KeepCallback) -> Callable[[Completion], Awaitable[None]]:
    """The builder's `keep`, called inside its tenant on a thread of its own: it may use the ORM. Where the house pays
    outside any tenant, it is outside of them, too.
    """
    tenant, outer = current_tenant(), current_reservation()
    if tenant is None and (outer is None or outer.tenant is not None):
        raise NoTenantBound

    def inside(completion: Completion) -> None:
        try:
            with public_scope() if tenant is None else tenant_scope(tenant):
                keep(completion)
        finally:
            connection.close()

    async def after(completion: Completion) -> None:
        async with here().keepers:
            await _on_a_thread(functools.partial(inside, completion))

    return after


async def _on_a_thread(work: Callable[[], None]) -> None:
    """Not the loop's own threads: they look up the models' names, and take no more work once the process ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def told(failure: Exception | None) -> None:
        if done.done():
            return
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)

    def there() -> None:
        failure = None
        try:
            work()
        except Exception as exc:  # raised where it is waited for
            failure = exc
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(told, failure)

    threading.Thread(target=there, name="keep", daemon=True).start()
    await done


# --- how it is bought -----------------------------------------------------------------------------------------------


Starter = Callable[[], Coroutine[Any, Any, Answering[Any]]]


def _starter(messages: Sequence[Message], options: dict[str, Any]) -> Starter:
    """What begins the answer, with the payer taken from the caller's context and not from the engine's thread."""
    outer, tenant = current_reservation(), current_tenant()
    try:
        wanted = _wanted(messages, **options)
        if outer is not None and wanted.claim is not None:
            # The outer hold pays: a claim forgotten here would let each repeat make a call of its own.
            raise ValueError("claim: give it to guarded, whose hold pays for this answer.")
    except Exception:
        if outer is not None:
            outer.add(cost=0, outcome=Outcome.NONE, usage=Usage(0, 0))
        raise
    if outer is not None:
        # The house's hold has no tenant, and pays in any.
        if tenant is not None and outer.tenant is not None and tenant.pk != outer.tenant.pk:
            raise NotDispatched(f"The hold is {outer.tenant.slug}'s, the call {tenant.slug}'s: buy it outside guarded.")
        return functools.partial(_begin_within, outer, wanted)
    if tenant is None:
        raise NoTenantBound

    async def start() -> Answering[Call]:
        engine = here()
        payer, wanted.key = await payer_and_key(
            engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, key_id=wanted.key_id
        )
        return await begin(engine, payer, wanted)

    return start


async def _begun(start: Starter) -> Answering[Any]:
    answering = await start()
    try:
        await answering.begun()
    except asyncio.CancelledError:
        answering.leave()
        raise
    return answering


async def _complete(start: Starter) -> Completion:
    answering = await start()
    try:
        completion = await answering.finished()
    except asyncio.CancelledError:
        answering.leave()
        raise
    if answering.failure is not None:
        raise answering.failure
    return completion


async def _begin_within(outer: Reservation, wanted: Wanted) -> Answering[Within]:
    if not outer.pays:
        # Said to the code that is wrong: raised inside the answer, it would read as the model's failure.
        raise NotDispatched("A model is called only under a hold that is written, and not settled yet.")
    engine = here()
    wanted.key = outer.key
    parts: list[Within] = []

    async def buy(model: str) -> Bought[Within]:
        return _bought_within(engine, outer, wanted, model, parts)

    try:
        hops = Hops(members_for(wanted), buy)
        bought = await hops.first()
        answering = Answering(engine, bought, after=wanted.after, others=hops if hops.has_more else None)
    except Exception:
        # Refused before the model was called: without a word of that, the outer hold is charged in full.
        outer.add(cost=0, outcome=Outcome.NONE, usage=Usage(0, 0), part=parts[-1] if parts else None)
        raise
    bought.call.answering = answering
    return answering


def _bought_within(
    engine: Engine, outer: Reservation, wanted: Wanted, model: str, parts: list[Within]
) -> Bought[Within]:
    if not outer.pays:
        raise NotDispatched("The hold under a model's answer is settled, so that no other model is asked.")
    terms = terms_for(engine, outer.payer, wanted, model)
    terms.upstream.refuse_if_down()
    most = at_least_one(outer.cap(terms.max_tokens))
    terms.max_tokens = min(most, _affordable_within(outer, terms))
    within = Within(outer, terms.likely_cost())
    within.answering = parts[0].answering if parts else None
    parts.append(within)
    return Bought(within, sent_for(terms, as_taken(wanted.messages)), terms, terms.max_tokens)


def _affordable_within(outer: Reservation, terms: Terms) -> int:
    affordable = affordable_tokens(outer.left(), terms.likely, terms.price)
    if affordable < 1:
        refused = Forbidden("What is held for this request leaves no room for an answer. No model was called for it.")
        refused.add_note("The guarded function's estimate is too small for all the answers that it buys.")
        raise refused
    return affordable


class Within:
    """One answer under a hold that pays for more: what it used is added to it, and the hold's owner settles."""

    is_fitted = False

    def __init__(self, outer: Reservation, share: int) -> None:
        self.on_lapse: Callable[[], None] | None = None
        self.answering: Answering[Within] | None = None
        self._outer = outer
        self._share = share
        self._settling: asyncio.Task[Settled] | None = None
        self._is_added = asyncio.Event()
        outer.begin(self, share)

    @property
    def id(self) -> UUID:
        return self._outer.id

    @property
    def payer(self) -> Payer:
        return self._outer.payer

    @property
    def pays(self) -> bool:
        return self._outer.pays

    @property
    def held(self) -> int:
        return self._outer.left() + (0 if self._is_added.is_set() else self._share)

    def note(self, used: int, *, tokens_input: int | None, tokens_output: int | None) -> None:
        """Nothing: its hold is whole from the start."""

    async def grow(self, amount: int) -> bool:
        return False

    def give_way(self, final: Final) -> asyncio.Task[Settled]:
        return self.settle(final)

    def settle(self, final: Final, *, keep: Keep | None = None) -> asyncio.Task[Settled]:
        if self._settling is None:
            self._settling = here().spawn(self._add(final))
        return self._settling

    async def _add(self, final: Final) -> Settled:
        usage = final.usage or Usage(0, 0)
        paid = final.cost + final.overrun
        self._outer.add(cost=paid, outcome=final.outcome, usage=usage, model=final.model, part=self)
        self._is_added.set()
        return Settled(final, is_landed=True)

    # --- for the hold's owner ---

    def lapse(self) -> None:
        if self.on_lapse is not None:
            self.on_lapse()

    def stop(self) -> bool:
        if self.answering is None:
            return False
        is_read = not (self.answering.is_over or self.answering.is_left)
        self.answering.stop()
        return is_read

    async def added(self) -> None:
        await self._is_added.wait()
