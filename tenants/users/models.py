"""Users with e-mail log-in, their API keys, and the single-use tokens of the sign-in hand-off.

Lives in every schema. Refers to nothing outside its own, so that a tenant's schema can move to another machine.
"""

from __future__ import annotations

from typing import Any, ClassVar

from asgiref.sync import sync_to_async
from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.utils import timezone

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
    is_owner = models.BooleanField(default=False)
    date_joined = models.DateTimeField(default=timezone.now)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"

    def __str__(self) -> str:
        return self.email

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

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix}…)"

    @property
    def is_active(self) -> bool:
        return self.revoked_at is None

    def revoke(self) -> None:
        """At once and for good; a second time changes nothing."""
        ApiKey.objects.filter(pk=self.pk, revoked_at=None).update(revoked_at=timezone.now(), sealed_secret="")


class HandoffToken(models.Model):
    """One sign-in, carried from the bare host to the tenant's: 60 seconds, used once."""

    id = models.BigAutoField(primary_key=True)
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="+")
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"hand-off of {self.user_id}"
