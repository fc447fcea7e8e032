"""The composer's form, for readers without script."""

from __future__ import annotations

from typing import Any

from django import forms

from chat.attached import MOST_FILES
from chat.wishes import MODEL_MAX
from tenants.fields import NameField, TextField
from tenants.spelling import number_in

PROMPT_MAX = 20_000
MAX_TOKENS_MAX = 1_000_000
# Of a row.
NUMBER_MAX = 2**63 - 1


class FilesField(forms.Field):
    """Numbers of files, each in a hidden field of its own."""

    widget = forms.MultipleHiddenInput

    def to_python(self, value: Any) -> list[int]:
        numbers = [number for text in value or () if (number := number_in(text)) is not None]
        if len(numbers) < len(value or ()):
            raise forms.ValidationError("One of the files is not there any more. Remove it and add it again.")
        if len(numbers) > MOST_FILES:
            raise forms.ValidationError(f"{MOST_FILES} files go into one message. Send or remove some first.")
        return numbers


class PromptForm(forms.Form):
    prompt = TextField(
        label="Message",
        max_length=PROMPT_MAX,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Ask something…"}),
    )
    conversation_id = forms.IntegerField(required=False, min_value=1, max_value=NUMBER_MAX, widget=forms.HiddenInput)
    # The message that this one follows, 0 for none; empty: the last one shown.
    parent_id = forms.IntegerField(required=False, min_value=0, max_value=NUMBER_MAX, widget=forms.HiddenInput)
    max_tokens = forms.IntegerField(
        label="Longest answer, in tokens", required=False, min_value=1, max_value=MAX_TOKENS_MAX
    )
    # Whether it may be called is asked where it is bought; empty: the conversation's own.
    model = forms.CharField(label="Model", required=False, max_length=MODEL_MAX)
    # The button of a refusal: the longest answer that fits, in the place of `max_tokens`.
    fits = forms.IntegerField(required=False, min_value=1, max_value=MAX_TOKENS_MAX, widget=forms.HiddenInput)

    files = FilesField(required=False)  # type: ignore[assignment]  # no attribute of the form, as each field is none
    # A file that was chosen and not added: a form that is sent without script names it here, and has nothing of it.
    file = forms.CharField(required=False)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if cleaned.pop("file", ""):
            self.add_error(None, "The file that you chose is not added yet. Choose it again, press Add, and then send.")
        if fits := cleaned.pop("fits", None):
            cleaned["max_tokens"] = fits
        return cleaned


class MessageForm(forms.Form):
    """A message of a conversation, as the buttons under it name it."""

    message_id = forms.IntegerField(min_value=1, max_value=NUMBER_MAX)


class TitleForm(forms.Form):
    title = NameField(
        label="Title", max_length=80, widget=forms.TextInput(attrs={"dir": "auto", "autocomplete": "off"})
    )
