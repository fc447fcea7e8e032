"""A workspace's people, and everything by which one of them gets in: keys, links, sessions, second steps, invitations.

Lives in every schema. Refers to nothing outside its own, so that a tenant's schema can move to another machine.
Whatever opens a door lies here as a digest, or sealed where it must be had again.
"""

from __future__ import annotations

from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.utils import timezone

from tenants.roles import Action, Role, may, role_choices
from tenants.spelling import email_forms, normal_email, normal_password, password_forms

HASHES = 2


class UserManager(BaseUserManager["User"]):
    def create_user(self, email: str, password: str | None = None, **fields: Any) -> User:
        user = self.model(email=normal_email(email), **fields)
        user.set_password(password)
        user.save()
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> User:
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> User:
        user = self.with_email(username or "")
        if user is None:
            raise User.DoesNotExist
        return user

    def with_email(self, email: str) -> User | None:
        """Whose address it is, however it is spelled here and was spelled when it was stored."""
        forms = email_forms(email)
        return min(self.filter(email__in=forms), key=lambda user: forms.index(user.email), default=None)


class User(AbstractBaseUser, PermissionsMixin):
    """A member of one workspace (or, in the public schema, an operator)."""

    id = models.BigAutoField(primary_key=True)
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)
    is_active = models.BooleanField(default=True)
    # Defaults of the database, for code of before that inserts without them.
    role = models.CharField(max_length=20, choices=role_choices, default="member", db_default="member")
    date_joined = models.DateTimeField(default=timezone.now)
    # When this person showed that the address is theirs; null: not yet.
    email_confirmed_at = models.DateTimeField(null=True)
    # Since when a code is asked for after the password; null: it is not.
    second_step_at = models.DateTimeField(null=True)
    # Who was removed, or has left, is not active; what they made stays.
    removed_at = models.DateTimeField(null=True)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    def __str__(self) -> str:
        return self.email

    @property
    def is_owner(self) -> bool:
        return self.role == Role.OWNER

    def may(self, action: Action) -> bool:
        return may(self.role, action)

    def set_password(self, raw_password: str | None) -> None:
        super().set_password(None if raw_password is None else normal_password(raw_password))

    def check_password(self, raw_password: str | None) -> bool:
        """A composed and a decomposed password are the same one, also to a hash of before there was a normal form.

        At most two hashes: a third of a second each, and a stranger chooses what is typed.
        """
        forms = [None] if raw_password is None else password_forms(raw_password)[:HASHES]
        return any(super(User, self).check_password(form) for form in forms)

    async def acheck_password(self, raw_password: str | None) -> bool:
        return await sync_to_async(self.check_password)(raw_password)


class ApiKey(models.Model):
    """A member's key to the API. The secret is shown once; here lies its SHA-256 (256 random bits need no salt).

    `sealed_secret` is the slot from which the page shows it: filled between the form and the page that follows it.
    """

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=100)
    prefix = models.CharField(max_length=12, db_index=True)
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
    # A default of the database, for code of before that inserts without it.
    sealed_secret = models.TextField(default="", db_default="", editable=False)
    # Of tenants.roles.SCOPES; null is a key of before there were scopes, which may do what its owner may.
    scopes = models.JSONField(null=True)
    expires_at = models.DateTimeField(null=True)
    # The key in whose place this one was made, which goes on for a while.
    replaces = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, related_name="replaced_by")
    # Whether it has ledgers of its own at the authority.
    has_limit = models.BooleanField(default=False, db_default=False)
    # The features for which it has them; null: none. A key with a limit buys nothing else: no ledger would count it.
    limited_apps = models.JSONField(null=True)
    # The first of the keys that this one was rotated from, in whose name it spends: one limit is over them all.
    spends_as = models.BigIntegerField(null=True)
    # The models that it may call, of those that its workspace may; null: all of them.
    allowed_models = models.JSONField(null=True)
    # How much it may ask for: {"requests": a minute, "tokens": a minute, "concurrent": at once}. What is missing, or
    # null, has no limit of its own.
    rates = models.JSONField(null=True)

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_active(self) -> bool:
        return self.revoked_at is None and not self.has_expired

    @property
    def has_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= timezone.now()

    def revoke(self) -> bool:
        """At once and for good; whether it was this that did it."""
        live = ApiKey.objects.filter(pk=self.pk, revoked_at=None)
        return live.update(revoked_at=timezone.now(), sealed_secret="") == 1

    @property
    def spender(self) -> int:
        """The id in whose name it spends."""
        return self.spends_as or self.pk


class HandoffToken(models.Model):
    """One sign-in, carried from the bare host to the tenant's: 60 seconds, used once."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"hand-off of {self.user_id}"


class Link(models.Model):
    """What a mail carries to one person: used once, until it expires. The secret is in the mail alone.

    `email` is the address that it was sent to, and so the one that using it proves.
    """

    class Purpose(models.TextChoices):
        RESET = "reset", "Choose a new password"
        CONFIRM = "confirm", "Confirm an e-mail address"
        CHANGE = "change", "Move to another e-mail address"
        LOG_IN = "log_in", "Log in"

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    purpose = models.CharField(max_length=10, choices=Purpose.choices)
    email = models.EmailField()
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.purpose} of {self.user_id}"


class Invitation(models.Model):
    """Somebody who may come in with a role. The mail has its link; sent again it is another, and the first one ends."""

    id = models.BigAutoField(primary_key=True)
    email = models.EmailField()
    role = models.CharField(max_length=20, choices=role_choices)
    invited_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    sent_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["email"],
                condition=models.Q(accepted_at=None, revoked_at=None),
                name="invitation_one_open_for_each_address",
            )
        ]

    def __str__(self) -> str:
        return f"{self.email} as {self.role}"


class MemberSession(models.Model):
    """A browser that is logged in: Django's session, with what its person needs to know it by."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sessions")
    session_key = models.CharField(max_length=40, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField(default=timezone.now)
    address = models.CharField(max_length=45, blank=True)
    agent = models.CharField(max_length=200, blank=True)
    # How it began: password, link, invitation, sign-up, new address, a provider's key; with "+code" where the second
    # step was taken.
    method = models.CharField(max_length=60, blank=True)

    def __str__(self) -> str:
        return f"session {self.pk} of {self.user_id}"


class Totp(models.Model):
    """The secret behind the codes of one person's authenticator app (RFC 6238). Counts once `confirmed_at` is set."""

    id = models.BigAutoField(primary_key=True)
    user = models.OneToOneField(User, on_delete=models.CASCADE, related_name="totp")
    sealed_secret = models.TextField()
    # The newest interval of which a code was taken: none is taken twice.
    last_interval = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(auto_now_add=True)
    confirmed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"codes of {self.user_id}"


class RecoveryCode(models.Model):
    """A code that opens once in place of the app's, for whoever has lost it."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="recovery_codes")
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"recovery code of {self.user_id}"


class Identity(models.Model):
    """One person at one identity provider: `subject` is the provider's own name for them, and never changes."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="identities")
    provider = models.CharField(max_length=40)
    subject = models.CharField(max_length=255)
    # As the provider said it when it was linked: for people to read, and nothing is found by it.
    email = models.EmailField(blank=True)
    linked_at = models.DateTimeField(auto_now_add=True)
    used_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["provider", "subject"], name="identity_opens_one_account"),
            models.UniqueConstraint(fields=["user", "provider"], name="identity_one_of_each_provider"),
        ]

    def __str__(self) -> str:
        return f"{self.provider} of {self.user_id}"
