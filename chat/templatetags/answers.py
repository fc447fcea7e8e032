"""What a page says of an answer beside its words: what ended it early, and why there are none.

Owns these sentences. The template writes them under a stored answer, and chat.js finds the same ones on the page for
the answer that is streaming. Must not say anything of the money: billing.outcomes has those words.
"""

from __future__ import annotations

from django import template
from django.utils.safestring import SafeString

from billing.ledgers import Ledger
from billing.outcomes import Outcome
from chat.answer import ALL_THOUGHT, EMPTY, FILTERED, ONLY_THOUGHT, TOOLS
from chat.forms import PROMPT_MAX
from chat.markdown import plain, rendered
from chat.models import Message

register = template.Library()

# By `finish_reason`. One that is not here needs no words.
ENDS = {
    "budget": "Ended early: the budget had no more for this answer.",
    "length": "Ended at the longest length that was allowed.",
    "cancelled": "Stopped before its end.",
    "error": "Broke off: the model did not finish it.",
}
# Why an answer has no words, by `finish_reason` too. What is kept of an answer does not say what was hidden in it.
WORDLESS = {
    "budget": "The budget ended before a word of the answer came.",
    "length": ALL_THOUGHT,
    "cancelled": "It was stopped before a word of the answer came.",
    "error": "No answer came.",
    "tool_calls": TOOLS,
    "function_call": TOOLS,
    **dict.fromkeys(("content_filter", "safety", "SAFETY", "refusal"), FILTERED),
}
# What no longer fits into the model's context. `#` is a number.
LEFT_OUT_ONE = "The first message was left out: it no longer fits."
LEFT_OUT_MANY = "The first # messages were left out: they no longer fit."
# What only the page with a script comes to say; `#` is a number.
UNDER_WAY = {
    "held": "held so far, for an answer of at most # tokens",
    "of": "of",
    "price": "≈ {likely}, at most {most}",
    "fitted": "Made shorter to fit the budget: at most # tokens.",
    "busy": "Waiting: this conversation is still giving another answer.",
    "slow": "The server has not answered yet. Stop puts the message back into the box.",
    "following": "The connection is lost. What came of this answer is shown once it is back.",
    "settling": "What was used is being settled.",
    "unsettled": "What was used will be settled soon. Reload the page to see it.",
    "too_long": f"A message has at most {PROMPT_MAX:,} characters, this one #. Send a part of it, or add it as a file.",
    "kept_out": f"A message has at most {PROMPT_MAX:,} characters, that text #. Put in a part, or add it as a file.",
    "lost": "The connection failed. Check the network and send the message again.",
    "broken": "The connection ended before the answer did.",
    "signed_out": "You are signed out. Your message is kept while you log in.",
    "kept": "Your message is in the box again. Send it when you are ready.",
    "unanswered": "The page was left before the answer came.",
    "stopping": "It is being stopped.",
    "offline": "You are offline. Your message is kept here; send it again once you are back.",
    "online": "You are back online. Send the message again when you are ready.",
    "left_out.1": LEFT_OUT_ONE,
    "left_out": LEFT_OUT_MANY,
    "adding": "Reading the file.",
    "added": "The file is added.",
    "removed": "The file is removed.",
    "not_added": "The server did not take it. Reload the page and try again.",
    "file_large": "it is larger than # MiB. Add a part of it, or a smaller picture.",
    "copied": "Copied.",
    "not_copied": "The browser did not copy it. Select the text and copy it.",
    "left": "The page was left before this message was answered. It is in the box again.",
}


# What the strip says from these shares of the budget on, in percent; `#` is the share.
WARNINGS = {"80": "# % of the budget is spent.", "100": "The budget is used up."}


@register.filter
def warning(budget: Ledger | None) -> str:
    """That most of the budget is spent, or all of it; nothing where it is not, or is not known."""
    if not budget or not budget.allocated:
        return ""
    share = 100 * budget.spent // budget.allocated
    found = next((WARNINGS[level] for level in ("100", "80") if share >= int(level)), "")
    return found.replace("#", str(share))


@register.filter
def ending(message: Message | None) -> str:
    """What ended an answer early; nothing where the model ended it, or where the answer has no words anyway."""
    return ENDS.get(message.finish_reason, "") if message and message.text.strip() else ""


@register.filter
def left_out_words(number: int) -> str:
    """What a question leaves out of the conversation; nothing for 0."""
    if not number:
        return ""
    return LEFT_OUT_ONE if number == 1 else LEFT_OUT_MANY.replace("#", f"{number:,}")


@register.filter
def can_go_on(message: Message) -> bool:
    """Whether an answer ended before its end, so that the rest can be asked for."""
    return bool(message.finish_reason in ENDS and message.text.strip())


@register.filter
def as_words(message: Message) -> SafeString:
    """An answer's Markdown, rendered."""
    return plain(message.text) if message.is_plain else rendered(message.text)


@register.filter
def wordless(message: Message | None) -> str:
    """A sentence in the place of an answer without words; nothing where there are some."""
    if message is None or message.role == Message.Role.USER or message.text.strip():
        return ""
    if message.outcome == Outcome.UNKNOWN:
        return WORDLESS["error"]
    return WORDLESS.get(message.finish_reason, EMPTY)


@register.simple_tag
def page_words() -> dict[str, str]:
    """Every sentence that chat.js may have to say, by its name."""
    ends = {f"end.{reason}": text for reason, text in ENDS.items()}
    stand_ins = {f"wordless.{n}": text for n, text in enumerate((ALL_THOUGHT, EMPTY, FILTERED, ONLY_THOUGHT, TOOLS))}
    warnings = {f"warn.{level}": text for level, text in WARNINGS.items()}
    outcomes = {f"outcome.{outcome}": str(outcome.label) for outcome in Outcome}
    return {**UNDER_WAY, **warnings, **ends, **stand_ins, **outcomes}
