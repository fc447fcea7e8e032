"""The title that a model writes for a new conversation, where its workspace has turned that on. Bought as all else.

Owns what is asked for it and when, and how its reader hears of it. Must not hold up an answer, nor touch a title that a
person has written. A call without the switch comes by here not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from billing.engine.authority import Payer
from billing.engine.call import Call
from billing.engine.engine import Engine
from billing.engine.settling import Keep
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES
from billing.subjects import Key
from chat.buying import Wanted, begin
from chat.history import Message
from chat.sse import comment, event
from chat.standing import Standing
from chat.streams import KEEP_ALIVE_SECONDS, Answering
from chat.terms import Completion
from tenants.http import ApiError
from tenants.spelling import normal_name

logger = logging.getLogger(__name__)

# Its name in Tenant.chat_settings, and the feature that its calls are booked under.
SWITCH = "titles_by_model"
APP = "titles"
MOST_WORDS = 8
MOST_TOKENS = 32
# Answers that were stopped, or that the money ended: whoever stops wants to pay no more, and a process that ends must
# begin nothing.
CUT = ("cancelled", "budget")
# Of the question and of the answer: enough to know what they are about.
READ_CHARS = 1_000
# A page waits for so many silences of KEEP_ALIVE_SECONDS; a title that comes later is there with the next page.
MOST_SILENCES = 3

ASK = (
    "Write a title of at most {words} words for this conversation, in its language. Answer with the title alone.\n\n"
    "Question: {question}\n\nAnswer: {answer}"
)

# Written with the title's own line. A person may have named the conversation meanwhile, or deleted it.
TITLED = """
, titled AS (
    UPDATE {schema}.chat_conversation SET title = %(title)s, titled_by = 'model'
    FROM gone WHERE chat_conversation.id = %(conversation)s AND chat_conversation.titled_by = 'words'
)"""

# What became of it: a person may have been faster.
KEPT = "SELECT title FROM {schema}.chat_conversation WHERE id = %(conversation)s AND titled_by = 'model'"


def is_on(chat_settings: object) -> bool:
    return isinstance(chat_settings, Mapping) and chat_settings.get(SWITCH) is True


def messages_for(question: str, answer: str) -> list[Message]:
    cut = {"question": question[:READ_CHARS], "answer": answer[:READ_CHARS]}
    return [{"role": "user", "content": ASK.format(words=MOST_WORDS, **cut)}]


def title_in(text: str) -> str:
    """What a model said, as a title: its first line, without quotes and marks. Empty where there is none."""
    if text.lstrip().startswith("<think>"):
        text = text.partition("</think>")[2]
    text = text[:READ_CHARS]  # a longer name is not made normal, and could have signs that nobody sees
    line = next((line for line in text.splitlines() if line.strip(" #*_`\"'“”„«».:-")), "")
    line = line.strip(" #*_`").removeprefix("Title:").strip(" #*_`\"'“”„«».:-")
    title = normal_name(" ".join(line.split()[:MOST_WORDS]))
    return title if len(title) <= 60 else f"{title[:59]}…"


def buy_title_after(
    engine: Engine,
    payer: Payer,
    answering: Answering[Call],
    *,
    schema: str,
    conversation_id: Callable[[], int],
    question: str,
    user_id: int,
    key: Key | None,
    model: str,
    standing: Standing | None = None,
) -> asyncio.Task[str]:
    """Once that answer has ended, for whoever asked, by the same model. Returns at once; its result is the title that
    the conversation has got by it, or nothing. The conversation's number is asked for then: a new one has it with the
    hold that paid in the end.
    """

    async def buy() -> str:
        answer = await answering.finished(seconds=None)
        if answering.failure is not None or not answer.text.strip() or answer.finish_reason in CUT:
            return ""
        wanted = Wanted(
            messages=messages_for(question, answer.text),
            model=model,
            max_tokens=MOST_TOKENS,
            app=APP,
            user_id=user_id,
            key=key,
            # The key sent one request. Counted as another, this would keep its next one waiting.
            is_rated=False,
            standing=standing,
            keep_rows=lambda call, completion: _kept(conversation_id(), completion),
        )
        try:
            await (await begin(engine, payer, wanted)).finished(seconds=None)
            rows = await engine.store.fetch(in_schema(KEPT, schema), {"conversation": conversation_id()})
        except ApiError as exc:  # the first words stay
            logger.info("No title was bought: %s", exc.code)
            return ""
        except FAILURES:  # it may be there; the next page says so
            return ""
        return str(rows[0][0]) if rows else ""

    return engine.spawn(buy())


async def told(titling: asyncio.Task[str]) -> AsyncIterator[bytes]:
    """The event with the title once it is kept, for the stream of the answer that it was bought after."""
    for _ in range(MOST_SILENCES):
        await asyncio.wait({titling}, timeout=KEEP_ALIVE_SECONDS)
        if titling.done():
            break
        yield comment("waiting")
    if titling.done() and not titling.cancelled() and titling.exception() is None and (title := titling.result()):
        yield event("title", {"title": title})


def _kept(conversation_id: int, completion: Completion) -> Keep | None:
    title = title_in(completion.text) if completion.finish_reason in ("stop", "length") else ""
    params: dict[str, Any] = {"title": title, "conversation": conversation_id}
    return Keep(TITLED, params) if title else None
