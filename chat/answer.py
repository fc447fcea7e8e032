"""What a model's answer says: shown, billed, finished, reported; and from that what was used. Pure.

Owns the reading of any OpenAI-compatible server, kind or odd. Must not know what was held, what it costs or whose it
is; keeps nothing of an upstream's error, for its words may quote prompts and keys.
"""

from __future__ import annotations

import math
from typing import Any

from billing.outcomes import Outcome
from billing.prices import Usage
from chat.chunks import bytes_of, choices_of, is_error, storable, usages_of, words_of, written_in
from chat.frames import BOM, Frames
from chat.reports import Reports

_CALLS = ("tool_calls", "function_call")  # of tools

# How much is surely more than max_tokens: in pieces, unless they are single letters, or in bytes. A token of English
# has four or five, but a line of dashes may be one.
LEAST_BYTES = 2
MOST_BYTES = 16
# Few tokens are longer, and no whole answer's are.
USUAL_BYTES = 8
SLACK_TOKENS = 64
# No call asks for as many: what ends more of them is a fault, and is not remembered.
MOST_ANSWERS = 1_000

FILTERED = "The model's provider filtered this answer out."
TOOLS = "The model asked for a tool instead of answering, and there is none here."
ALL_THOUGHT = "The model spent all its tokens on thinking, so none was left for an answer. Allow a longer one."
ONLY_THOUGHT = "The model thought, but gave no answer."
EMPTY = "The model ended its answer without a word."


