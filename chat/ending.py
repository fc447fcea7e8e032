"""How an answer ended: what it used and how that is known, why it ended, and what it teaches of its model.

Owns those rules, in `Ending`. Must not read, settle or tell anybody: who reads the answer does.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from billing.engine.rules import MOST_PERCENT, Sample, percent_of
from billing.outcomes import Outcome
from billing.prices import Usage
from chat.answer import Answer, used
from chat.errors import ModelFailed
from chat.terms import Terms
from tenants.http import ApiError


@dataclass(frozen=True, slots=True)
class Ending:
    """An answer of which nothing more is read. `held_output`: the tokens of it that were held.

    `cut_for` says why we ended it ourselves; `was_sent`: whether its request was on its way to the model by then.
    """

    terms: Terms
    answer: Answer
    held_output: int
    failure: ApiError | None
    cut_for: str | None
    reader_left: bool
    was_sent: bool

    def used(self) -> tuple[Usage, Outcome]:
        """What is charged for, at most what is held, and how it is known."""
        terms, failure = self.terms, self.failure
        if failure is not None and not (isinstance(failure, ModelFailed) and failure.reached):
            return Usage(0, 0), Outcome.NONE
        if self.was_never_asked:
            return Usage(0, 0), Outcome.NONE
        most = min(terms.most_output, self.held_output)
        usage, outcome = used(
            self.answer,
            tokens_input=terms.likely,
            max_output=most,
            tokens_per_byte=terms.habit.output_ratio,
            cut=self.cut_for is not None,
        )
        if self._was_left and terms.dialect.bills_after_cut and outcome != Outcome.EXACT:
            # It goes on writing, and billing, up to the most that it was asked for.
            return replace(usage, tokens_output=most), Outcome.ESTIMATED
        if isinstance(failure, ModelFailed) and outcome != Outcome.EXACT:
            return usage, failure.outcome
        return usage, outcome

    @property
    def was_never_asked(self) -> bool:
        """Whoever wanted it left, or it was stopped, before the request was on its way to the model."""
        return self.failure is None and self._was_left and not self.was_sent

    @property
    def _was_left(self) -> bool:
        return self.cut_for is not None or self.reader_left

    def finish_reason(self, *, is_fitted: bool) -> str:
        """`is_fitted`: its tokens were fewer than it was asked for, for want of money."""
        if self.cut_for is not None or self.failure is not None:
            return self.cut_for or "error"
        reason = (self.answer.finish_reason or "stop")[:40]
        if reason in ("budget", "cancelled"):
            reason = "stop"  # ours to say: no model knows of the money
        # What ended it was the money that its last tokens were fitted to.
        return "budget" if reason == "length" and is_fitted else reason

    def sample(self, usage: Usage, outcome: Outcome, *, is_believed: bool) -> Sample | None:
        """What the model's habit learns of it; None where it was not reported, or says nothing of a usual answer."""
        answer, terms = self.answer, self.terms
        if outcome != Outcome.EXACT or not usage.tokens_input or not (answer.has_begun or terms.max_tokens == 0):
            return None
        percent = percent_of(usage.tokens_output, answer.counted())
        if usage.reasoning and not answer.showed_hidden:
            # Few this time, and of a harder question many more than its stream shows.
            percent = max(percent, MOST_PERCENT + 1)
        if not is_believed:
            # It says that the model is not to be trusted, and nothing of what a call needs: one report of a million
            # made the next reader, who left after a word, pay the whole hold.
            usage = Usage(terms.likely, answer.counted(terms.habit.output_ratio))
        return Sample(usage.tokens_input, terms.size, usage.tokens_output, answer.billed_bytes, percent)
