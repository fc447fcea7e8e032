"""What can go wrong when a model is asked.

Owns the sentences that people read. Must not hold anything of the upstream's: its words may quote prompts, its
address or a key.

    tenants.http.ApiError
     ├─ ModelNotPriced        422 model_not_priced
     ├─ ModelOfAnotherKind    400 invalid: it is there for embeddings, and was asked to chat
     ├─ ImagesNotTaken        400 images_not_taken, with `models` that take them
     ├─ ConversationBusy      409 conversation_busy
     └─ ModelFailed           502 model_failed, with `usage` and `outcome`
         ├─ ModelDeclined        400 model_declined, or 404: a client's own request that the model does not take
         │   └─ ModelDeclinedTooLong  400 context_length_exceeded
         ├─ ModelTooLong         400 prompt_too_long: the messages are more than it can read
         ├─ ModelStopped         503 unavailable: we ended it, in the middle
         ├─ ModelMisconfigured   502 model_misconfigured: the operator's to mend
         └─ ModelBusy            503 model_busy, with Retry-After
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING

from billing.outcomes import SENTENCES, Outcome
from tenants.http import ApiError, Invalid

if TYPE_CHECKING:
    from billing.prices import Usage


class ModelNotPriced(ApiError):
    """An unpriced model is an unlimited one, so it is never called. Nothing was reserved."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    code = "model_not_priced"

    def __init__(self, model: str, *, priced: Sequence[str]) -> None:
        use = f"Use {' or '.join(priced)}, or have" if priced else "Have"
        super().__init__(
            f"The model {model[:80]} has no price here. {use} the operator price it in LLM_PRICES or MODELS."
        )


class ModelOfAnotherKind(Invalid):
    """What can be asked of a model is the operator's word, `kinds` in MODELS."""

    def __init__(self, model: str, kind: str) -> None:
        said = f"{model[:80]} cannot be asked for {kind} here. Choose another model."
        super().__init__({"model": [said]})
        self.message = said  # a page has no field to show it beside


class ImagesNotTaken(ApiError):
    """Nobody has said what an image costs at this model, so that none is sent there. `others`: where one can be."""

    status = HTTPStatus.BAD_REQUEST
    code = "images_not_taken"
    SHOWN = 20

    def __init__(self, model: str, *, others: Sequence[str]) -> None:
        names = list(others)[: self.SHOWN]
        instead = f"Choose {' or '.join(names)}" if names else "No model here takes them. Ask the operator for one"
        super().__init__(f"Pictures cannot be sent to {model[:80]}. {instead}, or ask without them.", models=names)


class ConversationBusy(ApiError):
    """A conversation answers one call at a time: two at once would mix their turns."""

    status = HTTPStatus.CONFLICT
    code = "conversation_busy"
    message = "This conversation is still answering. Wait for the answer to end, then send this again."
    retry_after_ms = 2_000


class Fault(Enum):
    """What a failure says of the upstream as a whole, for chat.breaker."""

    NONE = auto()  # nothing: another request may fare better, or only the operator can mend it
    FAILED = auto()  # it answered 5xx, or fell silent before a word; perhaps for this request alone
    UNREACHABLE = auto()  # no request can have caused it


class ModelFailed(ApiError):
    """The model did not give a whole answer. `usage` is what it used all the same, `outcome` how that is known.

    The message ends with what is charged, in the words of the line that was written for it. Whoever settles the call
    by another outcome than the one raised says so with `charged_as`.
    """

    status: int = HTTPStatus.BAD_GATEWAY
    code = "model_failed"
    message = "The language model did not finish its answer; try again."
    fault = Fault.NONE

    def __init__(
        self,
        message: str | None = None,
        *,
        usage: Usage | None = None,
        outcome: Outcome = Outcome.NONE,
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(message, retry_after_ms=retry_after_ms)
        self._what = self.message
        self.charged_as(outcome, usage)

    def charged_as(self, outcome: Outcome, usage: Usage | None) -> None:
        self.outcome = outcome
        self.usage = usage
        self.message = f"{self._what} {SENTENCES[outcome]}"
        self.args = (self.message,)

    @property
    def reached(self) -> bool:
        """The model may have worked on the call, so that something is charged for it."""
        return self.outcome != Outcome.NONE


class ModelDeclined(ModelFailed):
    """The model's server does not take a request that was passed on as its client wrote it. Sent again, it would be
    declined again.
    """

    status: int = HTTPStatus.BAD_REQUEST
    code = "model_declined"
    message = "The model does not take this request: one of its fields is not known there, or is not as it should be."

    def __init__(self, message: str | None = None, *, status: int | None = None, param: str | None = None) -> None:
        if param is not None:
            message = f"The model does not take this request: {param} is not known there, or is not as it should be."
        super().__init__(message)
        if status is not None:
            self.status = status
        if param is not None:
            self.extra["param"] = param


class ModelDeclinedTooLong(ModelDeclined):
    """By the name that OpenAI has for it: frameworks shorten what they send where they read it."""

    code = "context_length_exceeded"
    message = (
        "This request and the answer that it asks for are longer than the model can read. Send less, or ask for a "
        "shorter answer."
    )


class ModelTooLong(ModelFailed):
    """What was said before and the message together do not fit into the model's context."""

    status: int = HTTPStatus.BAD_REQUEST
    code = "prompt_too_long"
    message = (
        "This message and what was said before it are longer than the model can read. Send a shorter text, or begin a "
        "new conversation."
    )


class ModelStopped(ModelFailed):
    """This process ends, or the money is no longer held: what came until then is paid."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "unavailable"
    message = "The answer had to be stopped in the middle, on our side. Ask again."
    retry_after_ms = 2_000


class ModelMisconfigured(ModelFailed):
    """The provider refuses our key, our account, our address or the model's name. Log it as an error."""

    code = "model_misconfigured"
    message = "The language model is not set up correctly here; the operator must mend it."


class ModelBusy(ModelFailed):
    """The provider has too much to do. Another call may succeed later; this one was not begun."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    code = "model_busy"
    message = "The language model is busy just now; try again in a moment."
    retry_after_ms = 2_000
