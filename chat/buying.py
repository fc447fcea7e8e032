"""How an answer is bought: what is held for it at first, what it may become, and the call that pays.

Owns `Wanted`, `begin`, and that only what may be called is bought. Must not know who asked, nor conversations.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from django.conf import settings

from billing.engine.authority import Payer
from billing.engine.call import Busy, Call
from billing.engine.engine import Engine
from billing.engine.opening import open_call
from billing.engine.order import Order
from billing.engine.payers import paid_subject
from billing.engine.repeats import Claim
from billing.engine.rules import Habit, first_output, likely_tokens, overhead
from billing.engine.settling import Final, Keep
from billing.outcomes import Outcome
from billing.plans import plan_of
from billing.prices import Usage, affordable_tokens, cost
from billing.rates import Rates, rates_of
from billing.subjects import Key
from chat.allowed import allowed_of, is_allowed, not_allowed
from chat.breaker import Upstream
from chat.dialect import Sent, asked, dialect_for, passed_on
from chat.errors import ConversationBusy, ModelOfAnotherKind
from chat.history import (
    PART_OVERHEAD,
    Message,
    as_taken,
    images_of,
    overhead_bound,
    overhead_of,
    prompt_bytes,
    text_bound,
)
from chat.hops import Hops
from chat.image_models import images_not_taken, tokens_of_image
from chat.llm import COUNT_FAILURES, count_tokens
from chat.passed import Kind, Passed
from chat.pricing import kinds_for, members_of, price_for, priced_models
from chat.standing import Standing
from chat.streams import Answering
from chat.terms import Bought, Completion, Terms
from chat.trimming import DEFAULT_MAX_TOKENS as DEFAULT_MAX_TOKENS
from tenants.http import Forbidden, Invalid

# Letters of a message that are not all ASCII, from which on they are counted on a thread: 2 MB of marks take 120 ms.
COUNTED_BESIDE = 32 * 1024

# What OpenAI calls the limit of models that may think, for it bounds their thoughts, too.
THOUGHTS_COUNT = "max_completion_tokens"

ACTION = "llm.completion"
EMBEDDING = "llm.embedding"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a prompt's beginning: the tokens that its last report counted, and the bytes they stand for."""

    tokens: int
    bytes: int


@dataclass(slots=True)
class Wanted:
    """One answer that is to be bought."""

    messages: Sequence[Message] = ()
    model: str = ""
    temperature: Decimal | None = None
    max_tokens: int | None = None
    app: str = field(default_factory=lambda: settings.DEFAULT_APP)
    user_id: int | None = None
    key_id: int | None = None
    # The same key as its row has it, for whoever has read that: `key_id` is then not looked at.
    key: Key | None = None
    workflow: str | None = None
    dimensions: dict[str, str] | None = None
    action_name: str = ""
    busy_key: str | None = None
    numbered_by: str = ""
    numbers: str = ""
    known: Known | None = None
    # The messages beside an answer of so many tokens, where a shorter one leaves room for more of them; else these.
    messages_for: Callable[[int], Sequence[Message]] | None = None
    keep_rows: Callable[[Call, Completion], Keep | None] | None = None
    after: Callable[[Completion], Awaitable[None]] | None = None
    tags: list[str] | None = None
    claim: Claim | None = None
    # Whether the answer goes on when its reader leaves.
    goes_on: bool = False
    # Whether a call was made for it already: another one in its place is no request more of its key.
    is_let_in: bool = False
    # Tokens that its words can be at most, where that was counted beforehand (`count_words`).
    bound: int | None = None
    # Whether it is a request of its key, as the key's rates count them.
    is_rated: bool = True
    # A client's own request, which is passed on as it came; then there are no `messages`.
    passed: Passed | None = None
    # Who asked for it, to be looked at again where that was a while ago.
    standing: Standing | None = None


