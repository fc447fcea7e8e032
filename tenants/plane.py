"""The plane's one middleware: who asks, and what becomes of a failure. The counterpart of web's tenants.middleware.

Runs on the loop: no ORM, no thread. The SQL that tenants.resolve wants goes through `settings.PLANE_SQL`, the name of
an async `fetch(sql, params)`, for whoever serves the plane owns its connections.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.http import Http404, HttpResponse, HttpResponseBase, JsonResponse
from django.utils.log import log_response
from django.utils.module_loading import import_string

from tenants.context import bind
from tenants.headers import PlaneHeaders
from tenants.http import (
    ApiError,
    NotFound,
    PlaneRequest,
    TenantRequired,
    error_response,
    mark_private,
    mark_varying,
)
from tenants.kept import Fetch
from tenants.middleware import as_api_error, refuse_costly_form, said_as_ours
from tenants.resolve import aanswered, find_member, find_tenant
from tenants.users.actions import action_of, allow

GetResponse = Callable[[PlaneRequest], Awaitable[HttpResponseBase]]


class PlaneMiddleware:
    """Every request that reaches a view has a tenant and a member: `request.tenant`, `.asker` and `.auth`.

    Anything that is raised further in ends here, as JSON.
    """

    async_capable, sync_capable = True, False

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._headers = PlaneHeaders()

    async def __call__(self, request: PlaneRequest) -> HttpResponseBase:
        if request.path_info in ("/healthz", "/readyz"):
            response: HttpResponseBase = await _health(request)
        else:
            response = await self._answer(request)
        self._headers.set(request, response)
        return response

    async def _answer(self, request: PlaneRequest) -> HttpResponseBase:
        # The task is this request's own, so the tenant stays bound for as long as its stream runs.
        bind(None)
        try:
            await self._enter(request)
            response = said_as_ours(request, await self.get_response(request))
        except Exception as exc:
            response = _failed(request, exc)
        mark_varying(response)
        mark_private(response)
        return response

    async def _enter(self, request: Any) -> None:
        request.tenant = request.asker = request.auth = None
        refuse_costly_form(request)
        found = await aanswered(find_tenant(request), _fetch())
        request.tenant, request.asker = found.tenant, found.asker
        bind(found.tenant)

    async def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> None:
        """Every view here buys, so none is reached by nobody, nor by who may not. An address that is not there is 404
        to anyone.
        """
        if request.tenant is None:
            raise TenantRequired
        if request.asker is None:
            request.asker = await aanswered(find_member(request, request.tenant), _fetch())
        allow(request.asker, action_of(view, request.method))
        request.auth = request.asker.user


def _fetch() -> Fetch:
    fetch: Fetch = import_string(settings.PLANE_SQL)
    return fetch


def _failed(request: PlaneRequest, exc: Exception) -> HttpResponse:
    if isinstance(exc, Http404):
        return error_response(request, NotFound())
    if error := as_api_error(exc):
        return error_response(request, error)
    response = error_response(request, ApiError())
    log_response("%s: %s", response.reason_phrase, request.path, response=response, request=request, exception=exc)
    return response


async def _health(request: PlaneRequest) -> HttpResponse:
    """The plane's own; /readyz of the whole is web's."""
    problems = []
    if request.path_info == "/readyz":
        try:
            await _fetch()("SELECT 1", ())
        except Exception as exc:
            if as_api_error(exc) is None:
                raise
            problems.append("database: does not answer")
    body: dict[str, Any] = {"status": "not_ready" if problems else "ok"}
    if problems:
        body["not_ready"] = problems
    return JsonResponse(body, status=503 if problems else 200, headers={"Cache-Control": "no-store"})
