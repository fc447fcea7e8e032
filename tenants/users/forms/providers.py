"""What a member types to link an account whose log-in is not of just now."""

from __future__ import annotations

from typing import Any

from tenants.http import TenantRequest
from tenants.users.auth import is_fresh
from tenants.users.forms.security import PasswordAgain


class LinkForm(PasswordAgain):
    """Without a field for whoever has just shown who they are. `is_closed`: nor is there a password to be asked for."""

    def __init__(self, *args: Any, request: TenantRequest, **kwargs: Any) -> None:
        super().__init__(*args, request=request, **kwargs)
        fresh = is_fresh(request)
        self.is_closed = not fresh and "password" not in self.fields
        if fresh:
            self.fields.pop("password", None)
        elif not self.is_closed:
            self.fields["password"].help_text = "You logged in a while ago, so we make sure that it is you."
