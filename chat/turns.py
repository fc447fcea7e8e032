"""The conversation that a call needs, and the rows that its answer becomes. Statements of the engine's connection.

Owns what is read of a conversation before a call, and what is written with the settled line: a turn of its tree. Must
not hold money, nor know who asks beyond the owner's number.
"""

from __future__ import annotations

import time
from asyncio import sleep
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from billing.engine.engine import Engine
from billing.engine.settling import Keep
from billing.engine.statements import in_schema
from billing.engine.store import FAILURES
from chat.attached import IMAGE_KINDS, MOST_TOKENS, File, images_among, message_of, with_files
from chat.buying import Known
from chat.errors import ConversationBusy
from chat.history import Image, Message, as_taken, images_of, prompt_bytes
from chat.pricing import callable_models
from chat.terms import Completion
from chat.trimming import MOST_MESSAGES, Room, as_message, fitting
from chat.wishes import NO_WISHES, Wishes, digest
from tenants.http import Invalid, NotFound, Unavailable

LOOK_AGAIN_SECONDS = 0.1

# What the model is told where an answer that was cut is to go on. It is paid for, and not shown.
GO_ON = "Continue your last answer exactly where it stops. Do not repeat any of it."

# Of a whole prompt, in any language.
MOST_BYTES_A_TOKEN = 12

NO_MESSAGE = "There is no such message in this conversation."


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked in a conversation: a new question, the answer to an earlier one once more, or the rest of one.

    `parent_id`: the message that a question follows, 0 for none, None for the last of the branch that is shown.
    """

    prompt: str = ""
    parent_id: int | None = None
    again_id: int | None = None
    continue_id: int | None = None
    files: Sequence[File] = ()

    @property
    def is_question(self) -> bool:
        return self.again_id is None and self.continue_id is None

    @property
    def starts_at(self) -> int | None:
        """The message at which the history begins, backwards; None for the branch's last."""
        return next((id for id in (self.again_id, self.continue_id, self.parent_id) if id is not None), None)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer goes: its conversation, what was said there before, and what it follows.

    `history` ends before the prompt. `parent_id` is the message that the question follows, or the answer where there
    is no new question. A new conversation gets its number with the hold, and its row with the answer.
    """

    prompt: str
    id: int | None = None
    busy_key: str | None = None
    has_limit: bool = False
    is_question: bool = True
    parent_id: int | None = None
    history: Sequence[Message] = ()
    # Messages before these that did not fit, oldest first; and in short what was said before those.
    left_out: Sequence[int] = ()
    summary: str = ""
    # The history that would go along beside an answer of so many tokens at most.
    history_for: Callable[[int], Sequence[Message]] | None = None
    known: Known | None = None
    # What holds for it, and the model that it keeps from now on; None: the one that it has.
    wishes: Wishes = NO_WISHES
    kept_model: str | None = None
    # Those of the question, sent before the prompt.
    files: Sequence[File] = ()

    @property
    def question(self) -> Message:
        """What the model is asked: the prompt, after the words of its files."""
        return message_of("user", self.prompt, self.files)


def busy_key(schema: str, conversation_id: int | str = "") -> str:
    """What one call of a conversation holds at a time; without its number, what a new one's number is put behind."""
    return f"{schema}:conversation-{conversation_id}"


NEW_ID = "nextval(pg_get_serial_sequence('{schema}.chat_conversation', 'id'))"

