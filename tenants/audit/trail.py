"""Writing down what somebody did, in the transaction of what they did.

Must not know what an event means, and must not see a secret: whoever records says in `details` only what every reader
of the trail may know.
"""

from __future__ import annotations

import logging
from typing import Any

from django.http import HttpRequest

from tenants.audit.events import Event
from tenants.audit.models import AuditEvent
from tenants.context import tenant_or_public
from tenants.limits import address_of
from tenants.users.models import User

logger = logging.getLogger(__name__)

AGENT_LENGTH = 200
TARGET_LENGTH = 255


def record(
    event: Event,
    *,
    request: HttpRequest | None = None,
    actor: User | None = None,
    target: str = "",
    via: str = "",
    **details: Any,
) -> None:
    """One line of the bound tenant's trail. `actor` is the request's member unless it is named.

    Without a request it is a job's, or by `via` a command's. On the public side there is no trail, only a log
    line: operators' own sign-ins, for example.
    """
    member = actor or _member_of(request)
    if tenant_or_public() is None:
        logger.info("audit: %s actor=%s", event.value, member.pk if member else None)
        return
    asker = getattr(request, "asker", None)
    key_id = asker.key_id if asker else None
    AuditEvent.objects.create(
        actor_id=member.pk if member else None,
        actor=member.email if member else "" if request else "operator" if via == "command" else "system",
        via=via or ("key" if key_id else "session" if request else "job"),
        key_id=key_id,
        event=event.value,
        target=readable(target)[:TARGET_LENGTH],
        details=_cleaned(details),
        address=address_of(request) if request else "",
        agent=agent_of(request) if request else "",
    )


def agent_of(request: HttpRequest) -> str:
    """What the program calls itself."""
    return readable(request.META.get("HTTP_USER_AGENT", ""))[:AGENT_LENGTH]


def readable(text: str) -> str:
    """Without what Postgres refuses, and what would break or turn round a line: a stranger may have typed it."""
    return "".join(sign for sign in text if sign.isprintable())


def _cleaned(value: Any) -> Any:
    """The same of all texts within."""
    if isinstance(value, str):
        return readable(value)
    if isinstance(value, list | tuple):
        return [_cleaned(part) for part in value]
    if isinstance(value, dict):
        return {name: _cleaned(part) for name, part in value.items()}
    # A moment, a Decimal, a UUID: as text, for JSON has none of them.
    return value if value is None or isinstance(value, int | float) else readable(str(value))


def _member_of(request: HttpRequest | None) -> User | None:
    if request is None:
        return None
    if (asker := getattr(request, "asker", None)) is not None:
        found: User = asker.user
        return found
    user = getattr(request, "user", None)
    return user if isinstance(user, User) else None
