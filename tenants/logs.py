"""What logs must not say, and whose work a line is about."""

from __future__ import annotations

import logging
import re

from tenants.context import current_tenant

# The address of a pending sign-up is worth its first API key, a mailed link an account; Django logs the path of every
# failed request, also where it was written in capitals, or a key in it.
_TOKEN = re.compile(
    r"(/(?:api/signup|invitation|password|confirm|email|login/link)/)[^/ ]+|"
    r"([a-z0-9]{1,12}_(?:[0-9a-f]{12}_[a-z0-9]{8}_)?)[\w-]{43}",
    re.IGNORECASE,
)


# A key is longer, and an address has a slash: most of what is logged is neither, and need not be searched.
_LONGEST_OF_NO_KEY = len("k_") + 43 - 1


class NoTokens(logging.Filter):
    """Takes the tokens out of addresses. Lets every record through."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, tuple) and any(map(_may_hold_a_token, args)):
            record.args = tuple(_TOKEN.sub(r"\1\2…", arg) if isinstance(arg, str) else arg for arg in args)
        return True


def _may_hold_a_token(arg: object) -> bool:
    return isinstance(arg, str) and (len(arg) > _LONGEST_OF_NO_KEY or "/" in arg)


class WithTenant(logging.Filter):
    """Gives each record `tenant`: its own, if its line was given one (`extra`), the slug of the one bound where it is
    logged, or "-". Lets every record through.

    A handler that formats with `line` needs it. django-tenants' own asks the connection, which on a loop says public.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "tenant"):
            tenant = current_tenant()
            record.tenant = tenant.slug if tenant else "-"
        return True
