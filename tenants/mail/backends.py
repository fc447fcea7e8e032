"""Where mails go that no mail server takes: a laptop prints them, and a site without a server sends none.

Django's mail backends; config.settings names the one to use.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from django.core.mail import EmailMessage
from django.core.mail.backends.base import BaseEmailBackend


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
