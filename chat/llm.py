"""The only module that reaches a model: one call at a time over HTTP, never sent twice, never waited for without end.

Owns the connection, its clocks, and the sorting of its failures. Must not know budgets or tenants, nor what the bytes
mean (chat.dialect does), and must not log what was said, the key, or the upstream's own words (they quote both).
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from billing.engine import exchange
from billing.engine.call import NotDispatched
from billing.engine.exchange import Broken, NotSent
from billing.engine.http import Http
from billing.engine.loop import here
from billing.outcomes import Outcome
from chat.answer import Answer
from chat.dialect import MAY_BE_TOO_LONG, Dialect, Sent, failure_of_passed_on, failure_of_status, says_too_long
from chat.errors import Fault, ModelFailed, ModelMisconfigured, ModelTooLong
from chat.frames import FRAME_BYTES, LINE_BYTES
from chat.history import Message
from chat.whole import Whole

logger = logging.getLogger(__name__)

# A model that is up accepts at once.
CONNECT_SECONDS = 2.0
CONNECT_AGAIN_SECONDS = 0.1
# For a whole answer, whatever comes meanwhile. One that trickles for ever would hold its money for ever.
CALL_SECONDS = 600.0
# After everything has been said: some servers keep the connection open and never say [DONE].
LAST_FRAME_SECONDS = 2.0
# Many servers close an idle connection after 5 s. A call that is written to a closing one may or may not be worked on.
KEEP_ALIVE_SECONDS = 3.0
# What is asked for in one piece comes after as long a silence as all of it takes to write, at ten tokens a second.
SECONDS_A_TOKEN = 0.1
END_SECONDS = 0.2
COUNT_SECONDS = 1.0
# Of a refusal, to see why.
REFUSAL_BYTES = 4_096
# Of what says nothing: no frame of a chat is half as long. Comments and empty frames as fast as they come would keep
# the loop from everybody else's answers until the clock of silence runs out.
NOISE_BYTES = 2 * FRAME_BYTES
# Beside its bytes, each line costs; and what comes with one delta is forgiven up to here: a megabyte of empty choices
# around each letter would keep a processor for the whole call.
FORGIVEN_BYTES = 256 * 1024
# At once. One read can bring sixteen megabytes, and all others would wait until each line of it is looked at.
READ_BYTES = 32 * 1024
# Of a server's own count: some list the tokens, each of a few bytes.
COUNT_BYTES = 4 * 1024 * 1024
# What a server's own count leaves out: the opening of the answer, and what its template adds beside the messages.
COUNT_SPARE = 16

UNREACHABLE = "The language model cannot be reached just now."
BROKEN = "The language model did not finish its answer."
SILENT = "The language model did not answer in time."


class Pays(Protocol):
    """What pays for the call: money that is held, with a row that says so."""

    @property
    def pays(self) -> bool: ...


class ModelStream:
    """One answer as it is written: `read` until it gives None. `cut` ends it, whatever it waits for.

    `whose` it is: its connection is nobody else's. What came is in `answer`. Raises ModelFailed where it breaks off by
    itself, with the class of what that costs.
    """

    def __init__(self, sent: Sent, *, model: str, dialect: Dialect, paid_by: Pays, whose: str = "") -> None:
        self.answer = Answer()
        self.model = model
        self._data = b""  # what the last read brought
        self._came, self._came_at = b"", 0  # and what more had come with it, from there on
        self.is_closed = False  # `answer` has been told that nothing more comes
        self._sent = sent
        self._paid_by = paid_by
        self._whose = whose
        self.is_cut = False
        self.was_sent = False  # the request: until then nobody works on it, and nobody bills it
        self._dialect = dialect
        self._response: exchange.Answer | None = None
        self._clock: asyncio.Timeout | None = None  # while it is opened
        self._failure: ModelFailed | None = None  # to be raised after the words that came with it
        loop = asyncio.get_running_loop()
        self._ends_at = loop.time() + CALL_SECONDS
        self._heard_at = loop.time()
        self._progress: tuple[int, bool, bool] = (0, False, False)
        self._noise = 0  # bytes since the last progress

    async def open(self) -> None:
        """Send the request; back when the model's server has accepted it."""
        if not self._paid_by.pays:
            raise NotDispatched("A model is called only under a hold that is written, and not settled yet.")
        accept = "application/json" if self._sent.in_one_piece else "text/event-stream"
        headers = {"Content-Type": "application/json", "Accept": accept, "Accept-Encoding": "identity"}
        if self._dialect.api_key:
            headers["Authorization"] = f"Bearer {self._dialect.api_key}"
        try:
            async with asyncio.timeout_at(self._until()) as self._clock:
                self._response = await self._posted(headers)
        except NotSent as exc:
            raise self._failed(UNREACHABLE, Outcome.NONE, exc, Fault.UNREACHABLE) from None
        except TimeoutError as exc:
            if self.is_cut:
                return
            raise self._failed(SILENT, Outcome.UNKNOWN, exc, Fault.FAILED) from None
        except Broken as exc:
            raise self._failed(BROKEN, Outcome.UNKNOWN, exc, Fault.FAILED) from None
        finally:
            self._clock = None
        # Some gateways answer every POST with 201.
        if not 200 <= self._response.status < 300:
            raise await self._refused(self._response)
        content_type = self._response.headers.get("content-type", "")
        made = Whole if self._sent.in_one_piece else Answer
        self.answer = made(content_type=content_type, max_tokens=self._sent.most, answers=self._sent.answers)

    def taken(self) -> bytes:
        """The bytes of the last read, once."""
        data, self._data = self._data, b""
        return data

    async def _posted(self, headers: dict[str, str]) -> exchange.Answer:
        """Sent once. Where nobody was reached it is tried a second time, for nothing was sent. Not where the time for
        connecting ran out: the money stays held meanwhile, and a group's next model waits.
        """
        http, base = _http(self._dialect.base_url), self._dialect.base_url
        for pause in (CONNECT_AGAIN_SECONDS, None):
            try:
                # A redirect is not followed: it would hand key and prompt to an address that nobody has configured.
                return await http.ask(
                    "POST",
                    base,
                    f"/{self._sent.path}",
                    headers,
                    self._sent.body,
                    sent=self._note_sent,
                    whose=self._whose,
                )
            except NotSent as exc:
                if pause is None or isinstance(exc.__cause__, TimeoutError):
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("the second try returns or raises")

    def _note_sent(self) -> None:
        self.was_sent = True

    async def read(self) -> str | None:
        """The next words, "" where what came has none; None at the end."""
        if self._failure is not None and not self.is_cut:
            raise self._failure
        if self.is_cut or self.answer.is_done or self.is_closed or self._response is None:
            return None
        try:
            data = await self._some_of(self._response)
        except TimeoutError as exc:
            if self.is_cut or self.answer.said_all:
                return self._closed()
            raise self._failed(SILENT, self._class_of_a_break(), exc, Fault.FAILED) from None
        except Broken as exc:
            if self.is_cut or self.answer.said_all:
                return self._closed()
            raise self._failed(BROKEN, self._class_of_a_break(), exc, Fault.FAILED) from None
        if not data:
            return self._closed()
        self._data = data
        words = self.answer.feed(data)
        self._note_progress(len(data) + LINE_BYTES * data.count(b"\n"))
        if self._is_noise and self.answer.says_its_end:
            return None
        self._failure = self._break_in(data, words)
        if self._failure is not None and not words:
            raise self._failure
        return words

    async def _some_of(self, response: exchange.Answer) -> bytes:
        if not self._came:
            self._came, self._came_at = await response.read_some(self._until()), 0
        else:
            await asyncio.sleep(0)  # others' turn
        data = self._came[self._came_at : self._came_at + READ_BYTES]
        self._came_at += len(data)
        if self._came_at >= len(self._came):
            self._came = b""
        return data

    def _closed(self) -> str | None:
        """The words of what had not come to its end, once nothing more comes; None where there are none."""
        if self.is_cut:
            return None
        self.is_closed = True
        words = self.answer.close()
        # Also where it ended with words: the next read tells it.
        self._failure = self._break_in(b"", "")
        if self._failure is not None and not words:
            raise self._failure
        return words or None

    def _break_in(self, data: bytes, words: str) -> ModelFailed | None:
        """What is wrong with what came; the words before it are the reader's all the same."""
        if self.answer.error or self.answer.is_page:
            outcome = Outcome.ESTIMATED if self.answer.has_begun else Outcome.NONE
            return self._failed(BROKEN, outcome, "an error in a success")
        if self.answer.is_broken:
            return self._failed(BROKEN, self._class_of_a_break(), "a frame without an end")
        if self._is_noise:
            return self._failed(BROKEN, self._class_of_a_break(), "much that says nothing")
        if not data and not words and not (self.answer.is_done or self.answer.said_all):
            return self._failed(BROKEN, self._class_of_a_break(), "ended in the middle")
        return None

    @property
    def _is_noise(self) -> bool:
        return self._noise > NOISE_BYTES

    def _note_progress(self, size: int) -> None:
        """Comments and empty frames are no progress: with them alone a call would go on for ever."""
        if self._sent.in_one_piece:
            # Every byte is one: nothing else can be said of it before its end, unless it comes in events after all.
            self._heard_at = asyncio.get_running_loop().time()
            if not self.answer.is_of_events:
                return
        self._noise += size
        progress = (self.answer.deltas, self.answer.said_all, self.answer.is_done)
        if progress != self._progress:
            # A flood of small bodies looks whole and not by turns, as each read happens to end.
            self._noise = max(0, self._noise - FORGIVEN_BYTES * (self.answer.deltas - self._progress[0]))
            self._progress, self._heard_at = progress, asyncio.get_running_loop().time()

    def _until(self) -> float:
        """When the next clock runs out: the whole call's, the first words', the silence between, or the end's."""
        if self.answer.is_ending:
            quiet = LAST_FRAME_SECONDS
        elif self.answer.has_begun:
            quiet = self._dialect.idle_seconds
        else:
            quiet = self._dialect.first_byte_seconds
            if self._sent.in_one_piece:
                quiet += (self._sent.most or 0) * SECONDS_A_TOKEN
        return min(self._ends_at, self._heard_at + quiet)

    def _class_of_a_break(self) -> Outcome:
        return Outcome.ESTIMATED if self.answer.has_begun else Outcome.UNKNOWN

    def go_on(self) -> None:
        """It was not read for a while, which was not the model's silence."""
        self._heard_at = asyncio.get_running_loop().time()

    def cut(self) -> None:
        """Stop the upstream now, also while it is waited for. Reading then comes to its end."""
        self.is_cut = True
        if self._clock is not None:
            self._clock.reschedule(asyncio.get_running_loop().time())
        elif self._response is not None:
            self._response.wait_no_longer()

    def close(self) -> None:
        """Give the connection back, or close it where the answer was not read to its end."""
        if self._response is None:
            return
        if not self.answer.is_done or self.answer.is_over or self.is_cut:
            self._response.close()
        elif self._response.is_read:
            self._response.release()
        else:
            here().spawn(_give_back(self._response))

    async def _refused(self, response: exchange.Answer) -> ModelFailed:
        error: ModelFailed | None = None
        said = await _beginning_of(response) if response.status in MAY_BE_TOO_LONG else b""
        if self._sent.is_passed_on:
            error = failure_of_passed_on(response.status, self._sent.path, said=said, asked=self._sent.body)
        elif response.status in MAY_BE_TOO_LONG and says_too_long(said):
            error = ModelTooLong()
        error = error or failure_of_status(response.status, response.headers)
        level = logging.ERROR if isinstance(error, ModelMisconfigured) else logging.WARNING
        logger.log(level, "model call refused: model=%s status=%d", self.model, response.status)
        response.close()
        # 429 is no outage: what one asks for may be too much where another's is not.
        error.fault = Fault.FAILED if response.status >= 500 else Fault.NONE
        return error

    def _failed(self, message: str, outcome: Outcome, why: Exception | str, fault: Fault = Fault.NONE) -> ModelFailed:
        # Words of our own, and names of exceptions.
        what = str(why) if isinstance(why, str | NotSent | Broken) else type(why).__name__
        logger.warning("model call failed: model=%s outcome=%s failure=%s", self.model, outcome, what)
        failure = ModelFailed(message, outcome=outcome)
        # Once words came, the upstream is there, whatever became of this answer.
        failure.fault = Fault.NONE if self.answer.has_begun else fault
        return failure


