"""A stranger's sign-up: who gets an address, and the job that builds the workspace behind it.

Owns the order of the steps, for that order is what keeps the door open: what is cheap and refuses comes first, then
the rows that claim the slug, then the password's hash. Must not build anything and must not call the authority: that
is the jobs process, which builds while the password is being hashed here.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.db import IntegrityError, connection, transaction
from django.db.models.functions import Now

from billing import provisioning, trials
from billing.models import Account
from billing.tasks import provision_account
from tenants.hosts import host_for
from tenants.http import RateLimited, Unavailable
from tenants.limits import Rate, give_back, take
from tenants.spelling import normal_email, normal_password
from tenants.users.hashers import going_ahead, refuse_if_full
from tenants.users.keys import digest

logger = logging.getLogger(__name__)

# Claims that one process makes at a time, each of a few milliseconds: so few that of many for one slug most are refused
# by the look before, and take nothing from the limits.
CLAIMS_AT_ONCE = 2
CLAIM_WAIT_SECONDS = 2.0
# How long a request waits for its workspace, and in how many threads of one process.
READY_SECONDS = 2.0
LOOK_SECONDS = 0.01
WAITING_AT_ONCE = 4

_claiming = threading.BoundedSemaphore(CLAIMS_AT_ONCE)
_waiting = threading.BoundedSemaphore(WAITING_AT_ONCE)


def new_mark() -> str:
    """For a form: unguessable, so that only who was given that form can go on with its sign-up."""
    return secrets.token_urlsafe(32)


def knock(address: str) -> None:
    """Count a form, right or wrong: with enough of them somebody could read from the answers which names are taken."""
    take(Rate("sign-up-form", *settings.SIGN_UP_FORM_RATE, words="Too many tries from this address."), address)


def ask(*, name: str, slug: str, email: str, password: str, plan: str, mark: str, address: str) -> Account:
    """An account of this person's that is set up or will be. A slug that is anybody else's is SlugTaken.

    The same mark again gives the same account: two clicks on one form are one sign-up.
    """
    asked_by = digest(mark)
    account, is_new = _claimed(slug, asked_by), False
    if account is None:
        with _claiming_place():
            # Again: of many at once who want one slug, those who have waited here must not count as sign-ups.
            account = _claimed(slug, asked_by)
            if account is None:
                with going_ahead():
                    refuse_if_full()
                with _counted(address):
                    account, is_new = _claimed_now(name=name, slug=slug, email=email, plan=plan, asked_by=asked_by)
    if not _has_password(account):
        _hash_and_keep(account, password, is_new=is_new)
    return account


@contextmanager
def _counted(address: str) -> Iterator[None]:
    """One more workspace of this address and of the site, unless it is refused for another reason."""
    words = "Too many workspaces were made just now."
    limits: list[tuple[Rate, tuple[str, ...]]] = [
        (Rate("sign-up-address", *settings.SIGN_UP_ADDRESS_RATE, words=words), (address,)),
        (Rate("sign-up-site", *settings.SIGN_UP_SITE_RATE, words=words), ()),
    ]
    with ExitStack() as taken:
        for limit, who in limits:
            take(limit, *who)
            taken.callback(give_back, limit, *who)
        yield
        taken.pop_all()


def _claimed(slug: str, asked_by: str) -> Account | None:
    """The account that this mark has claimed before; None where the slug is free.

    Whatever a taken slug is, pending, active, closed, or left for another, it takes the same look-up and gives the same
    answer.
    """
    account = Account.objects.select_related("tenant").filter(tenant__domains__domain=host_for(slug)).first()
    if account is None or secrets.compare_digest(account.asked_by, asked_by):
        return account
    if provisioning.broken_off().filter(pk=account.pk).exists():
        return None
    raise provisioning.taken(slug)


def _has_password(account: Account) -> bool:
    """The hash is kept in the account only until it is active."""
    return account.status != Account.Status.PENDING or bool(account.owner_password)


def _claimed_now(*, slug: str, asked_by: str, **fields: str) -> tuple[Account, bool]:
    """The account, and whether it is this request that claimed it: the other click may be in another process."""
    try:
        return _claim(slug=slug, asked_by=asked_by, **fields), True
    except IntegrityError:
        account = _claimed(slug, asked_by)
        if account is None:
            raise provisioning.taken(slug) from None
        return account, False


def _claim(*, name: str, slug: str, email: str, plan: str, asked_by: str) -> Account:
    """The rows and the job, or neither. Of many who ask for one slug at once, one gets past this; IntegrityError."""
    with transaction.atomic(durable=True):
        trials.check_room(plan)
        account = _take_over(name=name, slug=slug, email=email, plan=plan, asked_by=asked_by)
        if account is None:
            account = provisioning.register(
                name=name,
                slug=slug,
                email=email,
                plan=plan,
                asked_by=asked_by,
                waits=settings.SIGNUP_CONFIRM_EMAIL,
            )
        # Django's connection is the queue's: rolled back, the job never was. It starts when this is committed.
        provision_account.configure(lock=f"provision_account:{account.pk}").defer(account_id=account.pk)
        return account


def _take_over(*, name: str, slug: str, email: str, plan: str, asked_by: str) -> Account | None:
    """The slug's account, where its own sign-up was broken off. It has no owner yet: that needs a password."""
    account = (
        provisioning.broken_off()
        .select_related("tenant")
        .filter(tenant__slug=slug)
        .select_for_update(of=("self",))
        .first()
    )
    if account is None:
        return None
    account.tenant.name = name
    account.tenant.save(update_fields=["name"])
    account.owner_email, account.plan, account.asked_by = normal_email(email), plan, asked_by
    account.save(update_fields=["owner_email", "plan", "asked_by"])
    Account.objects.filter(pk=account.pk).update(created_at=Now())
    return account


