"""What people typed, as it may stand in a mail's header: on one line, and nothing that a mail program decodes. Pure."""

from __future__ import annotations

import unicodedata

from tenants.http import shortened


def one_line(text: str, length: int) -> str:
    """Without line breaks and controls, which could begin another header; at most `length` characters.

    "=?" begins an encoded word: a workspace of that name would be shown as whatever is encoded in it.
    """
    line = " ".join(text.split())
    line = "".join(sign for sign in line if unicodedata.category(sign) not in ("Cc", "Cs")).replace("=?", "= ?")
    return shortened(line, length)