async def _beginning_of(response: exchange.Answer) -> bytes:
    """Of a refusal, what comes at once."""
    try:
        async with asyncio.timeout(END_SECONDS):
            return (await response.read_some())[:REFUSAL_BYTES]
    except (Broken, TimeoutError):
        return b""


async def _give_back(response: exchange.Answer) -> None:
    """After the last frame comes the end of the body, a little later: with it the connection can be used again."""
    try:
        async with asyncio.timeout(END_SECONDS):
            rest = await response.read_some()
    except (Broken, TimeoutError):
        rest = b"?"
    if rest:
        response.close()
    else:
        response.release()


async def count_tokens(messages: Sequence[Message], *, model: str, dialect: Dialect, whose: str = "") -> int | None:
    """Tokens of these messages as the model's own server counts them; None where it does not say.

    vLLM takes the messages; llama.cpp takes a text, which it makes of the messages when asked.
    """
    root = dialect.base_url.removesuffix("/v1")
    async with asyncio.timeout(COUNT_SECONDS):
        ask = functools.partial(_ask, dialect=dialect, whose=whose)
        return await _counted_by_messages(ask, root, messages, dialect.model or model) or await _counted_by_text(
            ask, root, messages
        )


_Ask = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _counted_by_messages(ask: _Ask, root: str, messages: Sequence[Message], model: str) -> int | None:
    answer = await ask(f"{root}/tokenize", {"model": model, "messages": list(messages)})
    count = answer.get("count")
    return count + COUNT_SPARE if type(count) is int and count > 0 else None


