"""What people type about their own account: a password, and where to reach them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password

from tenants.fields import EmailField, NewPasswordField
from tenants.users.forms.own_password import WithOwnPassword, own_password_field
from tenants.users.models import User


def new_password_field(label: str = "New password") -> NewPasswordField:
    return NewPasswordField(
        label=label,
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


class ChangePasswordForm(WithOwnPassword):
    password = own_password_field("Current password")
    new_password = new_password_field()

    def clean_new_password(self) -> str:
        password: str = self.cleaned_data["new_password"]
        validate_password(password, self.request.user)
        return password


class ChangeEmailForm(WithOwnPassword):
    email = EmailField(label="New e-mail", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "email"}))
    password = own_password_field("Password")

    field_order = ["email", "password"]

    def clean_email(self) -> str:
        email: str = self.cleaned_data["email"]
        if email == self.request.user.email:
            raise forms.ValidationError("This is your address already.")
        return email
