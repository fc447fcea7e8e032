"""What people type to name a key."""

from __future__ import annotations

from django import forms

from tenants.fields import NameField


class KeyForm(forms.Form):
    name = NameField(
        label="Name",
        max_length=100,
        widget=forms.TextInput(attrs={"placeholder": "Production server", "autocomplete": "off"}),
    )
