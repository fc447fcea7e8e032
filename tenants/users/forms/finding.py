"""The one field of whoever asks for a mail that lets them in."""

from __future__ import annotations

from django import forms

from tenants.fields import EmailField


class AddressForm(forms.Form):
    email = EmailField(
        label="E-mail",
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "autofocus": True}),
    )
