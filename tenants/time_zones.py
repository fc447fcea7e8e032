"""The time zones that a workspace may choose from, and the one in which a request's pages show their times.

Programs are not concerned: the API says every moment in UTC.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from zoneinfo import ZoneInfo, available_timezones

from django.http import HttpResponseBase
from django.utils import timezone

from tenants.http import TenantRequest, wants_json

UTC = "UTC"
# The others of the database are old names for the same, or no places.
_AREAS = (
    "Africa",
    "America",
    "Antarctica",
    "Asia",
    "Atlantic",
    "Australia",
    "Europe",
    "Indian",
    "Pacific",
)
Choices = list[tuple[str, list[tuple[str, str]]]]


@cache
def choices() -> Choices:
    """For a select: the names by area, each as people read it."""
    names = sorted(available_timezones())
    places = [(area, [(name, _place(name)) for name in names if name.startswith(f"{area}/")]) for area in _AREAS]
    return [("No area", [(UTC, UTC)]), *((area, found) for area, found in places if found)]


def _place(name: str) -> str:
    """America/Argentina/Buenos_Aires: Argentina, Buenos Aires."""
    return ", ".join(name.split("/")[1:]).replace("_", " ")


def zone_of(name: str) -> ZoneInfo:
    """UTC where this machine does not know the name (any more): a page must not fail for its times."""
    try:
        return ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        return ZoneInfo(UTC)


class TimeZoneMiddleware:
    """A workspace's pages show times in its zone; and the thread's next request begins without one."""

    def __init__(self, get_response: Callable[[TenantRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: TenantRequest) -> HttpResponseBase:
        if request.tenant is None or wants_json(request):
            return self.get_response(request)
        timezone.activate(zone_of(request.tenant.time_zone))
        try:
            return self.get_response(request)
        finally:
            timezone.deactivate()