@contextmanager
def _claiming_place() -> Iterator[None]:
    if not _claiming.acquire(timeout=CLAIM_WAIT_SECONDS):
        raise Unavailable
    try:
        yield
    finally:
        _claiming.release()


def _hash_and_keep(account: Account, password: str, *, is_new: bool) -> None:
    try:
        with going_ahead():
            hashed = make_password(normal_password(password))
    except RateLimited:
        # Others were faster at the one thread that hashes, such as the first of two clicks on this form.
        if not is_new:
            return
        # Whoever tries again must not have to wait for the slug.
        _give_up(account)
        raise
    _keep_password(account, hashed)


def _give_up(account: Account) -> None:
    ours = Account.objects.filter(pk=account.pk, asked_by=account.asked_by, owner_password="")
    ours.filter(status=Account.Status.PENDING).update(created_at=Now() - provisioning.BROKEN_OFF_AFTER)


def _keep_password(account: Account, hashed: str) -> None:
    ours = Account.objects.filter(pk=account.pk, asked_by=account.asked_by)
    kept = ours.filter(status=Account.Status.PENDING, owner_password="").update(owner_password=hashed)
    # The other click on the same form may have been faster, which is as good.
    if not kept and not ours.exists():
        raise provisioning.taken(account.tenant.slug)


def wait_until_ready(account: Account) -> bool:
    """Whether the account is set up, looking for a short time. With too many who wait already it looks once."""
    if _is_ready(account):
        return True
    if not _waiting.acquire(blocking=False):
        return False
    try:
        until = time.monotonic() + READY_SECONDS
        while time.monotonic() < until:
            connection.close()  # the pool's others need it meanwhile
            time.sleep(LOOK_SECONDS)
            if _is_ready(account):
                return True
        return False
    finally:
        _waiting.release()


def _is_ready(account: Account) -> bool:
    account.refresh_from_db(fields=["status", "activated_at"])
    return account.status != Account.Status.PENDING
