"""What a workspace and a conversation ask of their model: which one, with which system prompt, how freely. Pure.

Owns what `Tenant.chat_settings` means, as far as it is known here. Whether a model may be called is asked elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from chat.history import Message

SYSTEM_MAX = 8_000
MODEL_MAX = 200
TEMPERATURE_MAX = Decimal(2)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Blank and None ask for nothing: of a conversation, what its workspace has set holds then."""

    model: str = ""
    system: str = ""
    temperature: Decimal | None = None

    def over(self, others: Wishes) -> Wishes:
        """These, and where they ask for nothing, the others."""
        return Wishes(
            model=self.model or others.model,
            system=self.system or others.system,
            temperature=others.temperature if self.temperature is None else self.temperature,
        )

    @property
    def opening(self) -> list[Message]:
        """What stands before the first message."""
        return [{"role": "system", "content": self.system}] if self.system else []

    def as_settings(self) -> dict[str, str | None]:
        """As `Tenant.chat_settings` keeps them; None is to be taken out of it."""
        temperature = None if self.temperature is None else str(self.temperature)
        return {"model": self.model or None, "system": self.system or None, "temperature": temperature}


NO_WISHES = Wishes()


def of_workspace(chat_settings: object) -> Wishes:
    """Never raises. A value that is none is not there: a call must not fail for what somebody wrote into the row."""
    if not chat_settings or not isinstance(chat_settings, Mapping):
        return NO_WISHES
    return Wishes(
        model=_text(chat_settings.get("model"), MODEL_MAX),
        system=_text(chat_settings.get("system"), SYSTEM_MAX),
        temperature=_temperature(chat_settings.get("temperature")),
    )


def chosen(asked: str, *, holds: Wishes, workspace: str) -> str | None:
    """What a conversation keeps of a model that was asked for in it: None is no change, blank is to follow the
    workspace, whose model is `workspace`.
    """
    if not asked or asked == holds.model:
        return None
    return "" if asked == workspace else asked


def digest(system: str) -> int | None:
    """By which it is known that a system prompt is still the same; None for none. It fits into a bigint."""
    if not system.strip():
        return None
    return int.from_bytes(hashlib.blake2b(system.encode("utf-8", "replace"), digest_size=8).digest(), signed=True)


def _text(value: Any, most: int) -> str:
    return value if isinstance(value, str) and value.strip() and len(value) <= most else ""


def _temperature(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = Decimal(str(value))
        return number.quantize(Decimal("0.01")) if 0 <= number <= TEMPERATURE_MAX else None
    except InvalidOperation:  # no number, or one that cannot be compared
        return None
