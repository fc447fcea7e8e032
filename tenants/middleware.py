"""Web's way from request to tenant, and back to nobody.

Owns entering the tenant that tenants.resolve finds, the reset after it, health before it, how many threads streams
may take, and the one place where an ApiError becomes a response. Must not know what a tenant may spend. The plane's
way: tenants.plane.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
from django.conf import settings
from django.core.exceptions import BadRequest, PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import InterfaceError, InternalError, OperationalError, connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.middleware.common import CommonMiddleware
from django.shortcuts import redirect
from django.utils.module_loading import import_string

from tenants.bodies import FORMS, check_form
from tenants.context import enter, is_bound, leave, unbound, unbound_async
from tenants.hosts import url_for
from tenants.http import (
    ApiError,
    Forbidden,
    Invalid,
    MethodNotAllowed,
    TooLarge,
    Unavailable,
    Unreadable,
    error_response,
    mark_private,
    mark_varying,
    wants_json,
)
from tenants.resolve import answered, find_tenant
from tenants.sealing import SealedUnderAnotherKey

GetResponse = Callable[[HttpRequest], HttpResponseBase]

_FORM_OF_A_PAGE = re.compile(r"(/settings/[^/]+/|/c/[0-9]+/|/prompts/|/(?=c/files/)).+")


def as_api_error(exc: Exception) -> ApiError | None:
    """The ApiError that `exc` is or means; None where it is a defect and should be seen as one."""
    if isinstance(exc, ApiError):
        return exc
    if isinstance(exc, RequestDataTooBig):
        return TooLarge()
    if isinstance(exc, PermissionDenied):
        return Forbidden()
    # Too many fields, a broken multipart body, a charset that is not UTF-8.
    if isinstance(exc, SuspiciousOperation | MultiPartParserError | BadRequest | UnreadablePostError):
        return Invalid({"body": ["This cannot be read as it was sent."]})
    # The database is down, or every connection of the pool is taken: say so, rather than a stack.
    if isinstance(exc, OperationalError | InterfaceError | psycopg.OperationalError | psycopg.InterfaceError):
        return Unavailable()
    # Or it takes nothing: its host makes it so while its disk is full, or has put another in its place. Django has one
    # name for this and for defects.
    if isinstance(exc.__cause__ if isinstance(exc, InternalError) else exc, psycopg.errors.ReadOnlySqlTransaction):
        return Unavailable()
    if isinstance(exc, SealedUnderAnotherKey):
        return Unreadable(why=str(exc))
    return None


def refuse_costly_form(request: HttpRequest) -> None:
    """Before anything looks into request.POST, as the check against forged forms does for strangers, too.

    The body is kept as it came: what wants JSON then finds a body that is none, where a form had used it up.
    """
    if request.method == "POST" and request.content_type in FORMS:
        is_multipart = request.content_type == FORMS[1]
        check_form(request.body, boundary=_boundary(request) if is_multipart else None)


def _boundary(request: HttpRequest) -> str:
    return (request.content_params or {}).get("boundary", "")


class HealthMiddleware:
    """/healthz and /readyz on any host: health checks come by address, not by name."""

    # For so long an answer of /readyz is everybody's: each costs as much as a page or two, and anybody may ask.
    KEPT_SECONDS = 1.0
    # A look that takes longer hangs, and what was found before it is no answer any more.
    LOOK_SECONDS = 5.0

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._looking = threading.Lock()
        self._found: list[str] | None = None
        self._began_at = self._found_at = 0.0

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info == "/healthz":
            return JsonResponse({"status": "ok"}, headers={"Cache-Control": "no-store"})
        if request.path_info == "/readyz":
            return self._ready()
        return self.get_response(request)

    def _ready(self) -> HttpResponse:
        problems = self._problems()
        body = {"status": "not_ready" if problems else "ready", "not_ready": problems}
        return JsonResponse(body, status=503 if problems else 200, headers={"Cache-Control": "no-store"})

    def _problems(self) -> list[str]:
        """One thread looks. Meanwhile, but not for long, others say what was found last."""
        if not self._looking.acquire(blocking=False):
            hangs = self._found is None or time.monotonic() - self._began_at > self.LOOK_SECONDS
            return ["readiness: is still being looked at"] if hangs else self._found or []
        try:
            self._began_at = time.monotonic()
            if self._found is None or self._began_at - self._found_at > self.KEPT_SECONDS:
                self._found = self._look()
                self._found_at = time.monotonic()
            return self._found
        finally:
            self._looking.release()

    def _look(self) -> list[str]:
        problems: list[str] = []
        for check in map(import_string, settings.READINESS_CHECKS):
            # A database that is away is waited for once, not by each that would ask it.
            if problems and getattr(check, "asks_the_database", False):
                continue
            if problem := check():
                problems.append(problem)
        return problems


class TenantMiddleware:
    """Enters the tenant that tenants.resolve finds, and leaves the thread on public afterwards.

    A thread of the server's is for nobody then. Middleware above that goes on with the request's rows would otherwise
    read public's, and `request.user.save()` write over the operator who has the member's number.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        back = partial(leave, unbound=not is_bound())
        try:
            enter(None)
            moved_to = self._enter(request)
            response: HttpResponseBase = redirect(moved_to) if moved_to else self.get_response(request)
        except Exception as exc:
            error = as_api_error(exc)
            if error is None:
                raise
            response = error_response(request, error)
        finally:
            # The thread serves another customer next; whatever runs after us must not find this one.
            back()
        if response.streaming:
            response._resource_closers.append(back)  # type: ignore[attr-defined]
            # A file is handed to the server as one.
            if getattr(response, "file_to_stream", None) is None:
                alone = unbound_async if response.is_async else unbound  # type: ignore[attr-defined]
                response.streaming_content = alone(response.streaming_content)  # type: ignore[attr-defined]
        mark_varying(response)
        if request.tenant is not None or wants_json(request):  # type: ignore[attr-defined]
            mark_private(response)
        return response

    def _enter(self, request: Any) -> str | None:
        """Where to go instead: who opens a page at an address that the workspace had before. Programs go on there."""
        request.tenant = request.asker = None
        request.urlconf = settings.PUBLIC_SCHEMA_URLCONF
        refuse_costly_form(request)
        found = answered(find_tenant(request))
        if found.tenant is not None:
            enter(found.tenant)
            # Sets the search path now, and so finds a schema that is gone before there is a tenant whose pages, the
            # error's too, would want it.
            with connection.cursor():
                pass
            request.tenant, request.asker = found.tenant, found.asker
            request.urlconf = settings.ROOT_URLCONF
            if found.has_moved and request.method in ("GET", "HEAD") and not wants_json(request):
                return url_for(found.tenant.slug, request.get_full_path())
        return None


