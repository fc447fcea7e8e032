"""What both planes answer about themselves: the probes and this document. Describes; each plane's own code answers."""

from __future__ import annotations

from billing.authority.openapi.words import Opens, Operation, ref
from billing.authority.tracing import HEALTH_MEDIA

_HEALTH = ref("Health")

PROBES = {
    "GET /actuator/health": Operation("Is the plane up?", Opens.ADMIN, {200: _HEALTH}, media=HEALTH_MEDIA),
    "GET /actuator/health/liveness": Operation(
        "Does the plane answer?", Opens.NOTHING, {200: _HEALTH}, media=HEALTH_MEDIA
    ),
    "GET /actuator/health/readiness": Operation(
        "Does its database answer?", Opens.NOTHING, {200: _HEALTH, 503: _HEALTH}, media=HEALTH_MEDIA
    ),
    "GET /api-docs": Operation("This document.", Opens.ADMIN, {200: {"type": "object"}}),
}
