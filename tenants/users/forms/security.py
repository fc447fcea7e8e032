"""What people type to set up a second step, to take it, and to turn it off."""

from __future__ import annotations

from typing import Any

from django import forms

from tenants.http import TenantRequest
from tenants.users.auth import is_fresh
from tenants.users.forms.own_password import WithOwnPassword
from tenants.users.second_step import Kind, take_code

WRONG_CODE = "This code is wrong, or was used already. Wait for the next one that your app shows."
WRONG_RECOVERY_CODE = "This recovery code is wrong, or was used already."


def _code_field(*, help_text: str = "", **attrs: Any) -> forms.CharField:
    widget = forms.TextInput(
        attrs={"autocomplete": "one-time-code", "inputmode": "numeric", "spellcheck": "false", **attrs}
    )
    return forms.CharField(label="Code from your app", max_length=40, widget=widget, help_text=help_text)


class PasswordAgain(WithOwnPassword):
    """That it is still the member who is at this browser. Who has no password must have logged in just now."""

    def __init__(self, *args: Any, request: TenantRequest, **kwargs: Any) -> None:
        super().__init__(*args, request=request, **kwargs)
        if not request.user.has_usable_password():
            del self.fields["password"]

    def clean(self) -> dict[str, Any]:
        if "password" in self.fields:
            return super().clean()
        if not self.errors and not is_fresh(self.request):
            raise forms.ValidationError("Log out and in again first, then come back here within ten minutes.")
        return self.cleaned_data


class FirstCodeForm(forms.Form):
    """The code that shows that the app has the secret. What it is compared with is the view's."""

    code = _code_field()


class PasswordAndCode(PasswordAgain):
    """What turning the second step off costs. The code is looked at once the password is right, and is then used."""

    code = _code_field(help_text="A recovery code does, too.", inputmode="text")

    def clean(self) -> dict[str, Any]:
        data = super().clean()
        if not self.errors and take_code(self.request.user, data["code"], request=self.request) is None:
            self.add_error("code", WRONG_CODE)
        return data


class CodeForm(forms.Form):
    """The second step of a log-in, by either kind of code, whichever was asked for."""

    code = _code_field(autofocus=True)

    kind: Kind

    def __init__(self, *args: Any, request: TenantRequest, user: Any, by_recovery: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request, self.user, self.by_recovery = request, user, by_recovery
        if by_recovery:
            self.fields["code"].label = "Recovery code"
            self.fields["code"].widget.attrs.update(inputmode="text", autocomplete="off", autocapitalize="none")

    def clean_code(self) -> str:
        """Raises RateLimited."""
        code: str = self.cleaned_data["code"]
        kind = take_code(self.user, code, request=self.request)
        if kind is None:
            raise forms.ValidationError(WRONG_RECOVERY_CODE if self.by_recovery else WRONG_CODE)
        self.kind = kind
        return code