# A new conversation is busy before it has a row: its first answer is under way. The newest message comes first. What a
# summary covers is not read, and of what is long ago only that it is there.
FOUND = """
SELECT conversation.has_limit, conversation.model, conversation.system, conversation.temperature,
       conversation.summary_upto, conversation.summary,
       EXISTS (SELECT 1 FROM public.billing_hold WHERE busy_key = %(busy_key)s AND user_id = %(owner)s),
       (WITH RECURSIVE path AS (
            SELECT id, parent_id, role, text, tokens_input, outcome, system_digest, files_tokens, 1 AS place,
                   0::bigint AS size_after
            FROM {schema}.chat_message
            WHERE conversation_id = conversation.id AND id = coalesce(
                %(start)s::bigint, conversation.head_id,
                -- Messages of a release before, or of a builder's own, moved no head.
                (SELECT max(id) FROM {schema}.chat_message WHERE conversation_id = conversation.id)
            )
            UNION ALL
            SELECT message.id, message.parent_id, message.role, message.text, message.tokens_input, message.outcome,
                   message.system_digest, message.files_tokens, place + 1,
                   size_after + octet_length(path.text) + path.files_tokens
            FROM path JOIN {schema}.chat_message AS message ON message.id = path.parent_id
            WHERE message.conversation_id = conversation.id AND place < %(most)s
              AND path.parent_id IS DISTINCT FROM conversation.summary_upto
        )
        SELECT coalesce(
            json_agg(json_build_array(
                id, parent_id, role, CASE WHEN goes_along THEN text END, tokens_input, outcome, system_digest,
                CASE WHEN goes_along AND files_tokens > 0 THEN (
                    SELECT json_agg(json_build_array(name, attachment.text, attachment.id, tokens, kind, bytes)
                                    ORDER BY attachment.id)
                    FROM {schema}.chat_attachment AS attachment WHERE message_id = path.id
                ) END
            ) ORDER BY place), '[]'
        ) FROM path, LATERAL (
            SELECT size_after + octet_length(text) + files_tokens <= %(bytes)s
                -- What is asked again, or gone on with, is read with its question however long they are.
                OR NOT %(is_question)s AND place <= (SELECT min(place) FROM path WHERE role = 'user') AS goes_along
        ) AS fit)
FROM (VALUES (1)) AS always
LEFT JOIN {schema}.chat_conversation AS conversation
       ON conversation.id = %(id)s AND conversation.owner_id = %(owner)s AND conversation.deleted_at IS NULL
"""


async def found(
    engine: Engine,
    *,
    schema: str,
    owner: int,
    conversation_id: int,
    ask: Ask,
    workspace: Wishes,
    model: str | None,
    room: Callable[[str], Room],
    waits: bool = True,
) -> Place:
    """The owner's own conversation, once no other process answers in it, with as much of it as has `room` with the
    model: the one that is asked for, or the conversation's own. With `waits` false, as it is now. `workspace`: what
    holds where it asks for nothing.

    Raises NotFound, ConversationBusy, Unavailable, or Invalid for what cannot be asked of that message.
    """
    until = time.monotonic() + engine.wait_seconds
    key = busy_key(schema, conversation_id)
    params = {
        "id": conversation_id,
        "owner": owner,
        "busy_key": key,
        "start": ask.starts_at,
        "most": MOST_MESSAGES,
        "is_question": ask.is_question,
        # Which model the conversation has is only known once it is read.
        # And a shorter answer may be offered, beside which there is more room.
        "bytes": max(room(name).beside_answer_of(1).bytes for name in ([model] if model else callable_models())),
    }
    while True:
        try:
            ((has_limit, *own, upto, summary, is_busy, path),) = await engine.store.fetch(
                in_schema(FOUND, schema), params
            )
        except FAILURES as exc:
            raise Unavailable from exc
        if not (is_busy and waits):
            break
        if time.monotonic() > until:
            raise ConversationBusy
        await sleep(LOOK_AGAIN_SECONDS)
    if has_limit is None:
        raise NotFound("There is no such conversation.")
    turns = [Turn(*row) for row in path]
    is_covered = upto is not None and turns and turns[-1].parent_id == upto
    wishes = Wishes(*own).over(workspace)
    return _place(
        Place("", conversation_id, key, has_limit=has_limit, is_question=ask.is_question, wishes=wishes),
        ask,
        turns,
        room(model or wishes.model),
        summary=summary if is_covered else "",
    )


@dataclass(frozen=True, slots=True)
class Turn:
    """A message as FOUND has it."""

    id: int
    parent_id: int | None
    role: str
    # None where it is too long ago to go along.
    text: str | None
    tokens_input: int | None
    outcome: str
    system_digest: int | None
    # Each file as `File` has it, of a message that goes along.
    attached: list[list[Any]] | None = None

    @property
    def files(self) -> list[File]:
        return [File(*row) for row in self.attached or ()]

    @property
    def images(self) -> list[Image]:
        return images_among(self.files) if self.attached else []

    def words(self, *, sees: bool) -> str | None:
        return with_files(self.text or "", self.files, sees=sees) if self.attached else self.text

    def message(self, *, sees: bool) -> Message:
        """What a model is given of it."""
        return message_of(self.role, self.text or "", self.files, sees=sees)


