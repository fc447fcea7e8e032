"""Sending a mail of the outbox through Django's mail backend, in the jobs process.

Owns what becomes of a row: sent, given up, or waiting for the next try. A mail is sent once: by one process at a time,
and never again once its row says so. One gap is left: a process that is killed between the server's OK and the row
sends it again. Both have the same Message-ID, by which many mailboxes show one.
"""

from __future__ import annotations

import json
import logging
import smtplib
from contextlib import suppress
from datetime import datetime, timedelta
from email.utils import parseaddr, quote
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.mail import EmailMultiAlternatives, get_connection
from django.db import connection
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.crypto import salted_hmac

from tenants.context import tenant_or_public
from tenants.http import RateLimited
from tenants.locks import if_nobody_is
from tenants.mail import strangers
from tenants.mail.backends import NoMailServer
from tenants.mail.lines import one_line
from tenants.mail.models import OutgoingMail
from tenants.sealing import unseal

logger = logging.getLogger(__name__)

# How long a mail is tried. A server that is away for longer loses it, and the log says so.
TRIED = timedelta(days=1)
# That a mail was sent is remembered for so long.
KEPT = timedelta(days=30)
# Of a server's own words in a log.
SAID_LENGTH = 200

_without_server_was_said = False


class NotSent(Exception):
    """Not this time; the log says why, and the mail waits for the next try."""


class _Refused(Exception):
    """For good: the same mail to the same address would be refused again."""


def send_now(mail_id: int) -> None:
    """Send it unless that is done, or under way elsewhere. Raises NotSent: the job is tried again."""
    with if_nobody_is(f"mail:{_schema()}:{mail_id}") as is_ours:
        if not is_ours:
            raise NotSent
        mail = _waiting().filter(pk=mail_id).first()
        if mail is not None:
            _try(mail)


def give_up_old() -> None:
    """Rows that no job will come back to: it was lost, or their workspace was not served while it was tried."""
    lost = _waiting().filter(created_at__lt=timezone.now() - 2 * TRIED)
    for pk in lost.values_list("pk", flat=True):
        logger.error("Mail given up, for nobody has sent it in time: mail=%s", pk)
    lost.update(given_up_at=timezone.now(), sealed_body="")


def forget_old() -> None:
    over = timezone.now() - KEPT
    OutgoingMail.objects.filter(created_at__lt=over).exclude(sent_at=None, given_up_at=None).delete()


def _try(mail: OutgoingMail) -> None:
    body = json.loads(unseal(mail.sealed_body))
    is_counted = False
    try:
        if "until" in body and timezone.now() > datetime.fromisoformat(body["until"]):
            raise _Refused("its link is over")
        message = _message(mail, body)
        is_counted = _count(mail, body)
        _hand_over(message, mail)
    except _Refused as exc:
        logger.warning("Mail given up: mail=%s %s", mail.pk, exc)
        _end(mail, given_up_at=timezone.now())
    except NoMailServer:
        _say_once_that_there_is_no_server()
        _end(mail, given_up_at=timezone.now())
    # What a mail server's connection raises. OSError is a time-out and a refused connection, too.
    except (OSError, smtplib.SMTPException) as exc:
        _failed(mail, _without(mail.to, _said(exc)), is_counted=is_counted)
    except Exception as exc:  # the edge of a job: a mail backend of an operator's own raises what it will
        # Its kind alone, for its words may quote the mail.
        _failed(mail, type(exc).__name__, is_counted=is_counted)


def _failed(mail: OutgoingMail, why: str, *, is_counted: bool) -> None:
    if is_counted:
        strangers.uncount(mail.to)
    if timezone.now() - mail.created_at < TRIED:
        logger.warning("Mail not sent, tried again later: mail=%s %s", mail.pk, why)
        raise NotSent from None  # the answer may quote the address, and a job's failure is logged
    logger.error("Mail given up after a day: mail=%s %s", mail.pk, why)
    _end(mail, given_up_at=timezone.now())


