"""The mails that a workspace has asked for, read from its outbox as they will be sent; its people's jobs, run now."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from procrastinate.contrib.django import app

from tenants.mail.models import OutgoingMail
from tenants.sealing import unseal
from tests.support.jobs import rows


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


def mails_of(workspace, to: str = "") -> list[Mail]:
    """Those to one address, or all; the first one first."""
    with workspace.scope():
        asked = OutgoingMail.objects.filter(to=to) if to else OutgoingMail.objects.all()
        waiting = list(asked.order_by("pk"))
    bodies = [json.loads(unseal(mail.sealed_body)) for mail in waiting]
    return [Mail(mail.to, mail.subject, body["txt"], body["html"]) for mail, body in zip(waiting, bodies, strict=True)]


def run_peoples_jobs(workspace) -> int:
    """What the workspace's requests have asked of tenants.users.tasks. How many there were."""
    taken = rows(
        "DELETE FROM public.procrastinate_jobs WHERE args->>'tenant_id' = %s AND status = 'todo' "
        "AND task_name LIKE 'tenants.users.tasks.%%' RETURNING task_name, args",
        str(workspace.tenant.pk),
    )
    for name, args in taken:
        kept = {key: value for key, value in json.loads(args).items() if key != "tenant_id"}
        with workspace.scope():
            app.tasks[name].func(**kept)
    return len(taken)
