"""Static files, found once a process: each of Django's test clients looks for all of them, and tests make thousands.

Owns the finding alone; what is served of them, and how, is the middleware's as ever.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from django.conf import settings

NAMES = ("STATIC_ROOT", "STATIC_URL", "STATICFILES_DIRS", "STATICFILES_FINDERS", "INSTALLED_APPS", "WHITENOISE_ROOT")


def once(find: Callable[[Any], None]) -> Callable[[Any], None]:
    """`find`, done again only under other settings: 8 ms of a core each time."""
    kept: dict[str, dict[str, Any]] = {}

    @functools.wraps(find)
    def found(middleware: Any) -> None:
        key = repr([getattr(settings, name, None) for name in NAMES])
        if key not in kept:
            find(middleware)
            kept[key] = dict(middleware.files)
        middleware.files.update(kept[key])

    return found