def _count(mail: OutgoingMail, body: dict[str, Any]) -> bool:
    """Whether it was counted. Raises _Refused where it is one too many: a bomb is no better for being late."""
    if not body.get("is_counted", strangers.is_anybodys(mail.to)):
        return False
    try:
        strangers.count(mail.to)
    except RateLimited:
        raise _Refused("many went to this address just now, and nobody has confirmed it") from None
    return True


def _hand_over(message: EmailMultiAlternatives, mail: OutgoingMail) -> None:
    server = get_connection()
    try:
        server.open()
        try:
            server.send_messages([message])
        except smtplib.SMTPRecipientsRefused as exc:
            code, said = exc.recipients[next(iter(exc.recipients))]
            raise _refusal(code, said, mail) from None
        except smtplib.SMTPDataError as exc:
            raise _refusal(exc.smtp_code, exc.smtp_error, mail) from None
        # Before the good-bye: a server that hangs there has the mail all the same.
        _end(mail, sent_at=timezone.now())
    finally:
        with suppress(Exception):
            server.close()


def _refusal(code: int, said: bytes | str, mail: OutgoingMail) -> Exception:
    """By the recipient's server, or for what the mail is. Its 4xx are for now."""
    if code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _Refused(_without(mail.to, f"{code} {_text(said)}"))
    return smtplib.SMTPResponseException(code, said)


def _message(mail: OutgoingMail, body: dict[str, Any]) -> EmailMultiAlternatives:
    """One recipient, and headers of one line each: Django refuses any other by ValueError."""
    headers = {"Message-ID": _message_id(mail), "Auto-Submitted": "auto-generated"}
    message = EmailMultiAlternatives(mail.subject, body["txt"], _sender(), [mail.to], headers=headers)
    message.attach_alternative(body["html"], "text/html")
    try:
        to = message.message()["To"]
    except ValueError as exc:
        raise _Refused(f"it cannot be written as a mail: {type(exc).__name__}") from None
    if to.count("@") != 1 or "," in to or not to.isascii():
        raise _Refused("its address is not one address")
    return message


def _sender() -> str:
    """In the workspace's name, from the site's address."""
    tenant = tenant_or_public()
    product, address = parseaddr(settings.DEFAULT_FROM_EMAIL)
    name = f"{one_line(tenant.name, 100)} · {product}" if tenant else product
    return f'"{quote(name)}" <{address}>'


def _message_id(mail: OutgoingMail) -> str:
    """The same at each try, and no number of anybody's mails."""
    return f"<{salted_hmac('tenants.mail', f'{_schema()}:{mail.pk}').hexdigest()}@{settings.BASE_DOMAIN}>"


def _waiting() -> QuerySet[OutgoingMail]:
    return OutgoingMail.objects.filter(sent_at=None, given_up_at=None)


def _end(mail: OutgoingMail, **moment: datetime) -> None:
    """The links in it are of no more use to us."""
    _waiting().filter(pk=mail.pk).update(sealed_body="", **moment)


def _schema() -> str:
    return str(connection.schema_name)  # type: ignore[attr-defined]  # django-tenants adds it


def _said(exc: OSError | smtplib.SMTPException) -> str:
    if isinstance(exc, smtplib.SMTPResponseException):
        return f"{type(exc).__name__} {exc.smtp_code} {_text(exc.smtp_error)}"
    return f"{type(exc).__name__} {exc}"


def _text(said: bytes | str) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said


def _without(address: str, said: str) -> str:
    return one_line(said.replace(address, "…"), SAID_LENGTH)


def _say_once_that_there_is_no_server() -> None:
    global _without_server_was_said
    if not _without_server_was_said:
        _without_server_was_said = True
        logger.error("No mail is sent: SMTP_HOST is not set. Mails that are asked for are given up.")
