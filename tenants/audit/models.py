"""AuditEvent: one thing that somebody did. In each tenant's schema; refers to nothing.

Web's and plane's role may insert and read, and nothing else (APPEND_ONLY_TABLES); tenants.audit.trail alone writes.
"""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now


class AuditEvent(models.Model):
    """Who did what, when and from where, in words that stay true when the member, the key or the name is gone."""

    id = models.BigAutoField(primary_key=True)
    at = models.DateTimeField(db_default=Now())
    # None: no member, such as an operator's command, a job, or somebody who could not log in.
    actor_id = models.BigIntegerField(null=True)
    # Their e-mail as it was; "operator" or "system" otherwise.
    actor = models.CharField(max_length=254, blank=True)
    # session, key, link, command or job.
    via = models.CharField(max_length=20, blank=True)
    key_id = models.BigIntegerField(null=True)
    event = models.CharField(max_length=60)
    # Whom or what it was done to, as people call it: an e-mail, a key's name.
    target = models.CharField(max_length=255, blank=True)
    details = models.JSONField(default=dict)
    address = models.CharField(max_length=45, blank=True)
    agent = models.CharField(max_length=200, blank=True)

    class Meta:
        # One for each way in which the trail is read: newest first, all of it, of an event, of a person.
        indexes = [
            models.Index(fields=["-at", "-id"], name="audit_by_time"),
            models.Index(fields=["event", "-at", "-id"], name="audit_by_event_and_time"),
            models.Index(fields=["actor", "-at", "-id"], name="audit_by_actor_and_time"),
            models.Index(fields=["target", "-at", "-id"], name="audit_by_target_and_time"),
        ]

    def __str__(self) -> str:
        return f"{self.actor or 'nobody'}: {self.event} {self.target}"
