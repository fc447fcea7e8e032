"""What people type about the pages that may ask the workspace's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from tenants.models import Tenant
from tenants.origins import EXAMPLE, LONGEST, MOST, NotAnOrigin, origins_in


class OriginsForm(forms.Form):
    origins = forms.CharField(
        label="Origins",
        required=False,
        max_length=MOST * (LONGEST + 2),
        help_text=f"One a line, such as {EXAMPLE}: scheme, host and port, nothing after them. At most {MOST}.",
        widget=forms.Textarea(
            attrs={"rows": 4, "autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}
        ),
    )

    def __init__(self, data: Any = None, *, tenant: Tenant, draft: Mapping[str, Any]) -> None:
        super().__init__(data, initial={"origins": "\n".join(tenant.allowed_origins or []), **draft})

    def clean_origins(self) -> list[str]:
        try:
            return origins_in(self.cleaned_data["origins"])
        except NotAnOrigin as exc:
            raise forms.ValidationError(str(exc)) from None