class Answer:
    """One answer as it arrives: bytes in; words, counts and the end out.

    Whatever a delta is called, it counts as billed when it is not empty. With `max_tokens`, reading ends where the
    model is surely past it: what it says or reports after that is not taken, and the caller cuts it (`is_over`).
    """

    __slots__ = (
        "_answers",
        "_beginning",
        "_deltas_reported",
        "_ends_by_report",
        "_grown_at",
        "_half",
        "_html",
        "_is_hidden",
        "_is_tool",
        "_max_tokens",
        "_message_came",
        "_number",
        "_reports",
        "_spoke",
        "_words",
        "billed_bytes",
        "came",
        "deltas",
        "error",
        "finish_reason",
        "frames",
        "good",
        "head",
        "is_done",
        "reasons",
        "rests",
    )

    def __init__(self, *, content_type: str = "", max_tokens: int | None = None, answers: int = 1) -> None:
        self.deltas = 0
        self.billed_bytes = 0
        self.finish_reason: str | None = None  # of the first answer, where several were asked for
        self.reasons: dict[int, str] = {}  # of each, by its index
        self.head: dict[str, Any] | None = None  # what each chunk says of the answer: the first one's
        # Of the frames that were fed last, so many came before an error, or before what is past `max_tokens`. None: all
        self.good: int | None = None
        self.came = 0  # frames, with what was fed last
        # Of those, by their number, what is new in a message of the first answer that repeats what came before.
        self.rests: dict[int, dict[str, Any]] = {}
        self._number = 0
        self.error = False  # an error object came
        self.is_done = False  # nothing more is to be read
        self._html = "html" in content_type.lower()
        self._beginning = b""  # of what is called a web page
        self._max_tokens = max_tokens
        self._answers = answers
        self.frames = Frames()
        self._reports = Reports()
        self._deltas_reported = 0  # as many had come by the last report
        self._grown_at = 0  # bytes that had, when a report last counted more than those before
        self._ends_by_report = False
        self._words: list[str] = []
        self._half = ""  # of a letter
        self._spoke = False  # some frame was one of the protocol
        self._message_came = False
        self._is_hidden = False  # some delta had more than what was shown of it
        self._is_tool = False

    # Reading

    def feed(self, data: bytes) -> str:
        """What a reader is shown of these bytes; often nothing."""
        self._note_beginning(data)
        shown = self._take_all(self.frames.feed(data))
        self._end(self.frames.is_done)
        return shown

    def close(self) -> str:
        """The connection has ended. The words of a frame that was not, or of a whole JSON body."""
        shown = self._take_all(self.frames.close())
        if self.frames.is_bare and not self._spoke and not self.is_done:
            self.error = True  # a refusal, sent as a success
        if not self._spoke:
            self._beginning = b"<"  # whatever else was called a page: it is no answer
        self._end(self.frames.is_done or (self.frames.is_bare and self._message_came))
        return shown

    def _note_beginning(self, data: bytes) -> None:
        if self._html and not self._beginning:
            self._beginning = data.removeprefix(BOM).lstrip()[:1]

    def _end(self, is_done: bool) -> None:
        if self.is_over:
            self.finish_reason = self.finish_reason or "length"
            is_done = True
        self.is_done = is_done

    def _take_all(self, frames: list[Any]) -> str:
        shown, is_over, self.good, self.came = "", self.is_over, None, len(frames)
        if self.rests:
            self.rests = {}
        for number, frame in enumerate(frames):
            self._number = number
            if is_over:
                self.good = number if self.good is None else self.good
                break
            for item in frame if type(frame) is list else (frame,):
                if type(item) is dict and not is_over:
                    shown += self._take(item)
                    is_over = self.is_over
            if self.error and self.good is None:
                self.good = number
        return shown

    def _take(self, frame: dict[str, Any]) -> str:
        before, shown = self.deltas, ""
        choices = choices_of(frame)
        if choices and self.head is None:
            self.head = {name: frame.get(name) for name in ("id", "created", "model")}
        for place, choice in enumerate(choices):
            self._spoke = True
            shown += self._take_choice(choice, place)
        if is_error(frame):
            self.error = True
        elif not choices and frame.get("delta"):
            # An event of another protocol. It is billed all the same.
            self._spoke = True
            self._count({"delta": frame["delta"]}, shown="")
        for usage in usages_of(frame, choices):
            self._spoke = True
            most = self._reports.most
            if self._reports.take(usage):
                self._deltas_reported = self.deltas
                if self._reports.most > most:
                    self._grown_at = self.billed_bytes
                # Beside words it is a running report, and before them it is one of the input.
                self._ends_by_report = self.deltas == before and (self.has_begun or not choices)
        return shown

    def _take_choice(self, choice: dict[str, Any], place: int) -> str:
        index = choice.get("index")
        index = index if type(index) is int else place
        is_first = index == 0
        if choice.get("error"):
            self.error = True
        shown = ""
        for name in ("delta", "message", "text"):
            said = choice.get(name)
            if said:
                before = self.deltas
                shown = self._take_said(said, is_first=is_first, is_message=name == "message")
                if self.deltas > before:
                    break
        reason = choice.get("finish_reason")
        if reason:
            self._take_reason(reason, index)
        return shown

    def _take_said(self, said: Any, *, is_first: bool, is_message: bool) -> str:
        if type(said) is not dict:
            said = {"content": said}
        text = words_of(said.get("content"))
        if "refusal" in said:
            text += words_of(said["refusal"])
        if is_message and is_first:
            so_far = self.text
            self._words = [so_far]  # put together once, and not again for each of thousands of messages
            # Some servers repeat the whole answer at its end, or at each step: its thoughts and calls of tools, too.
            if text.startswith(so_far) and (so_far or (self._is_tool and not self._message_came)):
                text = text[len(so_far) :]
                calls = {} if self._is_tool else {name: said[name] for name in _CALLS if said.get(name)}
                said = self.rests[self._number] = {"content": text, **calls}
            self._message_came = True
        if not is_first:
            text = ""
        self._count(said, shown=text)
        if self._half or not text.isascii():
            text = self._whole_letters(text)
        text = storable(text)
        if text:
            self._words.append(text)
        return text

    def _whole_letters(self, text: str) -> str:
        """The first half of a surrogate pair waits for its second: servers that send letter by letter split it."""
        text, self._half = self._half + text, ""
        if "\ud800" <= text[-1:] <= "\udbff":
            text, self._half = text[:-1], text[-1]
        return text

    def _count(self, said: dict[str, Any], *, shown: str) -> None:
        size = bytes_of(shown)
        if len(said) > 1 or said.get("content") != shown:
            every = written_in(said)
            if every > size:
                size, self._is_hidden = every, True
                self._is_tool = self._is_tool or any(said.get(name) for name in _CALLS)
        if size:
            self.deltas += 1
            self.billed_bytes += size

    def _take_reason(self, reason: Any, index: int) -> None:
        if type(reason) is not str or not reason.isprintable() or reason.lower() in ("null", "none"):
            return
        if reason.lower() == "error":
            self.error = True
        else:
            if len(self.reasons) < MOST_ANSWERS:
                self.reasons[index] = reason[:40]
            if index == 0:
                self.finish_reason = reason[:40]

    # What it comes to

    @property
    def text(self) -> str:
        """All that was shown."""
        return "".join(self._words)

    @property
    def is_of_events(self) -> bool:
        """It can be read as it comes."""
        return True

    @property
    def has_begun(self) -> bool:
        """Any billed output came."""
        return self.deltas > 0

    @property
    def hidden(self) -> bool:
        """Some of it is not shown: thoughts, tools' arguments, other choices."""
        return self._is_hidden or self._reports.reasoning > 0

    @property
    def showed_hidden(self) -> bool:
        """Some of it came that is not shown to its reader; what a report alone tells of has not come."""
        return self._is_hidden

    @property
    def said_all(self) -> bool:
        """Nothing is missing, whether or not the server says that it is done: wait two seconds more, not a minute."""
        return self.says_its_end or self.frames.looks_whole

    @property
    def says_its_end(self) -> bool:
        """So it is by its words, and not by what its bytes look like."""
        if self.finish_reason is not None and len(self.reasons) >= self._answers:
            return True
        return self._ends_by_report and not self.report_is_stale

    @property
    def is_ending(self) -> bool:
        """All is said and not only perhaps: a report before the first word may be of the input alone, also where it
        counts the output as 1. Then words are waited for as long as for any first ones.
        """
        if not self.said_all:
            return False
        return self.has_begun or self.finish_reason is not None or self.frames.looks_whole

    @property
    def is_over(self) -> bool:
        """The model is surely past `max_tokens`, which it was asked to keep to."""
        most = self._max_tokens
        if most is None or self.billed_bytes <= LEAST_BYTES * most:
            return False
        return self.deltas > most or self.billed_bytes > MOST_BYTES * (most + SLACK_TOKENS)

    @property
    def is_broken(self) -> bool:
        """A frame without an end: nothing more of it is read."""
        return self.frames.is_broken

    @property
    def is_page(self) -> bool:
        """A web page and no model: the address is wrong, or a proxy wants a sign-in. Its name alone does not tell, for
        some gateways send everything under it, and an answer may begin with a comment, or come piece by piece.
        """
        return self._html and not self._spoke and self._beginning.startswith(b"<")

    @property
    def report_is_stale(self) -> bool:
        """Words came after the last report: some servers report as they go. Or after the last one that counted them:
        some report in each chunk what that one has, and the largest of those is not the whole.
        """
        return self.deltas > self._deltas_reported or self._is_reported_in_parts

    @property
    def _is_reported_in_parts(self) -> bool:
        return self.billed_bytes > self._grown_at and self.billed_bytes > USUAL_BYTES * self._reports.most

    def report(self) -> Usage | None:
        """What the server says was used. None where it does not say both sides; no output is none where words came."""
        usage = self._reports.usage()
        if usage is not None and usage.tokens_output == 0 and self.deltas:
            return None
        return usage

    def counted(self, tokens_per_byte: float = 0.25) -> int:
        """Tokens of output, counted by us: a delta has at least one."""
        return max(self.deltas, math.ceil(self.billed_bytes * tokens_per_byte))

    def estimate(self, *, tokens_input: int, max_output: int, tokens_per_byte: float = 0.25) -> Usage:
        """What was reported of the use, and the rest as we count it."""
        reports, output, cached = self._reports, self.counted(tokens_per_byte), 0
        if reports.tokens_input is not None:
            tokens_input = reports.tokens_input
            cached = min(reports.cached, tokens_input)
        elif reports.total is not None and not self.report_is_stale:
            # The sum is known, its parts are not: what we do not think to be input is output.
            tokens_input = min(tokens_input, max(reports.total - self.deltas, 0))
            output = reports.total - tokens_input
        output = min(max(output, reports.tokens_output or 0), max_output)
        return Usage(tokens_input, output, cached=cached, reasoning=min(reports.reasoning, output))

    def stand_in(self) -> str:
        """A sentence to show where an answer ended without words; none where it has words. Never the model's own."""
        if self.text.strip():
            return ""
        if self.finish_reason in ("content_filter", "safety", "SAFETY", "refusal"):
            return FILTERED
        if self._is_tool or self.finish_reason in ("tool_calls", "function_call"):
            return TOOLS
        if self.hidden:
            return ALL_THOUGHT if self.finish_reason == "length" or self.is_over else ONLY_THOUGHT
        return EMPTY


def used(
    answer: Answer, *, tokens_input: int, max_output: int, tokens_per_byte: float = 0.25, cut: bool = False
) -> tuple[Usage, Outcome]:
    """What an answer has used, and how that is known. `tokens_input` is our estimate, `cut` says that we ended it.

    An estimate is never above `max_output`; a report may be, and what is to be done then is the caller's to know.
    """
    if (answer.error or answer.is_page) and not answer.has_begun:
        return Usage(0, 0), Outcome.NONE
    is_whole = answer.is_done or answer.said_all
    report = answer.report()
    if report is not None and is_whole and not answer.report_is_stale and not answer.is_over:
        return report, Outcome.EXACT
    usage = answer.estimate(tokens_input=tokens_input, max_output=max_output, tokens_per_byte=tokens_per_byte)
    nothing_came = not (answer.has_begun or is_whole or report)
    return usage, Outcome.UNKNOWN if nothing_came and not cut else Outcome.ESTIMATED
