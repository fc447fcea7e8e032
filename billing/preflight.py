"""decide(): asking whether a call could be paid for, before work is done for it. Holds nothing."""

from __future__ import annotations

import uuid

from runcycles import Action, Amount, DecisionRequest, Subject, Unit

from billing.client import account_of, default_client, denial
from billing.errors import BudgetDenied
from billing.ledgers import REFUSALS, denied
from billing.subjects import subject_for
from tenants.models import Tenant


def decide(
    tenant: Tenant,
    *,
    user_id: int | None,
    app: str,
    action_kind: str,
    action_name: str,
    estimate: int,
    workflow: str | None = None,
    key_id: int | None = None,
) -> None:
    """Returns where a reserve of the same call could get `estimate`; else raises what it would. Fails closed.

    Money held by others is no refusal here: the reserve waits for it. A fresh key each time: the authority keeps a
    key's answer for a day, a refusal also after a top-up.
    """
    account = account_of(tenant)
    subject = subject_for(tenant=account.subject_tenant, user_id=user_id, app=app, workflow=workflow, key_id=key_id)
    response = default_client().decide(
        DecisionRequest(
            idempotency_key=str(uuid.uuid4()),
            subject=Subject(**subject),
            action=Action(kind=action_kind, name=action_name),
            estimate=Amount(unit=Unit.USD_MICROCENTS, amount=estimate),
        )
    )
    error: Exception | None
    if (code := _code_of(response.body)) in REFUSALS:
        error = denied(code, subject, needed=estimate)
        if isinstance(error, BudgetDenied) and error.reason == "held_by_others":
            return
    else:
        error = denial(response, subject_tenant=account.subject_tenant)
    if error is not None:
        raise error


def _code_of(body: object) -> str:
    """Why it was refused: in the decision, or in an error."""
    return str(body.get("reason_code") or body.get("error")) if isinstance(body, dict) else ""