async def begin(engine: Engine, payer: Payer, wanted: Wanted) -> Answering[Call]:
    """Hold the money, write the hold, and start the answer. The caller reads it, or leaves it."""
    members = members_for(wanted)
    await count_words(wanted)
    hops = Hops(members, functools.partial(_buy, engine, payer, wanted), claim=wanted.claim)
    bought = await hops.first()
    passed = wanted.passed
    try:
        return Answering(
            engine,
            bought,
            after=wanted.after,
            # Whoever repeats the request gets the whole answer: it is not cut because its first reader left. Nor is
            # one in one piece: nobody could say what of it was written, and is billed.
            goes_on=wanted.goes_on or wanted.claim is not None or _is_in_one_piece(wanted),
            as_it_came=passed is not None,
            keeps_bytes=wanted.claim is not None,
            for_stock_client=passed is not None and passed.for_stock_client,
            others=hops if hops.has_more else None,
        )
    except BaseException:
        bought.call.settle(Final(0, Outcome.NONE))
        raise


async def _buy(engine: Engine, payer: Payer, wanted: Wanted, model: str) -> Bought[Call]:
    """The answer of this model, held and written down. Raises ModelBusy, before any money is held, where it is down."""
    terms = terms_for(engine, payer, wanted, model)
    terms.upstream.refuse_if_down()
    if not _writes_nothing(wanted):
        at_least_one(terms.max_tokens)
    messages = as_taken(wanted.messages)
    # What is written in one piece, or out of sight, cannot be cut in time, so that all of it is held at once.
    is_held_whole = _is_in_one_piece(wanted) or terms.is_read_to_its_end or _may_think(terms)
    output = first_output(terms.habit, terms.most_output, whole=is_held_whole)
    with engine.place_for(payer.subject_tenant):
        call = await open_call(engine, _order(payer, wanted, messages, terms, output))
    try:
        held_output = _within_what_is_held(call, terms, output)
        call.order.tokens = terms.likely + held_output
        await _refuse_who_may_no_more(wanted, call)
        await call.dispatch()
        wanted.is_let_in = True
        return Bought(
            call,
            sent_for(terms, messages, wanted.passed, wanted.temperature),
            terms,
            held_output,
            functools.partial(wanted.keep_rows, call) if wanted.keep_rows else None,
        )
    except Busy:
        raise ConversationBusy from None
    except BaseException:
        call.settle(Final(0, Outcome.NONE))
        raise


async def _refuse_who_may_no_more(wanted: Wanted, call: Call) -> None:
    """The last look before the model: a key that was revoked while its request waited called one half a minute later.

    Raises what refuses whoever asked, or Forbidden for a model that may be called no longer.
    """
    if wanted.standing is None or wanted.standing.holds:
        return
    payer, wanted.key = await wanted.standing.found_again()
    refuse_unless_allowed(payer, wanted.key, wanted.model)
    call.order.rates = _rates_of(wanted)


async def count_words(wanted: Wanted) -> None:
    """Count long words beside the loop, and once for all members: every stream of the process would wait for it."""
    if wanted.bound is None and any(map(_is_long, wanted.messages)):
        wanted.bound = await asyncio.to_thread(text_bound, as_taken(wanted.messages))


def _is_long(message: Message) -> bool:
    content = message["content"]
    return len(content) > COUNTED_BESIDE and not content.isascii()


def _is_in_one_piece(wanted: Wanted) -> bool:
    return wanted.passed is not None and not wanted.passed.is_stream


def _hides(wanted: Wanted) -> bool:
    return wanted.passed is not None and wanted.passed.hides


def _may_think(terms: Terms) -> bool:
    """Whether its limit counts thoughts that no chunk shows. Some models think about hard questions alone: twenty easy
    ones made slices look safe, and thirty hard ones at once were then each billed many times what was held.
    """
    return terms.dialect.max_tokens_name == THOUGHTS_COUNT


