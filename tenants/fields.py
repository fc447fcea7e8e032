"""Fields of forms that read what people type in its one spelling, before they judge it. How it is spelled: spelling."""

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
