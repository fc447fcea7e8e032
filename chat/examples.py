"""What an empty chat offers to ask: four examples, said here and nowhere else.

Must not depend on a setting, a tenant or a model: the words are the same for everybody.
"""

from __future__ import annotations

from typing import NamedTuple


class Example(NamedTuple):
    title: str
    prompt: str


EXAMPLES = (
    Example("Explain an idea", "Explain compound interest to a twelve-year-old, with one example in numbers."),
    Example("Draft a message", "Write a short, kind reply to a customer whose order is a week late."),
    Example("Compare choices", "Compare buying and leasing laptops for a team of eight, with what speaks for each."),
    Example("Make a plan", "Plan a one-hour meeting that starts a new project, with a time for each part."),
)
