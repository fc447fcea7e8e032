"""decide(): asking whether a call could be paid for, before work is done for it. Holds nothing."""

from __future__ import annotations

import uuid
from typing import Any

from runcycles import Action, Amount, DecisionRequest, Subject, Unit

from billing import allowance
from billing.client import WhoPays, account_of, default_client, denial, house_subject_tenant, who_pays
from billing.errors import BudgetDenied, BudgetError, OnHold, of_the_house
from billing.ledgers import REFUSALS, denied, is_on_hold
from billing.subjects import house_subject_for, scopes_of, subject_for
from tenants.models import Tenant


def decide(
    tenant: Tenant | WhoPays,
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
    `tenant`: one, or `house_subject_tenant`.

    Money held by others is no refusal here: the reserve waits for it. A fresh key each time: the authority keeps a
    key's answer for a day, a refusal also after a top-up.
    """
    levels: dict[str, Any] = {"user_id": user_id, "app": app, "workflow": workflow, "key_id": key_id}
    paying = who_pays(tenant)
    waits = False
    if paying is None:
        subject = house_subject_for(tenant=house_subject_tenant(), **levels)
    else:
        account = account_of(paying)
        waits = allowance.waits(account)
        subject = subject_for(tenant=account.subject_tenant, **levels)
    response = default_client().decide(
        DecisionRequest(
            idempotency_key=str(uuid.uuid4()),
            subject=Subject(**subject),
            action=Action(kind=action_kind, name=action_name),
            estimate=Amount(unit=Unit.USD_MICROCENTS, amount=estimate),
        )
    )
    error: BudgetError | None
    if (code := _code_of(response.body)) in REFUSALS:
        error = denied(code, subject, needed=estimate, waits=waits)
        if isinstance(error, BudgetDenied) and error.reason == "held_by_others":
            return
    elif response.status == 401 and is_on_hold(subject["tenant"]):
        error = OnHold(scopes_of(subject)[0])
    else:
        error = denial(response, subject_tenant=subject["tenant"])
    if error is not None:
        raise of_the_house(error) if paying is None else error


def _code_of(body: object) -> str:
    """Why it was refused: in the decision, or in an error."""
    return str(body.get("reason_code") or body.get("error")) if isinstance(body, dict) else ""
