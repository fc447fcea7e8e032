"""The one field of whoever asks for a mail that lets them in, or for the way to a workspace that they name."""

from __future__ import annotations

from urllib.parse import urlsplit

from django import forms
from django.conf import settings

from tenants.fields import EmailField
from tenants.slugs import SLUG


class AddressForm(forms.Form):
    email = EmailField(
        label="E-mail",
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True}),
    )


class WorkspaceForm(forms.Form):
    """A workspace by its name or its whole address, as people copy it. Whether there is one is not looked up."""

    slug = forms.CharField(
        label="The workspace’s address",
        max_length=300,
        widget=forms.TextInput(
            attrs={"autocomplete": "off", "autocapitalize": "none", "spellcheck": "false", "autofocus": True}
        ),
    )

    def clean_slug(self) -> str:
        typed: str = self.cleaned_data["slug"].strip().lower()
        try:
            host = urlsplit(typed if "//" in typed else f"//{typed}").hostname or ""
        except ValueError:
            host = ""
        slug = host.removesuffix(".").removesuffix(f".{settings.BASE_DOMAIN}")
        if not SLUG.fullmatch(slug):
            raise forms.ValidationError(f"Write the part before .{settings.BASE_DOMAIN}, or the whole address.")
        return slug
