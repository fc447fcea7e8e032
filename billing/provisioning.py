"""From the rows of a sign-up to a workspace that can pay: steps that may each be repeated.

Orchestrated here because tenants must not know billing. It runs in the jobs process and in commands: web only looks,
and who may sign up at all is decided in `billing.signing_up`. No HTTP inside a transaction; a crash anywhere leaves
a PENDING account that the next run finishes, and nothing is made twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta

from django.contrib.auth.hashers import make_password
from django.core import signing
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.utils import timezone

from billing import admin_client, periods
from billing.allowance import allowance_of, waits
from billing.errors import SlugTaken
from billing.keys import seal
from billing.models import Account
from billing.plans import plan_of
from tenants import services
from tenants.context import tenant_scope
from tenants.hosts import url_for
from tenants.locks import if_nobody_is
from tenants.models import Tenant
from tenants.roles import Role
from tenants.spelling import normal_email, normal_password
from tenants.users import directory
from tenants.users.addresses import ask_to_confirm
from tenants.users.handoff import issue_token
from tenants.users.keys import create_key
from tenants.users.models import User

logger = logging.getLogger(__name__)

# How long after the claim a run waits for the password's hash. Web makes it while we build, in a quarter of a second or
# a busy few. From the claim on, and not from when a run comes here: each of its runs would keep a worker so long from
# all who sign up, and somebody who sends many forms at once leaves a few claims without a password.
PASSWORD_WITHIN = timedelta(seconds=10)
# A claim without a password was broken off: its process died in the quarter of a second between the two.
BROKEN_OFF_AFTER = timedelta(seconds=30)


class PasswordMissing(Exception):
    """The process that asked for the account died before it had kept the owner's password."""


def sign_up(*, name: str, slug: str, email: str, password: str, plan: str) -> Account:
    """A PENDING account and its tenant, for commands and tests: the caller then runs `provision`.

    Strangers come by `billing.signing_up`, which limits them. A taken slug is SlugTaken.
    """
    hashed = make_password(normal_password(password))
    try:
        with transaction.atomic(durable=True):
            return register(name=name, slug=slug, email=email, plan=plan, owner_password=hashed)
    except IntegrityError:
        raise taken(slug) from None


def register(
    *, name: str, slug: str, email: str, plan: str, owner_password: str = "", asked_by: str = "", waits: bool = False
) -> Account:
    """The rows of a new workspace, in the caller's transaction. A slug that is taken raises IntegrityError.

    `waits`: its allowance is granted only once the owner's e-mail is confirmed.
    """
    return Account.objects.create(
        tenant=services.register_tenant(slug, name=name),
        plan=plan,
        subject_tenant=f"ws-{secrets.token_hex(10)}",
        owner_email=normal_email(email),
        owner_password=owner_password,
        asked_by=asked_by,
        **({"allowance_granted_at": None} if waits else {}),
    )


def taken(slug: str) -> SlugTaken:
    return SlugTaken(login_url=url_for(slug, "/login/"))


def unfinished() -> QuerySet[Account]:
    """The accounts that a further run may finish. Without a password nobody could log in: see `billing.signing_up`."""
    return Account.objects.select_related("tenant").filter(status=Account.Status.PENDING).exclude(owner_password="")


def broken_off() -> QuerySet[Account]:
    """The accounts that nobody finishes: their slugs are free."""
    return Account.objects.filter(
        status=Account.Status.PENDING, owner_password="", created_at__lt=Now() - BROKEN_OFF_AFTER
    )


def provision(account: Account) -> bool:
    """Make everything an account needs, and say whether it is set up. Safe to run again after any failure.

    Of two runs at once one builds. The other is told so at once, by False.
    """
    with if_nobody_is(f"provision:{account.pk}") as alone:
        if not alone:
            return False
        account.refresh_from_db(fields=["status"])
        if account.status == Account.Status.PENDING:
            services.ensure_schema(account.tenant)
            ensure_authority_tenant(account)
            ensure_key(account)
            ensure_budget(account)
            ensure_owner(account)
            activate(account)
    return True


def ensure_authority_tenant(account: Account) -> None:
    admin_client.ensure_tenant(account.subject_tenant)


