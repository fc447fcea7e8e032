"""How many mails go to an address of which nobody has shown that it is theirs.

Whoever signs up types an address, which may be anybody's, and workspaces are to be had for nothing. In each of them a
mail has its limit, or costs a password; in a hundred of them that is a hundred times as much. So these are counted by
their address, over all workspaces. Must not count what goes to a member who has confirmed theirs: a stranger could
then use that up.
"""

from __future__ import annotations

from tenants.context import tenant_or_public
from tenants.limits import Rate, give_back, take
from tenants.users.models import User

UNPROVEN = Rate("mail-unproven", burst=20, every=1_800.0)


def is_anybodys(to: str) -> bool:
    """Not so on the public side, where each mail has its own limit."""
    if tenant_or_public() is None:
        return False
    return not User.objects.filter(email=to, is_active=True).exclude(email_confirmed_at=None).exists()


def count(to: str) -> None:
    """Raises RateLimited."""
    take(UNPROVEN, to)


def uncount(to: str) -> None:
    """It was not sent, and comes again."""
    give_back(UNPROVEN, to)
