"""Whether whoever asked may still ask, looked at once more before their call is made.

Between a request and its call there may be a slow body, a conversation's turn, an equal request under way, money that
others hold, and a group's model that failed late: minutes in all, where a change of who may ask counts within a second.
Owns `Standing`. Must not write a rule of who may ask (tenants.resolve and tenants.users.actions do), nor of what.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from django.http import HttpRequest

from billing.engine.authority import Payer
from billing.engine.loop import here
from billing.engine.payers import payer_for
from billing.engine.store import FAILURES
from billing.subjects import Key
from tenants.http import Unavailable
from tenants.resolve import Asker, aanswered, find_again
from tenants.roles import Action
from tenants.users.actions import allow

# What was found of who asks holds for so long.
HOLDS_SECONDS = 1.0


@dataclass(slots=True)
class Standing:
    """Who asked, and when it was found out. The same request says who asks when it is looked at anew."""

    request: HttpRequest
    asker: Asker
    found_at: float = field(default_factory=time.monotonic)

    @property
    def holds(self) -> bool:
        return time.monotonic() - self.found_at < HOLDS_SECONDS

    async def found_again(self) -> tuple[Payer, Key | None]:
        """Who pays and the key that asks, as they are now. Raises what refuses them by now."""
        engine = here()
        found_at = time.monotonic()
        try:
            self.asker = await aanswered(find_again(self.request, self.asker), engine.store.fetch)
        except FAILURES as exc:
            raise Unavailable from exc
        allow(self.asker, Action.CHAT)
        tenant = self.asker.tenant
        payer = await payer_for(
            engine, tenant_id=tenant.pk, slug=tenant.slug, schema=tenant.schema_name, account=self.asker.beside
        )
        self.found_at = found_at
        return payer, key_of(self.asker)


def key_of(asker: Asker) -> Key | None:
    """The key that asks, as a call's subject has it; None for a session."""
    if asker.spends_as is None:
        return None
    return Key(asker.spends_as, asker.limited_apps, asker.key_models, asker.rates)