def ensure_key(account: Account) -> None:
    """The account's authority key. Creating one cannot be repeated, so what a lost answer left is revoked.

    Also where the key is stored already: the run that stored it may have been killed before it had revoked the others.
    """
    name = f"account-{account.pk}"
    account.refresh_from_db(fields=["sealed_key", "authority_key_id"])
    if not account.sealed_key:
        key_id, secret = admin_client.create_key(account.subject_tenant, name=name)
        # Of two that should not be here at once, one stores its key; either revokes all but that.
        Account.objects.filter(pk=account.pk, sealed_key="").update(sealed_key=seal(secret), authority_key_id=key_id)
        account.refresh_from_db(fields=["sealed_key", "authority_key_id"])
    for key_id in admin_client.active_key_ids(account.subject_tenant, name=name):
        if key_id != account.authority_key_id:
            admin_client.revoke_key(key_id)


def ensure_budget(account: Account) -> None:
    """With nothing in it where the allowance waits. It is granted after activation, so nothing changes meanwhile."""
    admin_client.ensure_budget(
        account.subject_tenant,
        account.scope,
        allocated=allowance_of(account),
        overdraft_limit=plan_of(account.plan).overdraft,
    )


def ensure_owner(account: Account) -> None:
    """The owner's user in the tenant's schema; a password changed since is left alone."""
    with tenant_scope(account.tenant, alone=True):
        if User.objects.filter(role=Role.OWNER).exists():
            return
    _wait_for_password(account)
    # With public, for the directory; the look above has shown that the schema is there.
    with tenant_scope(account.tenant), transaction.atomic(durable=True):
        user, is_new = User.objects.get_or_create(
            email=account.owner_email, defaults={"password": account.owner_password, "role": Role.OWNER}
        )
        if not is_new:
            # Written by a jobs process of the release before, which knows no roles, into a schema of this one.
            User.objects.filter(pk=user.pk).update(role=Role.OWNER)
        directory.note(account.tenant, account.owner_email)


def _wait_for_password(account: Account) -> None:
    """A sign-up hashes its password while we build, for each takes about a quarter of a second."""
    while True:
        # Together: another sign-up may have taken over an address whose own was broken off.
        account.refresh_from_db(fields=["owner_email", "owner_password", "created_at"])
        if account.owner_password:
            return
        if timezone.now() > account.created_at + PASSWORD_WITHIN:
            raise PasswordMissing
        connection.close()  # the pool's others need it meanwhile
        time.sleep(0.01)


def activate(account: Account) -> None:
    """Open the doors. An account that was frozen or closed meanwhile stays so.

    Where the allowance waits, the mail that asks the owner to confirm is put in with it: no workspace without a mail,
    and no mail of a workspace that is not there.
    """
    # Who waits for nothing pays for no change of schema.
    scope = tenant_scope(account.tenant) if waits(account) else nullcontext()
    with scope, transaction.atomic(durable=True):
        Account.objects.filter(pk=account.pk, status=Account.Status.PENDING).update(
            status=Account.Status.ACTIVE, activated_at=timezone.now(), owner_password=""
        )
        services.activate(account.tenant)
        account.refresh_from_db()
        periods.begin(account)
        if waits(account):
            ask_to_confirm(User.objects.get(email=account.owner_email))


def try_to_provision(account: Account) -> bool:
    """Whether the account is set up now. A failure is logged and left to the next run: the customer just waits."""
    try:
        return provision(account)
    except PasswordMissing:
        logger.warning("A sign-up was broken off before its password was kept: account=%s", account.pk)
    except Exception:  # the edge between a customer and everything that may be down
        logger.exception("Provisioning is not finished: account=%s", account.pk)
    return False


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
    """What `make` makes for the owner, for the first caller in time; None for all others.

    Also for a caller whose account has become another's while they waited: their own sign-up was broken off.
    """
    now = timezone.now()
    theirs = Account.objects.filter(pk=account.pk, asked_by=account.asked_by, status=Account.Status.ACTIVE)
    unclaimed = theirs.filter(**{"activated_at__gt": now - FIRST_WITHIN, column: None})
    # Looked at first, for a deleted workspace may have no schema any more.
    owner = founder_of(account.tenant) if unclaimed.exists() else None
    if owner is None:
        return None
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


def founder_of(tenant: Tenant) -> User | None:
    """Whoever signed up, the first member ever, while they own it: of a workspace that was handed over within minutes,
    what is theirs to ask for must not be given to them as its new owner.
    """
    with tenant_scope(tenant, alone=True):
        first = User.objects.order_by("pk").first()
        return first if first and first.is_active and first.is_owner else None
