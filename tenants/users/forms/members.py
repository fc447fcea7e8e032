"""What people type to invite others, to give a role, and to come in by an invitation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from django import forms
from django.contrib.auth.password_validation import validate_password
from django.core.validators import validate_email

from tenants.http import shortened
from tenants.roles import Role
from tenants.spelling import normal_email
from tenants.users.forms.account import new_password_field
from tenants.users.invitations import AT_ONCE, problems_of
from tenants.users.models import User

_BETWEEN = re.compile(r"[\s,;]+")
_LONGEST_EMAIL = 254


class RoleForm(forms.Form):
    """One of the roles that who asks may give."""

    role = forms.ChoiceField(label="Role", error_messages={"invalid_choice": "Choose one of the roles offered."})

    def __init__(self, *args: Any, roles: Sequence[Role], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["role"].choices = [(role.value, role.value.capitalize()) for role in roles]  # type: ignore[attr-defined]


class InviteForm(RoleForm):
    """Many addresses at once. One that cannot be invited is named, and none is sent until all are right: else a form
    that is corrected and sent again would invite the others twice.
    """

    emails = forms.CharField(
        label="E-mail addresses",
        max_length=20_000,
        help_text=f"Up to {AT_ONCE}, with spaces, commas, semicolons or line breaks between them. Nothing is sent "
        "until all of them are right.",
        error_messages={"required": "Type at least one address."},
        widget=forms.Textarea(
            attrs={"rows": 3, "autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
        ),
    )
    field_order = ("emails", "role")

    def clean_emails(self) -> list[str]:
        typed = [part for part in _BETWEEN.split(self.cleaned_data["emails"]) if part]
        if len(typed) > AT_ONCE:
            raise forms.ValidationError(f"These are {len(typed)} addresses. Send at most {AT_ONCE} at a time.")
        found: list[str] = []
        problems: list[str] = []
        for part in typed:
            email = normal_email(part)
            if not _is_address(email):
                problems.append(f"“{shortened(part, 80)}” is not an e-mail address.")
            elif email in found:
                problems.append(f"{email} is named twice.")
            else:
                found.append(email)
        problems += problems_of(found).values()
        if problems:
            raise forms.ValidationError(problems)
        if not found:
            raise forms.ValidationError("Type at least one address.")
        return found


class HandOverForm(forms.Form):
    member = forms.ModelChoiceField(
        queryset=User.objects.none(),
        label="New owner",
        empty_label="Choose a member",
        error_messages={"invalid_choice": "Choose one of the members offered.", "required": "Choose a member."},
    )
    steps_down = forms.BooleanField(label="I become an admin", required=False)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        others = User.objects.filter(is_active=True).exclude(role=Role.OWNER).order_by("email")
        self.fields["member"].queryset = others  # type: ignore[attr-defined]


class AcceptForm(forms.Form):
    password = new_password_field("Choose a password")

    def __init__(self, *args: Any, email: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["password"].widget.attrs["autofocus"] = True
        self._email = email

    def clean_password(self) -> str:
        password: str = self.cleaned_data["password"]
        validate_password(password, User(email=self._email))
        return password


def _is_address(email: str) -> bool:
    if len(email) > _LONGEST_EMAIL:
        return False
    try:
        validate_email(email)
    except forms.ValidationError:
        return False
    return True
