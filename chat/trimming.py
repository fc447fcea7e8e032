"""How much of a conversation goes along with a question: what fits into the model's context beside it and its answer.

Owns the room that a history has, and which messages fill it. Pure but for the settings that it reads. Must not know
whose conversation it is, nor read rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

from django.conf import settings

from billing.engine.rules import USUAL_INPUT_RATIO, likely_tokens
from chat.attached import MOST_IMAGE_BYTES
from chat.history import MARKER_BYTES, Image, Message
from chat.image_models import tokens_of_image
from chat.local_model import NAME as EMBEDDED_MODEL
from chat.pricing import context_for

# Of a branch so many messages are read, and of their words so many bytes: a conversation of years must not bring
# megabytes to each call.
MOST_MESSAGES = 500
MOST_BYTES = 1_000_000
# Of an answer that nobody has given a length.
DEFAULT_MAX_TOKENS = 512
# Its server has 8,192 for four answers at a time.
EMBEDDED_CONTEXT = 2_048
# Tokens are counted by what is likely, and a model refuses one token too many: a tenth is kept free.
USED_PERCENT = 90

SUMMARY = "What was said before, in short:\n\n"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Room:
    """Tokens that a history and its question may have together, each byte taken for `ratio` of one, and an image for
    `image_tokens`. None of these: its model takes no images.
    """

    tokens: int
    ratio: float = USUAL_INPUT_RATIO
    image_tokens: int | None = None
    image_bytes: int = MOST_IMAGE_BYTES
    # Of the context, what is kept for the answer: so many tokens more there would be beside none.
    answer: int = 0

    @property
    def sees(self) -> bool:
        return self.image_tokens is not None

    @property
    def bytes(self) -> int:
        return min(MOST_BYTES, int(max(0, self.tokens) / self.ratio))

    def left_beside(self, *texts: str) -> Room:
        return replace(self, tokens=self.tokens - sum(map(self.needed_for, texts)))

    def without(self, images: Sequence[Image]) -> Room:
        """What is left once these go along."""
        if not images:
            return self
        tokens = self.tokens - len(images) * (self.image_tokens or 0)
        return replace(self, tokens=tokens, image_bytes=self.image_bytes - sum(image.bytes for image in images))

    def beside_answer_of(self, max_tokens: int) -> Room:
        """The same beside an answer that is shorter."""
        shorter = min(self.answer, max_tokens)
        return replace(self, tokens=self.tokens + self.answer - shorter, answer=shorter)

    def needed_for(self, text: str) -> int:
        return likely_tokens(MARKER_BYTES + len(text.encode("utf-8", "surrogatepass")), self.ratio)


def room_for(model: str, *, max_tokens: int, ratio: float = USUAL_INPUT_RATIO) -> Room:
    """For the input of a call that asks for so long an answer."""
    context = context_for(model) or (EMBEDDED_CONTEXT if model == settings.LLM_MODEL == EMBEDDED_MODEL else None)
    if context is None:
        # The operator has not said how much it takes, so that little goes along beside any question.
        return Room(settings.CHAT_HISTORY_TOKENS, ratio, tokens_of_image(model))
    return Room(context * USED_PERCENT // 100 - max_tokens, ratio, tokens_of_image(model), answer=max_tokens)


def _no_images(_: Any) -> Sequence[Image]:
    return ()


def fitting(
    texts: Sequence[T],
    room: Room,
    text_of: Callable[[T], str | None],
    *,
    images_of: Callable[[T], Sequence[Image]] = _no_images,
    needed: int = 0,
) -> int:
    """How many of these, newest first, go along. The first that are `needed` do in any case; one whose words were not
    read does not, nor does what is older.
    """
    tokens, image_bytes = room.tokens, room.image_bytes
    for place, each in enumerate(texts):
        text = text_of(each)
        if text is None:
            return place
        images = images_of(each)
        tokens -= room.needed_for(text) + len(images) * (room.image_tokens or 0)
        image_bytes -= sum(image.bytes for image in images)
        if (tokens < 0 or image_bytes < 0) and place >= needed:
            return place
    return len(texts)


class _Said(Protocol):
    @property
    def message(self) -> Any: ...


def left_out_of(conversation: Any, branch: Sequence[_Said], model: str) -> int:
    """How many messages of the branch a question to `model` would leave out, as a page can tell: it knows neither what
    the model's tokens are worth in bytes, nor the texts of files. The `held` event says it exactly.
    """
    if conversation is None or not branch:
        return 0
    turns = [turn.message for turn in branch]
    covered = next((at + 1 for at, turn in enumerate(turns) if turn.pk == conversation.summary_upto), 0)
    newest_first = turns[covered:][::-1]
    room = room_for(model, max_tokens=DEFAULT_MAX_TOKENS)
    if covered:
        room = room.left_beside(as_message(conversation.summary)["content"])
    return len(newest_first) - fitting(newest_first, room, lambda turn: str(turn.text))


def as_message(summary: str) -> Message:
    """A summary in the place of what it covers: a user's words, for not every model takes a system's."""
    return {"role": "user", "content": SUMMARY + summary}
