"""Conversations and their messages. In each tenant's schema; a conversation is its owner's alone."""

from __future__ import annotations

from collections.abc import Sequence

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.contrib.postgres.search import SearchVector
from django.db import models
from django.db.models.functions import Left, Now

from billing.outcomes import Outcome
from chat.attached import IMAGE_KINDS

# Letters of a message that are searched. Postgres refuses to index the words of more than a megabyte, and a message
# that it refuses would be lost.
SEARCHED = 50_000
# What joins words to addresses, paths, tags and compounds. For each of these letters Postgres looks ahead for one, to
# the end of what is joined: 50,000 letters took it half a minute, within the statement that settles an answer. So
# words alone are indexed, and looked for.
JOINING = "_~/.@<&:-"


def words_of(text: object) -> models.Func:
    return models.Func(
        text,
        models.Value(JOINING),
        models.Value(" " * len(JOINING)),
        function="translate",
        output_field=models.TextField(),
    )


class Conversation(models.Model):
    """A tree of messages, of which one branch is shown: the one that ends with `head_id`."""

    class TitledBy(models.TextChoices):
        WORDS = "words", "the first words"
        MODEL = "model"
        PERSON = "person"

    id = models.BigAutoField(primary_key=True)
    # Its index is `conversation_active`.
    owner = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations", db_index=False
    )
    title = models.CharField(max_length=80)
    titled_by = models.CharField(
        max_length=10, choices=TitledBy.choices, default=TitledBy.WORDS, db_default=TitledBy.WORDS
    )
    created_at = models.DateTimeField(auto_now_add=True)
    # When its newest answer ended.
    active_at = models.DateTimeField(db_default=Now())
    pinned_at = models.DateTimeField(null=True)
    # Deleted by its owner, who may take that back until a daily job drops it.
    deleted_at = models.DateTimeField(null=True)
    # Since when everybody in the workspace may read it.
    shared_at = models.DateTimeField(null=True)
    # The last message of the branch that is shown; null for none. No foreign key: it would be one more to look up
    # with each answer that is written.
    head_id = models.BigIntegerField(null=True)
    # What it asks, how, and by what words; blank and null are the workspace's own.
    model = models.CharField(max_length=200, blank=True, db_default="")
    system = models.TextField(blank=True, db_default="")
    temperature = models.DecimalField(max_digits=3, decimal_places=2, null=True)
    # What was said up to that message, in short: it goes along in the place of that. Null: of nothing.
    summary = models.TextField(blank=True, db_default="")
    summary_upto = models.BigIntegerField(null=True)
    # Whether the conversation has a ledger of its own at the authority; only then do its calls name it.
    has_limit = models.BooleanField(default=False)

    class Meta:
        indexes = [
            models.Index(fields=["owner", "-active_at"], name="conversation_active"),
            # Of few rows each: a conversation that is none of this is in none of them.
            models.Index(fields=["owner"], condition=models.Q(pinned_at__isnull=False), name="conversation_pinned"),
            models.Index(fields=["shared_at"], condition=models.Q(shared_at__isnull=False), name="conversation_shared"),
            models.Index(
                fields=["deleted_at"], condition=models.Q(deleted_at__isnull=False), name="conversation_deleted"
            ),
        ]

    def __str__(self) -> str:
        return self.title


class Message(models.Model):
    """One side's words. An answer also has what it cost; `cost` is microcents, unknown is null."""

    # Its files, where a page has put them beside it (chat.attachments).
    files: Sequence[Attachment] = ()
    # Where a page has too much to render (chat.plainly).
    is_plain = False

    class Role(models.TextChoices):
        USER = "user"
        ASSISTANT = "assistant"

    id = models.BigAutoField(primary_key=True)
    # Its index is `message_in_order`.
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages", db_index=False)
    # The message that it follows, null for a first one. Two that follow the same are two branches. No foreign key, as
    # with `head_id`.
    parent_id = models.BigIntegerField(null=True)
    role = models.CharField(max_length=10, choices=Role.choices)
    text = models.TextField()
    # The sum of its files' tokens; 0 for none, and then nobody looks for files.
    files_tokens = models.IntegerField(default=0, db_default=0)
    model = models.CharField(max_length=200, blank=True)
    finish_reason = models.CharField(max_length=40, blank=True)
    outcome = models.CharField(max_length=10, blank=True, choices=Outcome.choices)
    tokens_input = models.BigIntegerField(null=True)
    tokens_output = models.BigIntegerField(null=True)
    cost = models.BigIntegerField(null=True)
    # The hold that paid for an answer; null for a question, and for what was answered before this was kept.
    hold = models.UUIDField(null=True)
    # Of the system prompt that an answer was asked with (chat.wishes.digest); null: none.
    system_digest = models.BigIntegerField(null=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["conversation", "id"], name="message_in_order"),
            models.Index(fields=["hold"], condition=models.Q(hold__isnull=False), name="message_paid_by"),
            # In no language: the words as they are written, for a workspace may have several.
            GinIndex(SearchVector(words_of(Left("text", SEARCHED)), config="simple"), name="message_words"),
        ]

    def __str__(self) -> str:
        return f"{self.role}: {self.text[:40]}"


class SavedPrompt(models.Model):
    """A text that its owner asks again and again; shared, everybody in the workspace may ask it."""

    id = models.BigAutoField(primary_key=True)
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="saved_prompts")
    title = models.CharField(max_length=80)
    text = models.TextField()
    is_shared = models.BooleanField(default=False)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["title"], condition=models.Q(is_shared=True), name="prompt_shared")]

    def __str__(self) -> str:
        return self.title


class Attachment(models.Model):
    """A file of a question: its words alone, as the model is given them, or an image that we have written anew. Its
    owner's alone, like the conversation; who may read that sees its images, too.
    """

    class Kind(models.TextChoices):
        TEXT = "text"
        MARKDOWN = "markdown", "Markdown"
        CODE = "code"
        TABLE = "table"
        PDF = "pdf", "PDF"
        PNG = "png", "PNG picture"
        JPEG = "jpeg", "JPEG picture"

    id = models.BigAutoField(primary_key=True)
    # Its index is `attachment_unsent`.
    owner = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    # Null until it is sent, like `message_id`, the question's number. No foreign key there: see `Conversation.head_id`.
    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="attachments", null=True)
    message_id = models.BigIntegerField(null=True)
    name = models.CharField(max_length=120)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    # Of the file that came; of an image, those that are kept.
    bytes = models.IntegerField()
    # An image has none, and others have no image.
    text = models.TextField()
    image = models.BinaryField(null=True)
    # The most that its text can be billed with its frame. Never less than the text's bytes. Of an image it is the line
    # that names it, for what an image costs is its model's to say.
    tokens = models.IntegerField()
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [
            models.Index(fields=["owner"], condition=models.Q(message_id=None), name="attachment_unsent"),
            models.Index(fields=["message_id"], name="attachment_of_message"),
        ]

    def __str__(self) -> str:
        return self.name

    @property
    def is_image(self) -> bool:
        return self.kind in IMAGE_KINDS
