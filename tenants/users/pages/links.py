"""What the pages behind mailed links have in common: none tells its address on, and a dead link is one page."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.http import HttpResponse
from django.shortcuts import render

from tenants.http import TenantRequest

View = Callable[..., HttpResponse]


def keep_address(view: View) -> View:
    """The page's address has a secret in it: others are told where the page is from, and no path.

    "no-referrer" would do that as well, but browsers then say `Origin: null` of the page's own form, and CSRF's check
    refuses it.
    """

    @wraps(view)
    def kept(request: TenantRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        response = view(request, *args, **kwargs)
        response["Referrer-Policy"] = "strict-origin"
        return response

    return kept


def worthless(request: TenantRequest) -> HttpResponse:
    """Unknown, used, too old, or another workspace's: one answer."""
    return render(request, "users/dead_link.html", status=404)
