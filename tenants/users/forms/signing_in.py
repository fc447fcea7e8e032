"""What people type to get in."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth import authenticate
from django.http import HttpRequest

from tenants.fields import EmailField
from tenants.users.failures import note_failure
from tenants.users.guesses import Guess
from tenants.users.models import User

# As long as any that can have been chosen: a longer one is wrong before it is hashed.
PASSWORD_LENGTH = 4_096


class LoginForm(forms.Form):
    email = EmailField(label="E-mail", widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True}))
    password = forms.CharField(
        label="Password",
        strip=False,
        max_length=PASSWORD_LENGTH,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

    user: User

    def __init__(self, *args: Any, request: HttpRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean(self) -> dict[str, Any]:
        """Raises RateLimited: the answer has a status of its own then, and says how long to wait."""
        data = super().clean() or {}
        if self.errors:
            return data
        guess = Guess.of(self.request, data["email"])
        with guess.place():
            guess.begin()
            try:
                user = authenticate(self.request, username=data["email"], password=data["password"])
            except Exception:
                guess.was_not_made()
                raise
        if not isinstance(user, User):
            guess.was_wrong()
            note_failure(self.request, data["email"])
            raise forms.ValidationError("This e-mail and password do not match a member of this workspace.")
        guess.was_right()
        self.user = user
        return data