# Those of the owner that are not sent yet, or were sent in this conversation: an edited question keeps its files.
FILES = """
SELECT name, text, id, tokens, kind, bytes FROM {schema}.chat_attachment
WHERE owner_id = %(owner)s AND id = ANY(%(files)s::bigint[])
  AND (message_id IS NULL OR conversation_id = %(conversation)s::bigint)
ORDER BY id
"""

NO_FILE = "One of the files is not there any more. Remove it and add it again."


async def files_of(
    engine: Engine, *, schema: str, owner: int, conversation_id: int | None, ids: Sequence[int]
) -> list[File]:
    """Raises NotFound, Unavailable, or Invalid where they are more than one message takes."""
    if not ids:
        return []
    params = {"owner": owner, "files": list(ids), "conversation": conversation_id}
    try:
        rows = await engine.store.fetch(in_schema(FILES, schema), params)
    except FAILURES as exc:
        raise Unavailable from exc
    if len(rows) != len(set(ids)):
        raise NotFound(NO_FILE)
    files = [File(*row) for row in rows]
    if (tokens := sum(file.tokens for file in files)) > MOST_TOKENS:
        raise Invalid({"files": [f"Together they can be {tokens:,} tokens; {MOST_TOKENS:,} go into one message."]})
    return files


# As text, for that is how it is sent.
IMAGES = """
SELECT id, 'data:image/' || kind || ';base64,' || translate(encode(image, 'base64'), E'\\n', '')
FROM {schema}.chat_attachment WHERE owner_id = %(owner)s AND id = ANY(%(images)s::bigint[])
"""


async def with_images(engine: Engine, messages: list[Message], *, schema: str, owner: int) -> list[Message]:
    """The messages with their images' bytes; no statement where there are none. Raises NotFound, or Unavailable."""
    images = images_of(messages)
    if not images:
        return messages
    params = {"owner": owner, "images": [image.id for image in images]}
    try:
        urls: dict[int, str] = dict(await engine.store.fetch(in_schema(IMAGES, schema), params))
    except FAILURES as exc:
        raise Unavailable from exc
    if urls.keys() != {image.id for image in images}:
        raise NotFound(NO_FILE)
    return [_with_urls(message, urls) for message in messages]


def _with_urls(message: Message, urls: dict[int, str]) -> Message:
    if "images" not in message:
        return message
    return {**message, "images": [replace(image, url=urls[image.id]) for image in message["images"]]}


def _place(place: Place, ask: Ask, path: list[Turn], room: Room, *, summary: str) -> Place:
    """The place with what is asked there. `path` is newest first."""
    if ask.starts_at and not path:
        raise NotFound(NO_MESSAGE)
    prompt, files = ask.prompt, ask.files
    parent_id = path[0].id if path else None
    goes_on = ask.continue_id is not None
    if ask.again_id is not None:
        if path[0].role == "assistant":
            path = path[1:]
        if not path:
            raise Invalid({"message_id": ["There is no question before this message that could be asked again."]})
        # Of an answer that goes on with another, it is the rest that is asked for again.
        goes_on = path[0].role == "assistant"
        parent_id = path[0].id
        if not goes_on:
            prompt, files, path = path[0].text or "", path[0].files, path[1:]
    if goes_on:
        if path[0].role != "assistant" or not (path[0].text or "").strip():
            raise Invalid({"message_id": ["Only an answer with words in it can go on."]})
        prompt, files = GO_ON, ()
    # What goes on needs the answer, and its question too: strict models take no history that begins with an answer.
    needed = 1 + [*(turn.role for turn in path), "user"].index("user") if goes_on else 0
    opening = [as_message(summary)] if summary else []
    beside = [
        message_of("user", prompt, files)["content"],
        place.wishes.system,
        *(message["content"] for message in opening),
    ]
    room = room.left_beside(*filter(None, beside)).without(images_among(files))

    def fits(room: Room) -> int:
        return fitting(
            path,
            room,
            lambda turn: turn.words(sees=room.sees),
            images_of=lambda turn: turn.images if room.sees else [],
            needed=needed,
        )

    def said(count: int) -> list[Message]:
        return [*opening, *(turn.message(sees=room.sees) for turn in reversed(path[:count]))]

    count = fits(room)
    history = said(count)
    return replace(
        place,
        prompt=prompt,
        parent_id=parent_id,
        history=history,
        history_for=(lambda max_tokens: said(fits(room.beside_answer_of(max_tokens)))) if count < len(path) else None,
        left_out=[turn.id for turn in reversed(path[count:])],
        summary=summary,
        files=files,
        # The report stands for the whole prompt of its time, so that it says nothing once some of that is cut off.
        known=_known(path, history, place.wishes) if count == len(path) and not summary else None,
    )


