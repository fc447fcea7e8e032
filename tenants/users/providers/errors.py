"""What goes wrong with somebody else's log-in, in words for the person before it.

ApiError
 └─ ProviderError
     ├─ AttemptOver       400 attempt_over: too late, another browser's, used already
     ├─ Denied            403 denied: the person or the provider said no
     ├─ UnknownIdentity   403 unknown_identity: nobody here is linked to it
     ├─ IdentityTaken     409 identity_taken: it cannot be linked to this account
     ├─ LastWayIn         409 last_way_in: without it the member could not log in any more
     └─ ProviderFailed    502 provider_failed: no answer, or one that cannot be believed
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from tenants.http import ApiError

logger = logging.getLogger(__name__)


class ProviderError(ApiError):
    """Said on the log-in page or the Account page, where the person can go on."""


class _OfProvider(ProviderError):
    """`words` say the provider's name."""

    words: str

    def __init__(self, name: str) -> None:
        super().__init__(self.words.format(name=name))


class AttemptOver(ProviderError):
    status = HTTPStatus.BAD_REQUEST
    code = "attempt_over"
    message = "This log-in has been used, took longer than ten minutes, or was begun in another browser. Start again."


class Denied(_OfProvider):
    status = HTTPStatus.FORBIDDEN
    code = "denied"
    words = "{name} did not log you in, or you did not agree there. Try again, or use your password."


class UnknownIdentity(_OfProvider):
    """One sentence for everybody: it tells nobody who is a member here."""

    status = HTTPStatus.FORBIDDEN
    code = "unknown_identity"
    words = (
        "This {name} account is not linked to a member of this workspace. Log in with your password, then link it on "
        "your Account page. With an invitation, use the link in its mail first."
    )


class IdentityTaken(ProviderError):
    status = HTTPStatus.CONFLICT
    code = "identity_taken"


class LastWayIn(_OfProvider):
    status = HTTPStatus.CONFLICT
    code = "last_way_in"
    words = "{name} is your only way in. Set a password, or link another account, before you unlink it."


class ProviderFailed(_OfProvider):
    """`reason` is for the operator's log, in words of our own: nothing that a provider sent stands in it."""

    status = HTTPStatus.BAD_GATEWAY
    code = "provider_failed"
    words = "{name} did not answer as it should. Try again in a moment, or use your password."

    def __init__(self, name: str, reason: str) -> None:
        logger.warning("Log-in with %s failed: %s", name, reason)
        super().__init__(name)
