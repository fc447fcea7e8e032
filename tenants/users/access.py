"""What a member may do here and now: the side of tenants.roles that stands on views.

Owns the decorator that says which action a view is: a page of a tenant's host, an operation of ninja, a view of the
plane. Must not know a table of roles.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar

from tenants.http import Forbidden, PlaneRequest, TenantRequest, wants_json
from tenants.limits import Rate, take
from tenants.roles import Action
from tenants.users.actions import allow
from tenants.users.auth import caller, is_signed_in
from tenants.users.signed_out import signed_out

# Of one member, by forms. Most acts leave a line in the trail, which nobody can delete: who made and revoked keys by a
# script filled the disk with 25 a second. What is bought has its own bounds, and no statement more.
ACTS = Rate("acts", burst=300, every=2.0, words="You have changed a great many things just now.")
BOUGHT = (Action.CHAT, Action.SUMMARIZE)

View = TypeVar("View", bound=Callable[..., Any])


def count_act(request: TenantRequest) -> None:
    """Raises RateLimited. Also for a page to call that writes a line when it is only looked at."""
    # On the bare host an operator acts, who has none.
    take(ACTS, request.tenant.pk if request.tenant else 0, request.user.pk)


def needs(action: Action, *, to_send: Action | None = None, keeps: tuple[str, ...] = ()) -> Callable[[View], View]:
    """For those whose role may do `action`; with a key, whose scopes have it too. Others are 403.

    On a page who is nobody goes to log-in and back; under /api/ that is 401. Outermost but for the method's decorator
    or ninja's. The view says what it is by `view.needs`, which the doors and the tests read; an async view does only
    that, for the plane has asked before it runs, and is refused elsewhere. `to_send`: what sending a page's form is,
    where that is another action than looking. A form does not lose its fields in `keeps` to who sends them and is
    signed out: see tenants.users.drafts, also for how they are written.
    """

    def decorate(view: View) -> View:
        if hasattr(view, "_ninja_operation"):
            # Ninja keeps the view as it was given: what is marked later asks nobody, and whoever may chat may call.
            name = getattr(view, "__name__", repr(view))
            raise TypeError(f"{name} is an operation already: write @needs below its @router.post, or it asks nobody.")
        if inspect.iscoroutinefunction(view):
            return _on_the_plane(view, action)

        @wraps(view)
        def checked(request: TenantRequest, *args: Any, **kwargs: Any) -> Any:
            return (of_api if wants_json(request) else of_page)(request, *args, **kwargs)

        def of_api(request: TenantRequest, *args: Any, **kwargs: Any) -> Any:
            caller(request)
            assert request.asker is not None  # `caller` has found one, or has raised
            allow(request.asker, action)
            return view(request, *args, **kwargs)

        def of_page(request: TenantRequest, *args: Any, **kwargs: Any) -> Any:
            if not is_signed_in(request):
                return signed_out(request, keeps)
            is_sent = request.method not in ("GET", "HEAD")
            wanted = (to_send or action) if is_sent else action
            if not request.user.may(wanted):
                raise Forbidden(
                    "Your role in this workspace does not allow this. An owner or an admin can change it.",
                    needs=wanted.value,
                )
            if is_sent and wanted not in BOUGHT:
                count_act(request)
            return view(request, *args, **kwargs)

        checked.needs, checked.keeps = action, keeps  # type: ignore[attr-defined]
        return _as_ninja_reads_it(checked, view)

    return decorate


def _on_the_plane(view: View, action: Action) -> View:
    @wraps(view)
    async def marked(request: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(request, PlaneRequest):
            # Web asks nobody before a view, and here, on a loop, it could not.
            raise RuntimeError(f"{view.__name__} is async: name it in config/urls_plane.py, or make it sync.")
        return await view(request, *args, **kwargs)

    marked.needs = action  # type: ignore[attr-defined]
    return _as_ninja_reads_it(marked, view)


def _as_ninja_reads_it(wrapper: Any, view: View) -> View:
    """Ninja reads the parameters' types, and would look for their names in this module."""
    with suppress(NameError):
        wrapper.__signature__ = inspect.signature(view, eval_str=True)
    return wrapper  # type: ignore[no-any-return]
