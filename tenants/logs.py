"""What logs must not say."""

from __future__ import annotations

import logging
import re

# The address of a pending sign-up is worth its first API key; Django logs the path of every failed request.
_TOKEN = re.compile(r"(/api/signup/)[^/ ]+")


class NoTokens(logging.Filter):
    """Takes the tokens out of addresses. Lets every record through."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(_TOKEN.sub(r"\1…", arg) if isinstance(arg, str) else arg for arg in record.args)
        return True
