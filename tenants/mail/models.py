"""OutgoingMail: one mail to one person. In every schema; refers to nothing. Written by tenants.mail.outbox alone."""

from __future__ import annotations

from django.db import models


class OutgoingMail(models.Model):
    """A mail from when it was asked for until it was sent, and then the fact that it was.

    `sealed_body` holds links that open doors: sealed while it waits, emptied once it is sent or given up.
    """

    id = models.BigAutoField(primary_key=True)
    to = models.EmailField()
    subject = models.CharField(max_length=255)
    sealed_body = models.TextField(blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField(null=True)
    given_up_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.subject} to {self.to}"
