"""Fields of forms that read what people type in its one spelling, before they judge it. How it is spelled: spelling.

And where the cursor is when a form comes back.
"""

from __future__ import annotations

from typing import Any

from django import forms

from tenants.spelling import is_blank, normal_email, normal_name, normal_password


class NameField(forms.CharField):
    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return normal_name(text) if isinstance(text, str) else text


class EmailField(forms.EmailField):
    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return normal_email(text) if isinstance(text, str) else text


class NewPasswordField(forms.CharField):
    """A password that is chosen. One that is only compared stays as it was typed: User.check_password knows why."""

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return normal_password(text) if isinstance(text, str) else text


class TextField(forms.CharField):
    """A longer text, kept as it was written. Nothing to see is nothing written."""

    def to_python(self, value: Any) -> Any:
        text = super().to_python(value)
        return "" if isinstance(text, str) and is_blank(text) else text


def focus_on_error(form: forms.BaseForm) -> None:
    """Put the cursor where something is to be mended: the first wrong field, or else the password, which is not kept.

    A field is read out with what is wrong with it, and so is a password with what is wrong with the whole form.
    """
    if not form.errors:
        return
    wrong = [name for name in form.fields if name in form.errors]
    emptied = [name for name, field in form.fields.items() if isinstance(field.widget, forms.PasswordInput)]
    for name, field in form.fields.items():
        if name in emptied and not wrong:
            field.widget.attrs["aria-describedby"] = f"form-errors {form[name].aria_describedby or ''}".strip()
        field.widget.attrs["autofocus"] = name == next(iter(wrong or emptied), None)
