"""What people type about money: a sign-up, by the same rules for the page and for the API; and a limit."""

from __future__ import annotations

import re
from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password

from billing.money import microcents
from billing.plans import DEFAULT_PLAN, plans_by_sign_up
from tenants.fields import EmailField, NameField, NewPasswordField, TextField
from tenants.http import TenantRequest
from tenants.slugs import slug_problem
from tenants.users.forms.own_password import WithOwnPassword
from tenants.users.models import User


class SignUpForm(forms.Form):
    name = NameField(
        label="Workspace name",
        max_length=100,
        widget=forms.TextInput(attrs={"autocomplete": "organization", "autofocus": True}),
    )
    slug = forms.CharField(
        label="Address",
        max_length=32,
        strip=False,
        help_text="3 to 32 lower-case letters, digits and hyphens.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
    )
    email = EmailField(label="E-mail", max_length=254, widget=forms.EmailInput(attrs={"autocomplete": "email"}))
    password = NewPasswordField(
        label="Password",
        strip=False,
        max_length=1_024,
        help_text="At least 10 characters.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )
    plan = forms.ChoiceField(
        choices=lambda: [(plan.name, plan.name) for plan in plans_by_sign_up()],
        required=False,
        widget=forms.HiddenInput,
    )

    def clean_slug(self) -> str:
        slug: str = self.cleaned_data["slug"]
        if problem := slug_problem(slug):
            raise forms.ValidationError(problem)
        return slug

    def clean_plan(self) -> str:
        return self.cleaned_data["plan"] or DEFAULT_PLAN

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if password := data.get("password"):
            try:
                validate_password(password, User(email=data.get("email", "")))
            except forms.ValidationError as exc:
                self.add_error("password", exc)
        return data


class DeleteForm(WithOwnPassword):
    """That it is meant, and that it is the owner who means it."""

    slug = forms.CharField(
        label="The workspace’s address",
        max_length=32,
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
    )

    field_order = ["slug", "password"]

    def __init__(self, *args: Any, request: TenantRequest, **kwargs: Any) -> None:
        super().__init__(*args, request=request, **kwargs)
        self.fields["slug"].help_text = f"Type “{request.tenant.slug}” to confirm."

    def clean_slug(self) -> str:
        slug: str = self.cleaned_data["slug"].strip().lower()
        if slug != self.request.tenant.slug:
            raise forms.ValidationError(f"Type “{self.request.tenant.slug}”, as it stands here.")
        return slug


class DollarsField(forms.CharField):
    """Dollars as people write them, to the cent or finer; its value is microcents."""

    # No float, no exponent, no comma: 1,50 is one thing in Berlin and another in Boston.
    _AMOUNT = re.compile(r"\$? ?([0-9]{1,6}(\.[0-9]{1,8})?)")

    def clean(self, value: Any) -> int:
        text = super().clean(value)
        if not (amount := self._AMOUNT.fullmatch(text)):
            raise forms.ValidationError("Write an amount in US dollars below 1000000, such as 2 or 2.50.")
        return microcents(amount[1])


class LimitForm(forms.Form):
    amount = DollarsField(
        label="US dollars a period",
        max_length=20,
        widget=forms.TextInput(attrs={"inputmode": "decimal", "autocomplete": "off", "placeholder": "2.00"}),
    )


class AskForm(forms.Form):
    note = TextField(
        label="A word to them",
        max_length=500,
        required=False,
        widget=forms.Textarea(attrs={"rows": 3, "dir": "auto"}),
        help_text="If you like: what you need it for.",
    )