class StreamMiddleware:
    """Streams of web take at most WEB_STREAMS of a worker's threads, half of them; one more is 503 `unavailable`.

    Django writes a stream on the thread of its request, for as long as its reader takes: sixteen slow ones would stop
    every page of every tenant. A place is taken before the view runs, so that a view that buys is not refused once it
    has bought; which views stream is learned from their first answer. The place is free again when the response is
    closed, which a server does however it ends. Many streams belong in the plane, where they take no thread.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response
        self._places = threading.BoundedSemaphore(settings.WEB_STREAMS)
        self._views: set[Any] = set()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.stream_place = False  # type: ignore[attr-defined]
        response = self.get_response(request)
        has_place: bool = request.stream_place  # type: ignore[attr-defined]
        if not response.streaming:
            if has_place:
                self._places.release()
            return response
        if request.resolver_match is not None:
            self._views.add(request.resolver_match.func)
        if not has_place and not self._places.acquire(blocking=False):
            for close in response._resource_closers:  # type: ignore[attr-defined]
                close()
            return error_response(request, Unavailable())
        response._resource_closers.append(self._places.release)  # type: ignore[attr-defined]
        return response

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        if view in self._views:
            if not self._places.acquire(blocking=False):
                return error_response(request, Unavailable())
            request.stream_place = True  # type: ignore[attr-defined]
        return None


class SlashMiddleware(CommonMiddleware):
    """Django's, but for the API: a redirect to the slash would lose a POST's body."""

    def should_redirect_with_slash(self, request: HttpRequest) -> bool:
        return not wants_json(request) and super().should_redirect_with_slash(request)


def said_as_ours(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    """Django's own 405, in our words. But the address of a form alone leads to the page that it is on.

    People come to it who reload what their form was answered with, or who log in on the way.
    """
    if response.status_code != 405:
        return response
    form = _FORM_OF_A_PAGE.match(request.path_info)
    if form and request.method in ("GET", "HEAD") and response.headers.get("Allow") == "POST":
        return redirect(form[1])
    ours = error_response(request, MethodNotAllowed())
    ours["Allow"] = response.headers.get("Allow", "")
    return ours


class ApiErrorMiddleware:
    """The one place where an ApiError raised below becomes its response."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return said_as_ours(request, self.get_response(request))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        error = as_api_error(exception)
        return None if error is None else error_response(request, error)
