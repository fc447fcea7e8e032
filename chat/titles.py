"""The title that a model writes for a new conversation, where its workspace has turned that on. Bought as all else.

Owns what is asked for it and when. Must not hold up an answer, nor touch a title that a person has written. A call
without the switch comes by here not at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from billing.engine.authority import Payer
from billing.engine.call import Call
from billing.engine.engine import Engine
from billing.engine.settling import Keep
from billing.subjects import Key
from chat.buying import Wanted, begin
from chat.history import Message
from chat.streams import Answering, Completion
from tenants.http import ApiError
from tenants.spelling import normal_name

logger = logging.getLogger(__name__)

# Its name in Tenant.chat_settings, and the feature that its calls are booked under.
SWITCH = "titles_by_model"
APP = "titles"
MOST_WORDS = 8
MOST_TOKENS = 32
# Of the question and of the answer: enough to know what they are about.
READ_CHARS = 1_000

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


def is_on(chat_settings: object) -> bool:
    return isinstance(chat_settings, Mapping) and chat_settings.get(SWITCH) is True


def messages_for(question: str, answer: str) -> list[Message]:
    cut = {"question": question[:READ_CHARS], "answer": answer[:READ_CHARS]}
    return [{"role": "user", "content": ASK.format(words=MOST_WORDS, **cut)}]


def title_in(text: str) -> str:
    """What a model said, as a title: its first line, without quotes and marks. Empty where there is none."""
    line = next((line for line in text.splitlines() if line.strip(" #*_`\"'“”„«».:-")), "")
    line = line.strip(" #*_`").removeprefix("Title:").strip(" #*_`\"'“”„«».:-")
    title = normal_name(" ".join(line.split()[:MOST_WORDS]))
    return title if len(title) <= 60 else f"{title[:59]}…"


def buy_title_after(
    engine: Engine,
    payer: Payer,
    answering: Answering[Call],
    *,
    conversation_id: Callable[[], int],
    question: str,
    user_id: int,
    key: Key | None,
    model: str,
) -> None:
    """Once that answer has ended, for whoever asked, by the same model. Returns at once. The conversation's number is
    asked for then: a new one has it with the hold that paid in the end.
    """

    async def buy() -> None:
        answer = await answering.finished(seconds=None)
        if answering.failure is not None or not answer.text.strip():
            return
        wanted = Wanted(
            messages=messages_for(question, answer.text),
            model=model,
            max_tokens=MOST_TOKENS,
            app=APP,
            user_id=user_id,
            key=key,
            keep_rows=lambda call, completion: _kept(conversation_id(), completion),
        )
        try:
            await (await begin(engine, payer, wanted)).finished()
        except ApiError as exc:  # the first words stay
            logger.info("No title was bought: %s", exc.code)

    engine.spawn(buy())


def _kept(conversation_id: int, completion: Completion) -> Keep | None:
    title = title_in(completion.text)
    params: dict[str, Any] = {"title": title, "conversation": conversation_id}
    return Keep(TITLED, params) if title else None