async def _counted_by_text(ask: _Ask, root: str, messages: Sequence[Message]) -> int | None:
    prompt = (await ask(f"{root}/apply-template", {"messages": list(messages)})).get("prompt")
    if not isinstance(prompt, str):
        return None
    body = {"content": prompt, "add_special": True, "parse_special": True}
    tokens = (await ask(f"{root}/tokenize", body)).get("tokens")
    return len(tokens) + COUNT_SPARE if isinstance(tokens, list) and tokens else None


async def _ask(url: str, body: dict[str, Any], *, dialect: Dialect, whose: str) -> dict[str, Any]:
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    if dialect.api_key:
        headers["Authorization"] = f"Bearer {dialect.api_key}"
    answer = await _http(url).ask("POST", url, "", headers, json.dumps(body).encode(), whose=whose)
    try:
        if answer.status != 200:
            return {}
        found = json.loads(await answer.read(COUNT_BYTES))
        return found if isinstance(found, dict) else {}
    except Broken:
        return {}
    finally:
        if answer.is_read:
            answer.release()
        else:
            answer.close()


COUNT_FAILURES = (NotSent, Broken, ValueError, RecursionError, TimeoutError)


# --- connections ----------------------------------------------------------------------------------------------------


def _http(base_url: str) -> Http:
    """Connections to this machine, and those to the world, of the running engine."""
    near = is_loopback(base_url)
    kept = here().models
    http = kept.get(near)
    if http is None:
        # The environment's proxy is the way out of many data centres, but it cannot know this machine's loopback.
        http = kept[near] = Http(
            keep_seconds=KEEP_ALIVE_SECONDS, connect_seconds=CONNECT_SECONDS, goes_by_proxy=not near
        )
    return http


@functools.lru_cache(maxsize=256)
def is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
