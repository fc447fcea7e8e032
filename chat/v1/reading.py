"""A request of an OpenAI client: what is asked for, and the most that its input can be. Pure but for the words.

Owns which fields are passed on, and the refusal that names one which is not. What could cost more than is held needs
the operator's word for that model (chat.dialect). Must not know who asks, nor a price.

A field is looked at where it decides what is held, or where it is known to cost something beside tokens. What else is
wrong with it is the upstream's to say, and nothing is changed or left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from chat.dialect import Words, words_for
from chat.history import MARKER_BYTES, PART_OVERHEAD, most_bytes
from chat.passed import Kind, Passed
from chat.pricing import members_of
from chat.rendered import calls_bound, json_bound, json_size, schema_bound, tools_bound
from tenants.http import Invalid

MOST_ANSWERS = 128
MOST_ANSWERS_IN_ALL = 2_048
MOST_STOPS = 16
# What a model writes of a stop text is never shown, or late. Longer ones than usual can be a whole answer.
USUAL_STOP = 32
MOST_LOGPROBS = 20
LONGEST_NAME = 200
# A part of a message is set off by PART_OVERHEAD, or is one more object: {"type": "refusal", "refusal": …}.
WRITTEN_PART_OVERHEAD = 40
# What others say, such as tools, templates write as JSON; and so what stands beside the calls of one.
_SPEAKERS = ("system", "developer", "user", "assistant")
# Bytes of a token, where the client sent numbers and no text.
TOKEN_BYTES = 4


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_WRITING = _names(
    "model n stop stream stream_options temperature top_p presence_penalty frequency_penalty logit_bias logprobs seed"
    " max_tokens user safety_identifier metadata store prompt_cache_key"
    # How open servers sample.
    " top_k top_a min_p typical_p repetition_penalty repeat_penalty"
)
_FIELDS = {
    Kind.CHAT: _WRITING
    | _names(
        "messages tools tool_choice parallel_tool_calls functions function_call response_format top_logprobs"
        " max_completion_tokens reasoning_effort verbosity"
    ),
    Kind.COMPLETIONS: _WRITING | {"prompt", "suffix", "echo"},
    Kind.EMBEDDINGS: frozenset(("model", "input", "dimensions", "encoding_format", "user")),
}
# They have a price of their own, or are billed beside the limit. Null is as if they were not sent.
_COSTLY = _names("best_of service_tier web_search_options prediction modalities audio reasoning thinking plugins")
_OF_A_MESSAGE = _names(
    "role content name tool_calls tool_call_id function_call refusal reasoning_content reasoning annotations"
)
# Text beside `content`, which some templates show to the model.
_TEXTS = ("name", "tool_call_id", "refusal", "reasoning_content", "reasoning")
_OF_A_PART = {"text": frozenset(("type", "text")), "refusal": frozenset(("type", "refusal"))}
_OF_AN_IMAGE = frozenset(("type", "image_url"))
_OF_ITS_URL = frozenset(("url", "detail"))
# Some servers take a whole document or film here, or read a file of their own: `image_tokens` is not said of these.
_IMAGES = ("https://", "http://", "data:image/")
# Run by whoever asks, so that they cost what is said of them and nothing else.
_CLIENTS_TOOLS = ("function", "custom")
# They have no price here, so that the field which holds them is named.
_UNPRICED_PARTS = ("input_audio", "file", "video_url", "audio_url")

_NEEDS_WORD = "What it can cost is not known for this model. Leave it out, or ask this site's operator to allow it."


def read(kind: Kind, body: dict[str, Any]) -> Passed:
    """Raises Invalid, with the field as its client wrote it: `messages[0].content`. `body`: by tenants.bodies."""
    model = body.get("model")
    if not isinstance(model, str) or not 1 <= len(model) <= LONGEST_NAME:
        _refuse("model", "Name the model to ask; /v1/models lists them.")
    words = words_for(*members_of(model))
    found = _Input(words)
    found.check_fields(body, _FIELDS[kind], "")
    # What passes by a word, such as an instruction.
    beside = found.bound, found.size
    if kind == Kind.EMBEDDINGS:
        found.repeat_for(found.add_texts("input", body.get("input"), is_needed=True), beside)
        return found.passed(kind, body, model)
    n = max(_whole(body, "n", most=MOST_ANSWERS) or 1, _whole(body, "best_of", most=MOST_ANSWERS) or 1)
    is_stream = _flag(body, "stream")
    if is_stream and n > (body.get("n") or 1):
        _refuse("best_of", "It cannot be streamed: which answer is the best is known at the end.")
    _check_form(kind, body)
    if kind == Kind.CHAT:
        found.add_chat(body)
    else:
        found.add_text("suffix", body.get("suffix"))
        beside = found.bound, found.size
        prompts = found.add_texts("prompt", body.get("prompt"))
        found.repeat_for(prompts, beside)
        if prompts * n > MOST_ANSWERS_IN_ALL:
            _refuse("prompt", f"Ask for at most {MOST_ANSWERS_IN_ALL} answers at a time.")
        # Each answer repeats its own prompt.
        echoed = found.bound * n if _flag(body, "echo") else 0
        return found.passed(
            kind, body, model, is_stream=is_stream, max_tokens=_limit(body), n=n * prompts, echoed=echoed
        )
    return found.passed(kind, body, model, is_stream=is_stream, max_tokens=_limit(body), n=n)


class _Input:
    """The input of a request as it is counted, in tokens at most and in bytes."""

    __slots__ = ("_words", "bound", "fixed", "hides", "messages", "size")

    def __init__(self, words: Words) -> None:
        self._words = words
        self.bound = self.size = self.messages = self.fixed = 0
        self.hides = False

    def passed(self, kind: Kind, body: dict[str, Any], model: str, **asked: Any) -> Passed:
        options = body.get("stream_options")
        return Passed(
            kind=kind,
            body=body,
            model=model,
            bound=self.bound + self.fixed,
            size=self.size,
            messages=self.messages,
            fixed=self.fixed,
            hides=kind != Kind.EMBEDDINGS and (self.hides or _hides(body)),
            wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
            **{"is_stream": False, "max_tokens": None, **asked},
        )

    def check_fields(self, given: dict[str, Any], known: frozenset[str], at: str) -> None:
        """Raises Invalid for fields that need a word and have none. Those that have one may be shown to the model."""
        if given.keys() <= known:
            return
        others = [name for name in given if name not in known and not (name in _COSTLY and given[name] is None)]
        refused = [name for name in others if name not in self._words.extra_fields]
        if refused:
            raise Invalid({f"{at}{name}": [_NEEDS_WORD] for name in refused})
        self.hides = self.hides or bool(others)
        for name in others:
            self._add_json(given[name], json_bound)

    def repeat_for(self, texts: int, beside: tuple[int, int]) -> None:
        """What stands beside several texts is read, and billed, with each of them. `beside`: its bound and its size."""
        bound, size = beside
        self.bound += (texts - 1) * bound
        self.size += (texts - 1) * size

    # --- a chat ---

    def add_chat(self, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            _refuse("messages", "Send a list of at least one message.")
        for place, message in enumerate(messages):
            self._add_message(message, place)
        self._add_tools(body)
        for name in ("tool_choice", "function_call"):
            if (value := body.get(name)) is not None:
                self._add_json(value, json_bound)
        if (form := body.get("response_format")) is not None:
            if not isinstance(form, dict):
                _refuse("response_format", "Send an object.")
            self._add_json(form, schema_bound)

    def _add_message(self, message: Any, place: int) -> None:
        if not isinstance(message, dict):
            _refuse(f"messages[{place}]", "Send an object with a role and content.")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not 1 <= len(role) <= 64:
            _refuse(f"messages[{place}].role", "Say whose words these are, such as user.")
        self.messages += 1
        self.size += MARKER_BYTES
        self._add(role)
        is_written = role not in _SPEAKERS or bool(message.get("tool_calls") or message.get("function_call"))
        if isinstance(content, str):
            self._add_words(content, is_written)
        elif isinstance(content, list):
            for number, part in enumerate(content):
                self._add_part(part, f"messages[{place}].content[{number}]", is_written)
        elif content is not None:
            _refuse(f"messages[{place}].content", "Send text, a list of parts, or null.")
        if len(message) > 2 or "content" not in message:
            self._add_rest(message, f"messages[{place}].")

    def _add_rest(self, message: dict[str, Any], at: str) -> None:
        self.check_fields(message, _OF_A_MESSAGE, at)
        for name in _TEXTS:
            self.add_text(f"{at}{name}", message.get(name))
        if (calls := message.get("tool_calls")) is not None:
            if not isinstance(calls, list):
                _refuse(f"{at}tool_calls", "Send a list.")
            self._add_json(calls, calls_bound)
        if (call := message.get("function_call")) is not None:
            self._add_json([call], calls_bound)
        if (notes := message.get("annotations")) is not None:
            self._add_json(notes, json_bound)

    def _add_part(self, part: Any, at: str, is_written: bool) -> None:
        if not isinstance(part, dict):
            _refuse(at, "Send an object with a type.")
        self.bound += WRITTEN_PART_OVERHEAD if is_written else PART_OVERHEAD
        kind = part.get("type")
        if kind == "image_url":
            self._add_image(part, at)
        elif isinstance(kind, str) and (known := _OF_A_PART.get(kind)) is not None:
            self.check_fields(part, known, f"{at}.")
            if not isinstance(text := part.get(kind), str):
                _refuse(f"{at}.{kind}", "Send text.")
            self._add_words(text, is_written)
        else:
            _refuse(f"{at}.{kind if kind in _UNPRICED_PARTS else 'type'}", "Send text or images: these have no price.")

    def _add_image(self, part: dict[str, Any], at: str) -> None:
        """Wherever it is, and however many bytes it has: its tokens are not text."""
        self.check_fields(part, _OF_AN_IMAGE, f"{at}.")
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str):
            _refuse(f"{at}.image_url", 'Send {"url": "…"}.')
        if isinstance(image, dict):
            self.check_fields(image, _OF_ITS_URL, f"{at}.image_url.")
        if not url[: len("data:image/")].lower().startswith(_IMAGES):
            _refuse(f"{at}.image_url", "Send an image: an address with https://, or its bytes as data:image/….")
        if (tokens := self._words.image_tokens) is None:
            _refuse(f"{at}.image_url", "Images have no price for this model. Ask this site's operator to set one.")
        self.fixed += tokens

    def _add_tools(self, body: dict[str, Any]) -> None:
        for name in ("tools", "functions"):
            tools = body.get(name)
            if tools is None:
                continue
            if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
                _refuse(name, "Send a list of objects.")
            if tools:
                self._add_json(tools, tools_bound)
        for place, tool in enumerate(body.get("tools") or ()):
            self._check_tool(tool, f"tools[{place}].")

    def _check_tool(self, tool: dict[str, Any], at: str) -> None:
        kind = tool.get("type")
        if kind in _CLIENTS_TOOLS:
            # What it says of a function is shown to the model, whatever it is; what stands beside may have a price.
            self.check_fields(tool, frozenset(("type", kind)), at)
        elif not isinstance(kind, str) or kind not in self._words.hosted_tools:
            _refuse(f"{at}type", f"Send tools of type function or custom. {_NEEDS_WORD}")
        else:
            self.hides = True

    # --- texts ---

    def add_texts(self, name: str, given: Any, *, is_needed: bool = False) -> int:
        """A text, a list of texts, tokens, or a list of lists of tokens. How many they are."""
        if given is None and not is_needed:
            given = ""
        texts = [given] if isinstance(given, str) or _is_tokens(given) else given
        if not isinstance(texts, list) or not texts:
            _refuse(name, "Send text, a list of texts, or tokens.")
        for place, text in enumerate(texts):
            if isinstance(text, str):
                self._add(text)
            elif _is_tokens(text):
                self.bound += len(text)
                self.size += TOKEN_BYTES * len(text)
            else:
                _refuse(f"{name}[{place}]", "Send text, or a list of tokens.")
        self.messages += len(texts)
        self.size += MARKER_BYTES * len(texts)
        return len(texts)

    def add_text(self, name: str, text: Any) -> None:
        if text is None:
            return
        if not isinstance(text, str):
            _refuse(name, "Send text.")
        self._add(text)

    def _add(self, text: str) -> int:
        most = most_bytes(text)
        self.bound += most
        self.size += most if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return most

    def _add_words(self, text: str, is_written: bool) -> None:
        """`is_written`: perhaps as JSON, in which a control character has six bytes."""
        most = self._add(text)
        if is_written:
            self.bound += json_bound(text) - most

    def _add_json(self, value: Any, bound_of: Callable[[Any], int]) -> None:
        self.bound += bound_of(value)
        self.size += json_size(value)


# --- what decides the hold ------------------------------------------------------------------------------------------


def _limit(body: dict[str, Any]) -> int | None:
    """Tokens of each answer at most."""
    newer, older = _whole(body, "max_completion_tokens"), _whole(body, "max_tokens")
    if newer is not None and older is not None and newer != older:
        _refuse("max_tokens", "Send max_tokens or max_completion_tokens: these two differ.")
    return older if newer is None else newer


def _check_form(kind: Kind, body: dict[str, Any]) -> None:
    """What decides how large the answer is beside its tokens, and how it is sent."""
    if (options := body.get("stream_options")) is not None and not isinstance(options, dict):
        _refuse("stream_options", "Send an object.")
    if (stop := body.get("stop")) is not None:
        stops = stop if isinstance(stop, list) else [stop]
        if len(stops) > MOST_STOPS or not all(isinstance(one, str) for one in stops):
            _refuse("stop", f"Send text, or a list of at most {MOST_STOPS} texts.")
    if kind == Kind.CHAT:
        _flag(body, "logprobs")
        _whole(body, "top_logprobs", least=0, most=MOST_LOGPROBS)
    elif body.get("logprobs") is not False:
        _whole(body, "logprobs", least=0, most=MOST_LOGPROBS)


def _hides(body: dict[str, Any]) -> bool:
    """Whether it may be thought about out of sight, end in a text that is left out, or begin with its prompt."""
    if body.get("echo"):
        return True
    stop = body.get("stop") or ()
    stops = [stop] if isinstance(stop, str) else stop
    return body.get("reasoning_effort") not in (None, "none") or any(len(one) > USUAL_STOP for one in stops)


def _whole(body: dict[str, Any], name: str, *, least: int = 1, most: int | None = None) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    # A flag is an int to Python, and no number to anybody else.
    if type(value) is not int or value < least or (most is not None and value > most):
        _refuse(name, f"Send a whole number {f'of at least {least}' if most is None else f'from {least} to {most}'}.")
    return value


def _flag(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and type(value) is not bool:
        _refuse(name, "Send true or false.")
    return value is True


def _is_tokens(value: Any) -> bool:
    """Numbers of tokens. There may be hundreds of thousands, so that no loop of ours goes over them."""
    return isinstance(value, list) and set(map(type, value)) == {int} and min(value) >= 0


def _refuse(name: str, why: str) -> NoReturn:
    raise Invalid({name: [why]})
