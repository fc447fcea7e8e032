"""What a password must be, beside what Django asks of it."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ValidationError

from tenants.spelling import is_blank


class NotBlank:
    """Refuses what nobody can see: ten spaces are long enough for every other rule."""

    def validate(self, password: str, user: Any = None) -> None:
        if is_blank(password):
            raise ValidationError("Use characters that can be seen.", code="password_blank")

    def get_help_text(self) -> str:
        return "Your password must have characters that can be seen."
