"""What a member types to link an account whose log-in is not of just now."""

from __future__ import annotations

from typing import Any

from django import forms

from tenants.http import TenantRequest
from tenants.users.forms.signing_in import PASSWORD_LENGTH
from tenants.users.guesses import Guess
from tenants.users.identities import is_fresh


class LinkForm(forms.Form):
    """Without a field for whoever has just logged in. `is_closed`: there is no password that could be asked for."""

    password = forms.CharField(
        label="Your password here",
        strip=False,
        max_length=PASSWORD_LENGTH,
        help_text="You logged in a while ago, so we make sure that it is you.",
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )

    def __init__(self, *args: Any, request: TenantRequest, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.request = request
        fresh = is_fresh(request)
        self.is_closed = not fresh and not request.user.has_usable_password()
        if fresh or self.is_closed:
            del self.fields["password"]

    def clean(self) -> dict[str, Any]:
        if self.is_closed:
            raise forms.ValidationError("Log out, log in again, and come back within ten minutes.")
        return super().clean() or {}

    def clean_password(self) -> str:
        """Raises RateLimited: it is guessed no faster here than at log-in."""
        password: str = self.cleaned_data["password"]
        guess = Guess.of(self.request, self.request.user.email)
        with guess.place():
            guess.begin()
            try:
                is_right = self.request.user.check_password(password)
            except Exception:
                guess.was_not_made()
                raise
        if not is_right:
            guess.was_wrong()
            raise forms.ValidationError("This is not your password here.")
        guess.was_right()
        return password
