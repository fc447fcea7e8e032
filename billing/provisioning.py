"""From a sign-up form to a workspace that can pay: rows first, then steps that may each be repeated.

Orchestrated here because tenants must not know billing. No HTTP inside a transaction; a crash anywhere leaves a
PENDING account that the next run finishes, and nothing is made twice.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from datetime import timedelta

from django.contrib.auth.hashers import check_password, make_password
from django.core import signing
from django.db import IntegrityError, transaction
from django.utils import timezone

from billing import admin_client, periods
from billing.errors import SlugTaken
from billing.keys import seal
from billing.models import Account
from billing.plans import PLANS
from tenants import services
from tenants.context import tenant_scope
from tenants.models import Tenant
from tenants.spelling import normal_email, normal_password
from tenants.users.handoff import issue_token
from tenants.users.keys import create_key
from tenants.users.models import User

logger = logging.getLogger(__name__)


def sign_up(*, name: str, slug: str, email: str, password: str, plan: str) -> Account:
    """A PENDING account and its tenant, in one short transaction. The caller then runs `provision`.

    The same slug, e-mail and password while pending gives the same account again; else a taken slug is SlugTaken.
    """
    hashed = make_password(normal_password(password))
    try:
        with transaction.atomic(durable=True):
            tenant = services.register_tenant(slug, name=name)
            return Account.objects.create(
                tenant=tenant,
                plan=plan,
                subject_tenant=f"ws-{secrets.token_hex(10)}",
                owner_email=normal_email(email),
                owner_password=hashed,
            )
    except IntegrityError:
        account = pending_of(slug, email=email, password=password)
        if account is None:
            raise SlugTaken from None
        return account


def pending_of(slug: str, *, email: str, password: str) -> Account | None:
    """The pending account that this very person has asked for before."""
    account = _account(slug)
    if account is None or account.status != Account.Status.PENDING or account.owner_email != normal_email(email):
        return None
    known = account.owner_password or _owner_hash(account)
    return account if known and check_password(normal_password(password), known) else None


def belongs_to(slug: str, *, email: str, password: str) -> bool:
    """Whether the slug is an active workspace of which this person is a member already."""
    account = _account(slug)
    if account is None or account.status != Account.Status.ACTIVE:
        return False
    with tenant_scope(account.tenant, alone=True):
        user = User.objects.with_email(email)
        # In its schema: a hash of an older kind is written anew.
        return user is not None and user.is_active and user.check_password(password)


def _account(slug: str) -> Account | None:
    return Account.objects.select_related("tenant").filter(tenant__slug=slug).first()


def _owner_hash(account: Account) -> str | None:
    with tenant_scope(account.tenant, alone=True):
        return User.objects.filter(email=account.owner_email).values_list("password", flat=True).first()


def provision(account: Account) -> None:
    """Make everything an account needs. Safe to run again after any failure, and twice at once."""
    services.ensure_schema(account.tenant)
    ensure_authority_tenant(account)
    ensure_key(account)
    ensure_budget(account)
    ensure_owner(account)
    activate(account)


def ensure_authority_tenant(account: Account) -> None:
    admin_client.ensure_tenant(account.subject_tenant)


def ensure_key(account: Account) -> None:
    """The account's authority key. Creating one cannot be repeated, so what a lost answer left is revoked.

    Only the run whose key was stored revokes the others: two at once must not end with none.
    """
    account.refresh_from_db(fields=["sealed_key", "authority_key_id"])
    if account.sealed_key:
        return
    name = f"account-{account.pk}"
    left_behind = admin_client.active_key_ids(account.subject_tenant, name=name)
    key_id, secret = admin_client.create_key(account.subject_tenant, name=name)
    stored = Account.objects.filter(pk=account.pk, sealed_key="").update(
        sealed_key=seal(secret), authority_key_id=key_id
    )
    for unused in left_behind if stored else [key_id]:
        admin_client.revoke_key(unused)
    account.refresh_from_db(fields=["sealed_key", "authority_key_id"])


def ensure_budget(account: Account) -> None:
    plan = PLANS[account.plan]
    admin_client.ensure_budget(
        account.subject_tenant, account.scope, allocated=plan.allowance, overdraft_limit=plan.overdraft
    )


def ensure_owner(account: Account) -> None:
    """The owner's user in the tenant's schema; a password changed since is left alone."""
    with tenant_scope(account.tenant, alone=True):
        User.objects.get_or_create(
            email=account.owner_email, defaults={"password": account.owner_password, "is_owner": True}
        )


def activate(account: Account) -> None:
    """Open the doors. An account that was frozen or closed meanwhile stays so."""
    with transaction.atomic(durable=True):
        Account.objects.filter(pk=account.pk, status=Account.Status.PENDING).update(
            status=Account.Status.ACTIVE, activated_at=timezone.now(), owner_password=""
        )
        services.activate(account.tenant)
        account.refresh_from_db()
        periods.begin(account)


def try_to_provision(account: Account) -> bool:
    """Whether the account is ready now. A failure is logged and left to the next run: the customer just waits."""
    if account.status != Account.Status.PENDING:
        return True
    try:
        provision(account)
    except Exception:  # the edge between a customer's page and everything that may be down
        logger.exception("Provisioning is not finished: account=%s", account.pk)
        return False
    return True


# --- what the first to ask gets, once --------------------------------------------------------------------------------

# How long after activation. A waiting room or a status address that is left open must not open the workspace later.
FIRST_WITHIN = timedelta(minutes=10)


def first_key(account: Account) -> str | None:
    """The owner's first API key."""
    return _once(account, "first_key_given_at", lambda owner: create_key(owner, name="First key")[1])


def hand_over(account: Account) -> str | None:
    """The token that signs the owner in on the workspace's host."""
    return _once(account, "handed_over_at", lambda owner: issue_token(account.tenant, user_id=owner.pk))


def _once(account: Account, column: str, make: Callable[[User], str]) -> str | None:
    """What `make` makes for the owner, for the first caller in time; None for all others."""
    now = timezone.now()
    owner = owner_of(account.tenant)
    if owner is None:
        return None
    unclaimed = Account.objects.filter(
        **{"pk": account.pk, "status": Account.Status.ACTIVE, "activated_at__gt": now - FIRST_WITHIN, column: None}
    )
    # Together: what could not be made must not count as given.
    with tenant_scope(account.tenant), transaction.atomic(durable=True):
        return make(owner) if unclaimed.update(**{column: now}) == 1 else None


# --- the unguessable address of a pending sign-up -------------------------------------------------------------------

_SALT = "billing.signup-status"


def status_token(account: Account) -> str:
    return signing.Signer(salt=_SALT).sign(str(account.pk)).replace(":", ".")


def account_for_status(token: str) -> Account | None:
    try:
        pk = signing.Signer(salt=_SALT).unsign(token.replace(".", ":", 1))
    except signing.BadSignature:
        return None
    return Account.objects.select_related("tenant").filter(pk=int(pk)).first()


def owner_of(tenant: Tenant) -> User | None:
    with tenant_scope(tenant, alone=True):
        return User.objects.filter(is_owner=True).order_by("pk").first()
