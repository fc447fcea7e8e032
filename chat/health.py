"""Is the embedded model loaded? An external one is no part of being ready: it is somebody else's to watch."""

from __future__ import annotations

import httpx
from django.conf import settings


def model_ready() -> str | None:
    if not settings.MODEL_IS_EMBEDDED:
        return None
    try:
        answer = httpx.get(f"{settings.LLM_BASE_URL.removesuffix('/v1')}/health", timeout=1.0, trust_env=False)
    except httpx.HTTPError:
        return "model: does not answer"
    return None if answer.status_code == 200 else "model: still loading"