def _known(path: list[Turn], history: list[Message], wishes: Wishes) -> Known | None:
    """What the last answer's report counted of this history, if the system prompt is the one that it was counted with.

    A model with a smaller context got less of it: then it counted fewer tokens than so many bytes ever are.
    """
    last = path[0] if path else None
    if last is None or last.role != "assistant" or last.outcome != "exact" or not last.tokens_input:
        return None
    if last.system_digest != digest(wishes.system):
        return None
    # An image's tokens are in the report and no bytes are, and the next model may not be shown it.
    if any(turn.images for turn in path):
        return None
    size = prompt_bytes(as_taken([*wishes.opening, *history[:-1]]))
    return Known(last.tokens_input, size) if last.tokens_input * MOST_BYTES_A_TOKEN >= size else None


# --- what is written ------------------------------------------------------------------------------------------------

# A question and its answer have their numbers before the model is called: whoever repeats the request, or comes back
# to it, is told the same ones. The question's is below its answer's.
NEW_MESSAGES = """ARRAY[
    nextval(pg_get_serial_sequence('{schema}.chat_message', 'id')),
    nextval(pg_get_serial_sequence('{schema}.chat_message', 'id'))
]"""

# What a message follows. It may have been deleted before the call's hold was there, while its money was waited for:
# then what stood before it, which is the conversation's last from then on.
FOLLOWED = """coalesce(
        (SELECT id FROM {schema}.chat_message WHERE id = %(parent)s::bigint),
        (SELECT head_id FROM {schema}.chat_conversation WHERE id = %(conversation)s AND %(parent)s::bigint IS NOT NULL)
    )"""

QUESTION = """
, question AS (
    INSERT INTO {schema}.chat_message (
        id, conversation_id, parent_id, role, text, files_tokens, model, finish_reason, outcome, created_at
    )
    SELECT %(question)s, %(conversation)s, {followed}, 'user', %(prompt)s, %(files_tokens)s, '', '', '',
           %(asked_at)s
    FROM gone
)""".replace("{followed}", FOLLOWED)

_ANSWER = """
, answer AS (
    INSERT INTO {schema}.chat_message (
        id, conversation_id, parent_id, role, text, model, finish_reason, outcome, tokens_input, tokens_output, cost,
        hold, system_digest, created_at
    )
    SELECT %(answer)s, %(conversation)s, {follows}, 'assistant', %(text)s, %(called)s, %(reason)s, %(how)s,
           %(input)s::bigint, %(output)s::bigint, %(paid)s, id, %(system_digest)s::bigint,
           %(answered_at)s
    FROM gone
)"""
ANSWER = _ANSWER.replace("{follows}", "%(question)s")
FURTHER_ANSWER = _ANSWER.replace("{follows}", FOLLOWED)


