"""Conversations and their messages. In each tenant's schema; a conversation is its owner's alone."""

from __future__ import annotations

from django.conf import settings
from django.db import models

from billing.outcomes import Outcome


class Conversation(models.Model):
    id = models.BigAutoField(primary_key=True)
    # Its index is `conversation_newest`.
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations", db_index=False
    )
    title = models.CharField(max_length=80)
    created_at = models.DateTimeField(auto_now_add=True)
    # Whether the conversation has a ledger of its own at the authority; only then do its calls name it.
    has_limit = models.BooleanField(default=False)

    class Meta:
        indexes = [models.Index(fields=["owner", "-id"], name="conversation_newest")]

    def __str__(self) -> str:
        return self.title


class Message(models.Model):
    """One side's words. An answer also has what it cost; `cost` is microcents, unknown is null."""

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.BigAutoField(primary_key=True)
    # Its index is `message_in_order`.
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages", db_index=False)
    role = models.CharField(max_length=10, choices=Role.choices)
    text = models.TextField()
    model = models.CharField(max_length=200, blank=True)
    finish_reason = models.CharField(max_length=40, blank=True)
    outcome = models.CharField(max_length=10, blank=True, choices=Outcome.choices)
    tokens_input = models.BigIntegerField(null=True)
    tokens_output = models.BigIntegerField(null=True)
    cost = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["conversation", "id"], name="message_in_order")]

    def __str__(self) -> str:
        return f"{self.role}: {self.text[:40]}"
