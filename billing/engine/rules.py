"""How much to hold, and what a call that nobody reported probably used. Pure: figures in, figures out.

Owns slices, habits and shares. Must not ask a clock, a database or the authority.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

# Reports that a model must have given before it is trusted with slices. None that is kept may be far above our own
# count: a model that thinks where nobody sees it does so now and then, and answers twenty easy questions in between.
TRUSTED_AFTER = 20
MOST_PERCENT = 120
KEPT_SAMPLES = 64
# Output in a first slice, in tokens.
LEAST_OUTPUT = 64
# Our running count may be a fifth short of the report that comes at the end: keep that, and a little, in hand.
SPARE_FACTOR_PERCENT = 125
SPARE_TOKENS = 2
# A running count of so many tokens is what the least slice is for: up to there it may be as wrong as it likes.
LEAST_COUNTED = (LEAST_OUTPUT - SPARE_TOKENS) * 100 // SPARE_FACTOR_PERCENT
# A template may say the date, or more of a model's own, from one day to the next.
SPARE_OVERHEAD = 16
# Before a model has reported anything. A text has about a token for each four bytes.
USUAL_INPUT_RATIO = 0.27
USUAL_OUTPUT_RATIO = 0.25


@dataclass(frozen=True, slots=True)
class Sample:
    """One exact report. `percent`: the output reported, of the output that we had counted."""

    tokens_input: int
    bytes_input: int
    tokens_output: int
    bytes_output: int
    percent: int

    @property
    def is_fair(self) -> bool:
        """The output reported is about what was seen of it."""
        return self.percent <= MOST_PERCENT

    def as_row(self) -> list[int]:
        return [self.tokens_input, self.bytes_input, self.tokens_output, self.bytes_output, self.percent]


@dataclass(frozen=True, slots=True)
class Habit:
    """What the calls of one model on one route usually need. Ratios are tokens for each byte."""

    input_ratio: float = USUAL_INPUT_RATIO
    output_ratio: float = USUAL_OUTPUT_RATIO
    output: int = LEAST_OUTPUT
    trusted: bool = False
    # About the fewest tokens of input that reports counted: what a template adds to one message is not more than that.
    least_input: int | None = None


class Samples:
    """The newest reports of one route. Their figures are kept in order: every call adds one, and sorting all of them
    for each cost more than all else that is decided here.
    """

    def __init__(self, newest_first: Sequence[Sample] = ()) -> None:
        self._kept: deque[Sample] = deque()
        self._input_ratios: list[float] = []
        self._output_ratios: list[float] = []
        self._inputs: list[int] = []
        self._outputs: list[int] = []
        self._unfair = 0
        for sample in reversed(newest_first):
            self.add(sample)

    def add(self, sample: Sample) -> None:
        """One more, in the place of the oldest where there are enough."""
        if len(self._kept) == KEPT_SAMPLES:
            oldest = self._kept.popleft()
            self._unfair -= not oldest.is_fair
            for figures, figure in self._figures(oldest):
                del figures[bisect_left(figures, figure)]
        self._kept.append(sample)
        for figures, figure in self._figures(sample):
            insort(figures, figure)
        self._unfair += not sample.is_fair

    def _figures(self, sample: Sample) -> list[tuple[list[Any], float]]:
        """What it adds, and where."""
        found: list[tuple[list[Any], float]] = [
            (self._inputs, sample.tokens_input),
            (self._outputs, sample.tokens_output),
        ]
        if sample.bytes_input > 0:
            found.append((self._input_ratios, sample.tokens_input / sample.bytes_input))
        if sample.bytes_output > 0:
            # No text has more tokens than bytes: a report of more is of thoughts that nobody saw, or of nothing.
            found.append((self._output_ratios, min(1.0, sample.tokens_output / sample.bytes_output)))
        return found

    def habit(self) -> Habit:
        return Habit(
            input_ratio=_middle(self._input_ratios, USUAL_INPUT_RATIO),
            output_ratio=_middle(self._output_ratios, USUAL_OUTPUT_RATIO),
            output=_usual_output(self._outputs),
            trusted=len(self._kept) >= TRUSTED_AFTER and not self._unfair,
            least_input=_least(self._inputs),
        )


def _middle(ratios: list[float], usual: float) -> float:
    """The median of what is in order."""
    if not ratios:
        return usual
    half = len(ratios) // 2
    return ratios[half] if len(ratios) % 2 else (ratios[half - 1] + ratios[half]) / 2


def _least(inputs: list[int]) -> int | None:
    """What nine calls of ten are above: one false report must decide nothing."""
    return inputs[len(inputs) // 10] if inputs else None


def _usual_output(outputs: list[int]) -> int:
    """What four calls of five stay below, with the spare that slices keep."""
    if not outputs:
        return LEAST_OUTPUT
    usual = outputs[(len(outputs) - 1) * 4 // 5]
    return max(LEAST_OUTPUT, with_spare(usual))


def percent_of(reported: int, counted: int) -> int:
    """Rounded against trust. The end's own token, which some count and nobody sees, is in the spare already.

    A call of a tool is billed a dozen tokens that its text does not show: where agents call them again and again, their
    model would never be trusted, though each of its answers fits into the least that is held.
    """
    return -(-max(0, reported - SPARE_TOKENS) * 100 // max(counted, LEAST_COUNTED))


def overhead(habit: Habit, messages: int, bound: int) -> int:
    """Tokens that a template adds to these messages at most; `bound` until the model has shown what it adds."""
    if not habit.trusted or habit.least_input is None:
        return bound
    return min(bound, with_spare(habit.least_input) * messages + SPARE_OVERHEAD)


def likely_tokens(bytes_: int, ratio: float) -> int:
    return max(1, round(bytes_ * ratio))


def with_spare(tokens: int) -> int:
    """What must be held for a running count of so many tokens."""
    return -(-tokens * SPARE_FACTOR_PERCENT // 100) + SPARE_TOKENS


def first_output(habit: Habit, max_tokens: int, *, whole: bool) -> int:
    """Tokens of output to hold at first."""
    return max_tokens if whole or not habit.trusted else min(habit.output, max_tokens)


def next_output(held: int, max_tokens: int) -> int:
    """Tokens that the next slice adds: as many as are held, never past `max_tokens`."""
    return max(0, min(held, max_tokens - held))


def wants_more(counted: int, held: int, max_tokens: int) -> bool:
    """Whether the next slice should be asked for: three quarters of what is held are used, and more may come."""
    return held < max_tokens and with_spare(counted) * 4 >= held * 3


def is_full(counted: int, held: int, max_tokens: int) -> bool:
    """Whether the next word may pass what is held. A whole hold is never full: the server keeps to max_tokens."""
    return held < max_tokens and with_spare(counted) >= held


def shares(cost: int, amounts: Sequence[int]) -> list[int]:
    """`cost` laid over the amounts held, in order, each up to its own. What is above all of them is left out."""
    left, parts = cost, []
    for amount in amounts:
        part = min(left, amount)
        parts.append(part)
        left -= part
    return parts
