"""What a member may do here and now: the page's side of tenants.roles.

Owns the decorator that stands on every view of a tenant's host. Must not know a table of roles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from django.contrib.auth.decorators import login_required
from django.http import HttpResponseBase

from tenants.http import Forbidden, TenantRequest
from tenants.roles import Action

View = TypeVar("View", bound=Callable[..., HttpResponseBase])


def needs(action: Action) -> Callable[[View], View]:
    """A page for members whose role may do `action`: others are 403, and who is nobody goes to log-in and back.

    Outermost but for the method's decorator. The view says what it is by `view.needs`, which the tests read.
    """

    def decorate(view: View) -> View:
        @login_required
        @wraps(view)
        def checked(request: TenantRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if not request.user.may(action):
                raise Forbidden("Your role in this workspace does not allow this. An owner or an admin can change it.")
            return view(request, *args, **kwargs)

        checked.needs = action  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate
