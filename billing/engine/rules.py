"""How much to hold, and what a call that nobody reported probably used. Pure: figures in, figures out.

Owns slices, habits and shares. Must not ask a clock, a database or the authority.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

# Reports that a model must have given before it is trusted with slices, none of them far above our own count.
TRUSTED_AFTER = 20
MOST_PERCENT = 120
KEPT_SAMPLES = 64
# Output in a first slice, in tokens.
LEAST_OUTPUT = 64
# Our running count may be a fifth short of the report that comes at the end: keep that, and a little, in hand.
SPARE_FACTOR_PERCENT = 125
SPARE_TOKENS = 2
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


def habit_of(samples: Sequence[Sample]) -> Habit:
    """`samples` with the newest first."""
    inputs = [s.tokens_input / s.bytes_input for s in samples if s.bytes_input > 0]
    # No text has more tokens than bytes: a report of more is of thoughts that nobody saw, or of nothing.
    outputs = [min(1.0, s.tokens_output / s.bytes_output) for s in samples if s.bytes_output > 0]
    newest = samples[:TRUSTED_AFTER]
    return Habit(
        input_ratio=median(inputs) if inputs else USUAL_INPUT_RATIO,
        output_ratio=median(outputs) if outputs else USUAL_OUTPUT_RATIO,
        output=_usual_output([s.tokens_output for s in samples]),
        trusted=len(newest) == TRUSTED_AFTER and all(s.percent <= MOST_PERCENT for s in newest),
        least_input=_least([s.tokens_input for s in samples]),
    )


def _least(inputs: list[int]) -> int | None:
    """What nine calls of ten are above: one false report must decide nothing."""
    return sorted(inputs)[len(inputs) // 10] if inputs else None


def _usual_output(outputs: list[int]) -> int:
    """What four calls of five stay below, with the spare that slices keep."""
    if not outputs:
        return LEAST_OUTPUT
    usual = sorted(outputs)[(len(outputs) - 1) * 4 // 5]
    return max(LEAST_OUTPUT, with_spare(usual))


def percent_of(reported: int, counted: int) -> int:
    """Rounded against trust. The end's own token, which some count and nobody sees, is in the spare already."""
    return -(-max(0, reported - SPARE_TOKENS) * 100 // max(counted, 1))


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
