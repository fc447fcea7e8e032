"""Where mails go: to a mail server; and where there is none, a laptop prints them and a site sends none.

Django's mail backends; config.settings names the one to use.
"""

from __future__ import annotations

import io
import smtplib
import socket
import threading
import time
from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend
from django.core.mail.backends.smtp import EmailBackend

# For one mail, from the server's greeting on. EMAIL_TIMEOUT is for each byte that is waited for: a server that sends
# one now and then would keep its sender for hours, and two of those are all there are.
CONVERSATION_SECONDS = 120.0


class Smtp(EmailBackend):
    """Django's own, with an end to each conversation."""

    @property
    def connection_class(self) -> type[smtplib.SMTP]:
        return _SmtpByTls if self.use_ssl else _Smtp


class _Smtp(smtplib.SMTP):
    _until: float | None = None

    def getreply(self) -> tuple[int, bytes]:
        # From the first reply on, and anew where TLS has begun: smtplib drops the file with the socket of before.
        if self._until is None:
            self._until = time.monotonic() + CONVERSATION_SECONDS
        if self.file is None and self.sock is not None:
            self.file = io.BufferedReader(_Until(self.sock, self._until))
        return super().getreply()


class _SmtpByTls(smtplib.SMTP_SSL, _Smtp):
    pass


class _Until(io.RawIOBase):
    """What comes by a socket, until then."""

    def __init__(self, source: socket.socket, until: float) -> None:
        self._source, self._until = source, until

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        if time.monotonic() > self._until:
            raise TimeoutError("the conversation took too long")
        return self._source.recv_into(into)


class NoMailServer(Exception):
    """SMTP_HOST is not set on a site that others can reach. A mail holds links that open doors: no log may have it."""


class Printing(BaseEmailBackend):
    """Writes a mail as a person reads it, each link whole, to where the jobs process's log goes. For a laptop alone.

    Not by `logging`: its filter takes secrets out of addresses, and here the link is what somebody is waiting for.
    """

    _one_at_a_time = threading.Lock()

    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        for message in email_messages:
            head = f"From: {message.from_email}\nTo: {', '.join(message.to)}\nSubject: {message.subject}"
            rule = "-" * 30
            with self._one_at_a_time:
                print(f"{rule} mail {rule}\n{head}\n\n{str(message.body).strip()}\n{rule}------{rule}", flush=True)
        return len(email_messages)


class Nowhere(BaseEmailBackend):
    def send_messages(self, email_messages: Sequence[EmailMessage]) -> int:
        raise NoMailServer
