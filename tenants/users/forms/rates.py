"""What people type about how much a key may ask for."""

from __future__ import annotations

from typing import Any

from django import forms
from django.conf import settings

from tenants.rates import MOST, RATES
from tenants.users.models import ApiKey

LABELS = {"requests": "Requests a minute", "tokens": "Tokens a minute", "concurrent": "Calls at once"}
WHAT = {
    "requests": "",
    "tokens": "Of questions and answers together. A request counts with the most that it may need, and once it is "
    "answered with what it did.",
    "concurrent": "",
}


class RatesForm(forms.Form):
    """A field for each rate; one that is left empty sets no limit."""

    def __init__(self, data: Any = None, *, key: ApiKey) -> None:
        super().__init__(data, initial=key.rates or {})
        for rate in RATES:
            self.fields[rate] = _field(rate, settings.KEY_RATES.get(rate))

    def rates(self) -> dict[str, int]:
        return {rate: self.cleaned_data[rate] for rate in RATES if self.cleaned_data[rate] is not None}


def _field(rate: str, most: int | None) -> forms.IntegerField:
    site = f"Whoever runs this site allows {most:,} at most, also where nothing is written here." if most else ""
    none = "the site’s limit" if most else "no limit"
    return forms.IntegerField(
        label=LABELS[rate],
        required=False,
        min_value=1,
        max_value=most or MOST,
        help_text=" ".join(text for text in (WHAT[rate], site) if text),
        widget=forms.TextInput(
            attrs={"inputmode": "numeric", "autocomplete": "off", "placeholder": f"at most {most:,}" if most else none}
        ),
        error_messages={
            "invalid": f"Write a whole number without signs, or nothing for {none}.",
            "min_value": f"Write 1 or more, or nothing for {none}. A key that may ask for nothing is revoked instead.",
            "max_value": "Write at most %(limit_value)s.",
        },
    )
