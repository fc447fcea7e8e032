"""What a model reports of its use, by whatever names and in however many pieces. Pure.

Owns which figures are believed and how reports are merged. Must not know what was held or what it costs.
"""

from __future__ import annotations

from typing import Any

from billing.prices import Usage

# No answer and no context is as long as this: a figure above it is a fault, not a bill.
MOST_TOKENS = 100_000_000

# In lower case and without underscores, for some servers write them in camel case.
_NAMES = {
    "prompttokens": "input",
    "inputtokens": "input",
    "prompttokencount": "input",
    "inputtokencount": "input",
    "completiontokens": "output",
    "outputtokens": "output",
    "generatedtokens": "output",
    "completiontokencount": "output",
    "outputtokencount": "output",
    "candidatestokencount": "output",
    "totaltokens": "total",
    "totaltokencount": "total",
    "reasoningtokens": "reasoning",
    "thinkingtokens": "reasoning",
    "thoughtstokencount": "reasoning",
    "cachedtokens": "cached",
    "promptcachehittokens": "cached",
    "cachereadinputtokens": "cached",
    "cachedcontenttokencount": "cached",
}
# Parts of the figures above, which `prompt_tokens_details` and its like hold.
_DETAILS = ("cached", "reasoning")
# No prompt is empty, so a zero there is a server that does not count.
_LEAST = {"input": 1, "total": 1}


class Reports:
    """All reports of one answer, merged field by field: the largest figure wins.

    Some servers report the input first and the output last with a zero for the other, some report as they go, and
    some send zeros after a good report.
    """

    __slots__ = ("_most",)

    def __init__(self) -> None:
        self._most: dict[str, int] = {}

    def take(self, usage: dict[Any, Any]) -> bool:
        """Whether it says anything of the output, so that it covers what was written until now."""
        usage = _with_whole_sides(usage)
        speaks = self._merge(usage, only=())
        for part in usage.values():
            if type(part) is dict:
                self._merge(part, only=_DETAILS)
        return speaks

    def _merge(self, usage: dict[Any, Any], *, only: tuple[str, ...]) -> bool:
        speaks = False
        for name, value in usage.items():
            field = _NAMES.get(str(name).lower().replace("_", ""))
            if field is None or (only and field not in only) or not _is_count(value, _LEAST.get(field, 0)):
                continue
            self._most[field] = max(value, self._most.get(field, 0))
            speaks = speaks or (field in ("output", "total") and value > 0)
        return speaks

    @property
    def tokens_input(self) -> int | None:
        tokens, total, output = (self._most.get(name) for name in ("input", "total", "output"))
        # A zero beside a total is a server that does not count the sides.
        if tokens is None and total and output and total > output:
            return total - output
        return tokens

    @property
    def tokens_output(self) -> int | None:
        """The largest that the figures allow: thoughts may stand in the total alone, or beside the output."""
        tokens, total, output = (self._most.get(name) for name in ("input", "total", "output"))
        found = [] if output is None else [output]
        if total is not None and tokens is not None and total >= tokens:
            found.append(total - tokens)
        # A part cannot be larger than the whole: this server counts thoughts beside the output.
        if output is not None and self._most.get("reasoning", 0) > output:
            found.append(output + self._most["reasoning"])
        return max(found, default=None)

    @property
    def most(self) -> int:
        """Tokens that can have been written by now, as far as it is said."""
        output = self.tokens_output or 0
        return output if self.tokens_input is not None else max(output, self.total or 0)

    @property
    def total(self) -> int | None:
        return self._most.get("total")

    @property
    def cached(self) -> int:
        return self._most.get("cached", 0)

    @property
    def reasoning(self) -> int:
        return self._most.get("reasoning", 0)

    def usage(self) -> Usage | None:
        """None where a side is not known."""
        tokens_input, tokens_output = self.tokens_input, self.tokens_output
        if tokens_input is None or tokens_output is None:
            return None
        return Usage(
            tokens_input=tokens_input,
            tokens_output=tokens_output,
            cached=min(self.cached, tokens_input),
            reasoning=min(self.reasoning, tokens_output),
        )


# Beside these names the input is a whole already, and what was cached is a part of it.
_WHOLES = {"prompttokens", "totaltokens"}
_BESIDE = ("cachereadinputtokens", "cachecreationinputtokens")
_PARTS = ("candidatestokencount", "thoughtstokencount")


def _with_whole_sides(usage: dict[Any, Any]) -> dict[Any, Any]:
    """By Anthropic's names, `input_tokens` leaves out what was read from the cache or written to it: taken for the
    whole, a long prompt that was cached would be charged as a few tokens. By Gemini's, thoughts are beside the output.
    """
    said = {str(name).lower().replace("_", ""): value for name, value in usage.items()}
    beside = [said[name] for name in _BESIDE if _is_count(said.get(name), 0)]
    if beside and not _WHOLES & said.keys() and _is_count(said.get("inputtokens"), 0):
        usage = {**usage, "prompt_tokens": said["inputtokens"] + sum(beside)}
    parts = [said.get(name) for name in _PARTS]
    if all(_is_count(part, 0) for part in parts):
        usage = {**usage, "completion_tokens": sum(parts)}
    return usage


def _is_count(value: Any, least: int) -> bool:
    # `type`, for True is an int as well.
    return type(value) is int and least <= value <= MOST_TOKENS
