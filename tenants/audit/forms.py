"""What the trail can be filtered by, as people and addresses say it."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django import forms

from tenants.audit.events import Event
from tenants.audit.reading import Filter
from tenants.audit.words import area_of, area_words, events_of, words_for
from tenants.spelling import normal_email

NO_PAGE = "That page is not there. Begin at the newest."
# A date near the calendar's ends has no instant in some time zones.
FIRST, LAST = date(2000, 1, 1), date(2199, 12, 31)


def _choices() -> list[Any]:
    areas = dict.fromkeys(area_of(event.value) for event in Event)
    groups: list[Any] = [("", "Everything")]
    for area in areas:
        of_it = [(event, words_for(event)) for event in events_of(area)]
        groups.append((area_words(area), [(area, f"All: {area_words(area)}"), *of_it]))
    return groups


def _date_field(label: str) -> forms.DateField:
    return forms.DateField(
        label=label,
        required=False,
        input_formats=["%Y-%m-%d"],
        widget=forms.DateInput(attrs={"type": "date"}, format="%Y-%m-%d"),
        error_messages={"invalid": "Write a date such as 2026-11-30."},
    )


class TrailForm(forms.Form):
    """All optional. What is odd is said at its field, and nothing is listed: a filter left out would show too much."""

    who = forms.CharField(
        label="Person",
        required=False,
        max_length=254,
        help_text="An e-mail address: what they did, and what was done to them. Or “operator”, or “system”.",
        # Not of type "email", which would refuse the last two.
        widget=forms.TextInput(attrs={"inputmode": "email", "autocomplete": "off", "autocapitalize": "none"}),
    )
    what = forms.ChoiceField(label="What", required=False, choices=_choices)
    since = _date_field("From")
    until = _date_field("To")
    # The last row of the page before.
    before = forms.IntegerField(required=False, min_value=1, max_value=2**63 - 1, widget=forms.HiddenInput)

    def clean_who(self) -> str:
        return normal_email(self.cleaned_data["who"].removeprefix("the "))

    def clean_since(self) -> date | None:
        return _within(self.cleaned_data["since"])

    def clean_until(self) -> date | None:
        return _within(self.cleaned_data["until"])

    def clean(self) -> dict[str, Any]:
        data = super().clean() or {}
        if "before" in self.errors:
            # No field of it is to be seen.
            self.add_error(None, NO_PAGE)
        if (since := data.get("since")) and (until := data.get("until")) and since > until:
            self.add_error("until", "This is before the first date.")
        return data

    def filter(self, zone: ZoneInfo) -> Filter:
        """Whole days, in the workspace's time zone."""
        data = self.cleaned_data
        what = data["what"]
        return Filter(
            who=data["who"],
            events=[] if not what else [what] if "." in what else events_of(what),
            since=_midnight(data["since"], zone),
            until=_midnight(data["until"] and data["until"] + timedelta(days=1), zone),
        )


def _within(day: date | None) -> date | None:
    if day is not None and not FIRST <= day <= LAST:
        raise forms.ValidationError(f"Write a date from {FIRST} to {LAST}.")
    return day


def _midnight(day: date | None, zone: ZoneInfo) -> datetime | None:
    return None if day is None else datetime.combine(day, time(), zone)
