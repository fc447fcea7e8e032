"""What somebody typed into a form that came to nothing, for the page that says why.

The form may be gone for them: who may no longer send it may not open its page any more either, so that Back loses a
prompt of an hour's work. Owns what of it is shown, and to whom: who sent it from a page of this very host. Must not
look anybody up, for the database may be what failed.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest
from django.urls import Resolver404, resolve


def is_from_here(request: HttpRequest) -> bool:
    said = urlsplit(request.headers.get("Origin") or request.headers.get("Referer", ""))
    return (said.scheme, said.netloc) == (request.scheme, request.get_host())


def longest_text(request: HttpRequest) -> str:
    """Of what the form's view does not lose to a log-in (`keeps` of tenants.users.access.needs), the longest."""
    if request.method != "POST" or not is_from_here(request):
        return ""
    try:
        # Nobody has looked yet where the database failed before the view was known.
        match = request.resolver_match or resolve(request.path_info, settings.ROOT_URLCONF)
    except Resolver404:
        return ""
    return max((request.POST.get(name, "") for name in getattr(match.func, "keeps", ())), key=len, default="")
