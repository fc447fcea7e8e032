"""Hosts and addresses: normalising what came in, building what goes out. Never builds a link from a Host header."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.conf import settings
from django.http import HttpRequest


def normal_host(request: HttpRequest) -> str:
    """The request's host in lower case, without port and without one trailing dot. May raise DisallowedHost."""
    host = request.get_host().lower()
    if not host.startswith("["):
        host = host.partition(":")[0]
    return host.removesuffix(".")


def host_for(slug: str) -> str:
    return f"{slug}.{settings.BASE_DOMAIN}"


def url_for(slug: str, path: str = "/") -> str:
    """An absolute address on a tenant's host: http://acme.localhost:8000/."""
    return f"{origin_of(host_for(slug))}{path}"


def origin_of(host: str) -> str:
    """As a browser's Origin header names it: http://acme.localhost:8000."""
    site = urlsplit(settings.SITE_URL)
    port = f":{site.port}" if site.port else ""
    return f"{site.scheme}://{host}{port}"


def every_workspace() -> str:
    """All workspaces' hosts, as a Content-Security-Policy names them: http://*.localhost:8000."""
    return url_for("*", path="")


def site_url(path: str = "/") -> str:
    return f"{settings.SITE_URL}{path}"
