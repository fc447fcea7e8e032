"""What people type about their own account: a password, and where to reach them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password
from django.http import HttpRequest

from tenants.fields import EmailField, NewPasswordField
from tenants.users.failures import note_failure
from tenants.users.forms.signing_in import PASSWORD_LENGTH
from tenants.users.guesses import Guess
from tenants.users.models import User


def new_password_field() -> NewPasswordField:
    return NewPasswordField(
        label="New password",
        strip=False,
        max_length=1_024,
        help_text="At least 10 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )


class AskResetForm(forms.Form):
    email = EmailField(
        label="E-mail", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True})
    )


class NewPasswordForm(forms.Form):
    """A new password for `user`, held to the same rules as a first one."""

    new_password = new_password_field()

    def __init__(self, *args: Any, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.user = user
        self.fields["new_password"].widget.attrs["autofocus"] = True

    def clean_new_password(self) -> str:
        password: str = self.cleaned_data["new_password"]
        validate_password(password, self.user)
        return password


class _WithPassword(forms.Form):
    """Asks for the password of now, with the limits of log-in: a browser that was left open is no way to guess it."""

    password = forms.CharField(
        label="Password",
        strip=False,
        max_length=PASSWORD_LENGTH,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

    def __init__(self, *args: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request, self.user = request, user

    def clean(self) -> dict[str, Any]:
        """Raises RateLimited: see LoginForm. Nothing is guessed by a form that is wrong elsewhere."""
        data = super().clean() or {}
        if self.errors:
            return data
        guess = Guess.of(self.request, self.user.email)
        with guess.place():
            guess.begin()
            try:
                is_right = self.user.check_password(data["password"])
            except Exception:
                guess.was_not_made()
                raise
        if is_right:
            guess.was_right()
        else:
            guess.was_wrong()
            note_failure(self.request, self.user.email)
            self.add_error("password", "This is not your password.")
        return data


class ChangePasswordForm(_WithPassword):
    new_password = new_password_field()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password"].label = "Current password"

    def clean_new_password(self) -> str:
        password: str = self.cleaned_data["new_password"]
        validate_password(password, self.user)
        return password


class ChangeEmailForm(_WithPassword):
    email = EmailField(label="New e-mail", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "email"}))

    field_order = ["email", "password"]

    def clean_email(self) -> str:
        email: str = self.cleaned_data["email"]
        if email == self.user.email:
            raise forms.ValidationError("This is your address already.")
        return email
