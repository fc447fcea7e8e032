"""What people type to change their workspace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from tenants.fields import NameField
from tenants.models import Tenant
from tenants.slugs import slug_problem
from tenants.time_zones import choices


class DetailsForm(forms.Form):
    name = NameField(
        label="Name",
        max_length=100,
        help_text="Shown on every page and in mails.",
        widget=forms.TextInput(attrs={"autocomplete": "organization"}),
    )
    time_zone = forms.ChoiceField(
        label="Time zone", help_text="Times on the workspace’s pages are shown in it. The API says them in UTC."
    )

    def __init__(self, data: Any = None, *, tenant: Tenant, draft: Mapping[str, Any]) -> None:
        super().__init__(data, initial={"name": tenant.name, "time_zone": tenant.time_zone, **draft})
        offered: list[Any] = list(choices())
        # One that an operator has set, or that this machine no longer knows, is not lost by changing the name.
        if not any(tenant.time_zone == name for _, zones in offered for name, _ in zones):
            offered.insert(0, (tenant.time_zone, tenant.time_zone))
        self.fields["time_zone"].choices = offered  # type: ignore[attr-defined]


class AddressForm(forms.Form):
    slug = forms.CharField(
        label="New address",
        max_length=32,
        strip=False,
        help_text="3 to 32 lower-case letters, digits and hyphens.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false"}),
    )

    def __init__(self, data: Any = None, *, tenant: Tenant, draft: Mapping[str, Any]) -> None:
        super().__init__(data, initial={"slug": tenant.slug, **draft})
        self._tenant = tenant

    def clean_slug(self) -> str:
        slug: str = self.cleaned_data["slug"]
        if slug == self._tenant.slug:
            raise forms.ValidationError("This is the workspace’s address already.")
        if problem := slug_problem(slug):
            raise forms.ValidationError(problem)
        return slug
