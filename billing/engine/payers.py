"""Who pays for a call: a tenant's account, read in one statement, with its key unsealed; or the house, by the settings.

Owns `payer_for`, `house_payer`, and the subject of what a tenant pays for. Must not ask the authority, and never takes
the one for the other.
"""

from __future__ import annotations

import functools
import logging
import math
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from billing.engine.authority import Payer
from billing.engine.engine import Engine
from billing.engine.statements import A_CUSTOMER, ACCOUNT, ACCOUNT_AND_KEY, in_schema
from billing.engine.store import FAILURES
from billing.errors import AuthorityMisconfigured, NoHouseAccount, NotProvisioned, OnHold, OutsideItsLimit
from billing.keys import unseal
from billing.plans import HOUSE
from billing.subjects import FEATURES, Key, subject_for
from tenants.http import Unavailable
from tenants.kept import Keep, Query, Row, afetched, of_schema, of_tenant

logger = logging.getLogger(__name__)


async def payer_for(
    engine: Engine, *, tenant_id: int, slug: str, schema: str, account: list[Any] | None = None
) -> Payer:
    """The tenant's payer; `account` where its row has been read already, as ACCOUNT_OF_TENANT gives it.

    Raises OnHold, NotProvisioned, AuthorityMisconfigured or Unavailable.
    """
    if account is None:
        try:
            (account,) = await _row(engine, Query(ACCOUNT, (tenant_id,), _kept(tenant_id, schema)))
        except FAILURES as exc:
            raise Unavailable from exc
    if account is None or account[1] == "pending":
        raise NotProvisioned
    account_id, status, plan, subject_tenant, sealed, waits, resets_at, models = account
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
        waits=waits,
        resets_at=resets_at,
        models=None if models is None else frozenset(models),
    )


async def payer_and_key(
    engine: Engine, *, tenant_id: int, slug: str, schema: str, key_id: int | None
) -> tuple[Payer, Key | None]:
    """The tenant's payer, and the key that asks as its row has it, in the same statement. Raises as `payer_for`."""
    account = key = None
    if type(key_id) is int:
        try:
            statement = in_schema(ACCOUNT_AND_KEY, schema)
            account, key = await _row(engine, Query(statement, (tenant_id, key_id), _kept(tenant_id, schema)))
        except FAILURES as exc:
            raise Unavailable from exc
        if account is None:
            raise NotProvisioned
    payer = await payer_for(engine, tenant_id=tenant_id, slug=slug, schema=schema, account=account)
    # A key that has no row has no limit either; what it is named by is checked where the subject is made.
    return payer, Key(*key) if key else None if key_id is None else Key(key_id)


async def _row(engine: Engine, query: Query) -> Row:
    row = await afetched(query, engine.store.fetch)
    assert row is not None  # it selects values, and so has a row always
    return row


def _kept(tenant_id: int, schema: str) -> Keep:
    """Where there is an account, and the key if one is asked for: nothing tells of a key that is new."""
    return Keep(
        tags=lambda row: (of_tenant(tenant_id), of_schema(schema)),
        seconds=lambda row: 0 if any(value is None for value in row) else math.inf,
    )


def paid_subject(payer: Payer, *, user_id: int | None, app: str, key: Key | None, **levels: Any) -> dict[str, Any]:
    """The subject of a call that the payer's tenant is to pay for. The one place that makes it.

    Raises OutsideItsLimit where the key has a limit and no ledger of it stands in the call's scopes: that call would
    be paid for by the member's budget alone, whatever the limit.
    """
    if key is not None and key.limited_apps is not None:
        if levels.get("workflow") is not None:
            raise OutsideItsLimit(OutsideItsLimit.CONVERSATION)
        if not key.has_ledger_for(app):
            words = OutsideItsLimit.FEATURE if app.lower() in FEATURES else OutsideItsLimit.APP
            raise OutsideItsLimit(words.format(app=app))
    key_id = None if key is None else key.id
    return subject_for(tenant=payer.subject_tenant, user_id=user_id, app=app, key_id=key_id, **levels)


async def house_payer(engine: Engine) -> Payer:
    """The house. Raises NoHouseAccount, also where the settings name a customer's tenant: it would pay for us."""
    payer = house()
    try:
        is_a_customer = await engine.store.fetch(A_CUSTOMER, [payer.subject_tenant])
    except FAILURES as exc:
        raise Unavailable from exc
    if is_a_customer:
        raise NoHouseAccount(NoHouseAccount.IS_A_CUSTOMER)
    return payer


def house() -> Payer:
    """By the settings alone, for what is settled later."""
    if not (settings.CYCLES_TENANT and settings.CYCLES_API_KEY):
        raise NoHouseAccount
    return Payer(
        account_id=None,
        tenant_id=None,
        slug="(house)",  # in logs; no tenant's slug has brackets
        schema="public",
        subject_tenant=settings.CYCLES_TENANT,
        plan=HOUSE.name,
        key=settings.CYCLES_API_KEY,
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
