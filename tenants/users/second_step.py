"""The second step: codes of an authenticator app (TOTP, RFC 6238) and recovery codes.

Owns Totp, RecoveryCode and User.second_step_at: setting up, taking a code once, turning off. Must not see a password,
and lets nobody in: tenants.users.entering does.
"""

from __future__ import annotations

import base64
import secrets
import time
import unicodedata
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

import pyotp
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest
from django.utils import timezone
from django.utils.crypto import constant_time_compare

from tenants.audit.events import Event
from tenants.audit.trail import record
from tenants.context import tenant_or_public
from tenants.hosts import url_for
from tenants.http import shortened
from tenants.limits import Tries, address_of, give_back, is_known, remember, reset, take
from tenants.mail.outbox import send
from tenants.sealing import seal, unseal
from tenants.users.keys import digest
from tenants.users.models import RecoveryCode, Totp, User

# What authenticator apps take for granted: others ignore any other figure that the picture names.
INTERVAL_SECONDS = 30
DIGITS = 6
# A phone's clock may be half a minute wrong, either way.
DRIFT = 1
# A secret that was shown and not confirmed is good for so long.
SET_UP_WITHIN = timedelta(minutes=30)

RECOVERY_CODES = 10
# 80 bits: nobody guesses one, and none can be found again from its digest.
RECOVERY_BYTES = 10

# Of one account, from wherever: who comes here had the right password, or a link. Eighteen in the first hour, then four
# an hour, of a million codes of which three are right. A day without any and it begins anew. An address where a right
# one was typed before has tries of its own, or whoever has the password could keep the account's member out for ever.
CODES = Tries(
    "second-step", free=5, first=1.0, factor=2.0, longest=900.0, forget_after=86_400.0, words="Too many wrong codes."
)
KNOWN = "second-step-known"
KNOWN_SECONDS = 30 * 24 * 3600.0


class Kind(StrEnum):
    """What was right."""

    APP = "code"
    RECOVERY = "recovery code"


@dataclass(frozen=True)
class SetUp:
    """A secret that waits for its first code: as a picture's text, and for who types it."""

    secret: str
    uri: str

    @property
    def groups(self) -> str:
        return " ".join(self.secret[start : start + 4] for start in range(0, len(self.secret), 4))


# --- setting up -----------------------------------------------------------------------------------------------------


def begin(user: User) -> None:
    """A new secret, which counts for nothing until it is confirmed. Where the second step is on, nothing changes."""
    with transaction.atomic(durable=True):
        if _locked(user).second_step_at is None:
            Totp.objects.update_or_create(
                user=user,
                defaults={
                    "sealed_secret": seal(pyotp.random_base32()),
                    "created_at": timezone.now(),
                    "confirmed_at": None,
                    "last_interval": 0,
                },
            )


def begun(user: User) -> SetUp | None:
    """What `begin` made, while it is new enough to be confirmed."""
    totp = _unconfirmed(user)
    if totp is None:
        return None
    secret = unseal(totp.sealed_secret)
    return SetUp(secret, pyotp.TOTP(secret).provisioning_uri(name=user.email, issuer_name=_issuer()))


def confirm(user: User, typed: str, *, request: HttpRequest) -> list[str] | None:
    """Turn it on, if this is a code of the new secret: the recovery codes then, which are known only here and now."""
    with transaction.atomic(durable=True):
        totp = None if _locked(user).second_step_at else _unconfirmed(user)
        interval = _interval_of(totp, plain(typed)) if totp else None
        if totp is None or interval is None:
            return None
        totp.confirmed_at, totp.last_interval = timezone.now(), interval
        totp.save(update_fields=["confirmed_at", "last_interval"])
        User.objects.filter(pk=user.pk).update(second_step_at=totp.confirmed_at)
        codes = _make_recovery_codes(user)
        record(Event.SECOND_STEP_ADDED, request=request, target=user.email)
        _tell(user, "Two-step log-in is on", "two-step log-in was turned on")
    user.second_step_at = totp.confirmed_at
    return codes


def turn_off(user: User, *, request: HttpRequest | None, via: str = "") -> None:
    """Without a request it is an operator's command, for somebody who has lost everything."""
    with transaction.atomic(durable=True):
        _locked(user)
        Totp.objects.filter(user=user).delete()
        RecoveryCode.objects.filter(user=user).delete()
        User.objects.filter(pk=user.pk).update(second_step_at=None)
        record(Event.SECOND_STEP_REMOVED, request=request, target=user.email, via=via)
        _tell(user, "Two-step log-in is off", "two-step log-in was turned off")
    user.second_step_at = None


