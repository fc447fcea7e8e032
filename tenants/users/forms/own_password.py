"""The password that a member types once more, wherever a page asks for it: how it looks, and how it is looked at."""

from __future__ import annotations

from typing import Any

from django import forms
from django.http import HttpRequest

from tenants.http import TenantRequest
from tenants.users.failures import note_failure
from tenants.users.forms.signing_in import PASSWORD_LENGTH
from tenants.users.guesses import Guess
from tenants.users.models import User

WRONG = "This is not your password."


def own_password_field(label: str = "Your password") -> forms.CharField:
    return forms.CharField(
        label=label,
        strip=False,
        max_length=PASSWORD_LENGTH,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )


def is_own_password(request: HttpRequest, user: User, password: str) -> bool:
    """Whether it is the member's. A browser that was left open is no way to guess it: a try counts as one at log-in.

    Raises RateLimited: see LoginForm.
    """
    guess = Guess.of(request, user.email)
    with guess.place():
        guess.begin()
        try:
            is_right = user.check_password(password)
        except Exception:
            guess.was_not_made()
            raise
    if is_right:
        guess.was_right()
    else:
        guess.was_wrong()
        note_failure(request, user.email)
    return is_right


class WithOwnPassword(forms.Form):
    """A form that costs the password of now. It is looked at once the rest is right: nothing is guessed by a form that
    is wrong elsewhere.
    """

    password = own_password_field()

    def __init__(self, *args: Any, request: TenantRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request

    def clean(self) -> dict[str, Any]:
        """Raises RateLimited."""
        data = super().clean() or {}
        if not self.errors and not is_own_password(self.request, self.request.user, data["password"]):
            self.add_error("password", WRONG)
        return data
