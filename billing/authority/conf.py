"""The authority's own settings by name: they exist in `config.settings_authority` only, which no app may import."""

from __future__ import annotations

from typing import Any

from django.conf import settings


def setting(name: str) -> Any:
    return getattr(settings, name)