# Linked to the question. What is not to be linked is written anew, as it was sent: another message has it already, such
# as an earlier version of the question or one that is settled at this moment, or it was removed under the call. Of an
# image the bytes are its row's alone: one that was removed is gone.
FILES_SENT = """
, linked AS (
    UPDATE {schema}.chat_attachment SET conversation_id = %(conversation)s, message_id = %(question)s
    FROM gone WHERE chat_attachment.id = ANY(%(files)s::bigint[]) AND owner_id = %(owner)s AND message_id IS NULL
    RETURNING chat_attachment.id
)
, copies AS (
    INSERT INTO {schema}.chat_attachment (
        owner_id, conversation_id, message_id, name, kind, bytes, text, image, tokens, created_at
    )
    SELECT %(owner)s, %(conversation)s, %(question)s, sent.name, sent.kind, sent.bytes, sent.text, found.image,
           sent.tokens, %(asked_at)s
    FROM gone, (VALUES SENT) AS sent (id, name, kind, bytes, text, tokens)
    LEFT JOIN {schema}.chat_attachment AS found ON found.id = sent.id AND found.owner_id = %(owner)s
    WHERE sent.id NOT IN (SELECT id FROM linked) AND (sent.kind <> ALL(%(pictures)s::text[]) OR found.image IS NOT NULL)
    ORDER BY sent.id
)"""
FILE_SENT = "(%(id_#)s::bigint, %(name_#)s, %(kind_#)s, %(bytes_#)s::integer, %(text_#)s::text, %(tokens_#)s::integer)"

CONVERSATION_ROW = """
, conversation AS (
    INSERT INTO {schema}.chat_conversation (
        id, owner_id, title, titled_by, created_at, active_at, head_id, model, system, has_limit
    )
    SELECT %(conversation)s, %(owner)s, %(title)s, 'words', %(asked_at)s, %(answered_at)s, %(answer)s, %(kept_model)s,
           '', false
    FROM gone
)"""

HEAD_MOVED = """
, conversation AS (
    UPDATE {schema}.chat_conversation SET head_id = %(answer)s, active_at = %(answered_at)s,
           model = coalesce(%(kept_model)s::text, model)
    FROM gone WHERE chat_conversation.id = %(conversation)s
)"""


def rows_of(
    place: Place, conversation: int, numbers: tuple[int, int], completion: Completion, *, asked_at: datetime, owner: int
) -> Keep:
    """The question and its answer, and a new conversation's own row: written with the line, or not at all. `numbers`:
    the question's and the answer's.
    """
    question, answer = numbers
    params: dict[str, Any] = {
        "conversation": conversation,
        "answer": answer,
        "parent": place.parent_id,
        # What Postgres cannot store, a model can still say.
        "text": completion.text.replace("\x00", ""),
        "called": completion.model[:200],
        "reason": completion.finish_reason[:40],
        "how": str(completion.outcome),
        "input": completion.usage.tokens_input,
        "output": completion.usage.tokens_output,
        "paid": completion.cost,
        "system_digest": digest(place.wishes.system),
        "kept_model": place.kept_model,
        "answered_at": datetime.now(UTC),
    }
    if not place.is_question:
        return Keep(FURTHER_ANSWER + HEAD_MOVED, params)
    params |= {"question": question, "prompt": place.prompt, "asked_at": asked_at}
    params["files_tokens"] = sum(file.tokens for file in place.files)
    rows = QUESTION + ANSWER
    if place.files:
        sent = _files_sent(place.files)
        rows += sent.sql
        params |= {"owner": owner, **sent.params}
    if place.id is not None:
        return Keep(rows + HEAD_MOVED, params)
    params |= {"owner": owner, "title": title_of(place.prompt), "kept_model": place.kept_model or ""}
    return Keep(CONVERSATION_ROW + rows, params)


def _files_sent(files: Sequence[File]) -> Keep:
    params: dict[str, Any] = {"files": [file.id for file in files], "pictures": list(IMAGE_KINDS)}
    for place, file in enumerate(files):
        params |= {
            f"{field}_{place}": getattr(file, field) for field in ("id", "name", "kind", "bytes", "text", "tokens")
        }
    each = ", ".join(FILE_SENT.replace("#", str(place)) for place in range(len(files)))
    return Keep(FILES_SENT.replace("SENT", each), params)


def title_of(prompt: str) -> str:
    """A title by the first words."""
    line = " ".join(prompt.split())
    return line if len(line) <= 60 else f"{line[:59]}…"
