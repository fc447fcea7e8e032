"""A request that is passed on to a model as its client wrote it. Pure.

Owns what must be known of it to buy it: how much its input can be, how many answers it asks for, and which of its
fields are ours to write. Must not know who asks, nor what it costs. chat.v1.reading makes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """The value is the path at the model's server."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


@dataclass(frozen=True, slots=True)
class Passed:
    """`body` is the client's JSON; model, the limit of tokens and stream_options are written anew when it is sent.

    `bound` is never less than the tokens of its input, without what a template adds to `messages` messages; `size` are
    its bytes, as a habit's ratio counts them. `fixed` are tokens of the input that no ratio knows of: images.
    """

    kind: Kind
    body: dict[str, Any] = field(repr=False)
    model: str
    is_stream: bool
    max_tokens: int | None
    bound: int
    size: int
    messages: int = 1
    fixed: int = 0
    # How many answers are written for it: each may have `max_tokens`.
    n: int = 1
    # Tokens of the input that its answers repeat before their own words: nobody bills them as output.
    echoed: int = 0
    wants_usage: bool = False
    # More may be billed than its stream shows, or less, so that no running count says what is used by now.
    hides: bool = False
    # Its reader is one of OpenAI's own clients, which break at some lines that are good events.
    for_stock_client: bool = False
