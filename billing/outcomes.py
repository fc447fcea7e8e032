"""The class of a settled call: how its cost is known. Pure.

Owns the classes and the words for each, for pages and errors alike. Must not decide which one a call has.
"""

from __future__ import annotations

from django.db.models import TextChoices


class Outcome(TextChoices):
    """The label is what a page says beside the cost."""

    EXACT = "exact", "reported by the model"
    ESTIMATED = "estimated", "not reported, estimated"
    NONE = "none", "nothing charged"
    UNKNOWN = "unknown", "no answer came, input estimated"
    OVERRUN = "overrun", "reported above the hold, charged the hold"
    SWEPT = "swept", "interrupted, charged up to there"


# What an error says of the money after its own sentence.
SENTENCES = {
    Outcome.EXACT: "What the model reported is charged.",
    Outcome.ESTIMATED: "Only what had come so far is charged, by an estimate.",
    Outcome.NONE: "Nothing was charged.",
    Outcome.UNKNOWN: "Whether the model worked is not known, so its input is charged, by an estimate.",
    Outcome.OVERRUN: "What was held for it is charged, and no more.",
    Outcome.SWEPT: "What is known to have been used is charged.",
}