def renew_recovery_codes(user: User, *, request: HttpRequest) -> list[str]:
    """Ten new ones; those of before open nothing any more."""
    with transaction.atomic(durable=True):
        _locked(user)
        codes = _make_recovery_codes(user)
        record(Event.RECOVERY_CODES_MADE, request=request, target=user.email)
        _tell(user, "New recovery codes", "new recovery codes were made, and the old ones ended")
    return codes


def recovery_codes_left(user: User) -> int:
    return RecoveryCode.objects.filter(user=user, used_at=None).count()


# --- taking a code --------------------------------------------------------------------------------------------------


def take_code(user: User, typed: str, *, request: HttpRequest) -> Kind | None:
    """Use up a code of the app or a recovery code; None where it is wrong, or was used before.

    Counted before it is compared, so that forty at once are not all compared. Raises RateLimited.
    """
    who = _who(user)
    here = (*who, address_of(request))
    if is_known(KNOWN, *here):
        who = here
    take(CODES, *who)
    try:
        kind = _take(user, plain(typed), request=request)
    except Exception:
        give_back(CODES, *who)
        raise
    if kind is None:
        record(Event.LOG_IN_FAILED, request=request, target=user.email, step="code")
    else:
        reset(CODES, *who)
        remember(KNOWN, *here, seconds=KNOWN_SECONDS)
    return kind


def plain(typed: str) -> str:
    """A code without what people put between its parts, and with what they take for one another made one."""
    signs = "".join(sign for sign in unicodedata.normalize("NFKC", typed).lower() if sign.isalnum())
    return signs if len(signs) == DIGITS else signs.translate(str.maketrans("018", "olb"))


def _take(user: User, code: str, *, request: HttpRequest) -> Kind | None:
    if len(code) == DIGITS:
        return Kind.APP if _take_of_app(user, code) else None
    with transaction.atomic(durable=True):
        unused = RecoveryCode.objects.filter(user=user, digest=digest(code), used_at=None)
        if not user.second_step_at or unused.update(used_at=timezone.now()) != 1:
            return None
        left = recovery_codes_left(user)
        record(Event.RECOVERY_CODE_USED, request=request, actor=user, target=user.email, left=left)
        _tell(user, "A recovery code was used", f"a recovery code was used; {left} of {RECOVERY_CODES} are left")
    return Kind.RECOVERY


def _take_of_app(user: User, code: str) -> bool:
    totp = Totp.objects.filter(user=user).exclude(confirmed_at=None).first()
    interval = _interval_of(totp, code) if totp else None
    if totp is None or interval is None:
        return False
    # Of two processes that were shown the same code, one takes it.
    unchanged = Totp.objects.filter(pk=totp.pk, sealed_secret=totp.sealed_secret, last_interval__lt=interval)
    return unchanged.update(last_interval=interval) == 1


def _interval_of(totp: Totp, code: str) -> int | None:
    """The interval whose code it is, of those that may still be used."""
    codes = pyotp.TOTP(unseal(totp.sealed_secret), digits=DIGITS, interval=INTERVAL_SECONDS)
    now = int(time.time()) // INTERVAL_SECONDS
    for interval in range(max(now - DRIFT, totp.last_interval + 1), now + DRIFT + 1):
        if constant_time_compare(code, codes.generate_otp(interval)):
            return interval
    return None


# --- what both need -------------------------------------------------------------------------------------------------


def _locked(user: User) -> User:
    """Two tabs of one person one after the other: else one's new secret could replace what the other has confirmed."""
    return User.objects.select_for_update(no_key=True).get(pk=user.pk)


def _unconfirmed(user: User) -> Totp | None:
    return Totp.objects.filter(user=user, confirmed_at=None, created_at__gt=timezone.now() - SET_UP_WITHIN).first()


def _make_recovery_codes(user: User) -> list[str]:
    RecoveryCode.objects.filter(user=user).delete()
    codes = [base64.b32encode(secrets.token_bytes(RECOVERY_BYTES)).decode().lower() for _ in range(RECOVERY_CODES)]
    RecoveryCode.objects.bulk_create(RecoveryCode(user=user, digest=digest(code)) for code in codes)
    return ["-".join(code[start : start + 4] for start in range(0, len(code), 4)) for code in codes]


def _issuer() -> str:
    """What the app lists it under. A colon would end it there, and a picture has no room for a name of 100 signs."""
    tenant = tenant_or_public()
    name = f"{settings.PRODUCT_NAME} {tenant.name}" if tenant else settings.PRODUCT_NAME
    return shortened(name.replace(":", " "), 40)


def _who(user: User) -> tuple[str | int, ...]:
    """Ids begin anew in each workspace."""
    tenant = tenant_or_public()
    return (tenant.pk if tenant else 0, user.pk)


def _tell(user: User, subject: str, what: str) -> None:
    tenant = tenant_or_public()
    url = url_for(tenant.slug, "/settings/security/") if tenant else ""
    send(user.email, "second_step", subject=subject, what=what, url=url)
