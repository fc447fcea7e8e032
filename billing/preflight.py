"""decide(): asking whether a call could be paid for, before work is done for it. Holds nothing."""

from __future__ import annotations

import uuid

from runcycles import Action, Amount, DecisionRequest, Subject, Unit

from billing.client import account_of, default_client, denial
from tenants.models import Tenant


def decide(tenant: Tenant, *, app: str, action_kind: str, action_name: str, estimate: int) -> None:
    """Returns when the budget would cover `estimate` now; else raises what `reserve` would. Fails closed.

    A fresh key each time: the authority keeps a key's answer for a day, a refusal also after a top-up.
    """
    account = account_of(tenant)
    response = default_client().decide(
        DecisionRequest(
            idempotency_key=str(uuid.uuid4()),
            subject=Subject(tenant=account.subject_tenant, app=app),
            action=Action(kind=action_kind, name=action_name),
            estimate=Amount(unit=Unit.USD_MICROCENTS, amount=estimate),
        )
    )
    error = denial(response, subject_tenant=account.subject_tenant, needed=estimate)
    if error is not None:
        raise error
