"""What a confirmed e-mail address is worth: the allowance of a workspace that signed up where it has to be confirmed.

Owns who releases it, and what pages say while it waits. Must not confirm anything: tenants.users.addresses does, and
calls `on_confirmed` in its transaction.
"""

from __future__ import annotations

from django.template.loader import render_to_string

from billing import allowance, trials
from billing.errors import TrialsExhausted
from billing.models import Account
from tenants.context import current_tenant
from tenants.http import TenantRequest
from tenants.models import Tenant
from tenants.roles import Role
from tenants.users.models import User


def on_confirmed(user: User) -> None:
    """An owner's confirmed address releases the allowance, where it waits. In the caller's transaction.

    Also for who became an owner after having confirmed: whoever makes somebody an owner calls this.
    """
    tenant = current_tenant()
    account = None if tenant is None or user.role != Role.OWNER else _waiting(tenant)
    if account is None:
        return
    if Account.objects.filter(trials.lapsed(), pk=account.pk).exists():
        try:
            trials.check_room(account.plan)
        except TrialsExhausted:
            return  # logged there, and asked again whenever the owner asks
    if allowance.grant(account):
        allowance.pay_after_commit(account)


def _waiting(tenant: Tenant) -> Account | None:
    return Account.objects.filter(tenant_id=tenant.pk, allowance_granted_at=None).first()


def notice(request: TenantRequest, account: Account | None = None) -> str:
    """What a page says of an allowance that is not there yet, as HTML; nothing where it is.

    `account` where it has been read already.
    """
    account = account or Account.objects.filter(tenant_id=request.tenant.pk).first()
    if account is None or not (allowance.waits(account) or account.allowance_owed):
        return ""
    context = {"waits": allowance.waits(account), "user": request.user}
    return render_to_string("billing/partials/confirm_first.html", context, request)
