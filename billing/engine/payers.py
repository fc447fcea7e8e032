"""Who pays for a tenant's call: its account, read in one statement, with its key unsealed.

Owns `payer_for`. Must not ask the authority.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from billing.engine.authority import Payer
from billing.engine.engine import Engine
from billing.engine.statements import ACCOUNT
from billing.engine.store import FAILURES
from billing.errors import AuthorityMisconfigured, NotProvisioned, OnHold
from billing.keys import unseal
from tenants.http import Unavailable

logger = logging.getLogger(__name__)


async def payer_for(
    engine: Engine, *, tenant_id: int, slug: str, schema: str, account: list[Any] | None = None
) -> Payer:
    """The tenant's payer; `account` where its row has been read already, as ACCOUNT_OF_TENANT gives it.

    Raises OnHold, NotProvisioned, AuthorityMisconfigured or Unavailable.
    """
    if account is None:
        try:
            account = (await engine.store.fetch(ACCOUNT, [tenant_id]))[0][0]
        except FAILURES as exc:
            raise Unavailable from exc
    if account is None or account[1] == "pending":
        raise NotProvisioned
    account_id, status, plan, subject_tenant, sealed = account
    if status != "active":
        raise OnHold(f"tenant:{subject_tenant}")
    return Payer(
        account_id=account_id,
        tenant_id=tenant_id,
        slug=slug,
        schema=schema,
        subject_tenant=subject_tenant,
        plan=plan,
        key=unsealed(sealed),
    )


def unsealed(sealed: str) -> str:
    try:
        return _unsealed(sealed, settings.KEY_SEALING_KEY)
    except ImproperlyConfigured:
        logger.exception("No account's authority key can be read")
        raise AuthorityMisconfigured from None


@functools.lru_cache(maxsize=4_096)
def _unsealed(sealed: str, under: str) -> str:
    """By the sealed text and the sealing key, so that a change of either is noticed; a failure is not kept."""
    return unseal(sealed)