def _within_what_is_held(call: Call, terms: Terms, output: int) -> int:
    """Lower the terms to the caps and to the amount granted. Tokens of output that are held."""
    if terms.max_tokens == 0:
        return 0  # it writes nothing, so that no cap of output is its own
    terms.max_tokens = at_least_one(min(terms.max_tokens, call.max_tokens))
    if call.is_fitted:
        output = affordable_tokens(call.held, terms.bound, terms.price)
        terms.max_tokens = at_least_one(min(terms.max_tokens, output // terms.n))
    return min(output, terms.most_output)


def sent_for(
    terms: Terms, messages: Sequence[Message], passed: Passed | None = None, temperature: Decimal | None = None
) -> Sent:
    """The request to the model, under these terms."""
    if passed is None:
        return asked(
            messages,
            model=terms.model,
            max_tokens=terms.max_tokens,
            dialect=terms.dialect,
            temperature=temperature,
        )
    return passed_on(passed, model=terms.model, max_tokens=terms.max_tokens, dialect=terms.dialect)


def at_least_one(max_tokens: int) -> int:
    """A cap of 0 is a cap: it allows no answer, and some models read a 0 as "without limit"."""
    if max_tokens < 1:
        raise Forbidden("This workspace's limits allow no answer just now.")
    return max_tokens


def members_for(wanted: Wanted) -> list[str]:
    """The models to ask for it, in their order: of a group those that can be asked for what it is."""
    asked = wanted.model or settings.LLM_MODEL
    members = members_of(asked)
    if len(members) == 1:
        return members
    return [model for model in members if _kind_of(wanted) in kinds_for(model)] or members[:1]


def _kind_of(wanted: Wanted) -> Kind:
    return Kind.CHAT if wanted.passed is None else wanted.passed.kind


def refuse_unless_allowed(payer: Payer, key: Key | None, model: str | None) -> None:
    """Raises Forbidden where the workspace or the key may not call it, by the name that was asked for."""
    model = model or settings.LLM_MODEL
    allowed = payer.models, None if key is None else key.models
    if not is_allowed(model, *allowed):
        raise not_allowed(model, allowed_of(priced_models(), *allowed))


def terms_for(engine: Engine, payer: Payer, wanted: Wanted, model: str) -> Terms:
    """What the call is bought at, of one of `members_for`. Everything that buys comes by here.

    Raises Forbidden for a model that may not be called, ModelNotPriced, or Invalid for what no model takes.
    """
    refuse_unless_allowed(payer, wanted.key, wanted.model)
    price = price_for(model)
    if (kind := _kind_of(wanted)) not in kinds_for(model):
        raise ModelOfAnotherKind(wanted.model or model, kind)
    dialect = dialect_for(model)
    route = _route_of(wanted)
    habit, plan = engine.habits.of(model, route), plan_of(payer.plan)
    if (passed := wanted.passed) is not None:
        # What is billed beside the words, such as an image, would spoil the ratio that is learned of them.
        size = 0 if passed.fixed else passed.size
        bound = passed.bound + overhead(habit, passed.messages, overhead_of(passed.messages))
        likely = likely_tokens(passed.size, habit.input_ratio) + passed.fixed
    else:
        messages = as_taken(wanted.messages)
        if not messages:
            raise Invalid({"messages": ["Send at least one message that is not blank."]})
        size = prompt_bytes(messages)
        bound = _bound_of(messages, habit, wanted.bound)
        likely = likely_tokens(size, habit.input_ratio)
        if fixed := _tokens_of_images(payer, wanted, messages):
            size, bound, likely = 0, bound + fixed, likely + fixed
    if (known := wanted.known) is not None and size and size >= known.bytes:
        likely = known.tokens + likely_tokens(size - known.bytes, habit.input_ratio)
    return Terms(
        model=model,
        app=route,
        price=price,
        dialect=dialect,
        habit=habit,
        upstream=Upstream(dialect.base_url, dialect.model or model, payer.subject_tenant),
        max_tokens=0 if _writes_nothing(wanted) else min(wanted.max_tokens or DEFAULT_MAX_TOKENS, plan.max_tokens),
        bound=bound,
        likely=min(likely, bound),
        size=size,
        n=1 if passed is None else passed.n,
        hides=_hides(wanted) or price.reasoning is not None,
    )


def _tokens_of_images(payer: Payer, wanted: Wanted, messages: Sequence[Message]) -> int:
    """By the operator's word. Raises ImagesNotTaken where there is none for what is asked."""
    count = len(images_of(messages))
    if not count:
        return 0
    model = wanted.model or settings.LLM_MODEL
    if (each := tokens_of_image(model)) is None:
        raise images_not_taken(model, payer.models, None if wanted.key is None else wanted.key.models)
    # The words of each such message are a part, too.
    return each * count + PART_OVERHEAD * sum("images" in message for message in messages)


def _bound_of(messages: Sequence[Message], habit: Habit, words: int | None = None) -> int:
    """Tokens that they are at most; of their words alone at most `words`, where that is counted already."""
    words = text_bound(messages) if words is None else words
    return words + overhead(habit, len(messages), overhead_bound(messages))


def _route_of(wanted: Wanted) -> str:
    """Under which name it is learned what such calls need. No template is around a completion's prompt or what is
    embedded: learned from those, a chat's template would seem to add next to nothing, and would not be held.
    """
    if (passed := wanted.passed) is None or passed.kind == Kind.CHAT:
        return wanted.app
    return f"{wanted.app}/{passed.kind.value}"


def countable_of(passed: Passed) -> list[Message]:
    """The messages of a client's request, where they are all that its model reads, and words alone; else none.

    What else it may read, be it tools or a field that passes by the operator's word, is in the bound and not in these
    words: a count of the messages alone would be too low.
    """
    if passed.kind != Kind.CHAT:
        return []
    messages = passed.body["messages"]
    is_all = all(_is_plain(message) for message in messages) and text_bound(messages) == passed.bound
    return messages if is_all else []


async def _countable_of(passed: Passed) -> list[Message]:
    if passed.size <= COUNTED_BESIDE:
        return countable_of(passed)
    return await asyncio.to_thread(countable_of, passed)


def _is_plain(message: dict[str, Any]) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)


def _writes_nothing(wanted: Wanted) -> bool:
    return wanted.passed is not None and wanted.passed.kind == Kind.EMBEDDINGS


def _rates_of(wanted: Wanted) -> Rates | None:
    return rates_of(wanted.key, settings.KEY_RATES) if wanted.is_rated else None


def _order(payer: Payer, wanted: Wanted, messages: Sequence[Message], terms: Terms, output: int) -> Order:
    def fit(remaining: int) -> int:
        tokens = min(affordable_tokens(remaining, terms.bound, terms.price), output)
        return terms.amount(tokens) if tokens >= terms.n else 0

    def affordable(remaining: int) -> int:
        def beside(more: int) -> int:
            return affordable_tokens(max(0, remaining), terms.bound + more, terms.price) // terms.n

        fits = beside(0)
        while wanted.messages_for is not None and 0 < fits < terms.max_tokens:
            # So short an answer is asked for with more of what was said before, which is paid for, too.
            longer = as_taken(wanted.messages_for(fits))
            bound = _bound_of(longer, terms.habit) + _tokens_of_images(payer, wanted, longer)
            shorter = beside(bound - terms.bound)
            if shorter >= fits:
                break
            fits = shorter
        return fits

    async def tighten() -> int | None:
        if images_of(messages):
            return None  # its server would count the words alone
        countable = messages if wanted.passed is None else await _countable_of(wanted.passed)
        if not countable:
            return None
        try:
            counted = await count_tokens(
                countable, model=terms.model, dialect=terms.dialect, whose=terms.upstream.tenant
            )
        except COUNT_FAILURES:
            counted = None
        if counted is None or counted >= terms.bound:
            return None
        terms.bound = counted
        terms.likely = min(terms.likely, counted)
        return terms.amount(output)

    writes_nothing = _writes_nothing(wanted)
    return Order(
        payer=payer,
        subject=paid_subject(
            payer,
            user_id=wanted.user_id,
            app=wanted.app,
            key=wanted.key,
            workflow=wanted.workflow,
            dimensions=wanted.dimensions,
        ),
        action_kind=EMBEDDING if writes_nothing else ACTION,
        action_name=wanted.action_name or terms.model,
        amount=terms.amount(output),
        user_id=wanted.user_id,
        model=terms.model,
        least=cost(Usage(terms.likely, 0), terms.price),
        tokens_input=terms.likely,
        busy_key=wanted.busy_key,
        numbered_by=wanted.numbered_by,
        numbers=wanted.numbers,
        tags=wanted.tags,
        # Of an input, less is another input.
        fit=fit if plan_of(payer.plan).fits and not writes_nothing else None,
        tighten=tighten,
        affordable=None if writes_nothing else affordable,
        claim=wanted.claim,
        rates=_rates_of(wanted),
        tokens=terms.likely + output,
        is_let_in=wanted.is_let_in,
    )
