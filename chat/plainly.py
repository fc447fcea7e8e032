"""Which answers of a page are rendered: of a long conversation of odd ones, the newest.

Owns how much a page renders. Each answer has a bound of its own (chat.markdown), and a page may have hundreds.
"""

from __future__ import annotations

from collections.abc import Iterable

from chat.markdown import MOST_CHARS, MOST_WORK, work_of
from chat.models import Message

# About half a second of a web thread, and hundreds of usual answers.
PAGE_WORK = 12 * MOST_WORK


def note_plain(newest_first: Iterable[Message]) -> None:
    """Those that the page shows as they came have `is_plain` from now on."""
    left = PAGE_WORK
    for message in newest_first:
        if message.role == Message.Role.ASSISTANT and left >= 0:
            left -= min(work_of(message.text[:MOST_CHARS]), MOST_WORK)
        message.is_plain = left < 0
