"""How much a key may ask for: who sets it, and that it is in the trail.

The figures are its row's; what is counted against them is billing's. Only who may set limits does, for a limit that its
key's owner could take away would be none.
"""

from __future__ import annotations

from django.db import transaction
from django.db.models import Q

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.http import Forbidden, TenantRequest
from tenants.rates import RATES
from tenants.roles import Action, may_act_on
from tenants.users.keys import keys_for
from tenants.users.models import ApiKey, User


def may_set_rates(user: User, key: ApiKey) -> bool:
    return key.is_active and may_act_on(user.role, key.user.role, Action.SET_LIMITS)


def key_to_rate(user: User, key_id: int) -> ApiKey:
    """Raises ApiKey.DoesNotExist, also of a key that opens nothing any more; and Forbidden."""
    key = keys_for(user).select_related("user").get(pk=key_id)
    if not key.is_active:
        raise ApiKey.DoesNotExist
    if not may_set_rates(user, key):
        raise Forbidden("Only somebody whose role is as high as its owner’s may limit this key.")
    return key


def set_rates(request: TenantRequest, key: ApiKey, rates: dict[str, int]) -> bool:
    """For the key and those it was rotated from and to, which count together. Whether there was anything to change."""
    with transaction.atomic(durable=True):
        # First, and by itself: a rotation that is under way makes a key that the next statement then sees.
        list(ApiKey.objects.select_for_update().filter(pk=key.spender))
        key.refresh_from_db()
        before = dict(key.rates or {})
        if before == rates:
            return False
        ApiKey.objects.filter(Q(pk=key.spender) | Q(spends_as=key.spender)).update(rates=rates or None)
        record(
            Event.KEY_RATES_SET,
            request=request,
            target=key.name,
            key=key.pk,
            prefix=key.prefix,
            before=[f"{rate}: {before[rate]}" for rate in RATES if before.get(rate) is not None],
            requests=rates.get("requests"),
            tokens=rates.get("tokens"),
            concurrent=rates.get("concurrent"),
        )
    return True
