"""The mails that a workspace has asked for, read from its outbox as they will be sent."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from tenants.mail.models import OutgoingMail
from tenants.sealing import unseal


@dataclass(frozen=True)
class Mail:
    to: str
    subject: str
    txt: str
    html: str

    @property
    def path(self) -> str:
        """Of the one address in it, on whatever host."""
        (found,) = set(re.findall(r"https?://[^/\s]+(/\S+)", self.txt))
        return str(found)


def mails_of(workspace, to: str) -> list[Mail]:
    """Those to one address, the first one first."""
    with workspace.scope():
        rows = list(OutgoingMail.objects.filter(to=to).order_by("pk"))
    bodies = [json.loads(unseal(row.sealed_body)) for row in rows]
    return [Mail(row.to, row.subject, body["txt"], body["html"]) for row, body in zip(rows, bodies, strict=True)]
