"""A file that cannot be added to a message. Owns nothing but the shape of what is said of it."""

from __future__ import annotations

from tenants.http import Invalid


class Unread(Invalid):
    """A file of which nothing can be had; the message says what to do instead."""

    def __init__(self, why: str) -> None:
        super().__init__({"file": [why]})
        self.message, self.args = why, (why,)  # the sentence for people, on a page too
