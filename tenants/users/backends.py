"""Who an e-mail and a password are: Django's backend, with our spellings and without telling who is a member."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.backends import BaseBackend, ModelBackend
from django.http import HttpRequest

from tenants.users.models import User


class MemberBackend(ModelBackend):
    """Takes as long for an address that nobody has as for a wrong password.

    Django's own hashes once for a stranger; a member's password is compared in each of its forms.
    """

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **kwargs: Any
    ) -> User | None:
        username = kwargs.get(User.USERNAME_FIELD) if username is None else username
        if username is None or password is None:
            return None
        member = User.objects.with_email(username)
        # Nobody's password is none, and Django hashes all the same before it says that it is wrong.
        is_right = (member or User(password="!")).check_password(password)  # noqa: S106
        return member if member is not None and is_right and self.user_can_authenticate(member) else None

    # The same on a thread; ModelBackend has another for each.
    aauthenticate = BaseBackend.aauthenticate  # type: ignore[assignment]
