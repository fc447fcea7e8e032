"""The shapes that both of chat's APIs share: what is asked, and what an answer says of itself."""

from __future__ import annotations

from typing import Annotated

from ninja import Schema
from pydantic import AfterValidator, Field

from billing.api import Cost
from chat.attached import MOST_FILES
from chat.forms import MAX_TOKENS_MAX, NUMBER_MAX, PROMPT_MAX
from tenants.spelling import is_blank


def not_blank(text: str) -> str:
    if is_blank(text):
        raise ValueError("Write something.")
    return text


MaxTokens = Annotated[int, Field(ge=1, le=MAX_TOKENS_MAX)]
Text = Annotated[str, Field(min_length=1, max_length=PROMPT_MAX), AfterValidator(not_blank)]
ModelName = Annotated[str, Field(min_length=1, max_length=200)]
# Of a row.
Number = Annotated[int, Field(ge=1, le=NUMBER_MAX)]
NumberOrNone = Annotated[int, Field(ge=0, le=NUMBER_MAX)]
Files = Annotated[list[Number], Field(max_length=MOST_FILES)]


class Tokens(Schema):
    input_tokens: int
    output_tokens: int


class Bought(Schema):
    """An answer that is kept. `question_id` is null where an earlier question was answered again, or gone on with.

    `outcome` says how the cost is known.
    """

    response: str
    conversation_id: int
    question_id: int | None
    answer_id: int
    model: str
    finish_reason: str
    usage: Tokens
    cost: Cost
    outcome: str
